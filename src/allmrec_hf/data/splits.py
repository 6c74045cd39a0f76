"""Leave-one-out by time: the last interaction of a user is the test, the one before it the validation target."""

from __future__ import annotations

import polars as pl

from ..errors import DataError
from .interactions import SPLIT, TIMESTAMP, USER_ID

MIN_INTERACTIONS = 3
ROW = "__row"
SPLITS = ("train", "validation", "test")


def leave_one_out(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sort interactions by user and time and add the column `split`.

    Users come in the order of their first appearance. Equal times keep the order of the file, so the split is the same
    on every machine. A user with fewer than three interactions is only trained on.

    Raises:
        DataError: when no user has three interactions.
    """
    from_end = (pl.len() - pl.int_range(pl.len())).over(USER_ID)
    long_enough = pl.len().over(USER_ID) >= MIN_INTERACTIONS
    ordered = sort_by_user_and_time(interactions)
    split = (
        pl.when(long_enough & (from_end == 1))
        .then(pl.lit("test"))
        .when(long_enough & (from_end == 2))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
        .alias(SPLIT)
    )
    result = ordered.with_columns(split)
    if not (result[SPLIT] == "test").any():
        raise DataError(
            f"none of the {interactions[USER_ID].n_unique()} users has {MIN_INTERACTIONS} interactions, which "
            "leave-one-out needs (train, validation, test); give more data or a weaker filter"
        )
    return result


def target_rows(interactions: pl.DataFrame) -> pl.DataFrame:
    """Return the held-out interactions: of each user and part but training, the first that something comes before.

    Under leave-one-out these are the only ones of their part. Under the time split it is the user's first interaction
    after the date; of a user who is new then, the second, for which the first is the history.

    Args:
        interactions: With the column `split`; sorted by user and time.
    """
    place = pl.int_range(pl.len()).over(USER_ID)
    later = interactions.filter((place > 0) & (pl.col(SPLIT) != "train"))
    return later.unique([USER_ID, SPLIT], keep="first", maintain_order=True)


def sort_by_user_and_time(interactions: pl.DataFrame) -> pl.DataFrame:
    """Return interactions sorted by the user's first appearance, then time; ties keep their order."""
    return sort_by_user(interactions, TIMESTAMP)


def sort_by_user(interactions: pl.DataFrame, *then_by: str) -> pl.DataFrame:
    """Return interactions sorted by the user's first appearance, then other columns; ties keep their order."""
    numbered = interactions.with_row_index(ROW).with_columns(pl.col(ROW).min().over(USER_ID))
    return numbered.sort(ROW, *then_by, maintain_order=True).drop(ROW)
