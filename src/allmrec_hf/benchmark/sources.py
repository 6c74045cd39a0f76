"""Prepare the data of a suite in the output folder, and check their counts against the published ones."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..catalog import CATALOG_FILE
from ..data.prepare import prepare
from ..data.prepared import CANDIDATES_FILE, INFO_FILE, INTERACTIONS_FILE, PreparedData, read_info
from ..data.synthetic import SyntheticWorld
from ..errors import DataError
from .suite import DatasetSpec

logger = logging.getLogger(__name__)
DATA = "data"
PUBLISHED_AT = {
    "amazon-2018": 'https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ ("per category": reviews and metadata)'
}


def source_files(spec: DatasetSpec, data_root: Path | None) -> list[Path]:
    """Return the files that a data set is made from; none for an invented world.

    Raises:
        DataError: when some are missing, or there is no data root; names the files and where they are published.
    """
    if spec.source == "synthetic":
        return []
    if spec.source == "prepared":
        folder = Path(spec.options["path"])
        files = [folder / name for name in (INTERACTIONS_FILE, CATALOG_FILE, CANDIDATES_FILE)]
        source = "make them with `allmrec prepare`"
    else:
        names = [str(spec.options[key]) for key in ("interactions", "items") if spec.options.get(key)]
        source = f"published at {PUBLISHED_AT[spec.source]}" if spec.source in PUBLISHED_AT else "see docs/benchmark.md"
        if data_root is None:
            raise DataError(
                f"the data set {spec.name} is made from {' and '.join(names)} ({source}); give their folder with "
                "--data-root DIR"
            )
        files = [data_root / name for name in names]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise DataError(f"the data set {spec.name} needs {len(files)} files, missing: {', '.join(missing)}; {source}")
    return files


def fingerprint(spec: DatasetSpec) -> str:
    """Return twelve hexadecimal digits over how a data set is made; of prepared data, over their content.

    Raw files count by name, so that runs can be listed and reported where the files are not.
    """
    facts = asdict(spec) | {"expected": None}
    if spec.source == "prepared":
        facts["name"] = None
        facts["options"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in source_files(spec, None)]
        facts["domain"] = read_info(Path(spec.options["path"]) / INFO_FILE)["domain"]  # it words the prompts
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def check_files(spec: DatasetSpec, data_root: Path | None, output: Path) -> None:
    """Check that the files of a data set exist, unless it was prepared before.

    Raises:
        DataError: naming the files and where they are published.
    """
    if not _folder(spec, output).exists():
        source_files(spec, data_root)


def why_absent(spec: DatasetSpec, data_root: Path | None, output: Path | None) -> str:
    """Return what a data set lacks, nothing where its files exist or it was prepared before."""
    try:
        if output is None:
            source_files(spec, data_root)
        else:
            check_files(spec, data_root, output)
    except DataError as error:
        return str(error)
    return ""


def prepared_data(
    spec: DatasetSpec, data_root: Path | None, output: Path, allow_other_counts: bool = False
) -> PreparedData:
    """Return a data set, prepared into `OUTPUT/data/<name>-<fingerprint>` where it is not there yet.

    Args:
        spec: The data set.
        data_root: Folder of the raw files.
        output: Folder of the benchmark.
        allow_other_counts: Go on where the counts are not those of the publication.

    Raises:
        DataError: when files are missing or unusable, or the counts differ.
    """
    if spec.source == "prepared":
        return PreparedData.load(spec.options["path"])
    folder = _folder(spec, output)
    data = PreparedData.load(folder) if folder.exists() else _prepare(spec, data_root, folder)
    check_counts(spec, data.info["counts"], allow_other_counts)
    return data


def check_counts(spec: DatasetSpec, counts: Mapping[str, int], allow_other_counts: bool) -> None:
    """Check that the counts of data are the published ones; with `allow_other_counts` others are logged as a warning.

    Raises:
        DataError: telling both counts of each that differs.
    """
    other = [
        f"{name}: published {count:,}, found {counts[name]:,}"
        for name, count in spec.expected.items()
        if counts[name] != count
    ]
    if not other:
        return
    message = f"{spec.name} is not the published data set: {'; '.join(other)}"
    if not allow_other_counts:
        raise DataError(f"{message}; check the raw files, or go on with --allow-other-counts")
    logger.warning("%s", message)


def _folder(spec: DatasetSpec, output: Path) -> Path:
    return output / DATA / f"{spec.name}-{fingerprint(spec)}"


def _prepare(spec: DatasetSpec, data_root: Path | None, folder: Path) -> PreparedData:
    logger.info("preparing %s", spec.name)
    choices: dict[str, Any] = dict(spec.prepare)
    name = choices.pop("title", spec.name)
    if spec.source == "synthetic":
        world = SyntheticWorld(**spec.options)
        choices = {"filter": "none", "keep_items": "all", "domain": "movie"} | choices
        return prepare(
            world.interactions(),
            world.items(),
            output=folder,
            name=name,
            source="allmrec_hf.data.synthetic",
            **choices,
        )
    files = source_files(spec, data_root)
    return prepare(
        files[0],
        files[1] if len(files) > 1 else None,
        output=folder,
        source=spec.source,
        name=name,
        columns=spec.options.get("columns"),
        **choices,
    )
