"""The rows of a catalogue, which can only be added to: ids, titles and descriptions, found by id, index or title."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import polars as pl

from .errors import DataError

NOT_INDEXED = 4096  # titles at the end that are looked through one by one before the index is made anew
_SPACES = r"^ | $|  |[\x09-\x0d\x1c-\x1f]"  # white space that folding collapses, in ASCII


class ItemRows:
    """Rows that a catalogue shares with the catalogues extended from it: each counts how many of them are its own.

    So an item is added without a copy of those before it, and an older catalogue does not see it.

    Attributes:
        ids: Item ids.
        titles: Titles, None where there is none.
        descriptions: Descriptions, None where there is none.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.titles: list[str | None] = []
        self.descriptions: list[str | None] = []
        self._row_of: dict[str, int] = {}
        self._titled: _TitleIndex | None = None

    def __len__(self) -> int:
        """Return how many rows there are, over all catalogues that share them."""
        return len(self.ids)

    def append(self, frame: pl.DataFrame) -> None:
        """Add rows from the columns item_id, title and description."""
        start = len(self.ids)
        self.ids += frame["item_id"].to_list()
        self.titles += frame["title"].to_list()
        self.descriptions += frame["description"].to_list()
        self._row_of.update(zip(self.ids[start:], range(start, len(self.ids)), strict=True))

    def first(self, count: int) -> ItemRows:
        """Return a copy of the first rows."""
        rows = ItemRows()
        rows.ids, rows.titles, rows.descriptions = self.ids[:count], self.titles[:count], self.descriptions[:count]
        rows._row_of = dict(zip(rows.ids, range(count), strict=True))
        return rows

    def row_of(self, item_id: str, count: int) -> int | None:
        """Return the row of an item id among the first `count`, or None."""
        row = self._row_of.get(item_id)
        return row if row is not None and row < count else None

    def titled(self, title: str, count: int) -> list[int]:
        """Return the rows of a title among the first `count`, in their order; case and white space do not count."""
        wanted = folded(title)
        if self._titled is None or len(self) - self._titled.count > NOT_INDEXED:
            self._titled = _TitleIndex(self.titles)
        rows = [*self._titled.rows(wanted), *range(self._titled.count, len(self))]
        known = ((row, self.titles[row]) for row in rows if row < count)
        return [row for row, other in known if other is not None and folded(other) == wanted]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_titled": None}  # hashes are of this process's Polars


class _TitleIndex:
    """Rows by the hash of their title, 16 bytes each; what has the hash may have another title."""

    def __init__(self, titles: list[str | None]) -> None:
        self.count = len(titles)
        series = pl.Series("title", titles, dtype=pl.String)
        plain = (series.str.len_bytes() == series.str.len_chars()) & ~series.str.contains(_SPACES)
        texts = series.str.to_lowercase()  # which is what folding does to plain ASCII
        others = (~plain).fill_null(False).arg_true()
        if len(others):
            texts = texts.scatter(others, [folded(titles[row] or "") for row in others.to_list()])
        known = np.flatnonzero(series.is_not_null().to_numpy())
        hashes = texts.drop_nulls().hash().to_numpy()
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], known[order]

    def rows(self, title: str) -> list[int]:
        """Return the rows whose title has the hash of a folded title, in their order."""
        wanted = np.uint64(pl.Series([title], dtype=pl.String).hash()[0])
        start, stop = np.searchsorted(self._hashes, wanted, "left"), np.searchsorted(self._hashes, wanted, "right")
        return self._rows[start:stop].tolist()


def folded(title: str) -> str:
    """Return the form in which titles are compared: form NFC, white space collapsed, no case.

    Example:
        >>> folded("  The STRASSE ") == folded("the Straße")
        True
    """
    return " ".join(unicodedata.normalize("NFC", title).split()).casefold()


def fitted(items: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    """Return new items with the types that a catalogue's columns have.

    Args:
        items: New items; columns that the catalogue lacks stay as they are.
        schema: The type of each column of the catalogue.

    Raises:
        DataError: when values of a column cannot be of the catalogue's type without a loss.
    """
    return items.with_columns(
        _as_type(items[name], schema[name])
        for name in items.columns
        if name in schema and schema[name] not in (items[name].dtype, pl.Null)
    )


def _as_type(column: pl.Series, kind: Any) -> pl.Series:
    """Return a column in another type, or refuse."""
    own = column.dtype
    try:
        if column.null_count() == len(column):
            return pl.Series(column.name, [None] * len(column), dtype=kind)
        if own.is_nested() != kind.is_nested():
            raise TypeError
        found = column.cast(kind, strict=True)
        if own != pl.String and kind != pl.String and not found.cast(own, strict=True).eq_missing(column).all():
            raise TypeError  # such as 1999.5 as a whole number
    except (pl.exceptions.PolarsError, TypeError):
        values = column.drop_nulls().head(1).to_list()
        raise DataError(
            f"the column {column.name!r} of the new items is {own}, first {values[0]!r}, but {kind} in the catalogue; "
            "give values of that type, or leave the column out"
        ) from None
    return found
