from __future__ import annotations

import datetime as dt

import pandas
import polars as pl
import pytest

from allmrec_hf.data.interactions import (
    drop_exact_duplicates,
    require_columns,
    told_of_column_map,
    validate_interactions,
    validate_items,
)
from allmrec_hf.data.times import TimeRules
from allmrec_hf.errors import DataError


def rows(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [1, 2], **columns}, strict=False)


def test_valid_interactions_keep_their_order_and_lose_further_columns() -> None:
    valid = validate_interactions(rows(rating=[5, 4], text=["p", "q"]), "T")
    assert valid.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float32}
    assert valid.rows() == [("a", "x", 1, 5.0), ("b", "y", 2, 4.0)]


def test_integer_ids_become_text() -> None:
    assert validate_interactions(rows(user_id=[7, 8]), "T")["user_id"].to_list() == ["7", "8"]


def test_numbers_written_as_text_are_read_without_loss() -> None:
    times = [str(2**60), str(2**60 + 1)]
    assert validate_interactions(rows(timestamp=times), "T")["timestamp"].to_list() == [2**60, 2**60 + 1]


def test_fractions_of_a_second_keep_their_order_as_thousandths() -> None:
    assert validate_interactions(rows(timestamp=[10.25, 10.5]), "T")["timestamp"].to_list() == [10250, 10500]


def test_dates_become_milliseconds() -> None:
    valid = validate_interactions(rows(timestamp=[dt.datetime(1970, 1, 1, 0, 0, 1), dt.datetime(1970, 1, 2)]), "T")
    assert valid["timestamp"].to_list() == [1000, 86_400_000]


def test_number_ids_have_one_spelling_whatever_their_type() -> None:
    spelt = [
        validate_interactions(rows(user_id=pl.Series([7, 10**16], dtype=kind)), "T")["user_id"].to_list()
        for kind in (pl.Int64, pl.UInt64, pl.Int128, pl.Float64, pl.Decimal(20, 2))
    ]
    assert spelt == [["7", "10000000000000000"]] * 5


def test_text_ids_are_trimmed_and_keep_zeros_and_decimals() -> None:
    valid = validate_interactions(rows(user_id=[" 007\t", "1.0"], item_id=["e\u0301", "\ufeffb"]), "T")
    assert valid.select("user_id", "item_id").rows() == [("007", "\u00e9"), ("1.0", "b")]


def test_missing_ratings_are_null_whatever_stands_for_them() -> None:
    for ratings in (["4", "nan"], [4.0, float("nan")], ["4", " "], ["4.0", "NULL"]):
        assert validate_interactions(rows(rating=ratings), "T")["rating"].to_list() == [4.0, None]


def test_frames_of_pandas_are_read_with_their_missing_values() -> None:
    frame = pandas.DataFrame({"user_id": [1.0, 2.0], "item_id": ["x", 5], "timestamp": ["1", "2"], "rating": [3, None]})
    assert validate_interactions(frame, "T").rows() == [("1", "x", 1, 3.0), ("2", "5", 2, None)]
    items = pandas.DataFrame({"item_id": [1, 2, 3], "title": ["Solo", float("nan"), pandas.NA], "year": [1.0, None, 3]})
    valid, _ = validate_items(items, "T")
    assert (valid["title"].to_list(), valid["year"].to_list()) == (["Solo", None, None], [1.0, None, 3.0])
    with pytest.raises(DataError, match="1 null or empty ids"):
        validate_interactions(frame.assign(user_id=[1.0, float("nan")]), "T")


def test_records_and_tables_of_arrow_are_read() -> None:
    records = [{"user_id": 1, "item_id": "x", "timestamp": 5}, {"user_id": "b", "item_id": 2, "timestamp": 6}]
    assert validate_interactions(records, "T").rows() == [("1", "x", 5), ("b", "2", 6)]
    assert validate_interactions(rows().to_arrow(), "T").rows() == rows().rows()
    with pytest.raises(DataError, match="T: int is no table"):
        validate_interactions(7, "T")


def test_titles_of_every_source_are_plain_text() -> None:
    titles = ["Tom &amp; <i>Jerry</i>", "nan", "Cafe\u0301", " [] ", "None but the Lonely Heart"]
    valid, _ = validate_items(pl.DataFrame({"item_id": range(5), "title": titles}), "T")
    assert valid["title"].to_list() == ["Tom & Jerry", None, "Caf\u00e9", None, "None but the Lonely Heart"]


def test_missing_entries_of_a_list_are_left_out() -> None:
    frame = pl.DataFrame({"item_id": [1, 2], "description": [["a", None, "nan", "b"], [None]]})
    assert validate_items(frame, "T")[0]["description"].to_list() == ["a b", None]


def test_rows_in_file_order_need_no_times() -> None:
    frame = rows().drop("timestamp")
    assert validate_interactions(frame, "T", TimeRules("file"))["timestamp"].to_list() == [0, 1]
    with pytest.raises(DataError, match="time_format belongs to order 'time'"):
        TimeRules("file", "%Y").check()
    with pytest.raises(DataError, match="order is 'rows'; choose one of"):
        TimeRules("rows").check()  # type: ignore[arg-type]


