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


def test_an_empty_row_gives_finite_gradients():
    model = tiny(dropout=0.5).train()
    item_ids, mask = pad_histories(HISTORIES, 10)
    loss = model.training_loss({"item_ids": item_ids, "attention_mask": mask, "targets": item_ids})
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_the_loss_reads_only_positions_with_a_target():
    model = tiny()
    item_ids, mask = pad_histories([[1, 2, 3], [4]], 10)
    targets = torch.tensor([[0, 0, 5], [0, 0, 6]])
    users = model.encode_users(item_ids, mask)
    expected = torch.nn.functional.cross_entropy(model.score(users)[:, 1:], torch.tensor([4, 5]))
    batch = {"item_ids": item_ids, "attention_mask": mask, "targets": targets}
    torch.testing.assert_close(model.training_loss(batch), expected)


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
