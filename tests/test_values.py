from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars as pl
import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.errors import DataError
from allmrec_hf.values import (
    NULL_WORDS,
    as_frame,
    id_text,
    id_texts,
    is_missing,
    number_text,
    plain_texts,
    text_values,
    value_text,
)

NAN = float("nan")


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7\n", np.int64(7), np.float32(7), np.uint8(7), Decimal("7.00"), b"7"])
def test_seven_is_one_id_whatever_holds_it(value: Any) -> None:
    assert id_text(value) == "7"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e16, "10000000000000000"),
        (10**16, "10000000000000000"),
        (-0.0, "0"),
        (0, "0"),
        (2**53 + 1, "9007199254740993"),
        (2**70, "1180591620717411303424"),
        (-5.0, "-5"),
        ("007", "007"),
        ("1.0", "1.0"),
        ("1e16", "1e16"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_ids_are_spelt_by_value_and_texts_stay(value: Any, text: str) -> None:
    assert id_text(value) == text


@pytest.mark.parametrize("value", [True, np.bool_(False), 1.5, math.inf, [1], {"a": 1}, dt.date(2020, 1, 1)])
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="is no id; ids are text or integers"):
        id_text(value)


MISSING = [
    None,
    NAN,
    np.float32("nan"),
    np.datetime64("NaT"),
    pandas.NaT,
    pandas.NA,
    "",
    " \t",
    "\ufeff",
    *sorted(NULL_WORDS),
]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_missing_values_are_no_ids_and_no_texts(value: Any) -> None:
    assert is_missing(value)
    assert id_text(value) is None
    with pytest.raises(DataError, match="1 rows without item_id"):
        ItemCatalog.from_records([{"item_id": value}])
    catalog = ItemCatalog.from_records([{"item_id": "a", "title": value, "description": value}])
    assert (catalog.has_title(1), catalog.title(1), catalog.text(1)) == (False, "Untitled item a", "")


@pytest.mark.parametrize("value", [0, "0", "Nan Goldin", "None of us", "nano", "NA", "null and void", False])
def test_present_values_are_not_missing(value: Any) -> None:
    assert not is_missing(value)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Int128, pl.Float32, pl.Float64, pl.Decimal(9, 2), pl.String])
def test_columns_spell_ids_as_single_values_do(kind: Any) -> None:
    column = id_texts(pl.Series("id", [7, None, 0]).cast(kind))
    assert column.to_list() == ["7", None, "0"]


def test_a_column_of_floats_has_no_nan_and_no_negative_zero() -> None:
    assert id_texts(pl.Series([NAN, -0.0, 1e16, 2.0])).to_list() == [None, "0", "10000000000000000", "2"]


def test_columns_of_objects_and_categories_are_ids() -> None:
    assert id_texts(pl.Series([1, "x", None, 2.0], dtype=pl.Object)).to_list() == ["1", "x", None, "2"]
    assert id_texts(pl.Series(["a", "nan"], dtype=pl.Categorical)).to_list() == ["a", None]


@pytest.mark.parametrize(
    "column", [pl.Series([1.5]), pl.Series([math.inf]), pl.Series([True]), pl.Series([[1]]), pl.Series([b"\xff"])]
)
def test_columns_that_hold_no_ids_are_refused_by_type(column: pl.Series) -> None:
    with pytest.raises(
        DataError, match=f"^{column.dtype}; ids are text or integers".replace("(", r"\(").replace(")", r"\)")
    ):
        id_texts(column)


def test_float_ids_that_cannot_be_told_apart_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    id_texts(pl.Series("user_id", [2.0**53 + 2, 1.0]))
    assert "1 ids of column user_id are floats beyond 2**53, first 9007199254740994" in caplog.text


@pytest.mark.parametrize("value", [1, 1.0, 1e16, 0.5, 1e-7, 1e23, 123456.789, -2.5, 2**64 + 1])
def test_numbers_are_spelt_as_polars_spells_numbers_of_json(value: float) -> None:
    line = json.dumps({"a": value}).encode()
    assert pl.read_ndjson(line, schema={"a": pl.String})["a"].to_list() == [number_text(value)]


