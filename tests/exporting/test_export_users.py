"""Whose best items decide about an export: users of a file, of prepared data, of the demo's world."""

from __future__ import annotations

import json

import polars as pl
import pytest

from allmrec_hf import DataError
from allmrec_hf.exporting.export_users import ExportUser, export_users
from tests.tiny import tiny_catalog

CATALOG = tiny_catalog()


def of(path, **given):
    return export_users(CATALOG, "runs/none", users=path, **given)


def test_parquet_and_json_lines_give_the_same_users(tmp_path):
    rows = [
        {"user_id": "u1", "history": ["I3", "I1", "gone"], "candidates": ["I7", "I8", "I7"]},
        {"user_id": "u2", "history": ["gone"], "candidates": None},
        {"user_id": "u3", "history": ["I2"], "candidates": None},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "users.parquet")
    (tmp_path / "users.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    expected = [ExportUser([3, 1], [7, 8], "u1"), ExportUser([2], None, "u3")]
    assert of(tmp_path / "users.parquet") == of(tmp_path / "users.jsonl") == expected
    assert of(tmp_path / "users.jsonl", most=1) == expected[:1]


def test_titles_name_items_too(tmp_path):
    (tmp_path / "users.jsonl").write_text(json.dumps({"titles": ["lonely silent 1", "Lonely 4"]}), encoding="utf-8")
    assert of(tmp_path / "users.jsonl") == [ExportUser([1, 4])]


def test_histories_of_prepared_data_end_before_the_test_item(small_data, small_parts):
    users = export_users(small_data.catalog, "runs/none", data=small_parts / "data", most=50)
    number = small_data.user_number(users[0].user_id)
    assert users[0].history == small_data.history(number, "test").tolist()
    sets = small_data.candidates("test")
    row = sets.users.tolist().index(number)
    assert users[0].candidates == sets.items[row].tolist()
    assert len(users) == 50
    assert users == export_users(small_data.catalog, "runs/none", data=small_parts / "data", most=50)


def test_the_demo_brings_users_of_its_own():
    from allmrec_hf import DEMO_CHECKPOINT, ItemCatalog

    catalog = ItemCatalog.load(DEMO_CHECKPOINT)
    users = export_users(catalog, "demo", most=3)
    assert len(users) == 3
    assert all(len(user.history) >= 8 for user in users)
    assert users == export_users(catalog, DEMO_CHECKPOINT, most=3)


WRONG = {
    "nothing.jsonl": (None, "cannot be read"),
    "nothing.parquet": (None, "is no file"),
    "text.parquet": ("history\nI1\n", "cannot be read as parquet"),
    "broken.jsonl": ('{"history": ["I1"]}\n{"history": [', "line 2 cannot be read as JSON lines"),
    "list.jsonl": ("[1, 2]\n", "line 1 is no request"),
    "other.jsonl": ('{"items": ["I1"]}\n', "line 1 is no request"),
    "text.jsonl": ('{"history": "I1,I2"}\n', "line 1: 'history' must be a list"),
    "both.jsonl": ('{"history": ["I1"], "titles": ["Lonely 4"]}\n', "line 1 has history and titles"),
    "strangers.jsonl": ('{"history": ["X1"]}\n', "no user with an item of this catalogue"),
    "empty.jsonl": ("", "no user with an item of this catalogue"),
    "bytes.jsonl": (b"\xff\xfe\x00", "cannot be read as JSON lines"),
    "candidates.jsonl": ('{"history": ["I1"], "candidates": ["X9"]}\n', r"line 1: candidates .*'X9'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_users_that_is_wrong_says_where(tmp_path, name):
    content, message = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        of(tmp_path / name)


def test_users_must_be_named_once():
    with pytest.raises(DataError, match="checked on real users; give --users"):
        export_users(CATALOG, "runs/none")
    with pytest.raises(DataError, match="give one of them"):
        export_users(CATALOG, "runs/none", users="a", data="b")
