"""Find items by a part of their title, as it is typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from ..catalog import ItemCatalog

MOST_FOUND = 8
MOST_TYPED = 200  # characters of a query that are read


@dataclass(frozen=True)
class FoundItem:
    """An item of the catalogue: its id and title."""

    item_id: str
    title: str


def _plain(texts: pl.Expr) -> pl.Expr:
    """Return texts in lower case, without accents and with single spaces."""
    decomposed = texts.str.normalize("NFKD").str.replace_all(r"\p{M}", "")
    return decomposed.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


class TitleSearch:
    """The titles of a catalogue, in a form that is quick to search.

    Args:
        catalog: The catalogue.
        popularity: `(N,)` how often each item was a target, for the order of equally good hits.
    """

    def __init__(self, catalog: ItemCatalog, popularity: Any) -> None:
        self.catalog = catalog
        titles = [catalog.title(index) for index in range(1, len(catalog) + 1)]
        frame = pl.DataFrame({"title": titles, "item_id": catalog.item_ids}).with_columns(
            plain=_plain(pl.col("title")),
            plain_id=_plain(pl.col("item_id")),
            count=pl.Series(popularity, dtype=pl.Int64),
        )
        self._frame = frame.with_row_index("row")

    def find(self, typed: Any, limit: int = MOST_FOUND) -> list[FoundItem]:
        """Return the items whose title holds every word that was typed, or whose id is what was typed.

        An id comes first, then titles that begin with what was typed, then those with a word that begins so, then the
        others; the more popular first. Where nothing was typed, the most popular items.
        """
        query = pl.select(_plain(pl.lit(str(typed or "")[:MOST_TYPED]))).item()
        words = query.split(" ") if query else []
        hit = pl.lit(True)
        for word in words:
            hit &= pl.col("plain").str.contains(word, literal=True)
        is_id = pl.col("plain_id") == query
        grade = (
            pl.when(is_id)
            .then(0)
            .when(pl.col("plain").str.starts_with(query))
            .then(1)
            .when((" " + pl.col("plain")).str.contains(f" {query}", literal=True))
            .then(2)
            .otherwise(3)
        )
        found = (
            self._frame.lazy()
            .filter(hit | is_id)
            .with_columns(grade=grade)
            .sort("grade", pl.col("count") * -1, "row")
            .head(limit)
            .select("item_id", "title")
            .collect()
        )
        return [FoundItem(item_id, title) for item_id, title in found.iter_rows()]
