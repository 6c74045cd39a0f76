"""What the quality benchmark hands to other libraries and what it gets back; needs NumPy alone.

A *problem* is a folder: `problem.json` (`num_items`, `ranking`: the file that holds our ranking metrics) and arrays of
catalogue indices 1..N, users numbered 0..U-1:

- `train_items.npy (E,)` and `train_offsets.npy (U + 1,)`: the training part of each user's sequence, in time order;
- `validation_targets.npy (U,)` and `test_targets.npy (U,)`: 0 where a user has none;
- `test_items.npy` and `test_offsets.npy`: what is known before the test item, the training part and
  the validation item.

An adapter is a script, run by the Python that has the library: `ADAPTER PROBLEM SETTINGS.json OUTPUT`. It leaves
`ranks.npy (2, T)`, for each test target how many items are better and how many tied, users without a target left out,
and `result.json`.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

MAX_SCORES = 2**20  # scores held at once: few enough for a cache


class Problem:
    """One data set as arrays; see the module's text for the files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        info = json.loads((self.folder / "problem.json").read_text(encoding="utf-8"))
        self.num_items = int(info["num_items"])
        self.ranking = _module_of(info["ranking"])
        self.validation_targets = np.load(self.folder / "validation_targets.npy")
        self.test_targets = np.load(self.folder / "test_targets.npy")

    @property
    def num_users(self) -> int:
        """U, the number of users."""
        return len(self.test_targets)

    @cached_property
    def train(self) -> list[np.ndarray]:
        """The training sequence of each user."""
        return self._sequences("train")

    @cached_property
    def test_histories(self) -> list[np.ndarray]:
        """What is known of each user before the test item."""
        return self._sequences("test")

    def histories(self, split: str) -> list[np.ndarray]:
        """Return what is known of each user before the target of `validation` or `test`."""
        return self.train if split == "validation" else self.test_histories

    def targets(self, split: str) -> np.ndarray:
        """Return the target of each user, 0 where there is none."""
        return self.validation_targets if split == "validation" else self.test_targets

    def users(self, split: str, at_most: int | None = None) -> np.ndarray:
        """Return the users with a target, or some of them drawn with a fixed seed."""
        users = np.flatnonzero(self.targets(split) > 0)
        if at_most is not None and at_most < len(users):
            users = np.sort(np.random.default_rng(0).choice(users, at_most, replace=False))
        return users

    def ranks(self, score: Callable[[np.ndarray], np.ndarray], split: str, users: np.ndarray | None = None) -> Any:
        """Return the `Ranks` of each user's target in the whole catalogue, other seen items left out.

        Args:
            score: Takes user numbers `(B,)` and returns `(B, N)` finite scores; column c belongs to item c + 1.
            split: `validation` or `test`.
            users: Some of the users with a target; all by default.
        """
        users = self.users(split) if users is None else users
        step = max(1, MAX_SCORES // self.num_items)
        parts = [self._ranks(score, split, users[start : start + step]) for start in range(0, len(users), step)]
        return self.ranking.Ranks.concatenate(parts)

    def _ranks(self, score: Callable[[np.ndarray], np.ndarray], split: str, users: np.ndarray) -> Any:
        scores = np.array(score(users), dtype=np.float64)
        if scores.shape != (len(users), self.num_items) or not np.isfinite(scores).all():
            raise ValueError(
                f"scores must be finite and {(len(users), self.num_items)}, one column for each item of the catalogue; "
                f"got {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not finite"
            )
        histories, targets = self.histories(split), self.targets(split)[users]
        rows = np.repeat(np.arange(len(users)), [len(histories[user]) for user in users])
        seen = np.concatenate([histories[user] for user in users])
        other = seen != targets[rows]  # an item bought again stays a candidate when it is the target
        scores[rows[other], seen[other] - 1] = -np.inf
        return self.ranking.target_ranks(scores, targets - 1)

    def ndcg(self, ranks: Any) -> float:
        """Return the mean NDCG@10, by which every model's best epoch is selected."""
        return float(self.ranking.ndcg_at_k(ranks, 10).mean())

    def _sequences(self, name: str) -> list[np.ndarray]:
        offsets = np.load(self.folder / f"{name}_offsets.npy")
        return np.split(np.load(self.folder / f"{name}_items.npy"), offsets[1:-1])


class TimeIsUp(Exception):
    """Raised from a training step when the time limit is reached."""


class Watch:
    """Keep the clock and the best validation of a run.

    Args:
        problem: The data.
        time_limit_s: Seconds of training and validating together.
        patience: Validations without improvement after which training ends.
        max_validation_users: Users of a validation at most.
    """

    def __init__(
        self, problem: Problem, time_limit_s: float, patience: int, max_validation_users: int | None = None
    ) -> None:
        self.problem, self.time_limit_s, self.patience = problem, time_limit_s, patience
        self.users = problem.users("validation", max_validation_users)
        self.best, self.best_epoch, self.bad = -1.0, 0, 0
        self.epochs = 0.0
        self.stopped_by = "epochs"
        self.validation_seconds = 0.0
        self.curve: list[tuple[float, float]] = []
        self.started, self.started_wall = time.process_time(), time.monotonic()
        self._train_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """CPU seconds since the start: what else the machine does costs a library nothing."""
        return time.process_time() - self.started

    def check(self) -> None:
        """Raise `TimeIsUp` when the limit is reached."""
        if self.seconds > self.time_limit_s:
            self.stopped_by = "time_limit"
            raise TimeIsUp

    def validate(self, score: Callable[[np.ndarray], np.ndarray], epoch: float) -> bool:
        """Validate after `epoch` epochs (a part of one where the time ran out) and tell whether it was the best."""
        before = time.process_time()
        value = self.problem.ndcg(self.problem.ranks(score, "validation", self.users))
        self.validation_seconds += time.process_time() - before
        self.epochs = epoch
        self.curve.append((round(epoch, 3), round(value, 5)))
        better = value > self.best
        if better:
            self.best, self.best_epoch = value, epoch
        self.bad = 0 if better else self.bad + 1
        if self.bad >= self.patience:
            self.stopped_by = "early_stopping"
        return better

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.bad >= self.patience

    def facts(self) -> dict[str, Any]:
        """Return what the table says about the run; call it once, right after training."""
        seconds = self.seconds
        return {
            "epochs": round(self.epochs, 3),
            "best_epoch": round(self.best_epoch, 3),
            "best_validation": self.best,
            "stopped_by": self.stopped_by,
            "seconds": round(seconds, 2),
            "wall_seconds": round(time.monotonic() - self.started_wall, 2),
            "seconds_per_epoch": round((seconds - self.validation_seconds) / max(self.epochs, 1e-9), 3),
            "validation_curve": self.curve,
        }


def read_arguments() -> tuple[Problem, dict[str, Any], Path]:
    """Return the problem, the settings and the output folder that the command line names."""
    problem, settings, output = sys.argv[1:4]
    return Problem(problem), json.loads(Path(settings).read_text(encoding="utf-8")), Path(output)


def write_result(output: Path, ranks: Any, facts: dict[str, Any], packages: Sequence[str]) -> None:
    """Write the test ranks and the facts about the run, with the versions of the packages that matter."""
    output.mkdir(parents=True, exist_ok=True)
    versions = {"python": sys.version.split()[0], **{package: version(package) for package in packages}}
    np.save(output / "ranks.npy", np.stack([ranks.better, ranks.tied]))
    (output / "result.json").write_text(json.dumps({**facts, "versions": versions}, indent=1), encoding="utf-8")


def seed_python(seed: int) -> None:
    """Seed Python's and NumPy's global generators, which other libraries draw from."""
    random.seed(seed)
    np.random.seed(seed)


def _module_of(path: str) -> ModuleType:
    """Return a module from its file, without the package around it, which the other Python need not have."""
    specification = importlib.util.spec_from_file_location("allmrec_hf_ranking", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module
