"""Data sets of the Hugging Face Hub, or any folder that `datasets.load_dataset` reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import polars as pl

from ...errors import ALLMRecError, DataError
from ..interactions import validate_interactions, validate_items
from ..times import BY_TIME, TimeRules
from .base import AS_FOUND, PathLike, RawData, TextFormat
from .columns import interaction_names, item_names
from .table_files import KNOWN, read_table, renamed

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from datasets import DatasetBuilder

TEXT_BUILDERS = ("csv", "json", "parquet")  # whose files `read_table` reads, types as the files have them


def read_hub(
    interactions: PathLike,
    items: PathLike | None,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read interactions and items from data sets named `ID[:CONFIGURATION[:SPLIT]]`.

    Without a split, all splits are read one after the other. The column map is that of `read_tables`. Files of CSV,
    TSV, JSON and parquet are read as `read_tables` reads them, so ids keep their zeros; `datasets` finds them.

    Args:
        interactions: The data set of interactions.
        items: The data set of items, or None; often the same id with another configuration.
        columns: Our column name to the data set's.
        max_bad_lines: The share of lines that may be no JSON object or have another number of fields.
        text: What the user says of text files.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when a data set cannot be loaded or lacks columns.
    """
    frame, bad = load_hub_frame(
        str(interactions), lambda names: interaction_names(names, columns, interactions, rules), max_bad_lines, text
    )
    rows = validate_interactions(frame, str(interactions), rules)
    catalog, merged = None, 0
    if items is not None:
        frame, bad_items = load_hub_frame(
            str(items), lambda names: item_names(names, columns, items), max_bad_lines, text.of_items()
        )
        catalog, merged = validate_items(frame, str(items))
        bad += bad_items
    return RawData(rows, catalog, str(interactions).split(":")[0].split("/")[-1], bad, merged)


def load_hub_frame(
    reference: str,
    choose: Callable[[list[str]], dict[str, str]],
    max_bad_lines: float = 0.01,
    text: TextFormat = AS_FOUND,
) -> tuple[pl.DataFrame, int]:
    """Return chosen columns of the data set `ID[:CONFIGURATION[:SPLIT]]` as one frame, and the number of bad lines.

    Args:
        reference: The data set.
        choose: From the names of its columns to what is wanted: our name to the data set's.
        max_bad_lines: The share of lines that may be no JSON object or have another number of fields.
        text: What the user says of text files.

    Raises:
        DataError: when it cannot be loaded; the message holds the reason that `datasets` gives.
    """
    from datasets import load_dataset_builder

    identifier, configuration, split = [*reference.split(":", 2), "", ""][:3]
    with _told_of_data_set(identifier, configuration, split):
        builder = load_dataset_builder(identifier, configuration or None)
        files = _files(builder, split)
        if files is None:
            return _prepared(builder, choose, split), 0
        splits, bad = _read(builder, files, choose, max_bad_lines, _told_by_data_set(builder, text))
        return _chosen(splits, split), bad


@contextmanager
def _told_of_data_set(identifier: str, configuration: str, split: str) -> Iterator[None]:
    """Turn what `datasets` raises into an error that names the data set."""
    try:
        yield
    except ALLMRecError:
        raise
    except (OSError, ValueError, RuntimeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"the data set {identifier!r} (configuration {configuration or 'default'}, split {split or 'all'}) cannot "
            f"be loaded: {error}. Expected an id of the Hub as ID[:CONFIGURATION[:SPLIT]], or a folder of data files"
        ) from error


def _files(builder: DatasetBuilder, split: str) -> dict[str, list[str]] | None:
    """Return the addresses of a data set's files by split, or None where `datasets` must read them itself.

    Only the splits that `split` names, or all where it names none.
    """
    config = builder.config
    if builder.name not in TEXT_BUILDERS or not config.data_files or _is_special(builder):
        return None
    files = {str(name): [str(file) for file in found] for name, found in config.data_files.items()}
    if any(_file_ending(file) not in KNOWN for found in files.values() for file in found):
        return None
    named = {part.split("[")[0].strip() for part in split.split("+")}
    return {name: found for name, found in files.items() if not split or name in named} or None


