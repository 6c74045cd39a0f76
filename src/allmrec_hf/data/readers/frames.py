"""Frames in memory: of Polars or pandas, tables of Arrow, `datasets.Dataset`, lists of mappings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import DataError
from ...values import as_frame
from ..interactions import validate_interactions, validate_items
from ..times import BY_TIME, TimeRules
from .base import AS_FOUND, RawData, TextFormat
from .columns import interaction_names, item_names


def is_frame(table: Any) -> bool:
    """Tell whether something is a table in memory, not the name of a file."""
    return table is not None and not isinstance(table, (str, Path))


def read_frames(
    interactions: Any,
    items: Any,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read interactions and items that are in memory.

    Args:
        interactions: One row for each interaction.
        items: One row for each item, or None.
        columns: As of `read_tables`.
        max_bad_lines: Not used.
        text: Nothing may be said of text files.
        rules: How the order of interactions is told.

    Raises:
        DataError: when a column is missing, given twice, or of a wrong type, or a format of text files is given.
    """
    if text != AS_FOUND:
        raise DataError(
            "a delimiter, an encoding, quotes or no header is given, but the interactions are no text file: leave it "
            "out"
        )
    frame = _table(interactions, "the interactions")
    names = interaction_names(frame.columns, columns, "the interactions", rules)
    rows = validate_interactions(_renamed(frame, names), "the interactions", rules)
    catalog, merged = None, 0
    if items is not None:
        catalog, merged = items_of_frame(items, columns)
    return RawData(rows, catalog, "frames", merged_items=merged)


def items_of_frame(items: Any, columns: Mapping[str, str]) -> tuple[pl.DataFrame, int]:
    """Return items in memory with our names of columns, and how many rows of an item told already were merged.

    Raises:
        DataError: as `read_frames`.
    """
    frame = _table(items, "the items")
    names = item_names(frame.columns, columns, "the items")
    return validate_items(_renamed(frame, names), "the items")


def _renamed(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())


def _table(table: Any, where: str) -> pl.DataFrame:
    """Return a table as a Polars frame; an index of pandas that has a name is a column."""
    index = [name for name in getattr(getattr(table, "index", None), "names", None) or () if name is not None]
    if index:
        both = sorted(set(index) & set(map(str, table.columns)))
        if both:
            raise DataError(f"{where}: {both} are names of the index and of columns; drop one: reset_index(drop=True)")
        table = table.reset_index()
    columns = getattr(table, "columns", None)
    names = [] if columns is None else [str(name) for name in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where} have several columns of the name {', '.join(twice)}; rename all but one")
    try:
        _check_files(table)
        return as_frame(table, where)
    except OSError as error:  # files of a datasets.Dataset that are gone or cut off
        raise DataError(f"{where} cannot be read: {error}; load them again from where they came") from error


def _check_files(table: Any) -> None:
    """Open the files behind a `datasets.Dataset` again: a read from a map of a file cut off meanwhile ends the process.

    Raises:
        OSError: when one is gone or cut off.
    """
    files = getattr(table, "cache_files", None)
    for name in [file["filename"] for file in files] if isinstance(files, list) else []:
        from datasets.table import MemoryMappedTable

        if not Path(name).is_file():
            raise FileNotFoundError(f"its file {name} is gone")
        try:
            MemoryMappedTable.from_file(name)
        except (OSError, ValueError) as error:  # what Arrow raises
            raise OSError(f"its file {name} is damaged ({error})") from error
