"""Text tables: no row is lost without a word, whatever delimiter, quotation marks and encoding a file has."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from allmrec_hf.data.readers import READERS, RawData, TextFormat, delimited
from allmrec_hf.data.readers.table_files import read_table
from allmrec_hf.errors import DataError

Rows = list[tuple[Any, ...]]


def table(folder: Path, content: str | bytes, name: str = "t.csv", bad: float = 0.01, **text: Any) -> Rows:
    """Return the rows of a file with this content, all columns."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, bad, lambda names: {name: name for name in names}, TextFormat(**text))[0].rows()


def columns(folder: Path, content: str | bytes, name: str = "t.csv", **text: Any) -> list[str]:
    """Return the names of the columns of a file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found: list[str] = []
    read_table(path, 1.0, lambda names: {name: name for name in found.__iadd__(names)}, TextFormat(**text))
    return found


def prepared(folder: Path, interactions: str, items: str | None = None, **options: Any) -> RawData:
    """Read a text of interactions, and one of items, as source `table`."""
    paths = [folder / options.pop("name", "r.csv"), folder / options.pop("items_name", "i.csv")]
    for path, text in zip(paths, (interactions, items), strict=True):
        if text is not None:
            path.write_text(text)
    mapped, bad = options.pop("columns", {}), options.pop("bad", 0.01)
    return READERS["table"](paths[0], paths[1] if items is not None else None, mapped, bad, TextFormat(**options))


# -- quotation marks


TITLES = ["Song 1", '"Greatest Hits, vol. 1', '"Heroes" (live)', '"Heroes"', 'Single 7"', '""', '"']


def test_quotation_marks_of_tsv_files_are_text(tmp_path: Path) -> None:
    content = "id\ttitle\n" + "".join(f"{number:03d}\t{title}\n" for number, title in enumerate(TITLES))
    right = [(f"{number:03d}", title) for number, title in enumerate(TITLES)]
    assert table(tmp_path, content, "t.tsv") == right
    assert table(tmp_path, gzip.compress(content.encode()), "t.tsv.gz") == right
    assert table(tmp_path, content.replace("\n", "\r\n"), "t.tsv") == right
    assert table(tmp_path, content.replace("\t", "::"), "t.dat") == right


def test_tsv_whose_header_is_quoted_is_read_with_quotes(tmp_path: Path) -> None:
    assert table(tmp_path, '"id"\t"title"\n"1"\t"a\tb"\n2\t"say ""x"""\n', "t.tsv") == [("1", "a\tb"), ("2", 'say "x"')]
    assert table(tmp_path, 'id\ttitle\n1\t"a\tb"\n', "t.tsv", quotes="csv") == [("1", "a\tb")]


def test_quoted_fields_of_csv_may_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = 'id,title,more\n1,"a, b","x\ny"\n"2","say ""x""",\n3,"""q""",""\n4, "spaced, out" ,z\n'
    right = [("1", "a, b", "x\ny"), ("2", 'say "x"', None), ("3", '"q"', None), ("4", "spaced, out", "z")]
    assert table(tmp_path, content) == right
    assert table(tmp_path, content.replace("\n", "\r\n")) == right
    assert table(tmp_path, content.rstrip("\n")) == right


def test_two_columns_with_a_line_break_and_a_comma_in_the_text_are_one_row(tmp_path: Path) -> None:
    assert table(tmp_path, 'id,text\nB001,"Line one\nline two, and more"\nB002,x\n') == [
        ("B001", "Line one\nline two, and more"),
        ("B002", "x"),
    ]


@pytest.mark.parametrize("title", ['he said \\"hi\\", twice', '7\\"', '\\"q\\"', "back\\\\", 'a""b'])
def test_backslashes_before_quotation_marks_are_read_where_a_file_writes_them_so(tmp_path: Path, title: str) -> None:
    right = title.replace('\\"', '"').replace("\\\\", "\\").replace('""', '"')
    rows = table(tmp_path, f'id,title,year\n1,"one \\"1\\" more",5\n2,"{title}",6\n3,"c, d",7\n')
    assert rows == [("1", 'one "1" more', "5"), ("2", right, "6"), ("3", "c, d", "7")]


def test_a_backslash_at_the_end_of_a_field_is_text_where_quotation_marks_are_doubled(tmp_path: Path) -> None:
    assert table(tmp_path, 'id,title\n1,"C:\\"\n2,"a ""b"", c"\n') == [("1", "C:\\"), ("2", 'a "b", c')]


