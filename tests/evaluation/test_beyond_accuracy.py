"""Measures of recommended lists beyond accuracy, and the shuffle test, by hand."""

import math

import numpy as np
import polars as pl
import pytest

from allmrec_hf import ALLMRecError
from allmrec_hf.evaluation.beyond_accuracy import beyond_accuracy, item_categories
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import PopularityRanker, ShuffledHistories

COUNTS = np.array([0, 6, 2, 0, 0])  # of four items; eight interactions
HISTORIES = [np.array([1, 2]), np.array([2])]
LISTS = np.array([[3, 4], [1, 0]])
CATEGORIES = [("drama",), ("drama", "war"), ("war",), ()]


def measured(lists=LISTS, categories=CATEGORIES):
    members = {"never_seen": COUNTS == 0}
    return beyond_accuracy(lists, HISTORIES, COUNTS, members, categories)


def test_coverage_is_the_share_of_the_catalogue_that_stands_in_some_list():
    assert measured()["coverage"] == 3 / 4
    assert measured(np.array([[1, 2], [1, 2]]))["coverage"] == 2 / 4


def test_popularity_lift_compares_lists_with_their_users_histories():
    usual = ((6 + 2) / 2 + 2) / 2
    assert measured()["popularity_lift"] == pytest.approx(((0 + 6) / 2) / usual - 1)
    assert measured(np.array([[1, 2], [2, 0]]))["popularity_lift"] == pytest.approx(0)
    unknown = beyond_accuracy(LISTS, HISTORIES, np.zeros_like(COUNTS), {}, CATEGORIES)
    assert "popularity_lift" not in unknown  # whose histories have no item with interactions, nothing is more popular


def test_novelty_is_the_information_of_a_place():
    bits = [-math.log2((count + 1) / (8 + 4)) for count in (0, 0, 6)]
    assert measured()["novelty"] == pytest.approx(sum(bits) / 3)


def test_the_share_of_a_group_counts_places():
    assert measured()["share of never_seen"] == pytest.approx(2 / 3)


def test_a_list_of_one_category_has_no_diversity_and_of_two_apart_all():
    assert measured(np.array([[1, 3], [1, 3]]))["diversity"] == 1
    assert measured(np.array([[1, 1], [1, 1]]))["diversity"] == 0
    assert measured(np.array([[1, 2], [1, 2]]))["diversity"] == pytest.approx(1 - 1 / 2)


def test_a_list_with_the_users_own_mixture_is_calibrated():
    own = measured(np.array([[1, 2], [2, 0]]))["miscalibration"]
    assert own == pytest.approx(0, abs=1e-6)
    other = beyond_accuracy(np.array([[3]]), [np.array([1])], COUNTS, {}, CATEGORIES)["miscalibration"]
    assert other == pytest.approx(math.log(1 / 0.01))  # all drama before, all war now


def test_without_categories_nothing_is_said_of_them():
    assert not {"diversity", "miscalibration"} & set(measured(categories=None))
    assert item_categories(pl.DataFrame({"category": ["", None], "title": ["a", "b"]})) is None
    assert item_categories(pl.DataFrame({"genres": [["a", "b"], None]})) == [("a", "b"), ()]


class Last:
    """Score the item after the last of the history highest."""

    name = "last"

    def score(self, histories, candidates):
        return np.stack([-abs(row - history[-1] - 1.0) for row, history in zip(candidates, histories, strict=True)])


def test_a_shuffled_history_holds_the_same_items_and_always_in_one_order():
    seen = []
    ranker = PopularityRanker(COUNTS)
    ranker.score = lambda histories, candidates: seen.append(histories[0]) or np.zeros(candidates.shape)
    history = np.arange(1, 5).repeat(3)
    for _ in range(2):
        ShuffledHistories(ranker, 1).score([history], np.array([[1, 2]]))
    assert (seen[0] == seen[1]).all()
    assert sorted(seen[0]) == sorted(history)
    assert (seen[0] != history).any()


def test_the_report_tells_what_the_order_of_histories_is_worth(small_data):
    result = evaluate([Last(), PopularityRanker(small_data.item_counts("train"))], small_data, shuffle_test=True)
    report = result.to_dict()
    assert report["shuffled"]["popularity"]["overall"] == report["methods"]["popularity"]["overall"]
    assert report["shuffled"]["last"]["overall"] != report["methods"]["last"]["overall"]
    table = result.to_table()
    assert "histories in random order" in table
    assert "histories in random order" in result.to_markdown()


def test_full_ranking_tells_what_the_lists_are_like(small_data):
    result = evaluate([PopularityRanker(small_data.item_counts("train"))], small_data, "full", num_retrieved=20)
    found = result.report["beyond_accuracy"]["popularity"]
    assert found["places"] == 10
    assert 0 < found["coverage"] < 1
    assert found["popularity_lift"] > 0
    assert "popularity lift" in result.to_table()
    assert "beyond_accuracy" not in evaluate([PopularityRanker(small_data.item_counts("train"))], small_data).report


def test_a_shuffle_test_of_generated_text_is_refused(small_data):
    with pytest.raises(ALLMRecError, match="shuffle test"):
        evaluate([PopularityRanker(small_data.item_counts("train"))], small_data, "paper", shuffle_test=True)
