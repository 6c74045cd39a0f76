"""Ranks and ranking metrics, the one place where a score becomes a number in a table.

A rank under ties is an interval of places: of a target with 3 better candidates and 2 others of its own score, the
places 4, 5 and 6 are equally likely when ties are broken at random. Every metric is its mean over these places, not its
value at the mean place: a constant score over 20 candidates has Hit@1 1/20 and Hit@10 1/2, what a random order has.

Only equal numbers are tied. Scores that differ by a rounding error are not: a method whose scores are equal but for the
noise of its arithmetic is ranked by that noise, which favours nobody either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class NaNScoresError(ValueError):
    """Scores that are no numbers, of a model whose weights are broken or whose numbers overflow."""


@dataclass(frozen=True)
class Ranks:
    """The places that each user's target may take among its candidates; 1 is best.

    Attributes:
        better: `(B,)` number of candidates with a higher score; `inf` is a miss, a target without any place.
        tied: `(B,)` number of other candidates with the target's score. Its places are `better + 1` to
            `better + tied + 1`, all equally likely.
        limit: Places beyond this one count as a miss, as beyond the end of a list; `inf` knows no end.

    Raises:
        ValueError: when the two are not `(B,)` counts, or the limit is below 1.

    Example:
        >>> ranks = Ranks(np.array([3, 0]), np.array([2, 0]))
        >>> ranks.expected.tolist(), hit_at_k(ranks, 5).round(4).tolist()
        ([5.0, 1.0], [0.6667, 1.0])
    """

    better: NDArray[np.float64]
    tied: NDArray[np.float64]
    limit: float = np.inf

    def __post_init__(self) -> None:
        better, tied = np.asarray(self.better, dtype=np.float64), np.asarray(self.tied, dtype=np.float64)
        if better.ndim != 1 or better.shape != tied.shape:
            raise ValueError(f"numbers of better and of tied candidates must be (B,); got {better.shape}, {tied.shape}")
        missed = np.isposinf(better)
        whole = (better >= 0) & (np.floor(better) == better) & (tied >= 0) & (np.floor(tied) == tied)
        bad = ~whole | np.isinf(tied) | (missed & (tied > 0))
        if bad.any():
            raise ValueError(f"{int(bad.sum())} of {len(bad)} ranks are no counts of better and of tied candidates")
        if not self.limit >= 1:
            raise ValueError(f"the last place that counts must be at least 1; got {self.limit}")
        object.__setattr__(self, "better", better)
        object.__setattr__(self, "tied", tied)

    def __len__(self) -> int:
        return len(self.better)

    def __getitem__(self, rows: Any) -> Ranks:
        """Return the ranks of some users, chosen by a mask, a slice or numbers."""
        return Ranks(np.atleast_1d(self.better[rows]), np.atleast_1d(self.tied[rows]), self.limit)

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.float64]:
        raise TypeError("ranks under ties are intervals of places, no array: give them to a metric, or take .expected")

    @property
    def expected(self) -> NDArray[np.float64]:
        """Return `(B,)` mean places, halves among them; for reading, metrics are not made from them."""
        return 1.0 + self.better + self.tied / 2.0

    @classmethod
    def of_places(cls, places: ArrayLike, limit: float = np.inf) -> Ranks:
        """Return the ranks of targets that are tied with nothing, from their places `(B,)`; `inf` is a miss.

        Raises:
            ValueError: when a place is no whole number: half places come from ties, of which a place says too little.
        """
        better = np.asarray(places, dtype=np.float64) - 1.0
        bad = ~((better >= 0) & (np.isposinf(better) | (np.floor(better) == better)))
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {bad.size} places are no whole numbers from 1; a half place is the mean of tied "
                "ones, and metrics are made from the places: give Ranks"
            )
        return cls(better, np.zeros(better.shape), limit)

    @classmethod
    def of_expected(cls, expected: ArrayLike, tied: ArrayLike, limit: float = np.inf) -> Ranks:
        """Return the ranks that have these mean places and numbers of tied others, both `(B,)`."""
        tied = np.asarray(tied, dtype=np.float64)
        return cls(np.asarray(expected, dtype=np.float64) - 1.0 - tied / 2.0, tied, limit)

    @classmethod
    def concatenate(cls, parts: Sequence[Ranks]) -> Ranks:
        """Return the ranks of all users of several groups with one limit, in order.

        Raises:
            ValueError: when there is no part, or limits differ.
        """
        if len({part.limit for part in parts}) != 1:
            raise ValueError(f"ranks to join need one limit; got {sorted({part.limit for part in parts})}")
        better, tied = (np.concatenate([getattr(part, name) for part in parts]) for name in ("better", "tied"))
        return cls(better, tied, parts[0].limit)


def target_ranks(scores: ArrayLike, target_positions: ArrayLike) -> Ranks:
    """Return the rank of each target among its candidates.

    Args:
        scores: `(B, C)`, higher is better; `-inf` marks an entry that is no candidate. NaN is refused.
        target_positions: `(B,)` integers, the column of each row's target.

    Raises:
        NaNScoresError: when a score is NaN.
        ValueError: when the shapes do not fit, or a position is no column.

    Example:
        >>> target_ranks([[0.1, 0.9, 0.5], [0.0, 0.0, 0.0]], [1, 2]).expected.tolist()
        [1.0, 2.0]
    """
    scores = np.asarray(scores, dtype=np.float64)
    positions = np.asarray(target_positions)
    if positions.size and positions.dtype.kind not in "iu":
        raise ValueError(f"target_positions must be whole numbers, got {positions.dtype}")
    positions = positions.astype(np.int64)
    if scores.ndim != 2 or positions.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (B, C) and target_positions (B,); got {scores.shape} and {positions.shape}")
    if positions.size and not (positions.min() >= 0 and positions.max() < scores.shape[1]):
        raise ValueError(
            f"target_positions must be columns 0 to {scores.shape[1] - 1}, got {positions.min()} to {positions.max()}"
        )
    if np.isnan(scores).any():
        raise NaNScoresError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} rows hold NaN scores")
    target = np.take_along_axis(scores, positions[:, None], axis=1)  # (B, 1)
    better = (scores > target).sum(axis=1)
    tied = (scores == target).sum(axis=1) - 1
    return Ranks(better.astype(np.float64), tied.astype(np.float64))


def hit_at_k(ranks: Ranks | ArrayLike, k: int) -> NDArray[np.float64]:
    """Return Hit@k per user, `(B,)`: the share of the target's places that are among the first k.

    Args:
        ranks: Ranks, or `(B,)` places of targets that are tied with nothing.
        k: How many of the first candidates count.

    Raises:
        ValueError: when k is below 1.

    Example:
        >>> hit_at_k(target_ranks([[0.0] * 20], [3]), 10).tolist()
        [0.5]
    """
    ranks = _ranks(ranks)
    _check_cutoff(k)
    return np.asarray(np.clip((min(k, ranks.limit) - ranks.better) / (ranks.tied + 1.0), 0.0, 1.0))


def ndcg_at_k(ranks: Ranks | ArrayLike, k: int) -> NDArray[np.float64]:
    """Return NDCG@k per user, `(B,)`: the mean over the target's places of `1 / log2(1 + place)`, 0 beyond the first k.

    There is one relevant item, so the ideal list has 1. Arguments as in `hit_at_k`.
    """
    _check_cutoff(k)
    return _mean_over_places(_ranks(ranks), k, lambda places: 1.0 / np.log2(1.0 + places))


def reciprocal_rank(ranks: Ranks | ArrayLike) -> NDArray[np.float64]:
    """Return the mean of `1 / place` over the target's places per user, `(B,)`; its mean over users is the MRR."""
    return _mean_over_places(_ranks(ranks), np.inf, lambda places: 1.0 / places)