def test_values_of_json_records_become_text() -> None:
    assert value_text({"b": [1.0, "x\u00e9\n", None, True, NAN]}) == '{"b": [1, "x\u00e9\\n", null, true, null]}'
    assert (value_text(True), value_text(np.bool_(False)), value_text("nan"), value_text(NAN)) == (
        "true",
        "false",
        "nan",
        None,
    )


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("List<String> in Java", "List<String> in Java"),
        ("I <3 you", "I <3 you"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("<!-- note -->Solo<BR>", "Solo"),
        ("  two \n\u00a0 words\u200b ", "two words"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("<b>nan</b>", None),
        ("NULL", None),
        ("N/A", None),
        ("[]", None),
    ],
)
def test_texts_are_plain(raw: str, plain: str | None) -> None:
    assert plain_texts(pl.Series([raw])).to_list() == [plain]


def test_lists_of_texts_are_joined_without_their_missing_entries() -> None:
    assert text_values(pl.Series([["a", "nan", None, "b"], None, [], ["x"]])).to_list() == ["a b", None, None, "x"]
    assert text_values(pl.Series([[1.0, 2.5], [NAN]])).to_list() == ["1 2.5", None]
    assert text_values(pl.Series([1984.0, NAN])).to_list() == ["1984", None]


def test_frames_of_pandas_keep_values_and_lose_nan() -> None:
    frame = pandas.DataFrame(
        {
            "number": [1.0, NAN],
            "mixed": [1, "x"],
            "nullable": pandas.array([1, None], dtype="Int64"),
            "category": pandas.Categorical([1, 2]),
            "time": [pandas.Timestamp(5), pandas.NaT],
        }
    )
    found = as_frame(frame, "T")
    assert found.select("number", "mixed", "nullable", "category").rows() == [(1.0, "1", 1, 1), (None, "x", None, 2)]
    assert found["time"].dt.epoch("ns").to_list() == [5, None]


# -- the catalogue


def test_ids_are_looked_up_as_they_are_spelt() -> None:
    catalog = ItemCatalog.from_records([{"item_id": 7.0, "title": "Solo"}, {"item_id": "007"}])
    assert catalog.item_ids == ["7", "007"]
    assert [catalog.index(entry) for entry in (7, 7.0, "7", " 7", np.int64(7), "007")] == [1, 1, 1, 1, 1, 2]
    assert [catalog.index(entry) for entry in (True, None, NAN, [7], 7.5, "7.0")] == [None] * 6
    assert catalog.indices([7, "007"]) == [1, 2]
    assert 7 in catalog
    assert 8 not in catalog


def test_added_records_enter_as_prepared_items_do() -> None:
    catalog = ItemCatalog.from_records([{"item_id": "a", "title": "Solo", "year": 1999}])
    grown = catalog.extended(
        [
            {"item_id": 5, "title": "Tom &amp; <b>Jerry</b>", "description": ["one", None, "two"], "year": "2000"},
            {"item_id": " x ", "title": NAN, "description": "nan"},
        ]
    )
    assert grown.item_ids == ["a", "5", "x"]
    assert [grown.text(index) for index in (2, 3)] == ["Tom & Jerry, one two", ""]
    with pytest.raises(DataError, match=r"known|already"):
        grown.extended([{"item_id": 5.0}])


def test_a_saved_catalogue_is_taken_as_it_stands(tmp_path: Any) -> None:
    old = pl.DataFrame({"item_id": ["None", " b"], "title": ["NULL", "<b>"], "description": [None, None]})
    old.write_parquet(tmp_path / "items.parquet")
    catalog = ItemCatalog.load(tmp_path)
    assert (catalog.item_ids, catalog.title(1), catalog.title(2)) == (["None", " b"], "NULL", "<b>")
    assert catalog.indices(["None", " b"]) == [1, 2]


def test_records_may_come_as_a_frame_and_nothing_else_passes_as_records() -> None:
    frame = pandas.DataFrame({"item_id": [1.0, 2.0], "title": ["Solo", None], "year": [pandas.NA, 1999]})
    catalog = ItemCatalog.from_records(frame)  # type: ignore[arg-type]
    assert (catalog.item_ids, catalog.frame["year"].to_list()) == (["1", "2"], [None, 1999])
    for wrong in ({"item_id": 1}, ["a"], "a", 7):
        with pytest.raises(DataError, match="expected a list of mappings or a frame"):
            ItemCatalog.from_records(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.array(7), torch.tensor(7), torch.tensor(7.0), bytearray(b"7")])
def test_values_without_a_dimension_are_ids(value: Any) -> None:
    assert id_text(value) == "7"


