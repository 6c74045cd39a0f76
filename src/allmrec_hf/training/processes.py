"""What the processes of one training run tell each other, so that all of them go the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """The processes that train one stage; of one alone, every answer is its own.

    Attributes:
        rank: The number of this process.
        world: The number of processes.
        is_main: Whether this is the one that writes files.
        in_step: Whether all must make the same passes of the LLM, each of which holds a part of it.
    """

    def __init__(self, accelerator: Accelerator, in_step: bool = False) -> None:
        self.in_step = in_step
        self._accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process

    def gathered(self, value: Any) -> list[Any]:
        """Return the value of every process."""
        return [value] if self.world == 1 else gather_object([value])

    def most(self, value: float) -> float:
        """Return the greatest value of all processes."""
        return max(self.gathered(value))

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sums of values over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float32, device=self._accelerator.device)
        return self._accelerator.reduce(tensor, reduction="sum").tolist()

    def main_decides(self, wish: bool) -> bool:
        """Return what the main process wishes, on every process."""
        return bool(self.totals([float(wish and self.is_main)])[0])

    def summed(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return named sums over all processes, exactly rounded, whatever names each process has."""
        mine = {name: float(value) for name, value in sums.items()}
        if self.world == 1:
            return mine
        parts = self.gathered(mine)
        return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in sorted(set().union(*parts))}
