"""Match item ids that interactions and items write differently, such as `1.0` and `1`."""

from __future__ import annotations

import logging

import polars as pl

from .interactions import ITEM_ID

logger = logging.getLogger(__name__)
_FLOAT = r"^(-?(?:0|[1-9]\d*))\.0+$"


def with_matching_ids(interactions: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both tables with one spelling of the item ids that differ only by `.0`; the others stay.

    An id that both tables have is never changed. An id `7.0` of one table becomes `7` where only that is in the other;
    this is what pandas makes of a column of numbers in which one was missing.
    """
    theirs, ours = items[ITEM_ID].unique(), interactions[ITEM_ID].unique(maintain_order=True)
    short_ours = _shortened(ours, theirs)
    short_theirs = _shortened(theirs, ours.filter(~ours.is_in(theirs.implode())))
    known = set(theirs.to_list())
    short_theirs = {old: new for old, new in short_theirs.items() if new not in known}
    if short_ours or short_theirs:
        changed = {**short_ours, **short_theirs}
        first = next(iter(changed))
        logger.warning(
            "%d item ids are written as numbers with .0 in one table and without in the other, first %s and %s; they "
            "are taken as one",
            len(changed),
            first,
            changed[first],
        )
    return _respelt(interactions, short_ours), _respelt(items, short_theirs)


def _shortened(ids: pl.Series, other: pl.Series) -> dict[str, str]:
    """Return the ids that are not in the other table but are there without `.0`, with that spelling."""
    short = ids.str.extract(_FLOAT, 1)
    meets = short.is_in(other.implode()) & ~ids.is_in(other.implode())
    return dict(zip(ids.filter(meets).to_list(), short.filter(meets).to_list(), strict=True))


def _respelt(table: pl.DataFrame, changed: dict[str, str]) -> pl.DataFrame:
    """Return a table with some item ids replaced."""
    return table.with_columns(pl.col(ITEM_ID).replace(changed)) if changed else table