def test_a_rating_may_be_null() -> None:
    assert validate_interactions(rows(rating=[None, 2.0]), "T")["rating"].to_list() == [None, 2.0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows().drop("timestamp"), r"T lacks the columns \['timestamp'\]; it has .*--column timestamp=NAME"),
        (rows().clear(), "T is empty"),
        (rows(user_id=[1.5, 2.5]), "column user_id of T has the wrong type Float64; ids are text or integers"),
        (
            rows(item_id=["x", None]),
            "column item_id of T holds 1 null or empty ids in 2 rows, first None in data row 2",
        ),
        (rows(item_id=["", "y"]), "1 null or empty ids"),
        (
            rows(timestamp=["1", "soon"]),
            "column timestamp of T holds 1 values that are no number.*'soon' in data row 2",
        ),
        (rows(timestamp=[True, False]), "column timestamp of T has the wrong type Boolean"),
        (rows(timestamp=[1.0, float("nan")]), "column timestamp of T holds 1 NaN or infinite values.*data row 2"),
        (rows(timestamp=[float("inf"), 1.0]), "column timestamp of T holds 1 NaN or infinite"),
        (rows(timestamp=[None, 1]), "1 null times"),
        (rows(timestamp=[1e300, 1.0]), "times beyond"),
        (rows(rating=[float("inf"), 1.0]), "column rating of T holds 1 infinite values.*first inf in data row 1"),
        (rows(rating=["4", "-inf"]), "column rating of T holds 1 infinite"),
        (rows(rating=["4", "good"]), "column rating of T holds 1 values that are no number.*'good' in data row 2"),
        (rows(user_id=[1.0, float("nan")]), "column user_id of T holds 1 null or empty ids.*first nan in data row 2"),
        (rows(item_id=["x", " NULL "]), "column item_id of T holds 1 null or empty ids.*first ' NULL ' in data row 2"),
        (rows(rating=[[1], [2]]), "column rating of T has the wrong type List"),
    ],
)
def test_bad_interactions_are_refused_with_place_and_count(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate_interactions(frame, "T")


def test_items_keep_further_columns_and_join_lists_of_text() -> None:
    frame = pl.DataFrame({"item_id": [1, 2], "description": [["a", "b"], []], "price": [3.5, None]})
    valid, merged = validate_items(frame, "T")
    assert valid.to_dicts() == [
        {"item_id": "1", "title": None, "description": "a b", "price": 3.5},
        {"item_id": "2", "title": None, "description": None, "price": None},
    ]
    assert merged == 0


def test_rows_of_one_item_that_contradict_each_other_are_refused_or_the_first_is_kept() -> None:
    frame = pl.DataFrame({"item_id": ["x", "y", "x"], "title": ["first", "other", "second"]})
    with pytest.raises(DataError, match=r"T holds 1 duplicate item ids, first \['x'\]"):
        validate_items(frame, "T")
    merged, dropped = validate_items(frame, "T", "merge")
    assert (merged["title"].to_list(), dropped) == (["first", "other"], 1)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"title": ["a"]}), r"lacks the columns \['item_id'\]"),
        (pl.DataFrame(schema={"item_id": pl.String}), "T is empty"),
        (pl.DataFrame({"item_id": ["a", None]}), "1 null or empty ids"),
        (pl.DataFrame({"item_id": ["a"], "title": [{"en": "t"}]}), "column title of T has the wrong type Struct"),
    ],
)
def test_bad_items_are_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate_items(frame, "T")


def test_missing_columns_are_told_with_both_ways_to_map_them_and_what_the_map_asked_for() -> None:
    columns = {"user_id": "kunde", "interactions.item_id": "sku", "title": "name"}
    with pytest.raises(DataError) as told, told_of_column_map(columns):
        require_columns({"customer": "customer", "item_id": "sku"}, ["user_id"], "log.csv")
    assert str(told.value) == (
        "log.csv lacks the columns ['user_id'], where the column map asks for user_id = kunde; it has "
        "['customer', 'sku']. Rename one there, or map it: --column user_id=NAME on the command line, "
        "columns={'user_id': 'NAME'} in Python"
    )
    with pytest.raises(DataError, match=r"T lacks the columns \['title'\]; it has \['name'\]"), told_of_column_map({}):
        require_columns(["name"], ["title"], "T")


def test_only_rows_equal_in_every_column_are_duplicates() -> None:
    frame = pl.DataFrame(
        {"user_id": ["a"] * 4, "item_id": ["x"] * 4, "timestamp": [1, 1, 2, 1], "rating": [5, 5, 5, 4]}
    )
    kept, dropped = drop_exact_duplicates(frame)
    assert dropped == 1
    assert kept.rows() == [("a", "x", 1, 5), ("a", "x", 2, 5), ("a", "x", 1, 4)]
