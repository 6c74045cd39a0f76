"""Ranks and metrics against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from math import log2

import numpy as np
import pytest

from allmrec_hf.ranking import hit_at_k, ndcg_at_k, reciprocal_rank, summarize_ranks, target_ranks


def test_rank_is_one_plus_the_number_of_better_candidates():
    scores = [[0.3, 0.9, 0.1, 0.5], [0.3, 0.9, 0.1, 0.5]]
    assert target_ranks(scores, [1, 2]).tolist() == [1, 4]


def test_a_tie_gets_the_expected_rank_over_all_orders_of_the_tied():
    assert target_ranks([[1.0, 1.0]], [0]).tolist() == [1.5]
    assert target_ranks([[2.0, 1.0, 1.0, 1.0]], [2]).tolist() == [3.0]


@pytest.mark.parametrize("num_candidates", [1, 2, 20, 21])
def test_a_constant_score_ranks_the_target_in_the_middle(num_candidates):
    ranks = target_ranks(np.zeros((1, num_candidates)), [0])
    assert ranks.tolist() == [(num_candidates + 1) / 2]


def test_minus_infinity_is_below_every_score_and_ties_with_itself():
    assert target_ranks([[-np.inf, -5.0, -np.inf]], [1]).tolist() == [1.0]
    assert target_ranks([[-np.inf, -5.0, -np.inf]], [0]).tolist() == [2.5]


def test_the_order_of_candidates_does_not_change_the_rank():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, size=(50, 20)).astype(float)
    order = generator.permutation(20)
    positions = generator.integers(0, 20, size=50)
    shuffled = target_ranks(scores[:, order], np.argsort(order)[positions])
    np.testing.assert_array_equal(target_ranks(scores, positions), shuffled)


def test_nan_scores_are_refused_with_their_count():
    with pytest.raises(ValueError, match="1 of 2 rows hold NaN"):
        target_ranks([[0.0, np.nan], [0.0, 1.0]], [0, 0])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(B, C\)"):
        target_ranks([[0.0, 1.0]], [0, 1])


def test_hit_counts_ranks_up_to_k():
    assert hit_at_k([1, 1.5, 5, 6, np.inf], 5).tolist() == [1, 1, 1, 0, 0]
    assert hit_at_k([1, 1.5], 1).tolist() == [1, 0]


def test_ndcg_at_powers_of_two_is_a_fraction():
    ranks = [1, 3, 7, 15]  # log2(1 + rank) = 1, 2, 3, 4
    expected = [Fraction(1, 1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)]
    np.testing.assert_allclose(ndcg_at_k(ranks, 20), [float(value) for value in expected], rtol=1e-15)
    assert ndcg_at_k(ranks, 7)[3] == 0


def test_a_miss_counts_zero_in_every_metric():
    assert ndcg_at_k([np.inf], 10).tolist() == [0]
    assert reciprocal_rank([np.inf]).tolist() == [0]


def test_summary_is_the_mean_over_users():
    summary = summarize_ranks([1, 3, np.inf], cutoffs=(1, 3))
    assert summary == {
        "users": 3,
        "hit@1": pytest.approx(1 / 3),
        "ndcg@1": pytest.approx(1 / 3),
        "hit@3": pytest.approx(2 / 3),
        "ndcg@3": pytest.approx((1 + 1 / log2(4)) / 3),
        "mrr": pytest.approx((1 + 1 / 3) / 3),
    }


def test_random_scores_reach_chance():
    generator = np.random.default_rng(1)
    ranks = target_ranks(generator.random((20_000, 20)), generator.integers(0, 20, 20_000))
    assert summarize_ranks(ranks)["hit@1"] == pytest.approx(0.05, abs=0.006)  # four standard errors
    chance = sum(1 / log2(1 + rank) for rank in range(1, 11)) / 20
    assert summarize_ranks(ranks)["ndcg@10"] == pytest.approx(chance, abs=0.01)


def test_nobody_has_no_metrics():
    assert summarize_ranks([]) == {"users": 0}
