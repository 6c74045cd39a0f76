"""Histories of different lengths as one batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad_histories(histories: Sequence[Sequence[int] | np.ndarray], max_length: int) -> tuple[Tensor, Tensor]:
    """Left-pad histories to one batch, keeping the most recent `max_length` items of each.

    Args:
        histories: B lists or arrays of catalogue indices in time order; one may be empty.
        max_length: The most columns the batch may have.

    Returns:
        `item_ids (B, L)` integers with 0 at padding, and `attention_mask (B, L)` booleans, True at real items. L is
        the longest kept history, at least 1.

    Example:
        >>> item_ids, attention_mask = pad_histories([[4, 7, 9], [3]], max_length=2)
        >>> item_ids.tolist(), attention_mask.tolist()
        ([[7, 9], [0, 3]], [[True, True], [False, True]])
    """
    kept = [np.asarray(history, dtype=np.int64)[-max_length:] for history in histories]
    lengths = np.fromiter((len(history) for history in kept), dtype=np.int64, count=len(kept))
    width = max(1, int(lengths.max(initial=0)))
    mask = np.arange(width) >= width - lengths[:, None]
    item_ids = np.zeros((len(kept), width), dtype=np.int64)
    if kept:
        item_ids[mask] = np.concatenate(kept)
    return torch.from_numpy(item_ids), torch.from_numpy(mask)
