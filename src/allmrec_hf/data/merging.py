"""Merge several metadata rows of one item: keep the first non-empty value of each column."""

from __future__ import annotations

from typing import Literal

import polars as pl

from ..errors import DataError
from ..values import NULL_WORDS, SPACE

ITEM_ID = "item_id"
TOLD_APART = ("title", "description")  # columns in which rows of one item must not differ, where that is refused
_ROW = "__row__"


def merge_items(items: pl.DataFrame, where: str, conflicts: Literal["error", "first"]) -> tuple[pl.DataFrame, int]:
    """Return one row for each item id, at the place of its first row, and the number of rows that went into others.

    Each column holds the first value that is not empty, in the order of the rows; null, NaN, blank text, the words of
    `NULL_WORDS` and empty lists are empty.

    Args:
        items: Items with `item_id`, which is never null.
        where: What the table is called in an error.
        conflicts: `"error"` refuses rows of one item with different titles or descriptions, which mostly are two items
            under one id; `"first"` keeps the first.

    Raises:
        DataError: when rows of one item contradict each other and that is refused.
    """
    repeated = items[ITEM_ID].is_duplicated()
    if not repeated.any():
        return items, 0
    rows = items.with_row_index(_ROW)
    several = rows.filter(repeated)
    others = [name for name in items.columns if name != ITEM_ID]
    if conflicts == "error":
        _check_no_conflicts(several, where)
    firsts = [pl.col(name).filter(_holds(name, items.schema[name])).first() for name in others]
    merged = several.group_by(ITEM_ID, maintain_order=True).agg(pl.col(_ROW).first(), *firsts)
    single = rows.filter(~repeated)
    result = pl.concat([single, merged.select(single.columns)]).sort(_ROW).drop(_ROW)
    return result, items.height - result.height


def _holds(name: str, kind: pl.DataType) -> pl.Expr:
    """Return where a column is not empty."""
    column = pl.col(name)
    if kind == pl.String:
        return column.is_not_null() & ~column.str.strip_chars(SPACE).is_in(["", *sorted(NULL_WORDS)])
    if isinstance(kind, pl.List):
        return column.is_not_null() & (column.list.len() > 0)
    if kind.is_float():
        return column.is_not_null() & column.is_not_nan()
    return column.is_not_null()


def _check_no_conflicts(several: pl.DataFrame, where: str) -> None:
    """Check that rows of one item have not different titles or descriptions.

    Raises:
        DataError: when they have.
    """
    for name in TOLD_APART:
        if name not in several.columns:
            continue
        texts = several.filter(_holds(name, several.schema[name])).group_by(ITEM_ID, maintain_order=True)
        differing = texts.agg(pl.col(name).unique(maintain_order=True)).filter(pl.col(name).list.len() > 1)
        if differing.height:
            first, second = differing[name][0].to_list()[:2]
            raise DataError(
                f"{where} holds {differing.height} duplicate item ids, first {differing[ITEM_ID].head(5).to_list()}, "
                f"whose rows differ in {name} ({first[:40]!r} and {second[:40]!r}); keep one row for each item_id, or "
                "check that item_id is the right column"
            )
