from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from allmrec_hf.data.readers import READERS, RawData
from allmrec_hf.data.readers import base as base_module
from allmrec_hf.errors import DataError

REVIEW = {"reviewerID": "A", "asin": "B1", "unixReviewTime": 10, "overall": 5.0, "style": {"Size:": "S"}, "vote": "2"}
META = {"asin": "B1", "title": "Tom &amp; <b>Jerry</b>", "description": ["One.", "Two."], "category": ["a", "b"]}


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(source: str, interactions: Any, items: Any = None, columns: Any = None, bad: float = 0.01) -> RawData:
    return READERS[source](interactions, items, columns or {}, bad)


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_amazon_2018_reads_plain_and_gzip_files(tmp_path: Path, ending: str) -> None:
    reviews = write_lines(tmp_path / f"Games{ending}", [REVIEW, REVIEW | {"reviewerID": "C", "overall": 3.0}])
    meta = write_lines(tmp_path / f"meta{ending}", [META, META | {"title": "again"}, {"asin": "B2", "title": "x"}])
    raw = read("amazon-2018", reviews, meta)
    assert raw.interactions.rows() == [("A", "B1", 10, 5.0), ("C", "B1", 10, 3.0)]
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "description", "category").rows() == [
        ("B1", "Tom & Jerry", "One. Two.", "a|b"),
        ("B2", "x", None, None),
    ]
    assert (raw.name, raw.merged_items, raw.bad_lines) == ("Games", 1, 0)


def test_a_description_given_as_one_text_is_read_like_a_list(tmp_path: Path) -> None:
    reviews = write_lines(tmp_path / "r.json", [REVIEW])
    meta = write_lines(tmp_path / "m.json", [META, META | {"asin": "B2", "description": "Only one."}])
    items = read("amazon-2018", reviews, meta).items
    assert items is not None
    assert items["description"].to_list() == ["One. Two.", "Only one."]


def test_reading_in_small_blocks_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = write_lines(tmp_path / "r.json.gz", [REVIEW | {"unixReviewTime": n} for n in range(500)])
    whole = read("amazon-2018", reviews).interactions
    monkeypatch.setattr(base_module, "BLOCK_BYTES", 100)
    assert read("amazon-2018", reviews).interactions.equals(whole)
    assert whole["timestamp"].to_list() == list(range(500))


def test_broken_lines_are_counted_up_to_the_threshold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[Any] = [REVIEW | {"unixReviewTime": n} for n in range(200)]
    lines[100:100] = ["", "{broken"]
    raw = read("amazon-2018", write_lines(tmp_path / "r.json", lines))
    assert raw.bad_lines == 1
    assert raw.interactions["timestamp"].to_list() == list(range(200))
    assert "1 of 201 lines are no JSON object, first line 102: '{broken'" in caplog.text


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "12", "null", '{"a": 1} {"b": 2}', '"text"'])
def test_too_many_broken_lines_fail_with_the_first_line_number(tmp_path: Path, line: str) -> None:
    reviews = write_lines(tmp_path / "r.json", [REVIEW, REVIEW, line, REVIEW, line])
    with pytest.raises(DataError, match=r"r\.json: 2 of 5 lines are no JSON object, first line 3.*at most 1\.00%"):
        read("amazon-2018", reviews)
    assert read("amazon-2018", reviews, bad=0.4).bad_lines == 2


def test_line_numbers_go_on_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "BLOCK_BYTES", 64)
    with pytest.raises(DataError, match="1 of 41 lines are no JSON object, first line 41"):
        read("amazon-2018", write_lines(tmp_path / "r.json", [REVIEW] * 40 + ["oops"]))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.json.gz", [REVIEW | {"unixReviewTime": n} for n in range(3000)])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"r\.json\.gz is a truncated or damaged gzip file"):
        read("amazon-2018", path)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.csv.gz", ["a,b"] * 3000)
    content = bytearray(path.read_bytes())
    content[20:30] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"r\.csv\.gz is a truncated or damaged gzip file"):
        read("table", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n \n", "is empty; expected one JSON object"),
        (gzip.compress(b"", mtime=0), "is empty"),
    ],
)
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("amazon-2018", tmp_path / "r.json")


def test_a_file_that_is_missing_or_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*absent.json"):
        read("amazon-2018", tmp_path / "absent.json")
    with pytest.raises(DataError, match="is a folder"):
        read("amazon-2018", tmp_path)


