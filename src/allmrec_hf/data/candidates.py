"""Seeded candidate sets: the target and uniform negatives that the user has never seen, no title twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..errors import DataError
from .splits import SPLITS

REJECTION_ROUNDS = 32
EXACT_CELLS = 2_000_000  # users times items that the exact sampler holds at once
DIFFERENT, DUPLICATE_TITLE, FORBIDDEN = 0, 1, 2  # in the order of preference

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


class SeenItems:
    """The items that each user has seen in an interaction, for fast look-ups.

    Args:
        users: Row number of the user of each interaction, in any order.
        items: (same length) catalogue index `1..N` of its item.
        num_items: N.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, num_items: int) -> None:
        self._stride = num_items + 1
        self._keys = np.unique(users.astype(np.int64) * self._stride + items)

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Tell for users (B,) and items (B, C) whether the user has seen the item: (B, C) bool."""
        keys = users[:, None] * self._stride + items  # (B, C)
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[positions] == keys


@dataclass(frozen=True)
class SampledCandidates:
    """Candidate sets and what had to be given up for them.

    Attributes:
        items: (B, C) catalogue indices, shuffled, the target among them.
        duplicate_titles: (B,) bool, True where a title had to occur twice because too few others were left.
    """

    items: np.ndarray
    duplicate_titles: np.ndarray


def title_groups(titles: pl.Series) -> np.ndarray:
    """Return a number per catalogue index (N + 1,): equal for items of one title, different for items without.

    Case and white space do not make titles different. Index 0, the padding, is a group of its own.
    """
    plain = titles.cast(pl.String).str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    frame = pl.DataFrame({"title": plain, "row": pl.int_range(1, len(titles) + 1, eager=True)})
    first = pl.when(pl.col("title").fill_null("") == "").then("row").otherwise(pl.col("row").min().over("title"))
    return np.concatenate([[0], frame.select(first.cast(pl.Int64)).to_series().to_numpy()])


def sample_candidates(
    users: np.ndarray,
    targets: np.ndarray,
    seen: SeenItems,
    groups: np.ndarray,
    num_candidates: int,
    seed: int,
    split: str,
    user_ids: Sequence[str] | None = None,
) -> SampledCandidates:
    """Sample for every user the target and `num_candidates - 1` negatives, shuffled.

    A negative is drawn uniformly from the items that the user has not seen in any split and whose title is not in the
    set yet. Where too few different titles are left, items with a title that is there already are taken, and the user
    is marked. The draw depends only on the seed, the split and the user's number, not on other users or their order.

    Args:
        users: (B,) row number of each user, as given to `SeenItems`.
        targets: (B,) catalogue index of each target.
        seen: All interactions, of all splits.
        groups: (N + 1,) result of `title_groups`.
        num_candidates: C, at least 2.
        seed: The seed.
        split: `"validation"` or `"test"`.
        user_ids: Names of users by row number, for errors.

    Raises:
        DataError: when the catalogue is smaller than C, or a user has fewer than C - 1 items left.
    """
    num_items = len(groups) - 1
    if num_candidates < 2:
        raise DataError(f"num_candidates is {num_candidates}; a set needs the target and at least one negative")
    if num_items < num_candidates:
        raise DataError(
            f"the catalogue has {num_items} items, but a candidate set needs {num_candidates}; lower num_candidates, "
            "use a weaker filter or keep items without interactions (keep_items='all')"
        )
    keys = _row_keys(users, seed, split)
    items, unfinished = _by_rejection(users, targets, seen, groups, num_candidates, keys)
    duplicate_titles = np.zeros(len(users), dtype=bool)
    step = max(1, EXACT_CELLS // num_items)
    for start in range(0, len(unfinished), step):
        rows = unfinished[start : start + step]
        chosen, duplicated, available = _exactly(users[rows], targets[rows], seen, groups, num_candidates, keys[rows])
        _check_available(users[rows], available, num_items, num_candidates, user_ids)
        items[rows, 1:], duplicate_titles[rows] = chosen, duplicated
    order = np.argsort(_draw(keys, np.arange(num_candidates), REJECTION_ROUNDS), axis=1, kind="stable")
    return SampledCandidates(np.take_along_axis(items, order, axis=1), duplicate_titles)


def _by_rejection(
    users: np.ndarray, targets: np.ndarray, seen: SeenItems, groups: np.ndarray, num_candidates: int, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw all open places at once, reject what is not allowed, and repeat; return (B, C) and the unfinished rows."""
    num_items = len(groups) - 1
    items = np.zeros((len(users), num_candidates), dtype=np.int64)
    items[:, 0] = targets
    rows = np.arange(len(users))
    for attempt in range(REJECTION_ROUNDS):
        block = items[rows]
        is_open = block == 0
        draws = _draw(keys[rows], np.arange(num_candidates), attempt) >> np.uint64(32)  # (B, C) in [0, 2**32)
        block[is_open] = 1 + ((draws * np.uint64(num_items)) >> np.uint64(32)).astype(np.int64)[is_open]
        rejected = is_open & seen.contains(users[rows], block)
        rejected |= _repeats(np.where(rejected, -1 - np.arange(num_candidates), groups[block]), is_open)
        block[rejected] = 0
        items[rows] = block
        rows = rows[rejected.any(axis=1)]
        if not len(rows):
            break
    return items, rows