def test_quotation_marks_that_break_the_rules_of_csv_are_kept_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = 'id,title\n1,7" single\n2,"Heroes" (live)\n3,"ok, yes"\n4,"never closed\n5,x\n'
    right = [("1", '7" single'), ("2", '"Heroes" (live)'), ("3", "ok, yes"), ("4", '"never closed'), ("5", "x")]
    assert table(tmp_path, content) == right
    assert "2 lines hold quotation marks that do not follow the rules of CSV, first line 3" in caplog.text


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_field_that_swallows_rows_is_refused_and_read_as_the_user_says(tmp_path: Path, ends: str) -> None:
    titles = ["Song 1", '"Greatest Hits vol. 1', "Song 3", 'Single 7"', "Song 5"]
    content = "item_id,title\n" + "".join(f"i{place}{',' + title}\n" for place, title in enumerate(titles, 1))
    content = content.replace("\n", ends)
    with pytest.raises(DataError, match=r"t\.csv: 1 fields begin with a quotation mark .*lines 3 to 5.*--quotes none"):
        table(tmp_path, content)
    assert table(tmp_path, content, quotes="none") == [(f"i{place}", title) for place, title in enumerate(titles, 1)]
    assert len(table(tmp_path, content, quotes="csv")) == 3


def test_small_blocks_and_the_careful_way_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    pieces = ['"', '""', ",", "\n", "a", "é", " ", "x y", "7", "\\"]
    rows = [(f"id{n:03d}", "".join(draw.choices(pieces, k=draw.randrange(8))), f"{n}") for n in range(300)]
    written = [(a, '"' + b.replace('"', '""') + '"', c) for a, b, c in rows]
    content = "id,text,n\n" + "".join(",".join(row) + "\n" for row in written)
    right = [(a, b or None, c) for a, b, c in rows]
    assert table(tmp_path, content) == right
    for size in (40, 333):
        monkeypatch.setattr(delimited, "BLOCK_BYTES", size)
        assert table(tmp_path, content) == right
    single = [row for row in rows if "\n" not in row[1]]
    content = "id,text,n\n" + "".join(f'{a},"{b.replace(chr(34), chr(34) * 2)}",{c}\n' for a, b, c in single)
    assert table(tmp_path, content) == [(a, b or None, c) for a, b, c in single]
    monkeypatch.setattr(delimited._Table, "_fast", lambda *_: None)
    assert table(tmp_path, content) == [(a, b or None, c) for a, b, c in single]


# -- rows of another width


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_lines_with_too_few_or_too_many_fields_are_counted_named_and_left_out(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["id,a,b"] + [f"{n},x,y" for n in range(200)]
    lines[50], lines[120] = "49,x", "119,x,y,z"
    content = "\n".join(lines) + "\n"
    rows = table(tmp_path, content.replace(",", "\t") if ending == "tsv" else content, f"t.{ending}")
    assert [row[0] for row in rows] == [str(n) for n in range(200) if n not in (49, 119)]
    assert "2 of 200 lines have not the 3 fields ['id', 'a', 'b']" in caplog.text
    assert "first line 51 with 2 fields: '49" in caplog.text
    with pytest.raises(DataError, match=r"2 of 200 lines .*at most 0\.50% may be so.*raise max_bad_lines"):
        table(tmp_path, content, bad=0.005)


def test_short_lines_do_not_become_nulls_when_others_are_as_much_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 3 lines have not the 2 fields"):
        table(tmp_path, "a,b\n1\n1,2,3\n4,5\n")


def test_left_out_lines_are_counted_in_the_raw_data(tmp_path: Path) -> None:
    rows = "".join(f"u,i{n},{n}\n" for n in range(10))
    raw = prepared(tmp_path, f"user_id,item_id,timestamp\n{rows}u,i\n", "item_id,title\ni1,a\ni2,b,c\n", bad=0.5)
    assert (raw.bad_lines, raw.interactions.height) == (2, 10)


def test_delimiters_at_the_end_of_lines_are_no_fields(tmp_path: Path) -> None:
    assert table(tmp_path, "a,b\n1,2,\n3,4,,\n") == [("1", "2"), ("3", "4")]


def test_a_header_that_lacks_the_first_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one field more than the header: name the first column"):
        table(tmp_path, "a,b\n0,1,2\n1,3,4\n")


def test_blank_lines_and_comments_are_skipped(tmp_path: Path) -> None:
    content = "# from the shop\n\n# ids, titles\nid,title\n1,#1 hit\n\n# a, b, c\n  \n#2,second\n"
    assert table(tmp_path, content) == [("1", "#1 hit"), ("#2", "second")]
    assert table(tmp_path, "# of 2020\n#user_id\tn\n7\t8\n", "t.tsv") == [("7", "8")]
    assert columns(tmp_path, "#user_id\tn\n7\t8\n", "t.tsv") == ["user_id", "n"]


# -- delimiters and headers


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "a;b\n1;2,5\n"),
        ("t.csv", "a\tb\n1\t2,5\n"),
        ("t.csv", "a|b\n1|2,5\n"),
        ("t.csv", 'sep=;\na;b\n1;"2,5"\n'),
        ("t.tsv", 'a,b\n1,"2,5"\n'),
        ("t.txt", "a::b\n1::2,5\n"),
        ("t.txt", "a b\n1 2,5\n"),
        ("t.psv", "a|b\n1|2,5\n"),
        ("t.inter", "a:token\tb:float\n1\t2,5\n"),
    ],
)
def test_the_delimiter_is_told_from_the_file(tmp_path: Path, name: str, content: str) -> None:
    assert columns(tmp_path, content, name) == ["a", "b"]
    assert table(tmp_path, content, name) == [("1", "2,5")]


