"""Push and pull against a Hub on loopback; the full round trip runs each side in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import FakeHub
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.hub.publish import checkpoint_files, planned_upload, push_checkpoint
from allmrec_hf.sharing import check_sizes

pytestmark = pytest.mark.usefixtures("plain_transfer")

FILES = {
    "config.json": json.dumps({"model_type": "bert"}),
    "README.md": "---\nlicense: mit\npipeline_tag: recommendation\n---\n# Card\n",
    "model.safetensors": "weights",
    "items.parquet": "catalogue",
    "tokenizer.json": "{}",
    "modeling_shim.py": "pass",
    "text_encoder/model.safetensors": "encoder",
    "text_encoder/1_Pooling/config.json": "{}",
    "language_model/config.json": "{}",
}
STRAY_FILES = [
    "checkpoints/step-10/model.safetensors",
    "checkpoints/step-10/optimizer.safetensors",
    ".model.safetensors.77.tmp",
    "model.safetensors.tmp",
    "training.log",
    "optimizer.pt",
    "tokenizer.pkl",
    "text_encoder/pytorch_model.bin",
    "text_encoder/.cache/x.json",
    "events.out.tfevents.1",
    "user_ranks.parquet",
    "__pycache__/modeling_shim.py",
]


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "run [1]"
    for name in [*FILES, *STRAY_FILES]:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILES.get(name, "stray"))
    return directory


def push(hub, checkpoint, repo_id="me/model", **arguments):
    return push_checkpoint(checkpoint, repo_id, endpoint=hub.endpoint, **arguments)


def test_only_the_checkpoint_is_named_for_upload(checkpoint):
    assert checkpoint_files(checkpoint) == sorted(FILES)


def test_a_link_out_of_the_folder_is_not_uploaded(checkpoint, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (checkpoint / "generation_config.json").symlink_to(secret)
    assert checkpoint_files(checkpoint) == sorted(FILES)


def test_a_folder_that_is_no_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        checkpoint_files(tmp_path / "nowhere")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        checkpoint_files(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is no JSON"):
        checkpoint_files(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        checkpoint_files(checkpoint)


def test_push_makes_the_repository_and_uploads_the_checkpoint(fake_hub, checkpoint):
    assert push(fake_hub, checkpoint, private=True) == f"{fake_hub.endpoint}/me/model"
    assert fake_hub.files("me/model") == {name: content.encode() for name, content in FILES.items()}
    assert fake_hub.repos["model", "me/model"].private


def test_a_second_push_replaces_the_weights_and_keeps_other_files(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    fake_hub.files("me/model")["NOTES.md"] = b"by hand"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model-00001-of-00002.safetensors").write_text("one")
    (checkpoint / "model-00002-of-00002.safetensors").write_text("two")
    push(fake_hub, checkpoint)
    files = fake_hub.files("me/model")
    assert files["NOTES.md"] == b"by hand"
    assert files["model-00002-of-00002.safetensors"] == b"two"
    assert "model.safetensors" not in files


def test_a_revision_becomes_a_branch_and_leaves_main_alone(fake_hub, checkpoint):
    assert push(fake_hub, checkpoint, revision="v1") == f"{fake_hub.endpoint}/me/model/tree/v1"
    assert fake_hub.files("me/model", "main") == {}
    assert set(fake_hub.files("me/model", "v1")) == set(FILES)


def test_a_dry_run_names_every_file_with_its_size_and_sends_nothing(fake_hub, checkpoint):
    assert planned_upload(checkpoint) == {name: len(content.encode()) for name, content in FILES.items()}
    assert fake_hub.requests == []


def test_a_push_is_one_commit(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    assert len(fake_hub.repos["model", "me/model"].messages) == 2  # the first made the repository


def test_a_pull_request_leaves_the_branch_alone(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    (checkpoint / "README.md").write_text("another card")
    assert push(fake_hub, checkpoint, create_pr=True) == f"{fake_hub.endpoint}/me/model/discussions/1"
    assert fake_hub.files("me/model")["README.md"] == FILES["README.md"].encode()
    assert fake_hub.files("me/model", "refs/pr/1")["README.md"] == b"another card"


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("hf_" + "a1B2" * 9, "a Hugging Face token"),
        ("ghp_" + "x" * 36, "a GitHub token"),
        ("sk-proj-" + "k" * 40, "an API key"),
        ("AKIA" + "A1" * 8, "an AWS key id"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    ],
)
def test_a_secret_is_never_published_nor_shown(fake_hub, checkpoint, secret, kind):
    (checkpoint / "README.md").write_text(f"token: {secret}\n")
    for refused in (lambda: push(fake_hub, checkpoint), lambda: planned_upload(checkpoint)):
        with pytest.raises(ALLMRecError, match=rf"README.md holds what looks like {kind}") as caught:
            refused()
        assert secret not in str(caught.value)
    assert fake_hub.requests == []


def test_a_file_that_the_hub_does_not_take_is_refused(checkpoint):
    with pytest.raises(ALLMRecError, match=r"model\.safetensors has .* smaller shards"):
        check_sizes(checkpoint, ["model.safetensors"], largest=4)


def test_a_refused_token_is_explained(checkpoint):
    with FakeHub(token="hf_right") as hub:
        with pytest.raises(ALLMRecError, match=r"(?s)the Hub refused 'me/model'.*hf auth login"):
            push(hub, checkpoint, token="hf_wrong")
        assert hub.repos == {}
        push(hub, checkpoint, token="hf_right")
        assert set(hub.files("me/model")) == set(FILES)


def test_a_malformed_id_is_explained(fake_hub, checkpoint):
    with pytest.raises(ALLMRecError, match="'me/too/many' is no repository id"):
        push(fake_hub, checkpoint, repo_id="me/too/many")


def test_a_hub_out_of_reach_is_explained(checkpoint):
    hub = FakeHub().start()
    endpoint = hub.endpoint
    hub.stop()
    with pytest.raises(ALLMRecError, match=r"the Hub at .* cannot be reached"):
        push_checkpoint(checkpoint, "me/model", endpoint=endpoint)


def test_a_pushed_model_loads_through_every_class(fake_hub, tmp_path):
    directory = str(tmp_path / "model")
    pushed = f"""
