"""`allmrec_hf.add_items`: new items of a frame or a file, in memory and in a run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers import pipeline

import allmrec_hf
from allmrec_hf import ALLMRecError, DataError, add_items

NEW = pd.DataFrame({"sku": ["N1", "N2"], "title": ["The Lost Harbor", "Iron Sea"], "description": ["A crime.", None]})
COLUMNS = {"item_id": "sku"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(allmrec_hf.DEMO_CHECKPOINT, tmp_path / "run"))


def test_a_pipeline_gets_the_items_of_a_frame_in_memory() -> None:
    recommend = pipeline("recommendation")
    count = len(recommend.processor.catalog)
    assert add_items(recommend, NEW, columns=COLUMNS) == ["N1", "N2"]
    assert len(recommend.processor.catalog) == count + 2
    history = recommend.processor.catalog.item_ids[10:14]
    assert recommend({"history": history, "candidates": ["N1", *recommend.processor.catalog.item_ids[20:22]]})


def test_a_run_folder_is_changed_in_place_or_saved_elsewhere(run: Path, tmp_path: Path) -> None:
    before = (run / "items.parquet").read_bytes()
    NEW.to_csv(tmp_path / "new.csv", index=False)
    assert add_items(run, tmp_path / "new.csv", tmp_path / "grown", columns=COLUMNS) == ["N1", "N2"]
    assert (run / "items.parquet").read_bytes() == before
    add_items(run, NEW, columns=COLUMNS)
    for folder in (run, tmp_path / "grown"):
        catalog = pipeline("recommendation", model=str(folder)).processor.catalog
        assert catalog.title(catalog.indices(["N1"])[0]) == "The Lost Harbor"
    with pytest.raises(DataError, match="N1"):
        add_items(run, NEW, columns=COLUMNS)  # known by now


def test_what_cannot_be_done_is_said_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ALLMRecError, match="org/model is no folder that could be changed in place; give an output"):
        add_items("org/model", NEW, columns=COLUMNS)
    with pytest.raises(ALLMRecError, match=r"the output folder .* is not empty"):
        add_items(run, NEW, run, columns=COLUMNS)
    with pytest.raises(DataError, match="item_id"):
        add_items("org/model", NEW, tmp_path / "out")
    assert not (tmp_path / "out").exists()