def test_a_file_of_another_source_names_the_fields(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the fields \['reviewerID', 'unixReviewTime'\] occur in none.*'title'"):
        read("amazon-2018", write_lines(tmp_path / "m.json", [META]))


def test_wrong_types_and_missing_values_in_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rating of .* holds 1 values that are no number.*'five'"):
        read("amazon-2018", write_lines(tmp_path / "a.json", [REVIEW, REVIEW | {"overall": "five"}]))
    nan = write_lines(tmp_path / "b.json", [REVIEW, REVIEW | {"overall": float("nan")}])
    assert read("amazon-2018", nan).interactions["rating"].to_list() == [5.0, None]
    with pytest.raises(DataError, match=r"user_id of .* holds 1 null or empty ids in 2 rows.*data row 2"):
        read("amazon-2018", write_lines(tmp_path / "c.json", [REVIEW, {**REVIEW, "reviewerID": None}]))


def test_a_lone_surrogate_does_not_stop_the_reader(tmp_path: Path) -> None:
    meta = write_lines(tmp_path / "m.json", ['{"asin": "B1", "title": "a\\ud800b", "description": "d"}'])
    raw = read("amazon-2018", write_lines(tmp_path / "r.json", [REVIEW]), meta)
    assert raw.items is not None
    assert raw.items["title"].to_list() == ["a?b"]


def test_fixed_layouts_refuse_a_column_map(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the layout of amazon-2018 is fixed"):
        read("amazon-2018", tmp_path / "r.json", columns={"user_id": "u"})


REVIEW_2023 = {
    "user_id": "A",
    "parent_asin": "P1",
    "asin": "C",
    "timestamp": 1588615855070,
    "rating": 4.0,
    "title": "r",
}
META_2023 = {"parent_asin": "P1", "title": "T", "description": ["d1", "d2"], "categories": [], "store": "S"}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_amazon_2023_reads_json_lines_and_parquet(tmp_path: Path, ending: str) -> None:
    paths = tmp_path / f"r{ending}", tmp_path / f"m{ending}"
    for path, record in zip(paths, (REVIEW_2023, META_2023), strict=True):
        if ending == ".parquet":
            pl.DataFrame([record], schema_overrides={"categories": pl.List(pl.String)}, strict=False).write_parquet(
                path
            )
        else:
            write_lines(path, [record])
    raw = read("amazon-2023", *paths)
    assert raw.interactions.rows() == [("A", "P1", 1588615855070, 4.0)]
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "description", "store").rows() == [("P1", "T", "d1 d2", "S")]


def test_amazon_2023_reads_the_csv_files_without_texts(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user_id,parent_asin,rating,timestamp\nA,007,5.0,1588615855070\n")
    assert read("amazon-2023", tmp_path / "r.csv").interactions.rows() == [("A", "007", 1588615855070, 5.0)]


def test_movielens_100k_layout_in_latin_1(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
    flags = "|".join("1" if place in (1, 5) else "0" for place in range(19))
    (tmp_path / "u.item").write_bytes(f"242|Amélie (2001)|01-Jan-2001||http://x|{flags}\n".encode("latin-1"))
    raw = read("movielens", tmp_path)
    assert raw.interactions.rows() == [("196", "242", 881250949, 3.0), ("186", "302", 891717742, 4.0)]
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "category").rows() == [("242", "Amélie (2001)", "Action|Comedy")]


def test_movielens_1m_layout(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\r\n1::661::3::978302109\r\n")
    (tmp_path / "movies.dat").write_bytes("661::Élan: A Film (1996)::Drama|War\n".encode("latin-1"))
    raw = read("movielens", tmp_path / "ratings.dat")
    assert raw.interactions["item_id"].to_list() == ["1193", "661"]
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "category").rows() == [("661", "Élan: A Film (1996)", "Drama|War")]


def test_movielens_csv_layout(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n")
    (tmp_path / "films.csv").write_text('movieId,title,genres\n31,"Dangerous Minds, Again (1995)",Drama\n')
    raw = read("movielens", tmp_path / "ratings.csv", tmp_path / "films.csv")
    assert raw.interactions.rows() == [("1", "31", 1260759144, 2.5)]
    assert raw.items is not None
    assert raw.items["title"].to_list() == ["Dangerous Minds, Again (1995)"]


def test_movielens_files_of_another_layout_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no ratings of MovieLens"):
        read("movielens", tmp_path)
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n1\t2\n")
    with pytest.raises(DataError, match="1 of 2 lines have not the 4 fields of this layout, first line 2"):
        read("movielens", tmp_path / "u.data")
    (tmp_path / "u.data").write_text("hello\n")
    with pytest.raises(DataError, match="'hello' begins no file of ratings"):
        read("movielens", tmp_path / "u.data")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz"])
def test_tables_of_every_format_give_the_same_data(tmp_path: Path, ending: str) -> None:
    columns = {"uid": ["01", "2"], "sku": ["x", "y"], "when": [5, 6]}
    frames = pl.DataFrame(columns), pl.DataFrame({"id": ["x"], "name": ["a, b"], "year": ["1999"]})
    paths = tmp_path / f"r{ending}", tmp_path / f"i{ending}"
    for frame, path in zip(frames, paths, strict=True):
        if ending == ".parquet":
            frame.write_parquet(path)
        elif "json" in ending:
            write_lines(path, frame.to_dicts())
        else:
            write_lines(path, frame.write_csv(separator="\t" if ending == ".tsv" else ",").splitlines())
    names = {
        "user_id": "uid",
        "interactions.item_id": "sku",
        "timestamp": "when",
        "items.item_id": "id",
        "title": "name",
    }
    raw = read("table", *paths, names)
    assert raw.interactions.rows() == [("01", "x", 5), ("2", "y", 6)]
    assert raw.items is not None
    assert raw.items.to_dicts() == [{"item_id": "x", "title": "a, b", "description": None, "year": "1999"}]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbfuser_id,item_id,timestamp\r\na,b,1\r\n")
    assert read("table", tmp_path / "r.csv").interactions.rows() == [("a", "b", 1)]


def test_a_column_map_may_swap_names(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user_id,item_id,timestamp\nx,u,1\n")
    raw = read("table", tmp_path / "r.csv", columns={"user_id": "item_id", "item_id": "user_id"})
    assert raw.interactions.rows() == [("u", "x", 1)]


def test_tables_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user,item_id,timestamp\na,b,1\n")
    with pytest.raises(
        DataError, match=r"r.csv lacks the columns \['user_id'\]; it has \['user', 'item_id', 'timestamp'\]"
    ):
        read("table", tmp_path / "r.csv")
    with pytest.raises(DataError, match=r"interactions.user_id = uid, but .*r.csv has"):
        read("table", tmp_path / "r.csv", columns={"interactions.user_id": "uid"})
    with pytest.raises(DataError, match=r"key 'rows.user_id' is neither"):
        read("table", tmp_path / "r.csv", columns={"rows.user_id": "user"})
    (tmp_path / "ragged.csv").write_text("user_id,item_id,timestamp\na,b,1,2,3\n")
    with pytest.raises(DataError, match=r"ragged.csv: 1 of 1 lines have not the 3 fields .*first line 2 with 5"):
        read("table", tmp_path / "ragged.csv")
    (tmp_path / "r.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"r.parquet is no readable parquet file"):
        read("table", tmp_path / "r.parquet")
    (tmp_path / "header.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(DataError, match=r"header.csv is empty"):
        read("table", tmp_path / "header.csv")
    (tmp_path / "blank.csv").write_text("\n \n")
    with pytest.raises(DataError, match=r"blank\.csv"):
        read("table", tmp_path / "blank.csv")
    (tmp_path / "text.jsonl").write_text("not\njson\n")
    with pytest.raises(DataError, match=r"2 of 2 lines are no JSON object, first line 1: 'not'"):
        read("table", tmp_path / "text.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"blank\.jsonl is empty"):
        read("table", tmp_path / "blank.jsonl")
    with pytest.raises(DataError, match=r"unknown format \.xlsx; expected one of"):
        read("table", tmp_path / "r.xlsx")


def test_a_table_with_a_duplicate_item_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user_id,item_id,timestamp\na,b,1\n")
    (tmp_path / "i.csv").write_text("item_id,title\nb,One\nb,Two\n")
    with pytest.raises(DataError, match=r"1 duplicate item ids, first \['b'\]"):
        read("table", tmp_path / "r.csv", tmp_path / "i.csv")


def test_hub_reads_a_data_set_with_a_column_map(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    pl.DataFrame({"uid": ["a", "b"], "item_id": [1, 2], "timestamp": [3, 4]}).write_parquet(folder / "train.parquet")
    pl.DataFrame({"uid": ["c"], "item_id": [1], "timestamp": [5]}).write_parquet(folder / "test.parquet")
    every = read("hub", folder, columns={"user_id": "uid"})
    assert every.interactions.rows() == [("a", "1", 3), ("b", "2", 4), ("c", "1", 5)]
    assert read("hub", f"{folder}::test", columns={"user_id": "uid"}).interactions.rows() == [("c", "1", 5)]


def test_a_hub_data_set_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data set .*absent.* cannot be loaded"):
        read("hub", tmp_path / "absent")


def test_raw_gift_cards_have_the_published_counts(shared: Path) -> None:
    raw_folder = shared / "amazon_gift_cards_2018" / "raw"
    raw = read("amazon-2018", raw_folder / "Gift_Cards_5.json.gz", raw_folder / "meta_Gift_Cards.json.gz")
    assert raw.interactions.height == 2972
    assert raw.interactions.unique().height == 2969
    assert (raw.interactions["user_id"].n_unique(), raw.interactions["item_id"].n_unique()) == (458, 148)
    assert raw.items is not None
    assert raw.items.height == 1547
    assert raw.items["title"].null_count() == 0
    assert not raw.items["title"].str.contains(r"&amp;|<b>").any()
