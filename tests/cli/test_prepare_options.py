"""`allmrec prepare`: every option of the Python function, and those about values and times at work."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from allmrec_hf import DataError
from allmrec_hf.cli.prepare_command import prepare as command
from allmrec_hf.data.prepare import prepare
from tests.command_line import refused, succeeded


def test_command_and_function_have_the_same_options_and_defaults() -> None:
    def defaults(function: Any) -> dict[str, Any]:
        found = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        return {name: getattr(value, "value", value) for name, value in found.items()}

    ours, theirs = defaults(prepare), defaults(command)
    assert set(theirs) - set(ours) == {"column", "json_output", "config"}
    assert set(ours) - set(theirs) == {"columns"}  # --column
    assert (theirs.pop("output"), ours.pop("output")) == (
        inspect.Parameter.empty,
        None,
    )  # a folder of its own in Python
    assert (theirs.pop("source"), ours.pop("source")) == ("table", None)  # in Python frames too
    assert {name: value for name, value in theirs.items() if name in ours} == {
        name: value for name, value in ours.items() if name != "columns"
    }


@pytest.mark.parametrize("option", [{"delimiter": ";"}, {"encoding": "latin-1"}, {"header": False}, {"quotes": "none"}])
def test_what_is_said_of_text_files_is_refused_with_frames(option: dict[str, Any]) -> None:
    rows = [{"user_id": u, "item_id": u + t, "timestamp": t} for u in range(4) for t in range(4)]
    with pytest.raises(DataError, match="the interactions are no text file: leave it out"):
        prepare(rows, filter="none", num_candidates=2, **option)


def test_dates_ratings_and_repeats_are_told_by_options(tmp_path: Path) -> None:
    rows = [
        (f"u{u}", f"i{(u + t) % 9}", f"{t + 1:02d}/0{6 - t}/2023", 5 - (t == 5)) for u in range(9) for t in range(6)
    ]
    rows += [(f"u{u}", f"i{u}", "31/12/2023", 5) for u in range(9)]  # the first item once more
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    log.write_csv(tmp_path / "log.csv")
    raw = ("prepare", "--interactions", tmp_path / "log.csv", "--filter", "none", "--num-candidates", 3)
    assert "'01/06/2023' in data row 1" in refused(*raw, "--output", tmp_path / "a")
    options = ("--time-format", "%d/%m/%Y", "--min-rating", 5, "--repeats", "last", "--json")
    info = json.loads(succeeded(*raw, *options, "--output", tmp_path / "b").stdout)
    assert info["counts"]["interactions"] == 45
    frame = pl.read_parquet(tmp_path / "b" / "interactions.parquet").filter(pl.col("user_id") == "u0")
    assert frame["item_id"].to_list() == ["i4", "i3", "i2", "i1", "i0"]


def test_files_without_times_are_read_in_file_order_only_on_request(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{(u * 2 + t) % 9}") for u in range(9) for t in range(4)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_csv(tmp_path / "log.csv")
    raw = ("prepare", "--interactions", tmp_path / "log.csv", "--filter", "none", "--num-candidates", 3)
    told = refused(*raw, "--output", tmp_path / "a")
    assert "lacks the columns ['timestamp']" in told
    assert "--order file" in told
    done = succeeded(*raw, "--order", "file", "--output", tmp_path / "b")
    assert "leave-one-out by the order of rows in the file" in done.stdout
    frame = pl.read_parquet(tmp_path / "b" / "interactions.parquet").filter(pl.col("user_id") == "u1")
    assert frame["item_id"].to_list() == ["i2", "i3", "i4", "i5"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_file_order_leaves_out_a_column_of_times(tmp_path: Path, ending: str) -> None:
    rows = [(f"u{u}", f"i{(u * 2 + t) % 9}", 9 - t) for u in range(9) for t in range(4)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    path = tmp_path / f"log.{ending}"
    {"jsonl": log.write_ndjson, "parquet": log.write_parquet, "csv": log.write_csv}[ending](path)
    data = prepare(path, output=tmp_path / "d", order="file", filter="none", num_candidates=3)
    assert data.interactions["timestamp"].to_list() == list(range(36))
