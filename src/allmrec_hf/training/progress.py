"""Write a line about a stage every half minute, where standard error is no terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from ..data.memory import resident_bytes
from ..durations import duration

EVERY_S = 30.0


def shows_bar() -> bool:
    """Tell whether a bar is shown: standard error is a terminal, or this is a notebook."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)()) or "notebook" in tqdm.__name__


def memory_text(device: torch.device) -> str:
    """Return how much memory this process holds, that of its GPU too, such as `2.1 GB`."""
    text = f"{resident_bytes() / 1e9:.1f} GB"
    if device.type == "cuda":
        text += f" (GPU {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB)"
    return text


@dataclass(frozen=True)
class Standing:
    """Where a stage stands.

    Attributes:
        step: Optimizer steps done.
        total: Optimizer steps in all, unless the stage ends early.
        loss: Of the last step.
        memory: As a text.
        seconds_left: Of the stage's time limit; None without one.
        validated: Examples of a validation done, and their number; None while training.
    """

    step: int
    total: int
    loss: float
    memory: str
    seconds_left: float | None = None
    validated: tuple[int, int] | None = None


class ProgressLines:
    """Write a line every half minute.

    Args:
        name: The stage.
        now: Seconds of a clock that only goes forward.
        step: Optimizer steps that were done before, of a resumed run.
    """

    def __init__(self, name: str, now: float, step: int) -> None:
        self.name, self.started, self.first_step = name, now, step
        self.told = now
        self.items = 0

    def due(self, now: float) -> bool:
        """Tell whether half a minute has gone since the last line."""
        return now - self.told >= EVERY_S

    def tell(self, now: float, standing: Standing) -> None:
        """Write a line; items a second are those since the last one."""
        parts = [f"{self.name}: step {standing.step:,} of {standing.total:,}"]
        if standing.validated is not None:
            parts.append("validated {:,} of {:,}".format(*standing.validated))
        else:
            parts += [f"loss {standing.loss:.4f}", f"{self.items / max(now - self.told, 1e-9):.3g} items/s"]
        left = self._seconds_left(now, standing)
        parts += [] if left is None else [f"{duration(left)} left"]
        tqdm.write(", ".join([*parts, f"{standing.memory} of memory"]), file=sys.stderr)
        sys.stderr.flush()
        self.told, self.items = now, 0

    def _seconds_left(self, now: float, standing: Standing) -> float | None:
        """Return what the rest will take, at the pace so far, validations and checkpoints included."""
        done = standing.step - self.first_step
        if done <= 0:
            return standing.seconds_left
        left = (standing.total - standing.step) * (now - self.started) / done
        return left if standing.seconds_left is None else min(left, standing.seconds_left)
