"""Random and mutated bytes in everything that reads a file or a request: read, or refused by an error of the project.

A sample of what `benchmarks/random_bytes.py` does with 10,000 cases, and bombs.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from allmrec_hf.errors import LONGEST_MESSAGE, ALLMRecError, DataError
from allmrec_hf.stored_values import json_value, yaml_value

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SLOW = ("pipeline", "requests", "command-settings", "http-explain", "text-encoder", "card-check", "data-card", "llm")
CASES = {True: 3, False: 12}  # of a reader that is slow, of one that is not


@pytest.fixture(scope="module")
def random_bytes():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import random_bytes
    finally:
        sys.path.remove(str(BENCHMARKS))
    return random_bytes


def names():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from byte_readers import readers
    finally:
        sys.path.remove(str(BENCHMARKS))
    return list(readers())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names())
def test_whatever_the_bytes_are_they_are_read_or_refused(random_bytes, tmp_path, name):
    needed = {"gguf": "gguf", "adapter": "peft"}.get(name) or ("fastapi" if name.startswith("http-") else None)
    if needed:
        pytest.importorskip(needed)
    reader = random_bytes.readers()[name]
    whole = random_bytes.valid_files(reader, tmp_path)
    for number in range(CASES[name in SLOW]):
        file, kind, content = random_bytes.mutated(reader, whole, name, number, seed=7)
        found, text = random_bytes.outcome(reader, tmp_path, file, content, whole[file])
        assert found in ("read", "refused"), (number, file, kind, text)


def test_deep_nesting_is_an_error_of_json_and_yaml():
    for text in ("[" * 5_000, '{"a":' * 5_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            json_value(text)
        with pytest.raises(ValueError, match="nested too deeply"):
            yaml_value(text)


@pytest.mark.parametrize("text", ["day: 2001-99-99", "!!int ''", "!!python/object:os.system {}", "\x00", "a: [", "*a"])
def test_whatever_is_wrong_with_yaml_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        yaml_value(text)


def test_a_message_that_quotes_a_megabyte_is_cut_in_its_middle():
    text = str(DataError(f"the beginning {'x' * 10**6} the end"))
    assert len(text) <= LONGEST_MESSAGE
    assert text.startswith("the beginning")
    assert text.endswith("the end")
    assert "characters left out" in text
    assert str(ALLMRecError("short")) == "short"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_a_yaml_bomb_is_refused_in_a_bounded_message(tmp_path):
    from allmrec_hf.benchmark.suite_parser import load_suite
    from allmrec_hf.training.arguments import ALLMRecTrainingArguments

    (tmp_path / "bomb.yaml").write_text(BOMB)
    for read in (load_suite, lambda path: ALLMRecTrainingArguments.from_yaml(path, output_dir=tmp_path)):
        with pytest.raises(ALLMRecError) as told:
            read(tmp_path / "bomb.yaml")
        assert len(str(told.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, ending):
    from allmrec_hf.data.readers import base, read_tables

    monkeypatch.setattr(base, "MOST_UNPACKED", 2**20)
    path = tmp_path / f"log.{ending}.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(8):
            file.write(b"a" * 2**20)
    with pytest.raises(DataError, match="unfolds to over"):
        read_tables(path, None, {}, 0.01)


def test_a_parquet_bomb_is_refused_by_its_metadata(tmp_path, monkeypatch):
    import polars as pl

    from allmrec_hf import ItemCatalog, files
    from allmrec_hf.data.readers import read_tables

    monkeypatch.setattr(files, "MOST_ROWS", 1000)
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]})
    pl.concat([frame] * 250_000).write_parquet(tmp_path / "items.parquet", compression="zstd")
    for read in (lambda path: read_tables(path, None, {}, 0.01), ItemCatalog.load):
        with pytest.raises(DataError, match="250,000 rows in"):
            read(tmp_path / "items.parquet")