import torch
from transformers import BertConfig, BertModel
from allmrec_hf.hub.card import ALLMRecCard, write_card
from allmrec_hf.hub.publish import push_checkpoint
torch.manual_seed(0)
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=11)
model = BertModel(config)
model.save_pretrained({directory!r})
write_card(ALLMRecCard(name="tiny"), {directory!r})
push_checkpoint({directory!r}, "me/tiny")
print(sum(parameter.double().sum() for parameter in model.parameters()).item())
"""
    pulled = """
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from transformers import AutoModel
model = AutoModel.from_pretrained("me/tiny")
folder = Path(snapshot_download("me/tiny"))
names = sorted(path.name for path in folder.iterdir())
assert names == ["README.md", "config.json", "model.safetensors", "model_card.json"], names
assert Path(hf_hub_download("me/tiny", "config.json")).read_bytes() == (folder / "config.json").read_bytes()
assert ModelCard.load("me/tiny").data.library_name == "allmrec-hf"
assert HfApi().model_info("me/tiny").pipeline_tag == "recommendation"
assert HfApi().file_exists("me/tiny", "README.md") and not HfApi().file_exists("me/tiny", "nothing")
print(sum(parameter.double().sum() for parameter in model.parameters()).item())
"""
    before = fake_hub.run_python(pushed, home=tmp_path / "home").stdout
    after = fake_hub.run_python(pulled, home=tmp_path / "fresh").stdout
    assert before.split()[-1] == after.split()[-1]


def test_private_repositories_open_to_their_token_only(checkpoint, tmp_path):
    with FakeHub(token="hf_right") as hub:
        push(hub, checkpoint, token="hf_right", private=True)
        arguments = {"repo_id": "me/model", "filename": "config.json", "endpoint": hub.endpoint}
        path = hf_hub_download(**arguments, token="hf_right", cache_dir=tmp_path / "cache")
        assert json.loads(Path(path).read_text()) == {"model_type": "bert"}
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(**arguments, token="hf_wrong", cache_dir=tmp_path / "other")