def _is_special(builder: DatasetBuilder) -> bool:
    """Tell whether the data set's own configuration sets how its files are parsed, beyond what `TextFormat` holds."""
    config = builder.config
    plain = type(config)()
    known = {"name", "version", "data_dir", "data_files", "description", "features", "encoding", "sep", "delimiter"}
    known |= {"names", "column_names", "chunksize", "batch_size"}
    return any(
        getattr(config, setting.name) != getattr(plain, setting.name)
        for setting in fields(config)
        if setting.name not in known
    )


def _told_by_data_set(builder: DatasetBuilder, text: TextFormat) -> TextFormat:
    """Return what the user, else the data set's own configuration, says of its text files."""
    config = builder.config
    delimiter = getattr(config, "delimiter", None) or getattr(config, "sep", ",")
    encoding = getattr(config, "encoding", None)
    return replace(
        text,
        delimiter=text.delimiter
        or (delimiter if delimiter not in (",", "\t") else None),  # a file's ending tells these
        encoding=text.encoding or (encoding if encoding not in (None, "utf-8") else None),
        header=text.header and not _own_names(builder),
        items_header=None,
    )


def _own_names(builder: DatasetBuilder) -> list[str]:
    """Return the columns' names that the data set's own configuration gives to files without a header."""
    return list(getattr(builder.config, "column_names", None) or getattr(builder.config, "names", None) or [])


def _read(
    builder: DatasetBuilder,
    files: Mapping[str, list[str]],
    choose: Callable[[list[str]], dict[str, str]],
    max_bad_lines: float,
    text: TextFormat,
) -> tuple[dict[str, pl.DataFrame], int]:
    """Return each split as `read_table` reads its files, and the number of bad lines."""
    from datasets import DownloadConfig, DownloadManager

    manager = DownloadManager(
        dataset_name=builder.dataset_name,
        base_path=builder.base_path,
        download_config=DownloadConfig(token=builder.token, storage_options=builder.storage_options),
    )
    own = _own_names(builder)

    def choose_own(names: list[str]) -> dict[str, str]:
        return {ours: str(own.index(theirs)) for ours, theirs in choose(own[: len(names)]).items()}

    splits, bad = {}, 0
    for name, addresses in files.items():
        tables = []
        for address, path in zip(addresses, manager.download(addresses), strict=True):
            table, left_out = read_table(
                path, max_bad_lines, choose_own if own else choose, text, ending=_file_ending(address)
            )
            tables.append(table)
            bad += left_out
        splits[name] = pl.concat(tables, how="diagonal_relaxed")
    return splits, bad


def _chosen(splits: Mapping[str, pl.DataFrame], split: str) -> pl.DataFrame:
    """Return the rows that `split` names, such as `train`, `train+test` or `train[:10%]`; all without one."""
    from datasets import ReadInstruction

    if not split:
        return pl.concat(splits.values(), how="diagonal_relaxed")
    heights = {name: table.height for name, table in splits.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(heights)
    rows = [splits[part.splitname][part.from_ or 0 : part.to] for part in parts]
    return pl.concat(rows, how="diagonal_relaxed")


def _prepared(builder: DatasetBuilder, choose: Callable[[list[str]], dict[str, str]], split: str) -> pl.DataFrame:
    """Return chosen columns as `datasets` reads them, types as it guesses them; where that is from text, say so."""
    if builder.name in ("csv", "json"):
        logger.warning(
            "%s is read by datasets, which guesses types: ids such as 007 may have lost their zeros. Its files are "
            "packed, or its configuration sets how they are parsed",
            builder.repo_id or builder.base_path,
        )
    builder.download_and_prepare()
    loaded = builder.as_dataset(split=split or None)
    parts = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    frames = [pl.from_arrow(part.with_format("arrow")[:]) for part in parts]
    frame = pl.concat([frame for frame in frames if isinstance(frame, pl.DataFrame)], how="diagonal_relaxed")
    return renamed(frame.lazy(), choose(frame.columns)).collect()


def _file_ending(address: str) -> str:
    """Return the ending of a data file's address that tells its format, without `.gz`."""
    endings = [ending.lower() for ending in PurePosixPath(address).suffixes if ending.lower() != ".gz"]
    return endings[-1] if endings else ""
