from __future__ import annotations

import shutil
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import polars as pl
import pytest
from datasets import load_dataset
from fake_hub import FakeHub

from allmrec_hf.data.hub_layout import read_layout, write_layout
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import DataError


@pytest.fixture
def data(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> PreparedData:
    few = pl.DataFrame({"user_id": ["few"], "item_id": ["i0"], "timestamp": [1], "rating": [1.0]})
    mixed = pl.concat([interactions[::2], few, interactions[1::2]])
    return prepare(mixed, items, output=tmp_path / "d", filter="none", num_candidates=10)


def assert_same(first: PreparedData, second: PreparedData) -> None:
    assert first.interactions.select(second.interactions.columns).equals(second.interactions)
    assert first.catalog.frame.equals(second.catalog.frame)
    assert first.candidate_frame.select(second.candidate_frame.columns).equals(second.candidate_frame)
    assert first.info == second.info


def test_the_layout_of_the_hub_gives_back_the_same_data(data: PreparedData, tmp_path: Path) -> None:
    write_layout(data, tmp_path / "hub", "org/toy")
    assert_same(data, read_layout(tmp_path / "hub"))
    assert 'load_from_hub("org/toy")' in (tmp_path / "hub" / "README.md").read_text()


def test_the_layout_loads_as_a_dataset_dict(data: PreparedData, tmp_path: Path) -> None:
    write_layout(data, tmp_path / "hub", "org/toy")
    cache = str(tmp_path / "cache")
    interactions = load_dataset(str(tmp_path / "hub"), cache_dir=cache)
    assert {split: len(rows) for split, rows in interactions.items()} == {"train": 121, "validation": 30, "test": 30}
    assert load_dataset(str(tmp_path / "hub"), "items", split="train", cache_dir=cache).num_rows == data.num_items
    assert len(load_dataset(str(tmp_path / "hub"), "candidates", split="test", cache_dir=cache)[0]["candidates"]) == 10


def test_pushed_data_are_pulled_the_same(data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    def create_repo(self: object, repo_id: str, **options: Any) -> str:
        calls["create"] = (repo_id, options)
        return f"https://hub/datasets/{repo_id}"

    def create_commit(self: object, repo_id: str, operations: list[Any], **options: Any) -> None:
        calls["upload"] = options
        for added in operations:
            target = tmp_path / "remote" / added.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(added.path_or_fileobj, target)

    head = types.SimpleNamespace(sha="0" * 40, siblings=[])
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *arguments, **options: head)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path / "remote"))
    assert data.push_to_hub("org/toy", private=True) == "https://hub/datasets/org/toy"
    assert calls["create"][1] == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert calls["upload"]["repo_type"] == "dataset"
    pulled = PreparedData.load_from_hub("org/toy")
    assert_same(data, pulled)
    pulled.save(tmp_path / "local")
    assert_same(data, PreparedData.load(tmp_path / "local"))


def test_push_and_pull_go_through_the_hub(data: PreparedData, tmp_path: Path, fake_hub: FakeHub) -> None:
    fake_hub.run_python(
        "from allmrec_hf.data.prepared import PreparedData\n"
        f"PreparedData.load({str(data.directory)!r}).push_to_hub('me/toy', private=True)\n"
        f"PreparedData.load_from_hub('me/toy').save({str(tmp_path / 'back')!r})\n",
        home=tmp_path / "home",
    )
    assert "interactions/test.parquet" in fake_hub.files("me/toy", repo_type="dataset")
    assert_same(data, PreparedData.load(tmp_path / "back"))


def test_a_repository_without_prepared_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    with pytest.raises(DataError, match=r"lacks \['interactions/train\.parquet'.*push_to_hub"):
        PreparedData.load_from_hub("org/other")


def test_a_repository_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(repo_id: str, **options: Any) -> str:
        raise OSError("404")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(DataError, match="the data set 'org/gone' cannot be downloaded: 404"):
        PreparedData.load_from_hub("org/gone")
