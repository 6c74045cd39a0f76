"""Find losses, gradients and weights that are not finite at the step where they come up."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class FiniteWatch:
    """Remember the first step whose loss or gradient was not finite, on the device, so that no step waits for it.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def see(self, step: int, values: Iterable[Tensor]) -> None:
        """Look at the loss, and the norm of the gradient, of a step, from 1."""
        finite = torch.stack([torch.isfinite(value.detach()).to(self._first.device) for value in values]).all()
        self._first = torch.where(finite | (self._first > 0), self._first, step)

    def first(self) -> int:
        """Return the step, or 0 where all was finite; this waits for a GPU."""
        return int(self._first)


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> Tensor:
    """Return the norm of the gradient of all parameters together."""
    return torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors that hold a value which is not finite."""
    return [name for name, value in tensors if value.is_floating_point() and not torch.isfinite(value).all()]
