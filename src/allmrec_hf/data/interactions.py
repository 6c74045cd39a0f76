"""The schema of interactions and items, and its checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import polars as pl

from ..errors import DataError
from ..values import as_frame, id_texts, plain_texts, present_texts, text_values
from .merging import merge_items
from .times import BY_TIME, TimeRules, whole_times

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
NO_TIMES = "Data without times whose rows stand in order of time are read with --order file, order='file' in Python"


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


def validate_interactions(frame: Any, where: str, rules: TimeRules = BY_TIME) -> pl.DataFrame:
    """Return the interactions in the schema `user_id`, `item_id` (text), `timestamp` (int64) and, if given, `rating`.

    Ids are spelt by `values.id_text`. Times may be numbers, dates, datetimes or text of them, see `times.whole_times`;
    only their order matters. With `rules.order` `"file"` no times are read: `timestamp` is the number of the row. The
    order of rows is kept; further columns are dropped.

    Args:
        frame: One row per interaction: a frame of Polars or pandas, a table of Arrow, a data set or records.
        where: What the frame is called in an error, e.g. the file's name.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when the frame is empty, columns are missing or of a wrong type, an id or a time is missing, or a
            time or rating is no finite number.
    """
    frame = as_frame(frame, where)
    require_columns(frame.columns, rules_columns(rules), where)
    if frame.is_empty():
        raise DataError(f"{where} is empty; expected one row for each interaction with {list(INTERACTION_COLUMNS)}")
    columns = [_ids(frame[USER_ID], where), _ids(frame[ITEM_ID], where)]
    if rules.order == "file":
        columns.append(pl.int_range(frame.height, eager=True, dtype=pl.Int64).alias(TIMESTAMP))
    else:
        columns.append(whole_times(frame[TIMESTAMP], where, _check_no_row, rules.time_format).alias(TIMESTAMP))
    if RATING in frame.columns and frame[RATING].dtype != pl.Null:
        columns.append(_ratings(frame[RATING], where))
    return pl.DataFrame(columns)


def rules_columns(rules: TimeRules) -> tuple[str, ...]:
    """Return the columns that interactions must have."""
    return INTERACTION_COLUMNS if rules.order == "time" else (USER_ID, ITEM_ID)


def validate_items(frame: Any, where: str, duplicates: Literal["error", "merge"] = "error") -> tuple[pl.DataFrame, int]:
    """Return the items in the schema `item_id`, `title`, `description` (text or null), further columns kept.

    Ids are spelt by `values.id_text`; titles and descriptions lose their HTML, see `values.plain_texts`. A title or
    description given as a list of texts is joined with spaces; a missing column counts as all null.

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
    frame = as_frame(frame, where)
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
        theirs = list(found.values()) if isinstance(found, Mapping) else names
        raise MissingColumnsError(missing, theirs, where, hint=NO_TIMES if missing == [TIMESTAMP] else "")


def _ids(series: pl.Series, where: str) -> pl.Series:
    """Return ids as text; refuse other types and missing ids."""
    try:
        ids = id_texts(series)
    except DataError as error:
        raise DataError(f"column {series.name} of {where} has the wrong type {error}") from error
    _check_no_row(
        ids.is_null(),
        series,
        where,
        "null or empty ids",
        "drop or complete these rows" + (" (every id is null)" if series.dtype == pl.Null else ""),
    )
    return ids


def _ratings(series: pl.Series, where: str) -> pl.Series:
    """Return ratings as float32, null where missing, from numbers or their text; refuse other values and infinities."""
    if series.dtype in (pl.String, pl.Categorical, pl.Enum):
        texts = present_texts(series.cast(pl.String))
        ratings = texts.cast(pl.Float64, strict=False)
        _check_no_row(
            ratings.is_null() & texts.is_not_null(), series, where, "values that are no number", "expected numbers"
        )
    elif series.dtype.is_numeric():
        ratings = series.cast(pl.Float64)
    else:
        raise DataError(f"column {series.name} of {where} has the wrong type {series.dtype}; expected numbers")
    ratings = ratings.fill_nan(None)
    _check_no_row(ratings.is_infinite(), series, where, "infinite values", "drop these rows")
    return ratings.cast(pl.Float32)


def _text(series: pl.Series, where: str) -> pl.Series:
    """Return text without HTML, null where missing; lists of text are joined with spaces."""
    try:
        return plain_texts(text_values(series))
    except DataError as error:
        raise DataError(f"column {series.name} of {where} has the wrong type {error}") from error


def _check_no_row(wrong: pl.Series, values: pl.Series, where: str, what: str, advice: str) -> None:
    """Raise a DataError that counts the wrong rows and shows the first."""
    wrong = wrong.fill_null(False)
    count = int(wrong.sum())
    if count:
        first = wrong.arg_max() or 0
        raise DataError(
            f"column {values.name} of {where} holds {count} {what} in {len(values)} rows, first "
            f"{values[first]!r} in data row {first + 1}; {advice}"
        )
