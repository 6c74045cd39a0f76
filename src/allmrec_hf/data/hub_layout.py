"""Push prepared data to a data set repository of the Hub, and load them from there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from ..catalog import CATALOG_FILE, ItemCatalog
from ..errors import DataError
from ..hub_upload import upload
from ..sharing import check_no_machine_paths
from .dataset_card import README_FILE, dataset_card_files
from .eval_tasks import EVAL_FILE
from .interactions import SPLIT
from .prepared import CANDIDATE_SCHEMA, INFO_FILE, TARGET_SPLITS, PreparedData, read_info, read_parquet
from .splits import SPLITS, sort_by_user


def write_layout(data: PreparedData, directory: Path, repo_id: str, license: str | None = None) -> None:
    """Write the files of the repository: a parquet file per split, items, `dataset.json`, a card and `eval.yaml`."""
    for folder in ("interactions", "candidates"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        data.split_frame(split).write_parquet(directory / "interactions" / f"{split}.parquet")
    for split in TARGET_SPLITS:
        rows = data.candidate_frame.filter(pl.col(SPLIT) == split).drop(SPLIT)
        rows.write_parquet(directory / "candidates" / f"{split}.parquet")
    data.catalog.frame.write_parquet(directory / CATALOG_FILE)
    (directory / INFO_FILE).write_text(json.dumps(data.info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in dataset_card_files(data.info, repo_id, license).items():
        (directory / name).write_text(text, encoding="utf-8")


def read_layout(directory: Path) -> PreparedData:
    """Read the files of the repository; the result equals the data that were pushed.

    Raises:
        DataError: when a file is missing or damaged.
    """
    parts = [f"interactions/{split}.parquet" for split in SPLITS]
    sets = [f"candidates/{split}.parquet" for split in TARGET_SPLITS]
    missing = [name for name in (*parts, *sets, CATALOG_FILE, INFO_FILE) if not (directory / name).is_file()]
    if missing:
        raise DataError(f"{directory} lacks {missing}; was this repository written by PreparedData.push_to_hub?")
    labelled = [_labelled(directory / name, split) for name, split in zip(parts, SPLITS, strict=True)]
    interactions = sort_by_user(pl.concat(labelled))
    candidates = pl.concat(
        [_labelled(directory / name, split) for name, split in zip(sets, TARGET_SPLITS, strict=True)]
    )
    catalog = ItemCatalog(read_parquet(directory / CATALOG_FILE), saved=True)
    info = read_info(directory / INFO_FILE)
    return PreparedData(interactions, catalog, candidates.select(*CANDIDATE_SCHEMA), info, directory)


def push(
    data: PreparedData,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload prepared data",
    license: str | None = None,
) -> str:
    """Upload prepared data to a data set repository, which is created where there is none; return its address.

    The card says that the licence is unknown where neither `license` nor `dataset.json` names one.

    Raises:
        ALLMRecError: when name or source of the data, or another text of `dataset.json`, is a path of this machine, the
            id is malformed, or the Hub refuses or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as directory:
        write_layout(data, Path(directory), repo_id, license)
        check_no_machine_paths(Path(directory), (INFO_FILE, README_FILE, EVAL_FILE))
        return upload(
            Path(directory),
            repo_id,
            repo_type="dataset",
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )[0]


def pull(repo_id: str, **kwargs: Any) -> PreparedData:
    """Download prepared data from a data set repository.

    Args:
        repo_id: The repository.
        **kwargs: Passed to `huggingface_hub.snapshot_download`, e.g. `revision`, `token`, `cache_dir`.

    Raises:
        DataError: when the repository cannot be read or holds no prepared data.
    """
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(repo_id, repo_type="dataset", **kwargs)
    except (OSError, ValueError) as error:
        raise DataError(f"the data set {repo_id!r} cannot be downloaded: {error}") from error
    return read_layout(Path(directory))


def _labelled(path: Path, split: str) -> pl.DataFrame:
    """Return a parquet file with the column `split`."""
    return read_parquet(path).with_columns(pl.lit(split).alias(SPLIT))
