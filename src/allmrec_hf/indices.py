"""Check catalogue indices: whole numbers from 1 to N; in padded tensors 0 stands for no item."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError


def checked_index(index: Any, num_items: int, what: str = "an item") -> int:
    """Return a catalogue index of one item as a Python integer.

    Args:
        index: A whole number of Python, NumPy or PyTorch.
        num_items: N, the number of items.
        what: What the index stands for, the subject of the error.

    Raises:
        DataError: when it is no whole number (a truth value and a float are none) or not in 1..N.

    Example:
        >>> checked_index(3, num_items=40)
        3
    """
    if type(index) is int and 0 < index <= num_items:
        return index
    try:
        if isinstance(index, (bool, np.bool_)) or (isinstance(index, Tensor) and index.dtype == torch.bool):
            raise TypeError
        if getattr(index, "ndim", 0):  # a vector of one
            raise TypeError
        number = operator.index(index)
    except (TypeError, ValueError):
        raise DataError(f"{what} is {_shown(index)}, no catalogue index; {_wanted(num_items)}") from None
    if not 0 < number <= num_items:
        raise DataError(f"{what} has the catalogue index {number}; {_wanted(num_items)}")
    return number


def checked_indices(indices: Iterable[Any], num_items: int, what: str = "a list of items") -> list[int]:
    """Return the catalogue indices of items as a list of Python integers; see `checked_index`.

    Args:
        indices: A list, a vector of NumPy or PyTorch, or any other iterable of whole numbers.
        num_items: N, the number of items.
        what: What holds the indices, the subject of the error.
    """
    if isinstance(indices, (str, bytes)) or not isinstance(indices, Iterable):
        raise DataError(f"{what} is {_shown(indices)}, no list of catalogue indices; {_wanted(num_items)}")
    if isinstance(indices, (np.ndarray, Tensor)):
        if indices.ndim != 1:
            raise DataError(f"{what} must be one list of catalogue indices, got the shape {tuple(indices.shape)}")
        indices = indices.tolist()  # Python's own integers, floats or truth values
    return [
        index if type(index) is int and 0 < index <= num_items else checked_index(index, num_items, what)
        for index in indices
    ]


def check_padded(indices: "Tensor | np.ndarray", num_items: int, what: str, look: bool = True) -> None:
    """Check a tensor or array of catalogue indices in which 0 is padding.

    Args:
        indices: Integers of any shape.
        num_items: N, the number of items.
        what: What holds the indices, the subject of the error.
        look: Whether values on an accelerator are looked at too, which waits for it; those on the CPU always are.

    Raises:
        DataError: when it is neither tensor nor array, the type is no whole number's (PyTorch looks up `int64` and
            `int32` only, and takes `uint8` for a mask), or an index is not in 0..N.
    """
    if not isinstance(indices, (Tensor, np.ndarray)):
        raise DataError(f"{what} is a {type(indices).__name__}; expected a tensor of catalogue indices (int64)")
    if isinstance(indices, Tensor):
        whole = indices.dtype in (torch.int64, torch.int32)
        look = indices.device.type == "cpu" or (look and indices.device.type != "meta")
        look = look and not torch.compiler.is_compiling()
    else:
        whole = np.issubdtype(indices.dtype, np.integer)
    if not whole:
        raise DataError(
            f"{what} is of {indices.dtype}; catalogue indices are whole numbers (int64), "
            f"{_wanted(num_items, padding=True)}"
        )
    if not look or 0 in indices.shape:
        return
    if isinstance(indices, Tensor):
        low, high = torch.stack(indices.aminmax()).tolist()
    else:
        low, high = int(indices.min()), int(indices.max())
    check_bounds(low, high, num_items, what)


def check_bounds(low: int, high: int, num_items: int, what: str) -> None:
    """Check the lowest and the highest of padded catalogue indices, see `check_padded`."""
    if low < 0 or high > num_items:
        found = low if low < 0 else high
        raise DataError(f"{what} has the catalogue index {found}; {_wanted(num_items, padding=True)}")


def check_histories(histories: Sequence[Any], num_items: int) -> None:
    """Check histories given as B arrays or lists of catalogue indices, without padding.

    Raises:
        DataError: when one holds something else than whole numbers from 1 to N.
    """
    for history in histories:
        if not isinstance(history, np.ndarray) or not np.issubdtype(history.dtype, np.integer):
            checked_indices(history, num_items, "a history")
        elif history.size and (history.min() < 1 or history.max() > num_items):
            checked_index(int(history.min() if history.min() < 1 else history.max()), num_items, "a history")


def _wanted(num_items: int, padding: bool = False) -> str:
    lowest = "0 (padding)" if padding else "1"
    return f"indices must be {lowest} to {num_items}; ItemCatalog.indices gives those of item ids"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
