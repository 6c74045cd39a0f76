"""The one schema of interactions and items, and the checks at the door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import polars as pl

from ..errors import DataError
from .merging import merge_items

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
RATING = "rating"
TITLE = "title"
DESCRIPTION = "description"
SPLIT = "split"
INTERACTION_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP)
TEXT_COLUMNS = (TITLE, DESCRIPTION)

HOW_TO_MAP = "--column {0}=NAME on the command line, columns={{{0!r}: 'NAME'}} in Python"
LARGEST_TIME = 2.0**53  # beyond it a float no longer tells neighbouring integers apart


class MissingColumnsError(DataError):
    """A table lacks columns; the message names them, the columns that it has and the ways to map them.

    Args:
        missing: Our names of the columns.
        names: The columns of the table, under its own names.
        where: What the table is called.
        asked: What the column map asked for and the table lacks, such as `user_id = customer`.
        hint: A further sentence on what to do.
    """

    def __init__(
        self, missing: Sequence[str], names: Sequence[str], where: str, asked: Sequence[str] = (), hint: str = ""
    ) -> None:
        self.missing, self.names, self.where, self.hint = list(missing), list(names), where, hint
        told = f", where the column map asks for {', '.join(asked)}" if asked else ""
        super().__init__(
            f"{where} lacks the columns {self.missing}{told}; it has {self.names}. Rename one there, or map it: "
            + HOW_TO_MAP.format(self.missing[0])
            + (f". {hint}" if hint else "")
        )


@contextlib.contextmanager
def told_of_column_map(columns: Mapping[str, str]) -> Iterator[None]:
    """Let an error about missing columns name what the column map asked for.

    Args:
        columns: Our column name, with or without the prefix of a file, to the file's.
    """
    try:
        yield
    except MissingColumnsError as error:
        asked = [
            f"{ours} = {theirs}"
            for ours, theirs in columns.items()
            if ours.rpartition(".")[2] in error.missing and theirs not in error.names
        ]
        raise MissingColumnsError(error.missing, error.names, error.where, asked, error.hint) from error


def validate_interactions(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the interactions in the schema `user_id`, `item_id` (text), `timestamp` (int64) and, if given, `rating`.

    Ids may be text, integers or categories. Times may be integers, floats, numbers written as text, dates or datetimes
    (which become milliseconds since 1970); floats with fractions become thousandths, so that their order is kept. Only
    the order of times matters. The order of rows is kept; further columns are dropped.

    Args:
        frame: One row per interaction.
        where: What the frame is called in an error, e.g. the file's name.

    Raises:
        DataError: when the frame is empty, columns are missing or of a wrong type, an id or a time is null, or a time
            or rating is NaN or infinite.
    """
    require_columns(frame.columns, INTERACTION_COLUMNS, where)
    if frame.is_empty():
        raise DataError(f"{where} is empty; expected one row for each interaction with {list(INTERACTION_COLUMNS)}")
    columns = [_ids(frame[USER_ID], where), _ids(frame[ITEM_ID], where), _times(frame[TIMESTAMP], where)]
    if RATING in frame.columns and frame[RATING].dtype != pl.Null:
        columns.append(_finite_numbers(frame[RATING], where).cast(pl.Float32))
    return pl.DataFrame(columns)


def validate_items(
    frame: pl.DataFrame, where: str, duplicates: Literal["error", "merge"] = "error"
) -> tuple[pl.DataFrame, int]:
    """Return the items in the schema `item_id`, `title`, `description` (text or null), further columns kept.

    A title or description given as a list of texts is joined with spaces; a missing column counts as all null.

    Args:
        frame: One row per item.
        where: What the frame is called in an error.
        duplicates: Of an item id that occurs several times the first non-empty value of each column is kept; `"error"`
            refuses rows of one item with different titles or descriptions, `"merge"` keeps the first also then, because
            the published metadata files of Amazon do hold items twice.

    Returns:
        The items, and the number of rows that merging dropped.

    Raises:
        DataError: when the frame is empty, `item_id` is missing, null, of a wrong type or (with `"error"`) rows of one
            item contradict each other.
    """
    require_columns(frame.columns, (ITEM_ID,), where)
    if frame.is_empty():
        raise DataError(f"{where} is empty; expected one row for each item with {[ITEM_ID, *TEXT_COLUMNS]}")
    texts = [
        _text(frame[name], where) if name in frame.columns else pl.Series(name, [None] * frame.height, dtype=pl.String)
        for name in TEXT_COLUMNS
    ]
    items = pl.DataFrame([_ids(frame[ITEM_ID], where), *texts]).hstack(frame.select(pl.exclude(ITEM_ID, *TEXT_COLUMNS)))
    return merge_items(items, where, "error" if duplicates == "error" else "first")


