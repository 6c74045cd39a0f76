"""Filters by number of interactions: the iterative k-core, and the one pass of the paper's published data."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import polars as pl

from ..errors import DataError
from .interactions import ITEM_ID, RATING, TIMESTAMP, USER_ID

FilterName = Literal["k-core", "a-llmrec", "none"]
Repeats = Literal["keep", "first", "last"]


def check_filter(name: str, k: int, count_min_rating: float | None) -> None:
    """Check, before anything is read, that a filter and its settings can work together.

    Raises:
        DataError: when the filter is unknown, k is below 1, or a rating is given that the filter does not count by.
    """
    if name not in get_args(FilterName):
        raise DataError(f"there is no filter {name!r}; choose one of {list(get_args(FilterName))}")
    if k < 1:
        raise DataError(f"k_core is {k}; it must be at least 1")
    if count_min_rating is not None and name != "a-llmrec":
        raise DataError(f"count_min_rating belongs to filter 'a-llmrec', not to {name!r}; leave it out")


def apply_filter(
    interactions: pl.DataFrame, name: FilterName, k: int, count_min_rating: float | None = None
) -> pl.DataFrame:
    """Return the interactions that a filter keeps, in their order.

    Args:
        interactions: Validated interactions without exact duplicates.
        name: `"k-core"`, `"a-llmrec"` or `"none"`.
        k: The least number of interactions that a user and an item need; not used by `"none"`.
        count_min_rating: Only for `"a-llmrec"`: lower ratings do not count (but stay). The paper's beauty and toys
            use 3, with k = 4.

    Raises:
        DataError: when the name is unknown, k is below 1, ratings are needed but missing, or nothing is left.
    """
    check_filter(name, k, count_min_rating)
    if name == "none":
        return interactions
    kept = k_core(interactions, k) if name == "k-core" else one_pass(interactions, k, count_min_rating)
    if kept.is_empty():
        users, items = interactions[USER_ID].n_unique(), interactions[ITEM_ID].n_unique()
        raise DataError(
            f"filter {name!r} with k = {k} leaves nothing of {interactions.height} interactions of {users} users with "
            f"{items} items; choose a smaller k_core"
        )
    return kept


def with_rating(interactions: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Return the interactions with at least a rating; those without any are left out.

    Raises:
        DataError: when there are no ratings, or nothing is left.
    """
    if RATING not in interactions.columns:
        raise DataError("min_rating needs ratings, but the interactions have no column rating")
    kept = interactions.filter(pl.col(RATING) >= min_rating)
    if kept.is_empty():
        highest = interactions[RATING].max()
        raise DataError(
            f"min_rating {min_rating:g} leaves nothing of {interactions.height} interactions; the highest rating is "
            f"{highest!r}"
        )
    return kept


def without_repeats(interactions: pl.DataFrame, repeats: Repeats) -> pl.DataFrame:
    """Return one interaction for each user and item, the first or the last in time; the order of rows is kept.

    Args:
        interactions: Validated interactions.
        repeats: `"keep"` returns all of them, `"first"` and `"last"` one; equal times count in file order.

    Raises:
        DataError: when `repeats` is none of these.
    """
    if repeats not in get_args(Repeats):
        raise DataError(f"repeats is {repeats!r}; choose one of {list(get_args(Repeats))}")
    if repeats == "keep":
        return interactions
    numbered = interactions.with_row_index("__row").sort(TIMESTAMP, maintain_order=True)
    return numbered.unique([USER_ID, ITEM_ID], keep=repeats, maintain_order=True).sort("__row").drop("__row")


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than k interactions, again and again until every one left has k.

    Repeated interactions of one user with one item count each.
    """
    users, items = _codes(interactions[USER_ID]), _codes(interactions[ITEM_ID])
    rows = np.arange(interactions.height)
    while True:
        enough = (np.bincount(users[rows]) >= k)[users[rows]] & (np.bincount(items[rows]) >= k)[items[rows]]
        if enough.all():
            return interactions[rows] if len(rows) < interactions.height else interactions
        rows = rows[enough]
        if not len(rows):
            return interactions.clear()


def one_pass(interactions: pl.DataFrame, k: int, count_min_rating: float | None = None) -> pl.DataFrame:
    """Keep the interactions whose user and item both have k interactions in the unfiltered data (counted once).

    So users and items with fewer than k may remain. With `count_min_rating`, interactions with a lower or no rating are
    not counted, but kept where user and item have k others (arXiv 2404.11343, the data of beauty and toys).

    Raises:
        DataError: when `count_min_rating` is given and there are no ratings.
    """
    counted = pl.len()
    if count_min_rating is not None:
        if RATING not in interactions.columns:
            raise DataError("count_min_rating needs ratings, but the interactions have no column rating")
        counted = (pl.col(RATING) >= count_min_rating).sum()
    return interactions.filter((counted.over(USER_ID) >= k) & (counted.over(ITEM_ID) >= k))


def _codes(ids: pl.Series) -> np.ndarray:
    """Return one small integer per row, equal where the ids are equal."""
    if ids.dtype != pl.Enum:
        ids = ids.cast(pl.Enum(ids.unique(maintain_order=True)))
    return ids.to_physical().to_numpy().astype(np.int64)
