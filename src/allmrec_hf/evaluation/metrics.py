"""Compute ranks from lists of scores, for the `evaluate` modules under `metrics/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ALLMRecError
from ..ranking import Ranks, target_ranks


def ranks_of(predictions: Sequence[Sequence[float]], references: Sequence[int]) -> Ranks:
    """Return the rank of each target with its ties; candidate lists may differ in length.

    Args:
        predictions: B lists of scores, higher is better.
        references: B positions, counted from 0, of the target within its list.

    Returns:
        B ranks, which the metrics of `allmrec_hf.ranking` take.

    Raises:
        ALLMRecError: when there are no users, a position is outside its list, or a score is NaN.

    Example:
        >>> ranks_of([[0.2, 0.7], [0.5, 0.5, 0.5]], [0, 1]).expected.tolist()
        [2.0, 2.0]
    """
    ranks = []
    for row, (scores, position) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(position, (bool, np.bool_, float, np.floating)) or not 0 <= position < len(scores):
            raise ALLMRecError(f"row {row}: the target's position is {position}, its list holds {len(scores)} scores")
        if np.isnan(scores).any():
            raise ALLMRecError(f"row {row} holds NaN scores")
        ranks.append(target_ranks([scores], [position]))
    if not ranks:
        raise ALLMRecError("there are no users: predictions and references are empty")
    return Ranks.concatenate(ranks)
