"""Pushing a light checkpoint whose parts lie in folders of this machine: refused, carried, or named on the Hub."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from allmrec_hf import ALLMRecError, ALLMRecModel
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.hub.card import ALLMRecCard, read_card, write_card
from allmrec_hf.hub.publish import push_checkpoint
from allmrec_hf.part_sources import public_name
from tests.small_run import write_llm, write_text_encoder
from tests.tiny import tiny_model, tiny_processor

pytestmark = pytest.mark.usefixtures("plain_transfer")


@pytest.fixture
def run(tmp_path):
    """Return a run folder whose LLM and frozen text encoder lie elsewhere on this machine, with a card."""
    secret = tmp_path / "secret-project"
    llm, encoder = write_llm(secret / "llm"), write_text_encoder(secret / "te")
    model = tiny_model(base_model_name_or_path=str(llm), text_encoder_name_or_path=str(encoder))
    folder = tmp_path / "run"
    tiny_processor().save_pretrained(folder)
    model.save_pretrained(folder)
    card = ALLMRecCard("small", base_model=public_name(str(llm)), text_encoder=public_name(str(encoder)))
    write_card(card, folder)
    return folder


def push(hub, run, **choices):
    push_checkpoint(run, "me/m", endpoint=hub.endpoint, **choices)
    return hub.files("me/m")


def assert_private(files, run):
    for name, content in files.items():
        assert b"secret-project" not in content, name
        assert str(run).encode() not in content, name


def test_a_checkpoint_that_nobody_else_could_load_is_refused_with_its_remedies(fake_hub, run):
    with pytest.raises(ALLMRecError) as told:
        push(fake_hub, run)
    for words in ("--include-llm", "--llm-id", "--include-text-encoder", "--text-encoder-id", str(run.parent)):
        assert words in str(told.value)
    with pytest.raises(ALLMRecError, match="--text-encoder-id"):
        push(fake_hub, run, include_llm=True)
    assert fake_hub.repos == {}


def test_included_parts_go_along_and_the_run_folder_stays_as_it_was(fake_hub, run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    expected = ALLMRecModel.from_pretrained(run).score(**tiny_processor()([[1, 2]], [[5, 6]]))
    files = push(fake_hub, run, include_llm=True, include_text_encoder=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert_private(files, run)
    shutil.rmtree(tmp_path / "secret-project")
    for name, content in files.items():
        (tmp_path / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    pulled = ALLMRecModel.from_pretrained(tmp_path / "pulled")
    torch.testing.assert_close(pulled.score(**tiny_processor()([[1, 2]], [[5, 6]])), expected)
    assert pulled.text_encoder.encode("a film").shape == (12,)
    assert b"The checkpoint carries the language model's weights." in files["README.md"]
    assert read_card(tmp_path / "pulled").includes_base_model


def test_parts_named_on_the_hub_are_named_in_config_and_card(fake_hub, run):
    files = push(fake_hub, run, llm_id="org/llm", text_encoder_id="org/encoder")
    assert_private(files, run)
    config = json.loads(files["config.json"])
    assert (config["base_model_name_or_path"], config["text_encoder_name_or_path"]) == ("org/llm", "org/encoder")
    assert not config["language_model_included"]
    assert b"base_model: org/llm" in files["README.md"]
    assert not any(name.startswith(("language_model/", "text_encoder/")) for name in files)
    assert json.loads((run / "config.json").read_text())["base_model_name_or_path"] != "org/llm"


@pytest.mark.parametrize("name", ["./llm", "/models/llm", "demo", "a/b/c"])
def test_an_id_that_is_none_is_refused(fake_hub, run, name):
    with pytest.raises(ALLMRecError, match="--llm-id takes an id of the Hub"):
        push(fake_hub, run, llm_id=name)


def test_words_written_by_hand_stay_and_a_path_in_them_is_refused(fake_hub, run):
    (run / "README.md").write_text("# Mine\n")
    choices = {"llm_id": "org/llm", "text_encoder_id": "org/encoder"}
    assert push(fake_hub, run, **choices)["README.md"] == b"# Mine\n"
    (run / "README.md").write_text(f"# Mine\n\nmade from {run.parent / 'secret-project' / 'llm'}\n")
    with pytest.raises(ALLMRecError, match=r"name paths of this machine .*README.md"):
        push(fake_hub, run, **choices)


@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "tokenizer_config.json", "processor_config.json"])
def test_a_path_in_any_file_is_refused(fake_hub, run, name):
    path = run / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, "note": [{"from": str(run.parent / "secret-project" / "llm")}]}))
    with pytest.raises(ALLMRecError, match=f"name paths of this machine .*{name}"):
        push(fake_hub, run, llm_id="org/llm", text_encoder_id="org/encoder")
    assert fake_hub.repos == {}


def test_a_model_with_parts_of_the_package_is_pushed_as_it_is(fake_hub, run):
    content = json.loads((run / "config.json").read_text())
    content.update(base_model_name_or_path="demo", text_encoder_name_or_path="demo")
    (run / "config.json").write_text(json.dumps(content))
    assert json.loads(push(fake_hub, run)["config.json"])["base_model_name_or_path"] == "demo"


def test_data_whose_source_is_a_path_are_not_pushed(small_data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *a, **k: pytest.fail("asked the Hub"))
    told = PreparedData(
        small_data.interactions,
        small_data.catalog,
        small_data.candidate_frame,
        {**small_data.info, "source": "/home/somebody/secret/log.csv"},
        small_data.directory,
    )
    with pytest.raises(ALLMRecError, match=r"name paths of this machine .*dataset.json"):
        told.push_to_hub("me/data")


@pytest.mark.parametrize("named", [False, True], ids=["as it is", "parts named on the Hub"])
def test_a_checkpoint_without_a_handler_gets_one_in_what_is_uploaded(fake_hub, run, tmp_path, named):
    folder = run
    if not named:
        folder = tmp_path / "whole"
        tiny_processor().save_pretrained(folder)
        tiny_model().save_pretrained(folder, include_llm=True)
    for name in ("handler.py", "requirements.txt"):
        (folder / name).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    pushed = push(fake_hub, folder, **({"llm_id": "me/llm", "text_encoder_id": "me/te"} if named else {}))
    assert b"EndpointHandler" in pushed["handler.py"]
    assert pushed["requirements.txt"] == b"allmrec-hf\n"
    assert pushed["model.safetensors"] == before["model.safetensors"]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    if not named:
        assert pushed["README.md"] == before["README.md"]