def test_a_header_with_more_commas_than_its_rows_does_not_mislead(tmp_path: Path) -> None:
    assert columns(tmp_path, "id;price, net;price, gross\n1;2,5;3,5\n2;4;5\n") == ["id", "price, net", "price, gross"]


@pytest.mark.parametrize(("told", "between"), [("tab", "\t"), ("\\t", "\t"), (";", ";"), ("@@", "@@"), ("space", " ")])
def test_a_delimiter_that_is_given_is_taken(tmp_path: Path, told: str, between: str) -> None:
    assert table(tmp_path, f"a{between}b,c\n1{between}2,3\n", "t.log", delimiter=told) == [("1", "2,3")]


def test_a_delimiter_or_encoding_that_cannot_be_is_refused() -> None:
    for wrong in ("", "\n", '"'):
        with pytest.raises(DataError, match="the delimiter is"):
            TextFormat(delimiter=wrong)
    for name in ("utf-9", "hex"):
        with pytest.raises(DataError, match=f"there is no encoding '{name}'"):
            TextFormat(encoding=name)
    with pytest.raises(DataError, match="quotes is 'some'; choose one of"):
        TextFormat(quotes="some")  # type: ignore[arg-type]


def test_files_without_header_are_read_by_column_numbers(tmp_path: Path) -> None:
    numbers = {"user_id": "0", "interactions.item_id": "1", "timestamp": "3", "items.item_id": "0", "title": "2"}
    raw = prepared(tmp_path, "07,1,5,9\n08,2,4,8\n", "1|x|One\n2|y|Two\n", columns=numbers, header=False)
    assert raw.interactions.rows() == [("07", "1", 9), ("08", "2", 8)]
    assert raw.items is not None
    assert raw.items.rows() == [("1", "One", None, "x"), ("2", "Two", None, "y")]
    del numbers["title"], numbers["items.item_id"]
    raw = prepared(tmp_path, "07,1,5,9\n", "item_id,title\n1,One\n", columns=numbers, header=False, items_header=True)
    assert raw.items is not None
    assert raw.items.rows() == [("1", "One", None)]
    assert raw.interactions.rows() == [("07", "1", 9)]


