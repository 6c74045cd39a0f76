"""Read tables of any project: CSV, TSV and other text tables, RecBole's files, parquet or JSON, with a column map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ...errors import DataError
from ...files import PARQUET_ERRORS, check_rows
from ..interactions import ITEM_ID, TEXT_COLUMNS, USER_ID, validate_interactions, validate_items
from ..times import BY_TIME, TimeRules
from .base import AS_FOUND, PathLike, RawData, TextFormat, existing_file, stem
from .columns import OURS, interaction_names, item_names
from .delimited import Choose, read_delimited
from .dialect import TEXT_FILES
from .json_lines import TEXT, TEXTS, discover_fields, read_json_lines

PARQUET = (".parquet", ".pq")
PARQUET_MARK = b"PAR1"
JSON_LINES = (".jsonl", ".ndjson", ".json")
KNOWN = (*PARQUET, *TEXT_FILES, *JSON_LINES)


def read_tables(
    interactions: PathLike,
    items: PathLike | None,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read interactions and items from text tables, RecBole's files, parquet or JSON (text formats plain or gzip).

    Text tables keep every value as text, so an id `007` stays `007`.

    Args:
        interactions: The file of interactions.
        items: The file of items, or None.
        columns: Our column name to the file's, for example `{"item_id": "asin"}`, or to the column's number from 0;
            `interactions.item_id` and `items.item_id` say which file is meant where the two differ.
        max_bad_lines: The share of lines that may be no JSON object or have another number of fields.
        text: What the user says of the text files.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when a file is missing, damaged, of an unknown format or lacks columns.
    """
    frame, bad = read_table(
        interactions, max_bad_lines, lambda names: interaction_names(names, columns, interactions, rules), text
    )
    rows = validate_interactions(frame, str(interactions), rules)
    catalog, merged = None, 0
    if items is not None:
        frame, bad_items = read_table(
            items, max_bad_lines, lambda names: item_names(names, columns, items), text.of_items()
        )
        catalog, merged = validate_items(frame, str(items))
        bad += bad_items
    return RawData(rows, catalog, stem(interactions), bad, merged)


def read_table(
    path: PathLike, max_bad_lines: float, choose: Choose, text: TextFormat = AS_FOUND, ending: str | None = None
) -> tuple[pl.DataFrame, int]:
    """Return chosen columns of a file, and the number of lines that were left out; others are not read.

    Args:
        path: The file.
        max_bad_lines: The share of lines that may be no JSON object or have another number of fields.
        choose: From the names of the file's columns to what is wanted: our name to the file's.
        text: What the user says of the file where it is a text file.
        ending: The ending that tells the format, where it is not the file's.

    Raises:
        DataError: when the file is missing, empty, damaged or of an unknown format.
    """
    ending = _ending(path, text) if ending is None else ending
    file = existing_file(path)
    if ending in PARQUET:
        return _read_parquet(file, choose), 0
    if ending not in JSON_LINES:
        return read_delimited(file, ending, text, max_bad_lines, choose)
    fields = discover_fields(file, encoding=text.encoding, wanted=OURS)
    try:
        names = choose(list(fields)) if fields else {ITEM_ID: ITEM_ID}  # without a field, reading says what is wrong
    except DataError:
        fields = discover_fields(file, None, text.encoding)
        names = choose(list(fields))
    chosen = {theirs: TEXTS if ours in TEXT_COLUMNS else fields.get(theirs, TEXT) for ours, theirs in names.items()}
    ids = [theirs for ours, theirs in names.items() if ours in (USER_ID, ITEM_ID)]
    frame, count = read_json_lines(file, chosen, (), max_bad_lines, text.encoding, ids)
    return renamed(frame.lazy(), names).collect(), count.bad


def _read_parquet(file: Path, choose: Choose) -> pl.DataFrame:
    """Return chosen columns of a parquet file.

    Raises:
        DataError: when it is none, truncated or damaged.
    """
    with file.open("rb") as handle:
        begins = handle.read(len(PARQUET_MARK)) == PARQUET_MARK
        handle.seek(-min(file.stat().st_size, len(PARQUET_MARK)), 2)
        ends = handle.read() == PARQUET_MARK
    if not (begins and ends):
        wrong = "it is truncated: the mark at its end is missing" if begins else "the mark at its beginning is missing"
        raise DataError(f"{file} is no readable parquet file ({wrong}); write or download it again")
    try:
        check_rows(file)
        table = pl.scan_parquet(file, glob=False)
        return renamed(table, choose(table.collect_schema().names())).collect()
    except PARQUET_ERRORS as error:
        raise DataError(
            f"{file} is no readable parquet file (its content is damaged); write or download it again"
        ) from error


def renamed(table: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    """Return the wanted columns under our names."""
    return table.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())


def is_json_lines(path: PathLike) -> bool:
    """Tell by the name whether a file holds JSON."""
    return _ending(path) in JSON_LINES


def _ending(path: PathLike, text: TextFormat = AS_FOUND) -> str:
    """Return the ending that tells the format, without a trailing `.gz`.

    Raises:
        DataError: when it tells none, and no delimiter is given.
    """
    endings = [ending.lower() for ending in Path(path).suffixes]
    ending = next((ending for ending in reversed(endings) if ending != ".gz"), "")
    if ending not in KNOWN and text.delimiter is None and not Path(path).is_dir():
        raise DataError(
            f"{path}: unknown format {ending or '(no ending)'}; expected one of {list(KNOWN)}, text formats also with "
            ".gz; a text table of another ending is read when its delimiter is given (--delimiter)"
        )
    return ending
