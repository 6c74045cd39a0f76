"""Stage 1 against numbers of the program published with the paper (tests/parity)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.losses import alignment_losses

PARITY = Path(__file__).parent / "parity"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = {"fc1": "encoder", "fc2": "decoder"}


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    return load_file(PARITY / "alignment.safetensors")


@pytest.fixture
def aligner(numbers) -> ItemTextAligner:
    aligner = ItemTextAligner(cf_dim=20, text_dim=32, joint_dim=128)
    weights = {
        f"{part}.{NAMES[layer]}.{kind}": numbers[f"{part}.{layer}.{kind}"]
        for part in ("item_autoencoder", "text_autoencoder")
        for layer in NAMES
        for kind in ("weight", "bias")
    }
    aligner.load_state_dict(weights)
    return aligner


def run(aligner, numbers):
    texts = numbers["input.text_embeddings"].clone().requires_grad_()
    items = numbers["input.item_embeddings"]
    outputs, embeddings = [], []
    for side in ("positive", "negative"):
        indices = numbers[f"input.{side}"]
        outputs.append(aligner(items[indices], texts[indices]))
        embeddings.append((items[indices], texts[indices]))
    terms = alignment_losses(numbers["input.user_representation"], *outputs, *embeddings, alpha=0.5, beta=0.2)
    return outputs, terms, texts


def test_joint_embeddings_and_reconstructions_match(aligner, numbers):
    (positive, _), _, _ = run(aligner, numbers)
    torch.testing.assert_close(positive.item_joint, numbers["output.joint_from_item_positive"], **CLOSE)
    torch.testing.assert_close(positive.text_joint, numbers["output.joint_from_text_positive"], **CLOSE)
    torch.testing.assert_close(positive.item_reconstruction, numbers["output.decoded_item_positive"], **CLOSE)
    torch.testing.assert_close(positive.text_reconstruction, numbers["output.decoded_text_positive"], **CLOSE)


def test_every_loss_term_and_the_total_match(aligner, numbers):
    expected = json.loads((PARITY / "alignment.json").read_text())
    _, terms, _ = run(aligner, numbers)
    assert len(terms) == 9
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected["total" if name == "loss" else name], rel=1e-4), name


def test_gradients_of_all_three_trained_parts_match(aligner, numbers):
    _, terms, texts = run(aligner, numbers)
    terms["loss"].backward()
    torch.testing.assert_close(texts.grad, numbers["grad.text_embeddings"], **CLOSE)
    for part in ("item_autoencoder", "text_autoencoder"):
        for layer, ours in NAMES.items():
            for kind in ("weight", "bias"):
                found = aligner.get_parameter(f"{part}.{ours}.{kind}").grad
                torch.testing.assert_close(found, numbers[f"grad.{part}.{layer}.{kind}"], **CLOSE)