def summarize_ranks(ranks: Ranks | ArrayLike, cutoffs: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return the mean metrics of a group of users, keyed `hit@k`, `ndcg@k` and `mrr`, with `users` as the count.

    An empty group has no metrics, only `users` = 0: a mean over nobody is not a number.
    """
    ranks = _ranks(ranks)
    if len(ranks) == 0:
        return {"users": 0}
    summary: dict[str, float] = {"users": len(ranks)}
    for k in cutoffs:
        summary[f"hit@{k}"] = float(hit_at_k(ranks, k).mean())
        summary[f"ndcg@{k}"] = float(ndcg_at_k(ranks, k).mean())
    summary["mrr"] = float(reciprocal_rank(ranks).mean())
    return summary


def _check_cutoff(k: int) -> None:
    if isinstance(k, bool) or not k >= 1:
        raise ValueError(f"k must be at least 1, got {k!r}")


def _ranks(ranks: Ranks | ArrayLike) -> Ranks:
    return ranks if isinstance(ranks, Ranks) else Ranks.of_places(ranks)


def _mean_over_places(
    ranks: Ranks, k: float, gain: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return `(B,)` means of a gain over each target's places; it is 0 beyond place k and beyond the limit."""
    found = np.isfinite(ranks.better)
    values = np.zeros(len(ranks))
    first, count = ranks.better[found], ranks.tied[found] + 1.0
    if not len(first):
        return values
    last = int(min(k, ranks.limit, (first + count).max()))
    sums = np.concatenate([[0.0], np.cumsum(gain(np.arange(1.0, last + 1)))])  # sums[p] of the places 1 to p
    start, end = (np.minimum(place, last).astype(np.int64) for place in (first, first + count))
    alone = np.where(first < last, gain(first + 1.0), 0.0)  # without the rounding of a difference of sums
    values[found] = np.where(count == 1, alone, (sums[end] - sums[start]) / count)
    return values
