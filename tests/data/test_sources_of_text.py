"""JSON, Python literals, the Amazon data of 2014 and 2023, data sets of CSV files, and merged metadata."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fake_hub import FakeHub

from allmrec_hf.data.interactions import validate_items
from allmrec_hf.data.readers import READERS, RawData, TextFormat
from allmrec_hf.data.readers.json_lines import discover_fields
from allmrec_hf.data.readers.table_files import read_table
from allmrec_hf.errors import DataError


def read(source: str, interactions: Any, items: Any = None, columns: Any = None, bad: float = 0.01) -> RawData:
    return READERS[source](interactions, items, columns or {}, bad, TextFormat())


def rows(folder: Path, content: str | bytes, name: str = "t.json", bad: float = 0.01, **text: Any) -> list[Any]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, bad, lambda names: {name: name for name in names}, TextFormat(**text))[0].rows()


# -- JSON


@pytest.mark.parametrize("form", ['[{"a": "01", "b": 1.0}, {"a": "2"}]', ' [\n{"a": "01", "b": 1},\n {"a": "2"}\n]\n'])
def test_an_array_of_objects_is_read_like_lines(tmp_path: Path, form: str) -> None:
    assert rows(tmp_path, form) == [("01", "1"), ("2", None)]
    assert rows(tmp_path, gzip.compress(form.encode()), "t.json.gz") == [("01", "1"), ("2", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n {"a": }]', r"broken at line 2, column 8, after 1 elements \(Expecting value\)"),
        ('[{"a": 1},\n', "after 1 elements"),
        ('[{"a": 1}\n{"a": 2}]', r"broken at line 2, column 1, after 1 elements \(Expecting ','"),
        ('[{"a": 1}] x', r"column 12.*the array has ended, but the file goes on"),
        ("[]", "is empty"),
        ('[{"a": 1}, 7, {"a": 2}]', "1 of 3 elements are no JSON object, first element 2: '7'"),
    ],
)
def test_a_broken_array_is_named_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"t\.json.*{message}"):
        rows(tmp_path, content)


def test_python_dictionaries_are_read_and_nothing_of_them_is_run(tmp_path: Path) -> None:
    good = "{u'a': u'It\\'s', 'b': None, 'c': True}\n{'a': \"x\", 'b': ('p', 2.0)}\n"
    assert rows(tmp_path, good) == [("It's", None, "true"), ("x", ["p", "2"], None)]
    deep = "{'a': " + "[" * 60 + "]" * 60 + "}"
    for bad in ("{'a': __import__('os').getcwd()}", "{'a': 1 + 1}", deep, "{'a': " + "9" * (1 << 20) + "}"):
        with pytest.raises(DataError, match="1 of 3 lines are no JSON object, first line 3"):
            rows(tmp_path, good + bad + "\n")


def test_numbers_are_spelt_alike_whatever_the_other_lines_hold(tmp_path: Path) -> None:
    lines = [json.dumps({"a": value}) for value in (1, 1.0, "1.0", 1e16, -0.0, 0, 1e-7)]
    right = [("1",), ("1",), ("1.0",), ("10000000000000000",), ("0",), ("0",), ("0.0000001",)]
    assert rows(tmp_path, "\n".join(lines)) == right
    assert rows(tmp_path, "\n".join([*lines, "{broken"]), bad=0.5) == right
    assert [rows(tmp_path, line)[0] for line in lines] == right


def test_nan_is_missing_and_a_broken_line_changes_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = '{"a": NaN, "b": ["x", NaN]}\n{broken\n{"a": "tab\there", "b": []}\n'
    assert rows(tmp_path, content, bad=0.5) == [(None, ["x"]), ("tab\there", [])]
    assert "1 of 3 lines are no JSON object, first line 2: '{broken'" in caplog.text


def test_json_of_another_encoding_says_so_and_is_read_when_named(tmp_path: Path) -> None:
    content = '{"a": "Amélie"}\n'.encode("latin-1")
    with pytest.raises(DataError, match=r"its byte 10, 0xE9, is no UTF-8; name the file's encoding: --encoding"):
        rows(tmp_path, content)
    assert rows(tmp_path, content, encoding="latin-1") == [("Amélie",)]


def test_fields_that_begin_late_are_found(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"item_id": 1}\n' * 50 + '{"item_id": 2, "title": "x"}\n')
    assert list(discover_fields(path, 10)) == ["item_id"]
    assert list(discover_fields(path, 10, wanted=("title",))) == ["item_id", "title"]


# -- Amazon


def test_the_amazon_files_of_2014_are_read(tmp_path: Path) -> None:
    reviews, meta = tmp_path / "reviews.json", tmp_path / "meta.json.gz"
    reviews.write_text('{"reviewerID": "A", "asin": "0001", "overall": 5.0, "unixReviewTime": 10}\n')
    record = {
        "asin": "0001",
        "title": "Tom &amp; Jerry's",
        "description": "A <b>good</b> book.",
        "categories": [["Books", "Novels"], ["Books", "Sale"]],
        "related": {"also_bought": ["B1"]},
        "price": 1.5,
    }
    meta.write_bytes(gzip.compress(f"{record!r}\n{{'asin': '0002', 'categories': [['Music']]}}\n".encode()))
    raw = read("amazon-2014", reviews, meta)
    assert raw.interactions.rows() == [("A", "0001", 10, 5.0)]
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "description", "category").rows() == [
        ("0001", "Tom & Jerry's", "A good book.", "Books|Novels|Sale"),
        ("0002", None, None, "Music"),
    ]


@pytest.mark.parametrize("form", ["object", "text", "parquet"])
def test_features_and_details_of_2023_are_texts(tmp_path: Path, form: str) -> None:
    details: Any = {"Brand": "Acme", "Weight": "2 pounds"}
    item = {"parent_asin": "P1", "title": "T", "description": ["d."], "features": ["Red &amp; blue", "<b>Big</b>"]}
    item |= {"details": json.dumps(details) if form == "text" else details}
    ending = "parquet" if form == "parquet" else "jsonl"
    meta, reviews = tmp_path / f"m.{ending}", tmp_path / "r.csv"
    if form == "parquet":
        pl.DataFrame([item]).write_parquet(meta)
    else:
        meta.write_text(json.dumps(item) + "\n")
    reviews.write_text("user_id,parent_asin,rating,timestamp\nA,P1,5.0,1588615855070\n")
    items = read("amazon-2023", reviews, meta).items
    assert items is not None
    right = ("Red & blue Big", "Brand: Acme; Weight: 2 pounds")
    assert items.select("description", "features", "details").rows() == [("d.", *right)]
    items = read("amazon-2023", reviews, meta, {"description": "description+features+details"}).items
    assert items is not None
    assert items["description"].to_list() == [" ".join(("d.", *right))]
    with pytest.raises(DataError, match=r"description = colour, but items of amazon-2023 have"):
        read("amazon-2023", reviews, meta, {"description": "colour"})


# -- data sets


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_ids_of_a_data_sets_text_files_keep_their_zeros(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    frame = pl.DataFrame({"user_id": ["01", "02"], "item_id": ["0000000017", "0002005018"], "timestamp": ["5", "6"]})
    for split, part in (("train", frame[:1]), ("test", frame[1:])):
        (tmp_path / "set").mkdir(exist_ok=True)
        path = tmp_path / "set" / f"{split}.{ending}"
        if ending == "jsonl":
            part.write_ndjson(path)
        else:
            part.write_csv(path, separator="\t" if ending == "tsv" else ",")
    folder = tmp_path / "set"
    right = [("01", "0000000017", 5), ("02", "0002005018", 6)]
    assert read("hub", folder).interactions.rows() == right
    assert read("hub", f"{folder}::test").interactions.rows() == right[1:]
    assert read("hub", f"{folder}::test+train").interactions.rows() == right[::-1]
    assert read("hub", f"{folder}::train[:1]").interactions.rows() == right[:1]
    with pytest.raises(DataError, match=r"split valid.* cannot be loaded"):
        read("hub", f"{folder}::valid")


def test_a_csv_data_set_of_the_hub_is_read_as_its_configuration_says(fake_hub: FakeHub, tmp_path: Path) -> None:
    told = fake_hub.run_python(
        """
