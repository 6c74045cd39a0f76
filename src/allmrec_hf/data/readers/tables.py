"""Tables of any project: CSV, TSV, parquet or JSON lines, with a column map."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from ...errors import DataError
from ..interactions import (
    INTERACTION_COLUMNS,
    ITEM_ID,
    RATING,
    require_columns,
    validate_interactions,
    validate_items,
)
from .base import PathLike, RawData, existing_file, is_gzip, read_all, stem
from .json_lines import TEXT, discover_fields, read_json_lines

PARQUET = (".parquet", ".pq")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
INTERACTIONS_PREFIX = "interactions."
ITEMS_PREFIX = "items."
Choose = Callable[[list[str]], dict[str, str]]


def read_tables(
    interactions: PathLike, items: PathLike | None, columns: Mapping[str, str], max_bad_lines: float
) -> RawData:
    """Read interactions and items from CSV, TSV, parquet or JSON lines (text formats plain or gzip).

    Text formats keep every value as text, so an id `007` stays `007`.

    Args:
        interactions: The file of interactions.
        items: The file of items, or None.
        columns: Our column name to the file's, for example `{"item_id": "asin"}`; `interactions.item_id` and
            `items.item_id` say which file is meant where the two differ.
        max_bad_lines: The share of JSON lines that may be broken.

    Raises:
        DataError: when a file is missing, damaged, of an unknown format or lacks columns.
    """
    frame, bad = read_table(interactions, max_bad_lines, lambda names: interaction_names(names, columns, interactions))
    rows = validate_interactions(frame, str(interactions))
    catalog = None
    if items is not None:
        frame, bad_items = read_table(items, max_bad_lines, lambda names: item_names(names, columns, items))
        catalog, _ = validate_items(frame, str(items))
        bad += bad_items
    return RawData(rows, catalog, stem(interactions), bad)


def read_table(path: PathLike, max_bad_lines: float, choose: Choose) -> tuple[pl.DataFrame, int]:
    """Return chosen columns of a file, and the number of JSON lines that were left out; others are not read.

    Args:
        path: The file.
        max_bad_lines: The share of JSON lines that may be broken.
        choose: From the names of the file's columns to what is wanted: our name to the file's.

    Raises:
        DataError: when the file is missing, empty, damaged or of an unknown format.
    """
    ending = _ending(path)
    file = existing_file(path)
    if ending in JSON_LINES:
        fields = discover_fields(file)
        names = choose(list(fields)) if fields else {ITEM_ID: ITEM_ID}  # without a field, reading says what is wrong
        frame, count = read_json_lines(
            file, {name: fields.get(name, TEXT) for name in names.values()}, (), max_bad_lines
        )
        return renamed(frame.lazy(), names).collect(), count.bad
    try:
        table = _scan(file, ending)
        return renamed(table, choose(table.collect_schema().names())).collect(), 0
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} is no readable {ending[1:]} file ({error}); write or download it again") from error


def _scan(file: Path, ending: str) -> pl.LazyFrame:
    """Return a parquet or CSV file as a lazy frame; CSV values stay text."""
    if ending in PARQUET:
        return pl.scan_parquet(file)
    if is_gzip(file):
        return pl.read_csv(io.BytesIO(read_all(file)), separator=SEPARATORS[ending], infer_schema=False).lazy()
    return pl.scan_csv(file, separator=SEPARATORS[ending], infer_schema=False)


def renamed(table: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    """Return the wanted columns under our names."""
    return table.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())


def interaction_names(names: Sequence[str], columns: Mapping[str, str], where: PathLike) -> dict[str, str]:
    """Return our name to the file's for the columns of interactions.

    Raises:
        DataError: when a needed column is missing, or the column map does not fit.
    """
    found = map_names(names, columns, INTERACTIONS_PREFIX, str(where))
    require_columns(found, INTERACTION_COLUMNS, str(where))
    return {name: found[name] for name in (*INTERACTION_COLUMNS, RATING) if name in found}


def item_names(names: Sequence[str], columns: Mapping[str, str], where: PathLike) -> dict[str, str]:
    """Return our name to the file's for all columns of items.

    Raises:
        DataError: when `item_id` is missing, or the column map does not fit.
    """
    found = map_names(names, columns, ITEMS_PREFIX, str(where))
    require_columns(found, (ITEM_ID,), str(where))
    return found


def map_names(names: Sequence[str], columns: Mapping[str, str], prefix: str, where: str) -> dict[str, str]:
    """Return our name to the file's for all columns of a file.

    A key with the file's prefix must be found in the file, as must a column that no other file has; `item_id` without a
    prefix applies to each file that has it. What is missing of the columns that are needed, `require_columns` tells.

    Raises:
        DataError: when a key of this file names a column that the file lacks, or a prefix is unknown.
    """
    of_interactions = prefix == INTERACTIONS_PREFIX
    other = ITEMS_PREFIX if of_interactions else INTERACTIONS_PREFIX
    mapped = {ours: theirs for ours, theirs in columns.items() if "." not in ours and theirs in names}
    for key, theirs in columns.items():
        optional = key == RATING if of_interactions else "." not in key and key not in (*INTERACTION_COLUMNS, RATING)
        if (key.startswith(prefix) or optional) and theirs not in names:
            raise DataError(f"the column map says {key} = {theirs}, but {where} has {list(names)}")
        if key.startswith(prefix):
            mapped[key.removeprefix(prefix)] = theirs
        elif "." in key and not key.startswith(other):
            raise DataError(f"the column map's key {key!r} is neither a column nor one after {prefix!r} or {other!r}")
    others = {name: name for name in names if name not in mapped and name not in mapped.values()}
    return others | mapped


def is_json_lines(path: PathLike) -> bool:
    """Tell by the name whether a file holds JSON lines."""
    return _ending(path) in JSON_LINES


def _ending(path: PathLike) -> str:
    """Return the ending that tells the format, without a trailing `.gz`."""
    endings = [ending.lower() for ending in Path(path).suffixes]
    ending = next((ending for ending in reversed(endings) if ending != ".gz"), "")
    if ending not in (*PARQUET, *SEPARATORS, *JSON_LINES):
        raise DataError(
            f"{path}: unknown format {ending or '(no ending)'}; expected one of "
            f"{[*PARQUET, *SEPARATORS, *JSON_LINES]}, text formats also with .gz"
        )
    return ending