def test_a_row_taken_for_a_header_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks the columns \['user_id'.*--no-header --column user_id=0"):
        prepared(tmp_path, "196\t242\t3\t881250949\n186\t302\t3\t891717742\n", name="u.data")
    with pytest.raises(DataError, match=r"it has \['0', '1'\].*--column user_id=0"):
        prepared(tmp_path, "1,2\n", header=False)


def test_a_row_taken_for_a_header_by_column_numbers_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = {"user_id": "0", "item_id": "1", "timestamp": "2"}
    raw = prepared(tmp_path, "196,242,881250949\n186,302,891717742\n", columns=numbers)
    assert raw.interactions.height == 1
    assert "looks like a row; if the file has no header, say --no-header" in caplog.text
    caplog.clear()
    assert prepared(tmp_path, "u,i,t\n186,302,891717742\n", columns=numbers).interactions.height == 1
    assert prepared(tmp_path, "0,1,2\n186,302,891717742\n", columns=numbers).interactions.height == 1
    assert not caplog.text


def test_a_column_number_works_beside_a_header_and_beyond_it_is_told(tmp_path: Path) -> None:
    text = "user_id,item_id,item_id\nu,i,5\n"
    assert prepared(tmp_path, text, columns={"timestamp": "2", "item_id": "1"}).interactions.rows() == [("u", "i", 5)]
    with pytest.raises(DataError, match=r"interactions.timestamp = 3, but .*r\.csv has"):
        prepared(tmp_path, text, columns={"interactions.timestamp": "3"})


def test_a_wanted_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the header names \['item_id'\] more than once.*by its number"):
        prepared(tmp_path, "user_id,item_id,item_id,timestamp\nu,i,j,5\n")
    raw = prepared(tmp_path, "user_id,item_id,x,x,timestamp\nu,i,1,2,5\n")
    assert raw.interactions.rows() == [("u", "i", 5)]


@pytest.mark.parametrize(
    "header", [" user_id , item_id,timestamp ", "USER_ID,Item Id,TimeStamp", "user-id,ITEM_ID,timestamp"]
)
def test_space_case_and_hyphens_of_a_header_do_not_count(tmp_path: Path, header: str) -> None:
    assert prepared(tmp_path, f"\ufeff{header}\nu,007,5\n").interactions.rows() == [("u", "007", 5)]


def test_recbole_files_lose_the_types_of_their_header(tmp_path: Path) -> None:
    raw = prepared(
        tmp_path,
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n007\t1\t4\t8.5e8\n07\t1\t3\t850000001.0\n",
        'item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\t"Heroes\tDrama War\n',
        name="ml.inter",
        items_name="ml.item",
        columns={"title": "movie_title"},
    )
    assert raw.interactions.rows() == [("007", "1", 850000000, 4.0), ("07", "1", 850000001, 3.0)]
    assert raw.items is not None
    assert raw.items.to_dicts() == [{"item_id": "1", "title": '"Heroes', "description": None, "class": "Drama War"}]


# -- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_tell_the_encoding(tmp_path: Path, encoding: str) -> None:
    assert table(tmp_path, "a,b\n1,Amélie 🎬\n".encode(encoding)) == [("1", "Amélie 🎬")]
    assert table(tmp_path, '{"a": "1", "b": "Amélie"}\n'.encode(encoding), "t.jsonl") == [("1", "Amélie")]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "shift-jis", "cp1251"])
def test_an_encoding_that_is_given_is_read(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    word = {"shift-jis": "日本", "cp1251": "Кино"}.get(encoding, "Amélie")
    assert table(tmp_path, f"a,b\n1,{word}\n".encode(encoding), encoding=encoding) == [("1", word)]
    monkeypatch.setattr("allmrec_hf.data.readers.base.BLOCK_BYTES", 3)
    assert table(tmp_path, f"a,b\n1,{word}\n".encode(encoding), encoding=encoding) == [("1", word)]


@pytest.mark.parametrize("block", [1 << 20, 1, 4])
def test_a_byte_of_another_encoding_is_named_with_its_place(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allmrec_hf.data.readers.base.BLOCK_BYTES", block)
    content = "a,b\n1,é\n2,Am".encode() + b"\xe9lie\n"
    with pytest.raises(DataError, match=r"byte 0xE9 at byte 14 \(line 3, column 5\) is no UTF-8.*--encoding latin-1"):
        table(tmp_path, content)
    with pytest.raises(
        DataError, match=r"byte 0x81 at byte 5 \(line 2, column 1\) is no CP1252, the encoding that was"
    ):
        table(tmp_path, b"a,b\n\x81,2\n", encoding="cp1252")


def test_utf_16_without_a_mark_and_binary_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"as in UTF-16.*--encoding utf-16-le"):
        table(tmp_path, "a,b\n1,2\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"byte 7 \(line 2\) is NUL, so this is no text file"):
        table(tmp_path, b"a,b\n1,\x002\n")
    with pytest.raises(DataError, match="is a zip file; unpack it"):
        table(tmp_path, b"PK\x03\x04 and more")


# -- files that are none


def test_truncated_and_damaged_files_are_named_without_a_library_speaking(tmp_path: Path) -> None:
    for content, reason in ((b"PAR1 no end", "it is truncated"), (b"PAR1 nothing PAR1", "its content is damaged")):
        with pytest.raises(DataError, match=rf"t\.parquet is no readable parquet file \({reason}") as told:
            table(tmp_path, content, "t.parquet")
        assert "olars" not in str(told.value)
    with pytest.raises(DataError, match=r"is a folder; give the file itself \(it holds \['t\.parquet'\]\)"):
        read_table(tmp_path, 0.01, lambda names: {})
    for content in (b"", b"\n \n", gzip.compress(b"")):
        with pytest.raises(DataError, match="is empty"):
            table(tmp_path, content, "t.csv.gz")
    with pytest.raises(DataError, match="is empty; expected one row for each interaction"):
        prepared(tmp_path, "user_id,item_id,timestamp\n")


def test_very_long_lines_are_read(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert table(tmp_path, f'a,b\n1,"{long}, ""x"""\n2,y\n') == [("1", f'{long}, "x"'), ("2", "y")]
