"""Identify prepared data by digests of their content, whatever their folder, name or counts.

Two preparations of the same files in another order have the same counts, and every table of numbers that was made with
one of them means other items with the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import polars as pl

from .interactions import ITEM_ID, SPLIT, USER_ID

if TYPE_CHECKING:
    from .prepared import PreparedData

DIGITS = 16  # hexadecimal digits of a digest


def content_digests(data: PreparedData) -> dict[str, str]:
    """Return a digest of each part of prepared data.

    Args:
        data: The data.

    Returns:
        `items`: the item ids in catalogue order, which number every row of the model. `texts`: title and description of
        each. `interactions`: users, items and splits in their order; times and ratings, which no method reads, do not
        count. `candidates`: the candidate sets in their order.
    """
    catalog, frame, sets = data.catalog.frame, data.interactions, data.candidate_frame
    return {
        "items": digest_of([catalog[ITEM_ID]]),
        "texts": digest_of([catalog[ITEM_ID], catalog["title"], catalog["description"]]),
        "interactions": digest_of([frame[USER_ID], frame[ITEM_ID], frame[SPLIT]]),
        "candidates": digest_of(
            [sets[SPLIT], sets[USER_ID], sets["target"], sets["candidates"].list.len(), sets["candidates"].explode()]
        ),
    }


def other_items(known: Sequence[str], given: Sequence[str]) -> str | None:
    """Tell how the items of data differ from those that the rows of a model belong to; None where they do not.

    Args:
        known: Item ids of the model, in the order of its rows; those beyond the data's were added later and may differ.
        given: Item ids of the data in catalogue order.

    Example:
        >>> other_items(["a", "b", "c"], ["b", "a"])
        '2 of 2 items stand at another number'
    """
    places = {item_id: place for place, item_id in enumerate(known)}
    missing = [item_id for item_id in given if item_id not in places]
    if missing:
        return f"{len(missing)} items of the data are not in it, first {missing[:5]}"
    moved = sum(places[item_id] != place for place, item_id in enumerate(given))
    return f"{moved} of {len(given)} items stand at another number" if moved else None


def digest_of(columns: Iterable[pl.Series]) -> str:
    """Return hexadecimal digits over the values of columns in their order; a null is no text, not even an empty one.

    Example:
        >>> digest_of([pl.Series(["a", "bc"])]) == digest_of([pl.Series(["ab", "c"])])
        False
    """
    digest = hashlib.sha256()
    for column in columns:
        texts = column.cast(pl.String)
        lengths = texts.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy()
        digest.update(f"{len(column)}\n".encode())
        digest.update(lengths.astype("<i8").tobytes())
        digest.update((texts.str.join("", ignore_nulls=True).item() or "").encode())
    return digest.hexdigest()[:DIGITS]
