from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from allmrec_hf.data.filtering import apply_filter, k_core, one_pass, with_rating, without_repeats
from allmrec_hf.errors import DataError


def graph(pairs: str, ratings: Sequence[float | None] | None = None) -> pl.DataFrame:
    """Return interactions from pairs such as `"a1 b2"`: user a with item 1, user b with item 2."""
    users, items = [pair[0] for pair in pairs.split()], [pair[1] for pair in pairs.split()]
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": list(range(len(users)))})
    return frame if ratings is None else frame.with_columns(pl.Series("rating", ratings))


def pairs(frame: pl.DataFrame) -> str:
    return " ".join(user + item for user, item in frame.select("user_id", "item_id").iter_rows())


CHAIN = "a1 a2 b1 b2 c2 c3 d3"  # d has one; without d item 3 has one; without item 3 c has one


def test_k_core_repeats_until_nothing_changes() -> None:
    assert pairs(k_core(graph(CHAIN), 2)) == "a1 a2 b1 b2"


def test_one_pass_counts_once_and_may_leave_small_users() -> None:
    assert pairs(one_pass(graph(CHAIN), 2)) == "a1 a2 b1 b2 c2 c3"


def test_k_core_of_a_complete_graph_is_the_graph() -> None:
    full = graph("a1 a2 b1 b2")
    assert k_core(full, 2).equals(full)


def test_low_ratings_do_not_count_but_stay_in_one_pass() -> None:
    frame = graph("a1 a2 a1 b1 b2 c1 c2", [5, 3, 1, 4, 3, 2, 5])
    # counted: a1 a2 b1 b2 c2 -> a 2, b 2, c 1; items 1: 2, 2: 3
    assert pairs(one_pass(frame, 2, count_min_rating=3)) == "a1 a2 a1 b1 b2"


def test_unrated_interactions_do_not_count_where_ratings_decide() -> None:
    frame = graph("a1 a1 b1 b1", [5, None, 5, 5])
    assert pairs(one_pass(frame, 2, count_min_rating=3)) == "b1 b1"


def test_filters_keep_the_order_of_rows() -> None:
    frame = graph("b2 a1 a2 c9 b1")
    assert pairs(apply_filter(frame, "k-core", 2)) == "b2 a1 a2 b1"
    assert pairs(apply_filter(frame, "a-llmrec", 2)) == "b2 a1 a2 b1"
    assert apply_filter(frame, "none", 2).equals(frame)


@pytest.mark.parametrize(
    ("name", "k", "rating", "message"),
    [
        ("5-core", 2, None, r"there is no filter '5-core'; choose one of \['k-core', 'a-llmrec', 'none'\]"),
        ("k-core", 0, None, "k_core is 0; it must be at least 1"),
        ("k-core", 2, 3, "count_min_rating belongs to filter 'a-llmrec'"),
        ("a-llmrec", 2, 3, "no column rating"),
        ("k-core", 9, None, "leaves nothing of 7 interactions of 4 users with 3 items"),
    ],
)
def test_a_filter_that_cannot_work_is_refused(name: str, k: int, rating: float | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply_filter(graph(CHAIN), name, k, rating)  # type: ignore[arg-type]


def rated() -> pl.DataFrame:
    """Return two users; a has x twice (the later row first in time) and a missing rating."""
    return pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "b"],
            "item_id": ["x", "y", "x", "x", "z"],
            "timestamp": [5, 1, 2, 3, 3],
            "rating": pl.Series([4.1, None, 3.3, 4.0, 5.0], dtype=pl.Float32),
        }
    )


@pytest.mark.parametrize(
    ("least", "rows"), [(4.1, [0, 4]), (3.3, [0, 2, 3, 4]), (4.0, [0, 3, 4]), (-1.0, [0, 2, 3, 4])]
)
def test_lower_and_missing_ratings_are_left_out(least: float, rows: list[int]) -> None:
    assert with_rating(rated(), least).equals(rated()[rows])


def test_a_rating_threshold_needs_ratings_and_leaves_some() -> None:
    with pytest.raises(DataError, match="min_rating needs ratings"):
        with_rating(rated().drop("rating"), 3)
    with pytest.raises(DataError, match=r"min_rating 6 leaves nothing of 5 interactions; the highest rating is 5\.0"):
        with_rating(rated(), 6)


@pytest.mark.parametrize(
    ("repeats", "rows"), [("keep", [0, 1, 2, 3, 4]), ("first", [1, 2, 3, 4]), ("last", [0, 1, 3, 4])]
)
def test_one_interaction_of_a_user_and_an_item_stays_by_time(repeats: Any, rows: list[int]) -> None:
    assert without_repeats(rated(), repeats).equals(rated()[rows])


def test_repeats_of_equal_time_count_in_file_order() -> None:
    frame = pl.DataFrame({"user_id": ["a"] * 3, "item_id": ["x"] * 3, "timestamp": [7] * 3, "rating": [1.0, 2.0, 3.0]})
    assert [without_repeats(frame, which)["rating"].item() for which in ("first", "last")] == [1.0, 3.0]  # type: ignore[arg-type]