from huggingface_hub import HfApi
from allmrec_hf.data.readers import READERS
api = HfApi()
api.create_repo("me/books", repo_type="dataset")
card = "---\\nconfigs:\\n- config_name: log\\n  data_files: log.csv\\n- config_name: items\\n  data_files: items.csv\\n"
card += "  sep: '|'\\n  column_names: [item_id, title]\\n---\\n"
log = "user_id,item_id,timestamp\\n001,0000000017,1\\n"
for name, text in (("README.md", card), ("log.csv", log), ("items.csv", "0000000017|One, or two\\n")):
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id="me/books", repo_type="dataset")
raw = READERS["hub"]("me/books:log", "me/books:items", {}, 0.01)
print(raw.interactions.rows(), raw.items.rows())
""",
        home=tmp_path,
    ).stdout
    assert told.strip() == "[('001', '0000000017', 1)] [('0000000017', 'One, or two', None)]"


# -- metadata that hold an item several times

FIRST = {"asin": "B1", "title": "", "description": [], "category": [], "brand": None}
SECOND = {"asin": "B1", "title": "Right", "description": ["d1"], "category": ["a"]}
THIRD = {"asin": "B1", "title": "Late", "description": ["d2"], "brand": "Acme"}


def test_merged_metadata_keep_the_first_value_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"reviewerID": "A", "asin": "B1", "unixReviewTime": 1}\n')
    lines = (FIRST, {"asin": "B2", "title": "Other"}, SECOND, THIRD)
    (tmp_path / "m.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = read("amazon-2018", tmp_path / "r.json", tmp_path / "m.json")
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "description", "category", "brand").rows() == [
        ("B1", "Right", "d1", "a", "Acme"),
        ("B2", "Other", None, None, None),
    ]
    assert raw.merged_items == 2


def test_a_table_merges_rows_that_complete_each_other_and_refuses_contradictions(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user_id,item_id,timestamp\na,1,1\n")
    (tmp_path / "i.csv").write_text("item_id,title,description,kind\n1,,about,x\n2,Two,,\n1,One,,y\n")
    raw = read("table", tmp_path / "r.csv", tmp_path / "i.csv")
    assert raw.items is not None
    assert raw.items.rows() == [("1", "One", "about", "x"), ("2", "Two", None, None)]
    assert raw.merged_items == 1
    (tmp_path / "i.csv").write_text("item_id,title\n1,One\n2,Two\n1,Uno\n")
    with pytest.raises(DataError, match=r"1 duplicate item ids, first \['1'\].*differ in title \('One' and 'Uno'\)"):
        read("table", tmp_path / "r.csv", tmp_path / "i.csv")


def test_empty_values_of_every_type_give_way(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["x", "x", "x"],
            "title": [None, " ", "T"],
            "price": [float("nan"), None, 2.0],
            "tags": [[], None, ["t"]],
            "year": [None, 1999, 2000],
            "brand": ["nan", "NULL", "Acme"],
        }
    )
    merged, dropped = validate_items(frame, "T")
    assert merged.to_dicts() == [
        {"item_id": "x", "title": "T", "description": None, "price": 2.0, "tags": ["t"], "year": 1999, "brand": "Acme"}
    ]
    assert dropped == 2


@pytest.mark.parametrize("form", ["lines", "array", "python"])
@pytest.mark.parametrize(("wrong", "shown"), [(True, "true"), (1.5, "1.5")])
def test_truth_values_and_fractions_are_no_ids_in_json_either(
    tmp_path: Path, form: str, wrong: Any, shown: str
) -> None:
    records = [{"user_id": 2.0, "item_id": "true", "timestamp": 1}, {"user_id": wrong, "item_id": "b", "timestamp": 2}]
    written = {"lines": json.dumps, "array": json.dumps, "python": repr}[form]
    text = "\n".join(map(written, records)) if form != "array" else json.dumps(records)
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=rf"user_id is {shown} in (?:line|element) 2; ids are text or whole numbers"):
        read("table", tmp_path / "t.json")


def test_null_words_in_the_lists_of_amazon_are_left_out(tmp_path: Path) -> None:
    reviews = {"reviewerID": "A", "asin": "1", "unixReviewTime": 1, "overall": 5.0}
    (tmp_path / "r.json").write_text(json.dumps(reviews))
    (tmp_path / "m.json").write_text(json.dumps({"asin": "1", "title": "T", "description": ["a", "nan", None, ""]}))
    items = read("amazon-2018", tmp_path / "r.json", tmp_path / "m.json").items
    assert items is not None
    assert items["description"].to_list() == ["a"]
