"""Ranks and ranking metrics, the one place where a score becomes a number in a table.

Every metric takes `ranks (B,)`: the rank of each user's target among its candidates, 1 is best. Ties get the expected
rank (a constant score ranks the target in the middle, never first), so ranks may be halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def target_ranks(scores: ArrayLike, target_positions: ArrayLike) -> NDArray[np.float64]:
    """Return the expected rank of each target among its candidates.

    Args:
        scores: `(B, C)`, higher is better; `-inf` marks an entry that is no candidate. NaN is refused.
        target_positions: `(B,)` integers, the column of each row's target.

    Returns:
        `(B,)` ranks, 1 is best: 1 + number of better candidates + half the number of tied others.

    Raises:
        ValueError: when a score is NaN or the shapes do not fit.

    Example:
        >>> target_ranks([[0.1, 0.9, 0.5], [0.0, 0.0, 0.0]], [1, 2]).tolist()
        [1.0, 2.0]
    """
    scores = np.asarray(scores, dtype=np.float64)
    positions = np.asarray(target_positions, dtype=np.int64)
    if scores.ndim != 2 or positions.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (B, C) and target_positions (B,); got {scores.shape} and {positions.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} rows hold NaN scores")
    target = np.take_along_axis(scores, positions[:, None], axis=1)  # (B, 1)
    better = (scores > target).sum(axis=1)
    tied = (scores == target).sum(axis=1) - 1
    return 1.0 + better + tied / 2.0


def hit_at_k(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return Hit@k per user, `(B,)`: 1 where the target is among the first k."""
    return (np.asarray(ranks, dtype=np.float64) <= k).astype(np.float64)


def ndcg_at_k(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return NDCG@k per user, `(B,)`: `1 / log2(1 + rank)` within the first k, else 0 (one relevant item)."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(ranks: ArrayLike) -> NDArray[np.float64]:
    """Return the reciprocal rank per user, `(B,)`; its mean is the MRR."""
    return 1.0 / np.asarray(ranks, dtype=np.float64)


def summarize_ranks(ranks: ArrayLike, cutoffs: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return the mean metrics of a group of users, keyed `hit@k`, `ndcg@k` and `mrr`, with `users` as the count.

    An empty group has no metrics, only `users` = 0: a mean over nobody is not a number.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if len(ranks) == 0:
        return {"users": 0}
    summary: dict[str, float] = {"users": len(ranks)}
    for k in cutoffs:
        summary[f"hit@{k}"] = float(hit_at_k(ranks, k).mean())
        summary[f"ndcg@{k}"] = float(ndcg_at_k(ranks, k).mean())
    summary["mrr"] = float(reciprocal_rank(ranks).mean())
    return summary
