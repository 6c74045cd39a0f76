import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_weights import sasrec_weights
from safetensors.torch import load_file

from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.histories import pad_histories

PARITY = Path(__file__).parent / "parity" / "sasrec.safetensors"
HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "num_heads": 2, "max_history_length": 10, "initializer_range": 0.3}
    model = SASRecModel(SASRecConfig(**{**values, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def published():
    return load_file(PARITY)


def published_model(published, attend_padding=True):
    config = SASRecConfig(num_items=130, hidden_size=20, max_history_length=15, attend_padding=attend_padding)
    model = SASRecModel(config).eval()
    model.load_state_dict(sasrec_weights(published))
    return model


@torch.no_grad()
def test_states_and_logits_equal_the_published_program(published):
    model = published_model(published)
    history = published["input.history"]
    real = history != 0
    states = model.sequence_states(history, real)
    torch.testing.assert_close(states[real], published["output.states"][real], rtol=1e-4, atol=1e-5)
    for kind in ("positive", "negative"):
        items = published[f"input.{kind}"]
        logits = (states * model.item_embeddings[items]).sum(-1)
        torch.testing.assert_close(logits[real], published[f"output.{kind}_logits"][real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_published_program_lets_short_histories_attend_to_padding(published):
    """Full histories agree in both modes, short ones only with `attend_padding`."""
    history = published["input.history"]
    states = published_model(published, attend_padding=False).sequence_states(history)
    difference = (states - published["output.states"]).abs()[:, -1].amax(-1)
    full = (history != 0).all(dim=1)
    assert difference[full].max() < 1e-4
    assert difference[~full].min() > 1e-2


@pytest.mark.parametrize("attend_padding", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_batch_equals_one_by_one_whatever_the_padding(attend_padding, attention):
    model = tiny(attend_padding=attend_padding, attn_implementation=attention)
    together = model.encode_users(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        alone = model.encode_users(*pad_histories([history], 10))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend_padding", [False, True])
@torch.no_grad()
def test_eager_attention_equals_sdpa(attend_padding):
    models = [tiny(attend_padding=attend_padding, attn_implementation=name) for name in ("sdpa", "eager")]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(*(model.sequence_states(*batch) for model in models), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend_padding", [False, True])
def test_a_state_does_not_depend_on_later_items(attend_padding):
    model = tiny(attend_padding=attend_padding)
    item_ids = torch.tensor([[0, 1, 2, 3, 4]])
    model.sequence_states(item_ids)[0, 2].pow(3).sum().backward()  # the plain sum of a normalised state is constant
    moved = model.item_embedding.weight.grad.abs().sum(-1)
    assert (moved[[1, 2]] > 0).all()
    assert not moved[[0, 3, 4]].any()


@pytest.mark.parametrize("attend_padding", [False, True])
@torch.no_grad()
def test_user_representation_is_the_last_state(attend_padding):
    model = tiny(attend_padding=attend_padding)
    batch = pad_histories(HISTORIES, 10)
    expected = model.sequence_states(*batch)[:, -1]
    torch.testing.assert_close(model.encode_users(*batch), expected, rtol=1e-5, atol=1e-5)
    short = tiny(attend_padding=attend_padding, max_history_length=3)
    torch.testing.assert_close(short.encode_users(*batch), short.sequence_states(*batch)[:, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_empty_history_gives_a_zero_user_and_finite_scores():
    model = tiny()
    users = model.encode_users(torch.zeros(1, 4, dtype=torch.long))
    assert not users.any()
    assert not model.score(users)[:, 1:].any()


def test_an_empty_row_gives_finite_gradients():
    model = tiny(dropout=0.5).train()
    item_ids, mask = pad_histories(HISTORIES, 10)
    loss = model.training_loss({"item_ids": item_ids, "attention_mask": mask, "targets": item_ids})
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_a_history_longer_than_the_model_is_cut_to_its_most_recent_items():
    model = tiny(max_history_length=4)
    long, short = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[3, 4, 5, 6]])
    states = model.sequence_states(long)
    assert states.shape == (1, 6, 16)
    assert not states[:, :2].any()
    torch.testing.assert_close(states[:, 2:], model.sequence_states(short))


@torch.no_grad()
def test_the_loss_reads_only_positions_with_a_target():
    model = tiny()
    item_ids, mask = pad_histories([[1, 2, 3], [4]], 10)
    targets = torch.tensor([[0, 0, 5], [0, 0, 6]])
    users = model.encode_users(item_ids, mask)
    expected = torch.nn.functional.cross_entropy(model.score(users)[:, 1:], torch.tensor([4, 5]))
    batch = {"item_ids": item_ids, "attention_mask": mask, "targets": targets}
    torch.testing.assert_close(model.training_loss(batch), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_saved_model_loads_again_with_equal_states(tmp_path, dtype, tolerance):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = SASRecModel.from_pretrained(tmp_path, dtype=dtype).eval()
    batch = pad_histories(HISTORIES, 10)
    expected = model.sequence_states(*batch)
    states = again.sequence_states(*batch)
    assert states.dtype == dtype
    torch.testing.assert_close(states.float(), expected, rtol=tolerance, atol=tolerance)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in {".py", ".bin", ".pt", ".pkl"}]


def test_saved_model_loads_by_auto_model_in_a_fresh_process(tmp_path):
    model = tiny(attend_padding=True)
    model.save_pretrained(tmp_path)
    program = (
        "import sys, torch, allmrec_hf.cf_sasrec; from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, model.encode_users(torch.tensor([[0, 3, 4]])).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.encode_users(torch.tensor([[0, 3, 4]])).tolist()
    assert done.stdout.strip() == f"SASRecModel {expected}"


def test_auto_class_registration_leaves_the_saved_config_alone(tmp_path):
    SASRecModel.register_for_auto_class()
    SASRecConfig.register_for_auto_class()
    tiny().save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
