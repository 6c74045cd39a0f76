"""Over-smoothing: every number of the geometry redone by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation import geometry
from allmrec_hf.evaluation.geometry import embedding_geometry, joint_embedding_geometry
from tests.tiny import tiny_model

N = 6
BASIS = torch.eye(N)


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_identical_vectors_have_cosine_one_and_rank_one_and_nothing_when_centred():
    same = rows([0.1, 0.7, 0.3]).expand(N, 3)
    found = embedding_geometry(same, same)
    for side in ("item", "text"):
        assert found[f"{side}_mean_cosine"] == pytest.approx(1)
        assert found[f"{side}_effective_rank"] == pytest.approx(1)
        assert found[f"{side}_mean_cosine_centred"] == 0
        assert found[f"{side}_effective_rank_centred"] == 0
    assert found["matched_accuracy"] == pytest.approx(1 / N)  # all are equally near
    assert found["matched_accuracy_centred"] == pytest.approx(1 / N)


def test_orthonormal_vectors_have_cosine_zero_and_full_rank():
    found = embedding_geometry(BASIS, 3 * BASIS)
    assert found["item_mean_cosine"] == pytest.approx(0, abs=1e-12)
    assert found["item_effective_rank"] == pytest.approx(N)
    assert found["text_effective_rank"] == pytest.approx(N)
    assert found["item_mean_cosine_centred"] == pytest.approx(-1 / (N - 1))  # corners of a simplex
    assert found["item_effective_rank_centred"] == pytest.approx(N - 1)
    assert found["matched_accuracy"] == found["matched_accuracy_centred"] == 1
    assert found["items"] == N


def test_permuted_pairs_are_never_matched():
    found = embedding_geometry(BASIS, BASIS.roll(1, dims=0))
    assert found["matched_accuracy"] == found["matched_accuracy_centred"] == 0


def test_ties_count_their_expected_value():
    items = rows([1, 0], [1, 0], [0, 1])
    texts = rows([2, 0], [3, 0], [0, 1])  # the first two texts point the same way
    assert embedding_geometry(items, texts)["matched_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_effective_rank_is_the_exponential_of_the_entropy_of_normalised_singular_values():
    found = embedding_geometry(rows([3, 0], [0, 1]), BASIS[:2, :2])
    assert found["item_effective_rank"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_mean_cosine_equals_the_mean_over_all_pairs():
    vectors = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    for name, side in (("item_mean_cosine", vectors), ("item_mean_cosine_centred", vectors - vectors.mean(dim=0))):
        pairs = [float(F.cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(side, 2)]
        found = embedding_geometry(vectors, vectors)[name]
        assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)  # fp32 against fp64


def test_chunks_do_not_change_the_accuracy(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    items = torch.rand(50, 5, generator=generator)
    texts = items + 0.2 * torch.rand(50, 5, generator=generator)
    whole = embedding_geometry(items, texts)
    monkeypatch.setattr(geometry, "CELLS_AT_ONCE", 150)
    assert embedding_geometry(items, texts) == pytest.approx(whole)
    assert 0 < whole["matched_accuracy"] < 1


def test_a_model_is_measured_over_items_with_training_interactions():
    model = tiny_model(None, num_items=9)
    counts = model.item_table.interaction_counts.tolist()
    known = [item for item, count in enumerate(counts) if item and count]
    with torch.no_grad():
        joint = model.aligner.encode_items(model.cf_encoder.item_embeddings[known])
    found = joint_embedding_geometry(model)
    assert found == pytest.approx(embedding_geometry(joint, model.item_table.text_joint_embeddings[known]))
    assert found["items"] == len(known) == 6


@pytest.mark.parametrize(
    ("items", "texts", "message"),
    [
        (BASIS, BASIS[:3], r"\(N, d_joint\) for the same items; got \(6, 6\) and \(3, 6\)"),
        (BASIS[:1], BASIS[:1], "at least two items, got 1"),
        (BASIS * float("nan"), BASIS, "not finite"),
    ],
)
def test_what_has_no_geometry_is_refused(items, texts, message):
    with pytest.raises(ALLMRecError, match=message):
        embedding_geometry(items, texts)