def drop_exact_duplicates(interactions: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Drop rows that repeat an earlier row in user, item, time and (if given) rating; return the rest and the count."""
    kept = interactions.unique(keep="first", maintain_order=True)
    return kept, interactions.height - kept.height


def require_columns(found: Iterable[str], columns: Sequence[str], where: str) -> None:
    """Check that the columns are there.

    Args:
        found: The names of the columns, or our names to the file's.
        columns: What is needed, under our names.
        where: What the table is called in an error.

    Raises:
        MissingColumnsError: when one is missing.
    """
    names = list(found)
    missing = [name for name in columns if name not in names]
    if missing:
        raise MissingColumnsError(missing, list(found.values()) if isinstance(found, Mapping) else names, where)


def _ids(series: pl.Series, where: str) -> pl.Series:
    """Return ids as text; refuse other types, nulls and empty ids."""
    if not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(
            f"column {series.name} of {where} has the wrong type {series.dtype}; ids are text or integers"
            + (" (every id is null)" if series.dtype == pl.Null else "")
        )
    ids = series.cast(pl.String)
    _refuse(ids.is_null() | (ids == ""), ids, where, "null or empty ids", "drop or complete these rows")
    return ids


def _times(series: pl.Series, where: str) -> pl.Series:
    """Return times as int64; refuse nulls, NaN and infinities."""
    if series.dtype in (pl.Date, pl.Datetime):
        times = series.cast(pl.Datetime("ms")).dt.epoch("ms")
    else:
        times = _finite_numbers(series, where)
    _refuse(times.is_null(), series, where, "null times", "an interaction needs a time; drop these rows")
    if not times.dtype.is_float():
        whole = times.cast(pl.Int64, strict=False)
        _refuse(whole.is_null(), series, where, "times beyond 64 bits", "expected unix time")
        return whole
    _refuse(times.abs() > LARGEST_TIME, series, where, "times beyond 2**53", "expected unix time")
    if (times != times.floor()).any():
        times = times * 1000
        _refuse(times.abs() > LARGEST_TIME, series, where, "fractional times beyond 2**53", "expected unix time")
    return times.round().cast(pl.Int64)


def _finite_numbers(series: pl.Series, where: str) -> pl.Series:
    """Return numbers (nulls allowed) from numbers or their text; refuse other values, NaN and infinities."""
    if series.dtype == pl.String:
        numbers = series.str.strip_chars().cast(pl.Int64, strict=False)
        if numbers.null_count() > series.null_count():
            numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
        _refuse(
            numbers.is_null() & series.is_not_null(), series, where, "values that are no number", "expected numbers"
        )
    elif series.dtype.is_numeric() or series.dtype == pl.Null:
        numbers = series
    else:
        raise DataError(f"column {series.name} of {where} has the wrong type {series.dtype}; expected numbers")
    if numbers.dtype.is_decimal():
        numbers = numbers.cast(pl.Float64)
    if numbers.dtype.is_float():
        _refuse(
            ~numbers.is_finite() & numbers.is_not_null(), series, where, "NaN or infinite values", "drop these rows"
        )
    return numbers


def _text(series: pl.Series, where: str) -> pl.Series:
    """Return text; lists of text are joined with spaces."""
    if isinstance(series.dtype, pl.List):
        return series.cast(pl.List(pl.String)).list.drop_nulls().list.join(" ")
    if isinstance(series.dtype, (pl.Struct, pl.Array, pl.Object)) or series.dtype == pl.Binary:
        raise DataError(f"column {series.name} of {where} has the wrong type {series.dtype}; expected text")
    return series.cast(pl.String)


def _refuse(wrong: pl.Series, values: pl.Series, where: str, what: str, advice: str) -> None:
    """Raise a DataError that counts the wrong rows and shows the first."""
    wrong = wrong.fill_null(False)
    count = int(wrong.sum())
    if count:
        first = wrong.arg_max() or 0
        raise DataError(
            f"column {values.name} of {where} holds {count} {what} in {len(values)} rows, first "
            f"{values[first]!r} in data row {first + 1}; {advice}"
        )