@pytest.mark.parametrize("value", [np.array([7]), torch.tensor([7]), Decimal("1.5"), torch.tensor(True)])
def test_a_vector_a_fraction_and_a_truth_value_are_no_ids(value: Any) -> None:
    with pytest.raises(DataError, match="is no id"):
        id_text(value)


@pytest.mark.parametrize("value", [Decimal("sNaN"), np.array(NAN), torch.tensor(NAN), np.array([NAN, None])])
def test_what_holds_nothing_but_nan_is_missing(value: Any) -> None:
    assert is_missing(value)


@pytest.mark.parametrize("title", [np.array(["Lost", "Harbor"]), pl.Series(["Lost", "Harbor"]), b"Lost Harbor"])
def test_a_title_of_a_record_may_be_an_array_or_bytes(title: Any) -> None:
    assert ItemCatalog.from_records([{"item_id": "a", "title": title}]).title(1) == "Lost Harbor"


def test_values_under_a_key_that_is_no_text_are_kept() -> None:
    frame = ItemCatalog.from_records([{"item_id": "a", 2024: "x"}]).frame
    assert frame["2024"].to_list() == ["x"]


def test_text_that_a_parquet_file_does_not_mark_as_text_is_read() -> None:
    titles = pl.Series("title", [[b"Lost", b"Harbor"], [b"Iron"]])
    assert ItemCatalog(pl.DataFrame({"item_id": [b"a", b"b"], "title": titles})).frame["title"].to_list() == [
        "Lost Harbor",
        "Iron",
    ]
    with pytest.raises(DataError, match=r"Binary that is no UTF-8; expected text or a list of texts$"):
        ItemCatalog(pl.DataFrame({"item_id": ["a"], "title": [b"\xff\xfe"]}))


def test_data_sets_without_a_length_are_tables_and_their_splits_are_asked_for() -> None:
    data = datasets.Dataset.from_dict({"item_id": [1, 2], "title": ["Lost Harbor", None]})
    assert as_frame(data.to_iterable_dataset(), "T")["item_id"].to_list() == [1, 2]
    with pytest.raises(DataError, match=r"T: a DatasetDict holds the splits \['train'\]; give one of them"):
        as_frame(datasets.DatasetDict({"train": data}), "T")


def test_a_column_that_stands_twice_is_refused() -> None:
    twice = pandas.DataFrame([["a", "x", "y"]], columns=["item_id", "title", "title"])
    with pytest.raises(DataError, match=r"the columns \['title'\] stand more than once"):
        ItemCatalog(twice)


@pytest.mark.parametrize("unit", ["numpy", "pandas", "offset", "column"])
def test_nanoseconds_of_records_and_of_mixed_columns_are_kept(unit: str) -> None:
    stamps = [pandas.Timestamp(f"2020-01-01T02:00:00.00000000{digit}+02:00") for digit in (3, 1, 2)]
    if unit == "numpy":
        stamps = [np.datetime64(f"2020-01-01T00:00:00.00000000{digit}") for digit in (3, 1, 2)]
    elif unit == "pandas":
        stamps = [stamp.tz_convert(None) for stamp in stamps]
    elif unit == "column":
        stamps = [stamps[0], stamps[1].tz_convert("UTC"), stamps[2]]
    table = [{"at": stamp} for stamp in stamps] if unit != "column" else pandas.DataFrame({"at": stamps}, dtype=object)
    midnight = 1_577_836_800 * 10**9
    assert as_frame(table, "T")["at"].dt.epoch("ns").to_list() == [midnight + digit for digit in (3, 1, 2)]


def test_columns_that_parquet_cannot_hold_are_kept_as_text(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "empty": [{}, {}], "lists": [[{}], []], "deep": [{"k": {}}, None]})
    items = items.with_columns(pl.Series("objects", [1 + 2j, None], dtype=pl.Object))
    catalog = ItemCatalog(items)
    catalog.save(tmp_path)
    assert ItemCatalog.load(tmp_path).frame["objects"].to_list() == ["(1+2j)", None]
    assert set(catalog.frame.dtypes) == {pl.String}
    frame = as_frame(pandas.DataFrame({"complex": [1 + 2j]}), "x")
    assert frame["complex"].dtype == pl.String


def test_uuids_of_pandas_are_spelt_as_those_of_mappings() -> None:
    own = [uuid.uuid4(), uuid.UUID(int=0)]
    assert as_frame(pandas.DataFrame({"id": own}), "x")["id"].to_list() == [str(each) for each in own]
