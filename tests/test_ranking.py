"""Ranks and metrics against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product
from math import log2

import numpy as np
import pytest

from allmrec_hf.ranking import Ranks, hit_at_k, ndcg_at_k, reciprocal_rank, summarize_ranks, target_ranks


def test_rank_is_one_plus_the_number_of_better_candidates():
    scores = [[0.3, 0.9, 0.1, 0.5], [0.3, 0.9, 0.1, 0.5]]
    assert target_ranks(scores, [1, 2]).expected.tolist() == [1, 4]


def test_a_tie_gets_the_expected_rank_over_all_orders_of_the_tied():
    assert target_ranks([[1.0, 1.0]], [0]).expected.tolist() == [1.5]
    assert target_ranks([[2.0, 1.0, 1.0, 1.0]], [2]).expected.tolist() == [3.0]


@pytest.mark.parametrize("num_candidates", [1, 2, 20, 21])
def test_a_constant_score_ranks_the_target_in_the_middle(num_candidates):
    ranks = target_ranks(np.zeros((1, num_candidates)), [0])
    assert ranks.expected.tolist() == [(num_candidates + 1) / 2]


def test_minus_infinity_is_below_every_score_and_ties_with_itself():
    assert target_ranks([[-np.inf, -5.0, -np.inf]], [1]).expected.tolist() == [1.0]
    assert target_ranks([[-np.inf, -5.0, -np.inf]], [0]).expected.tolist() == [2.5]


def test_the_order_of_candidates_does_not_change_the_rank():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, size=(50, 20)).astype(float)
    order = generator.permutation(20)
    positions = generator.integers(0, 20, size=50)
    shuffled = target_ranks(scores[:, order], np.argsort(order)[positions])
    np.testing.assert_array_equal(target_ranks(scores, positions).expected, shuffled.expected)


def test_nan_scores_are_refused_with_their_count():
    with pytest.raises(ValueError, match="1 of 2 rows hold NaN"):
        target_ranks([[0.0, np.nan], [0.0, 1.0]], [0, 0])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(B, C\)"):
        target_ranks([[0.0, 1.0]], [0, 1])


def every_order(scores, position, metric):
    """Return the mean of a metric of the target's place over all orders of the candidates that respect the scores."""
    values = []
    for order in permutations(range(len(scores))):
        ranked = [scores[candidate] for candidate in order]
        if ranked == sorted(scores, reverse=True):
            values.append(metric(order.index(position) + 1))
    return sum(values) / len(values)


@pytest.mark.parametrize("scores", [*product((0, 1, 2), repeat=3), (3, 1, 1, 1, 0, 1), (0,) * 6, (5,)])
def test_metrics_are_their_means_over_every_order_of_the_tied(scores):
    for position in range(len(scores)):
        ranks = target_ranks([scores], [position])
        assert ranks.expected[0] == pytest.approx(every_order(scores, position, float))
        assert reciprocal_rank(ranks)[0] == pytest.approx(every_order(scores, position, lambda place: 1 / place))
        for k in (1, 2, 3, 10):
            hit = every_order(scores, position, lambda place, k=k: float(place <= k))
            gain = every_order(scores, position, lambda place, k=k: (place <= k) / log2(1 + place))
            assert hit_at_k(ranks, k)[0] == pytest.approx(hit)
            assert ndcg_at_k(ranks, k)[0] == pytest.approx(gain)


def test_a_constant_score_has_what_a_random_order_has():
    ranks = target_ranks(np.zeros((3, 20)), [0, 7, 19])
    summary = summarize_ranks(ranks)
    every_place = summarize_ranks(np.arange(1, 21))
    assert summary == pytest.approx({**every_place, "users": 3})
    assert [summary["hit@1"], summary["hit@5"], summary["hit@10"]] == pytest.approx([1 / 20, 1 / 4, 1 / 2])


def test_three_tied_places_by_hand():
    ranks = Ranks([3], [2])  # places 4, 5 and 6
    assert ranks.expected.tolist() == [5]
    assert [hit_at_k(ranks, k)[0] for k in (3, 4, 5, 6)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert ndcg_at_k(ranks, 5)[0] == pytest.approx((1 / log2(5) + 1 / log2(6)) / 3)
    assert reciprocal_rank(ranks)[0] == pytest.approx((1 / 4 + 1 / 5 + 1 / 6) / 3)


def test_places_beyond_the_limit_are_misses():
    ranks = Ranks([3, 6], [2, 0], limit=5)  # places 4, 5 and 6; place 7
    assert hit_at_k(ranks, 10) == pytest.approx([2 / 3, 0])
    assert ndcg_at_k(ranks, 10) == pytest.approx([(1 / log2(5) + 1 / log2(6)) / 3, 0])
    assert reciprocal_rank(ranks) == pytest.approx([(1 / 4 + 1 / 5) / 3, 0])


def test_ranks_are_stored_as_mean_place_and_ties_and_read_again():
    ranks = Ranks([0, 3, np.inf, 7], [0, 2, 0, 1])
    again = Ranks.of_expected(ranks.expected, ranks.tied)
    assert again.better.tolist() == [0, 3, np.inf, 7]
    assert again.tied.tolist() == [0, 2, 0, 1]
    both = Ranks.concatenate([ranks[:2], ranks[ranks.tied == 1]])
    assert (both.better.tolist(), both.tied.tolist()) == ([0, 3, 7], [0, 2, 1])


@pytest.mark.parametrize(
    ("better", "tied"), [([0.5], [0]), ([-1], [0]), ([np.nan], [0]), ([0], [np.nan]), ([0], [0.5]), ([np.inf], [1])]
)
def test_what_is_no_count_is_no_rank(better, tied):
    with pytest.raises(ValueError, match="1 of 1 ranks are no counts"):
        Ranks(better, tied)


def test_half_places_without_their_ties_are_refused():
    with pytest.raises(ValueError, match="1 of 2 places are no whole numbers"):
        hit_at_k([1, 2.5], 5)


def test_ranks_do_not_pass_for_an_array_of_mean_places():
    with pytest.raises(TypeError, match="intervals of places"):
        np.concatenate([target_ranks([[1.0, 1.0]], [0])] * 2)


def test_scores_equal_but_for_rounding_are_not_tied():
    assert target_ranks([[0.3, 0.1 + 0.2]], [0]).tied.tolist() == [0]


def test_many_candidates_keep_their_precision():
    ranks = target_ranks(np.zeros((1, 1_000_000)), [0])
    assert reciprocal_rank(ranks)[0] == pytest.approx((np.log(1e6) + np.euler_gamma) / 1e6, rel=1e-7)
    assert hit_at_k(ranks, 10)[0] == 1e-5


def test_hit_counts_places_up_to_k():
    assert hit_at_k([1, 2, 5, 6, np.inf], 5).tolist() == [1, 1, 1, 0, 0]
    assert hit_at_k([1, 2], 1).tolist() == [1, 0]


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


@pytest.mark.parametrize("position", [-1, 3, True, 1.0])
def test_a_position_that_is_no_column_is_refused(position):
    with pytest.raises(ValueError, match="target_positions must be"):
        target_ranks([[0.1, 0.2, 0.3]], [position])


@pytest.mark.parametrize("k", [0, -1, True, float("nan")])
def test_a_cutoff_that_counts_nobody_is_refused(k):
    for metric in (hit_at_k, ndcg_at_k):
        with pytest.raises(ValueError, match="k must be at least 1"):
            metric([1.0, 2.0], k)
