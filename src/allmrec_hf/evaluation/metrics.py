"""Ranks from lists of scores, for the `evaluate` modules under `metrics/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ALLMRecError
from ..ranking import target_ranks


def ranks_of(predictions: Sequence[Sequence[float]], references: Sequence[int]) -> NDArray[np.float64]:
    """Return the expected rank of each target; candidate lists may differ in length.

    Args:
        predictions: B lists of scores, higher is better.
        references: B positions, counted from 0, of the target within its list.

    Returns:
        `(B,)` ranks, 1 is best; ties get the expected rank.

    Raises:
        ALLMRecError: when a position is outside its list, or a score is NaN.

    Example:
        >>> ranks_of([[0.2, 0.7], [0.5, 0.5, 0.5]], [0, 1]).tolist()
        [2.0, 2.0]
    """
    ranks = np.empty(len(references))
    for row, (scores, position) in enumerate(zip(predictions, references, strict=True)):
        if not 0 <= position < len(scores):
            raise ALLMRecError(f"row {row}: the target's position is {position}, its list holds {len(scores)} scores")
        if np.isnan(scores).any():
            raise ALLMRecError(f"row {row} holds NaN scores")
        ranks[row] = target_ranks([scores], [position])[0]
    return ranks
