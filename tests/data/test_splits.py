from __future__ import annotations

import polars as pl
import pytest

from allmrec_hf.data.splits import leave_one_out
from allmrec_hf.errors import DataError


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_last_is_test_and_last_but_one_is_validation() -> None:
    split = leave_one_out(frame([("b", "3", 3), ("a", "9", 1), ("b", "1", 1), ("b", "2", 2), ("b", "0", 0)]))
    assert split.select("user_id", "item_id", "split").rows() == [
        ("b", "0", "train"),
        ("b", "1", "train"),
        ("b", "2", "validation"),
        ("b", "3", "test"),
        ("a", "9", "train"),
    ]


def test_equal_times_keep_the_order_of_the_file() -> None:
    split = leave_one_out(frame([("a", "q", 5), ("a", "p", 5), ("a", "z", 1), ("a", "o", 5)]))
    assert split["item_id"].to_list() == ["z", "q", "p", "o"]


def test_ties_are_stable_in_large_data() -> None:
    rows = pl.DataFrame({"user_id": ["u", "v"] * 50_000, "item_id": [str(n) for n in range(100_000)], "timestamp": 7})
    numbers = leave_one_out(rows)["item_id"].cast(pl.Int64)
    assert numbers[:50_000].to_list() == list(range(0, 100_000, 2))
    assert numbers[50_000:].to_list() == list(range(1, 100_000, 2))


def test_users_with_fewer_than_three_are_only_trained_on() -> None:
    split = leave_one_out(frame([("a", "1", 1), ("a", "2", 2), ("b", "1", 1), ("b", "2", 2), ("b", "3", 3)]))
    assert split.filter(pl.col("user_id") == "a")["split"].to_list() == ["train", "train"]
    assert split.filter(pl.col("user_id") == "b")["split"].to_list() == ["train", "validation", "test"]


def test_nobody_with_three_interactions_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 1 users has 3 interactions"):
        leave_one_out(frame([("a", "1", 1), ("a", "2", 2)]))
