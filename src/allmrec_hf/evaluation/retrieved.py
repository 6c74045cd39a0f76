"""Compute the rank of a target in the whole catalogue from the retrieved items of a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ALLMRecError
from ..ranking import Ranks
from .protocol import History, Ranker

_GROWTH = 8  # a list whose end cuts through a tie is asked for again, so many times as long
_SCORES_AT_ONCE = 1 << 24  # of longer lists: bounds the memory, not the result


class Retrieved(NamedTuple):
    """What a ranker retrieved for B users.

    Attributes:
        ranks: Of their targets.
        items: `(B, num_retrieved)` or fewer catalogue indices, the best first, 0 where a list has ended.
    """

    ranks: Ranks
    items: NDArray[np.int64]


def retrieved_ranks(
    ranker: Ranker, histories: Sequence[History], targets: NDArray[np.int64], num_retrieved: int, num_items: int
) -> Retrieved:
    """Return the ranks of targets among all items that the ranker retrieves; places beyond `num_retrieved` are misses.

    One item more than `num_retrieved` is asked for. Where that one has the score of the last that counts, and the
    target may have it too, longer lists are asked for until the tie ends, so that the number of tied items is known and
    not that of those which a list happens to hold. A ranker that returns fewer items than asked for has no others.

    Args:
        ranker: The method.
        histories: B histories.
        targets: `(B,)` catalogue indices.
        num_retrieved: Places that count.
        num_items: N, the size of the catalogue.

    Raises:
        ALLMRecError: when what is retrieved has another shape, NaN scores, unknown, repeated or seen items.
    """
    better, tied = np.full(len(histories), np.inf), np.zeros(len(histories))
    unsettled, length = np.arange(len(histories)), num_retrieved + 1
    best = np.zeros((len(histories), 0), dtype=np.int64)
    while len(unsettled):
        at_once = len(unsettled) if length <= num_retrieved + 1 else max(1, _SCORES_AT_ONCE // min(length, num_items))
        left = []
        for start in range(0, len(unsettled), at_once):
            rows = unsettled[start : start + at_once]
            items, scores = _retrieve(ranker, [histories[row] for row in rows], length, num_items)
            if not best.shape[1]:  # the first call is for all users
                best = items[:, :num_retrieved]
            ended = np.full(len(rows), items.shape[1] < length) | (items == 0).any(axis=1)
            found = items == targets[rows, None]  # (R, length)
            has_target, real = found.any(axis=1), items > 0
            score = np.take_along_axis(scores, np.argmax(found, axis=1)[:, None], axis=1)  # (R, 1)
            above = (real & (scores > score)).sum(axis=1)
            equal = (real & (scores == score)).sum(axis=1) - 1
            last = scores[:, -1]
            border = scores[:, min(num_retrieved, scores.shape[1]) - 1]
            counts = has_target & (above < num_retrieved)
            may_go_on = np.where(has_target, counts & (score[:, 0] == last), last == border) & ~ended
            settled = counts & ~may_go_on
            better[rows[settled]], tied[rows[settled]] = above[settled], equal[settled]
            left.append(rows[may_go_on])
        unsettled, length = np.concatenate(left), length * _GROWTH
    return Retrieved(Ranks(better, tied, num_retrieved), best)


def check_scores(ranker: Ranker, scores: NDArray[np.floating[Any]], expected: tuple[int, ...]) -> None:
    """Check that scores have the right shape and hold no NaN.

    Raises:
        ALLMRecError: naming the ranker.
    """
    if scores.shape != expected:
        raise ALLMRecError(f"ranker {ranker.name!r} returned scores {scores.shape} for {expected} items")
    rows_with_nan = int(np.isnan(scores).any(axis=1).sum())
    if rows_with_nan:
        raise ALLMRecError(
            f"ranker {ranker.name!r} returned NaN scores for {rows_with_nan} of {len(scores)} users of a batch; "
            "its weights are broken or its numbers overflow (try float32)"
        )


def _retrieve(
    ranker: Ranker, histories: Sequence[History], length: int, num_items: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return what is retrieved, checked, best first; index 0 has score `-inf` and stands last."""
    found, found_scores = ranker.retrieve(histories, length)
    items, scores = np.asarray(found), np.asarray(found_scores, dtype=np.float64)
    check_scores(ranker, scores, items.shape)
    _check_items(ranker, items, histories, length, num_items)
    if items.shape[1] == 0:
        return np.zeros((len(items), 1), dtype=np.int64), np.full((len(items), 1), -np.inf)
    scores = np.where(items == 0, -np.inf, scores)
    order = np.lexsort((items == 0, -scores), axis=1)
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _check_items(
    ranker: Ranker, items: NDArray[np.int64], histories: Sequence[History], length: int, num_items: int
) -> None:
    name = f"ranker {ranker.name!r}"
    if items.ndim != 2 or len(items) != len(histories) or items.shape[1] > length:
        raise ALLMRecError(f"{name} retrieved {items.shape}; expected ({len(histories)}, at most {length})")
    if items.size and (items.min() < 0 or items.max() > num_items):
        raise ALLMRecError(f"{name} retrieved index {items.max()}, outside a catalogue of {num_items} items")
    for row, history in zip(items, histories, strict=True):
        real = row[row > 0]
        if len(np.unique(real)) < len(real):
            raise ALLMRecError(f"{name} retrieved an item twice for one user")
        if np.isin(real, history).any():
            raise ALLMRecError(f"{name} retrieved items that its user has seen; leave the history out")
