"""Validate a stage over all processes, and tell whether its weights are the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator

from ..ranking import NaNScoresError
from .processes import Processes
from .sharded_llm import passes_of_own
from .task import StageTask


@torch.no_grad()
def validation_means(task: StageTask, accelerator: Accelerator, processes: Processes) -> dict[str, float]:
    """Return the means of the task's metrics over all validation examples, each process computing its share."""
    rows = np.arange(task.num_validation_examples)
    mine = rows[processes.rank :: processes.world] if task.rows_add_up else rows
    values: Mapping[str, np.ndarray] = {}
    with accelerator.autocast(), passes_of_own(task.module):
        if len(mine):
            try:
                values = task.validate(mine, accelerator.device)
            except NaNScoresError:  # a validation that is not finite is never the best; see `is_better`
                values = {task.metric: np.full(len(mine), np.nan)}
    gathered = processes.gathered((mine, values))
    means = {}
    for name in sorted({name for _, part in gathered for name in part}):
        whole = np.empty(len(rows), dtype=np.float64)  # in the order of the examples, whoever computed them
        for numbers, part in gathered:
            if len(numbers):
                whole[numbers] = part.get(name, np.nan)
        means[name] = float(whole.mean())
    return means


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Tell whether a value of a metric is better than the best one so far; one that is not finite never is."""
    if not math.isfinite(value):
        return False
    return best is None or (value < best if "loss" in metric else value > best)
