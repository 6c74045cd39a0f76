"""Pad histories of different lengths to one batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .indices import check_histories


def pad_histories(
    histories: Sequence[Sequence[int] | np.ndarray], max_length: int, num_items: int | None = None
) -> tuple[Tensor, Tensor]:
    """Left-pad histories to one batch, keeping the most recent `max_length` items of each.

    Args:
        histories: B lists or arrays of catalogue indices in time order; one may be empty.
        max_length: The most columns the batch may have.
        num_items: N, to check that indices are from 1 to N; what is read from prepared data needs no check.

    Returns:
        `item_ids (B, L)` integers with 0 at padding, and `attention_mask (B, L)` booleans, True at real items. L is
        the longest kept history, at least 1.

    Raises:
        DataError: when a history holds something else than whole numbers, or with `num_items` one out of range.

    Example:
        >>> item_ids, attention_mask = pad_histories([[4, 7, 9], [3]], max_length=2)
        >>> item_ids.tolist(), attention_mask.tolist()
        ([[7, 9], [0, 3]], [[True, True], [False, True]])
    """
    if num_items is not None:
        check_histories(histories, num_items)
    kept = [_whole_numbers(history)[-max_length:] for history in histories]
    lengths = np.fromiter((len(history) for history in kept), dtype=np.int64, count=len(kept))
    width = max(1, int(lengths.max(initial=0)))
    mask = np.arange(width) >= width - lengths[:, None]
    item_ids = np.zeros((len(kept), width), dtype=np.int64)
    if kept:
        item_ids[mask] = np.concatenate(kept)
    return torch.from_numpy(item_ids), torch.from_numpy(mask)


def seen_items(histories: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """Return all items of the whole histories `(B, S)`, each once in its row and filled with 0 on the right.

    It is what `exclude` of retrieval takes: a model may read only the end of a history, but the user has seen it all.

    Example:
        >>> seen_items([[4, 7, 4, 9], [3]]).tolist()
        [[4, 7, 9], [3, 0, 0]]
    """
    rows = [np.unique(_whole_numbers(history)) for history in histories]
    seen = np.zeros((len(rows), max((len(row) for row in rows), default=0)), dtype=np.int64)
    for place, row in zip(seen, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(seen)


def _whole_numbers(history: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a history as int64; what no integer is, is refused and never rounded."""
    items = np.asarray(history)
    if items.dtype.kind not in "iu" and items.size:
        raise DataError(f"a history of {items.dtype} holds no catalogue indices; they are whole numbers from 1")
    return items.astype(np.int64, copy=False)
