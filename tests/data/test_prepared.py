from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import DataError


@pytest.fixture
def data(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> PreparedData:
    return prepare(interactions, items, output=tmp_path / "d", k_core=2, num_candidates=10)


def same(first: PreparedData, second: PreparedData) -> bool:
    return (
        first.interactions.equals(second.interactions)
        and first.catalog.frame.equals(second.catalog.frame)
        and first.candidate_frame.equals(second.candidate_frame)
        and first.info == second.info
        and all((a == b).all() for a, b in zip(first.sequences(), second.sequences(), strict=True))
        and (first.candidates("test").items == second.candidates("test").items).all()
    )


def test_saved_data_load_the_same(data: PreparedData) -> None:
    loaded = PreparedData.load(data.directory)
    assert same(data, loaded)
    assert loaded.directory == data.directory
    assert sorted(path.name for path in data.directory.iterdir()) == [
        "candidates.parquet",
        "dataset.json",
        "interactions.parquet",
        "items.parquet",
    ]


def test_histories_end_before_their_targets(data: PreparedData) -> None:
    sequence = data.sequence(3)
    assert sequence.dtype == np.int64
    assert data.catalog.item_id(sequence[0]) == "i21"
    assert data.history(3, "train").tolist() == data.history(3, "validation").tolist() == sequence[:-2].tolist()
    assert data.history(3, "test").tolist() == sequence[:-1].tolist()
    assert data.sequences("train")[3].tolist() == sequence[:-2].tolist()
    assert data.sequences("train+validation")[3].tolist() == sequence[:-1].tolist()
    assert data.user_number("u3") == 3
    assert data.user_number("nobody") is None


def test_item_counts_are_those_of_the_training_part(data: PreparedData) -> None:
    for split in ("train", "train+validation"):
        counts = data.item_counts(split)  # type: ignore[arg-type]
        expected = np.bincount(np.concatenate(data.sequences(split)), minlength=data.num_items + 1)  # type: ignore[arg-type]
        assert counts.shape == (data.num_items + 1,)
        assert (counts == expected).all()
        assert counts[0] == 0


def test_a_dataset_dict_holds_the_three_splits(data: PreparedData) -> None:
    dataset = data.to_dataset_dict()
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 120, "validation": 30, "test": 30}
    assert dataset["test"].column_names == ["user_id", "item_id", "timestamp", "rating"]
    assert dataset["test"][0]["item_id"] == data.catalog.item_id(data.sequence(0)[-1])


def test_unknown_splits_are_named(data: PreparedData) -> None:
    with pytest.raises(DataError, match="there are no candidates of split 'train'"):
        data.candidates("train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no training part 'test'"):
        data.item_counts("test")  # type: ignore[arg-type]


def edit(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_parquet(path)).write_parquet(path)


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "candidates.parquet", "dataset.json"])
def test_a_missing_file_is_named(data: PreparedData, name: str) -> None:
    (data.directory / name).unlink()
    with pytest.raises(DataError, match=rf"lacks \['{name}'\]; make prepared data with `allmrec prepare`"):
        PreparedData.load(data.directory)


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "candidates.parquet"])
def test_a_truncated_file_is_named(data: PreparedData, name: str) -> None:
    path = data.directory / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name} is no readable parquet file"):
        PreparedData.load(data.directory)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist; it should hold"):
        PreparedData.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dataset\.json is no readable JSON file"),
        ('{"format": 1}', r"lacks \['name', 'domain', 'num_candidates'\]"),
        ('{"format": 2, "name": "a", "domain": "b", "num_candidates": 3}', "has format 2, but this version reads 1"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(data: PreparedData, text: str, message: str) -> None:
    (data.directory / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        PreparedData.load(data.directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "interactions.parquet",
            lambda frame: frame.drop("split"),
            r"wrong columns: split \(missing instead of String",
        ),
        (
            "interactions.parquet",
            lambda frame: frame.cast({"timestamp": pl.Float64}),
            r"timestamp \(Float64 instead of",
        ),
        ("interactions.parquet", lambda frame: frame.reverse(), "column split .* is not leave-one-out"),
        ("interactions.parquet", lambda frame: pl.concat([frame[6:], frame[:6]])[::2], "column split .* is not leave"),
        ("interactions.parquet", lambda frame: frame.sort("timestamp", maintain_order=True), "is not sorted by user"),
        ("interactions.parquet", lambda frame: frame.clear(), r"interactions\.parquet of .* is empty"),
        ("items.parquet", lambda frame: frame[2:], r"interactions\.parquet of .* names 2 items .*items\.parquet lacks"),
        ("candidates.parquet", lambda frame: frame.drop("target"), r"target \(missing"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    data: PreparedData, name: str, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    edit(data.directory / name, change)
    with pytest.raises(DataError, match=message):
        PreparedData.load(data.directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.with_columns(pl.col("candidates").list.head(9)), "sets of other than 10 items"),
        (
            lambda frame: frame.with_columns(pl.col("user_id") + "x"),
            "does not belong to its interactions.*unknown users",
        ),
        (lambda frame: frame.with_columns(pl.col("target").reverse()), "does not belong to its interactions"),
        (lambda frame: frame.with_columns(pl.col("candidates").reverse()), "does not belong to its interactions"),
        (lambda frame: frame.with_columns(pl.lit("gone").alias("target")), r"names 1 items .*first \['gone'\]"),
    ],
)
def test_foreign_candidates_are_refused(
    data: PreparedData, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    edit(data.directory / "candidates.parquet", change)
    with pytest.raises(DataError, match=message):
        PreparedData.load(data.directory).candidates("test")


def test_a_copied_folder_is_the_same_data(data: PreparedData, tmp_path: Path) -> None:
    shutil.copytree(data.directory, tmp_path / "copy")
    assert same(data, PreparedData.load(tmp_path / "copy"))
    assert json.loads((tmp_path / "copy" / "dataset.json").read_text())["format"] == 1