def _repeats(groups: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Mark the places (B, C) whose group stands already in the row: kept places before new ones, then left to right."""
    width = groups.shape[1]
    key = ((groups + width) * 2 + is_new) * width + np.arange(width)  # (B, C), groups may be as low as -width
    key.sort(axis=1)
    sorted_groups = key // (2 * width)
    repeated = np.zeros(groups.shape, dtype=bool)
    repeated[:, 1:] = sorted_groups[:, 1:] == sorted_groups[:, :-1]
    result = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(result, key % width, repeated, axis=1)
    return result


def _exactly(
    users: np.ndarray, targets: np.ndarray, seen: SeenItems, groups: np.ndarray, num_candidates: int, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw negatives by ordering the whole catalogue at random for each user.

    Returns:
        Negatives (B, C - 1), whether a title occurs twice (B,), and how many items were available (B,).
    """
    every = np.broadcast_to(np.arange(1, len(groups)), (len(users), len(groups) - 1))
    order = np.argsort(_draw(keys, every[0], REJECTION_ROUNDS + 1), axis=1, kind="stable")  # (B, N)
    item_groups = groups[1:][order]
    forbidden = np.take_along_axis(seen.contains(users, every) | (every == targets[:, None]), order, axis=1)
    own_groups = np.where(forbidden, -1 - np.arange(order.shape[1]), item_groups)  # a forbidden item takes no title
    repeated = _repeats(own_groups, np.ones(order.shape, dtype=bool)) | (item_groups == groups[targets][:, None])
    kind = np.where(forbidden, FORBIDDEN, np.where(repeated, DUPLICATE_TITLE, DIFFERENT))
    best = np.argsort(kind, axis=1, kind="stable")[:, : num_candidates - 1]
    chosen = np.take_along_axis(order, best, axis=1) + 1
    return chosen, (np.take_along_axis(kind, best, axis=1) != DIFFERENT).any(axis=1), (~forbidden).sum(axis=1)


def _check_available(
    users: np.ndarray, available: np.ndarray, num_items: int, num_candidates: int, user_ids: Sequence[str] | None
) -> None:
    """Raise when a user has fewer items left than negatives are needed."""
    short = np.flatnonzero(available < num_candidates - 1)
    if len(short):
        user = int(users[short[0]])
        name = repr(user_ids[user]) if user_ids is not None else f"number {user}"
        raise DataError(
            f"user {name} has left only {available[short[0]]} of the catalogue's {num_items} items unseen, but "
            f"{num_candidates - 1} negatives are needed ({len(short)} such users at least); lower num_candidates, "
            "leave these users out, or keep items without interactions (keep_items='all')"
        )


def _row_keys(users: np.ndarray, seed: int, split: str) -> np.ndarray:
    """Return the state (B,) of each user's stream of random numbers."""
    with np.errstate(over="ignore"):
        start = np.uint64(seed % 2**64) * _GAMMA + np.uint64(SPLITS.index(split))
        return _mix(_mix(np.atleast_1d(start)) + users.astype(np.uint64) * _GAMMA)


def _draw(keys: np.ndarray, places: np.ndarray, attempt: int) -> np.ndarray:
    """Return uniform 64-bit numbers (B, C) that depend on the user's key, the place and the attempt alone."""
    with np.errstate(over="ignore"):
        offsets = (places.astype(np.uint64) + (np.uint64(attempt) << np.uint64(40)) + np.uint64(1)) * _GAMMA
        return _mix(keys[:, None] + offsets)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the values scrambled by the SplitMix64 finalizer (Steele, Lea and Flood, 2014)."""
    for shift, factor in _FACTORS:
        values = (values ^ (values >> np.uint64(shift))) * factor
    return values ^ (values >> np.uint64(31))
