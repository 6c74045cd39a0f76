"""Time our CF training and evaluation in a process of its own; `cf_speed.py` starts this script.

It is run as `cf_speed_ours.py DATA SETTINGS.json OUTPUT` and leaves `result.json` in OUTPUT. All times are CPU seconds
of the process. An epoch is timed from the making of its batches to the end of its last step; validation and checkpoints
are left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from other_libraries.timing import write_timing

from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.data.prepared import CandidateSet, PreparedData
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import BackboneRanker
from allmrec_hf.training.backbone_training import CFEncoderTask
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.stage_arguments import StageArguments

MAX_LENGTH = 95  # of a generated sequence; the shortest has 5 items, the mean is 50


class Clock:
    """Add up the CPU time of parts of a program."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a part."""

        def run(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **options)
            self.seconds[name] += time.process_time() - started
            return result

        return run


class TimedTask(CFEncoderTask):
    """The task of stage 0 that notes when each epoch begins and ends; its validation does nothing but that."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.epoch_seconds: list[float] = []
        self.started = 0.0
        self.targets = 0

    num_validation_examples = 1  # type: ignore[assignment]

    def batches(self, epoch: int) -> Any:
        """Start the clock of an epoch."""
        self.started, self.targets = time.process_time(), 0
        return super().batches(epoch)

    def loss_weight(self, batch: Any) -> float:
        """Count the targets."""
        weight = super().loss_weight(batch)
        self.targets += int(weight)
        return weight

    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Stop the clock: this is what the loop does right after the last step of an epoch."""
        self.epoch_seconds.append(time.process_time() - self.started)
        return {self.metric: np.zeros(len(examples))}


def generated(interactions: int, num_items: int, seed: int) -> Any:
    """Return what training reads of prepared data: random sequences of 5 to 95 items, Zipf-like popularity."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, MAX_LENGTH + 1, interactions // 50)
    popularity = 1 / (np.arange(num_items) + 10.0) ** 0.8
    items = 1 + rng.choice(num_items, lengths.sum(), p=popularity / popularity.sum())
    sequences = np.split(items, np.cumsum(lengths)[:-1])
    nobody = np.zeros(0, dtype=np.int64)
    return SimpleNamespace(
        name="generated",
        digests={},
        num_items=num_items,
        num_users=len(sequences),
        user_ids=[str(user) for user in range(len(sequences))],
        catalog=SimpleNamespace(frame=pl.DataFrame({"title": [f"item {item}" for item in range(num_items + 1)]})),
        sequences=lambda split: sequences,
        history=lambda user, split: sequences[user],
        candidates=lambda split: CandidateSet(nobody, nobody, nobody.reshape(0, 20)),
    )


def task_of(data: Any, settings: dict[str, Any]) -> tuple[TimedTask, StageArguments]:
    """Return the task with fresh weights, and its arguments."""
    config = {"model_type": f"allmrec-{settings['model']}", "num_items": data.num_items, **settings["config"]}
    torch.manual_seed(settings["seed"])
    cf_encoder = build_cf_encoder(config)
    sequences = data.sequences("train")
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = torch.from_numpy(np.concatenate(sequences))
    cf_encoder.start_training(torch.from_numpy(users), items, len(sequences))
    fixed = {"num_train_epochs": settings["epochs"], "eval_epochs": 1}
    given = dict(settings["training"])
    if "batch_size" in given:
        given["per_device_train_batch_size"] = given.pop("batch_size")
    arguments = StageArguments(**{**cf_encoder.training_recipe, **given, **fixed})
    return TimedTask(cf_encoder, data, arguments), arguments


def train(task: TimedTask, arguments: StageArguments) -> dict[str, Any]:
    """Train for some epochs and return what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        run_stage(task, arguments, folder, progress=False)
    return {
        "epoch_seconds": task.epoch_seconds,
        "targets": task.targets,
        "batch_size": arguments.per_device_train_batch_size,
    }


def compare(data: PreparedData, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, then rank the whole catalogue for all validation users, as validation and as `evaluate` do it."""
    task, arguments = task_of(data, settings)
    facts = train(task, arguments)
    cf_encoder = task.cf_encoder.eval()
    positions = sum(len(batch) * int(task.examples.lengths[batch].max()) for batch in task.examples.batches(0))
    users = np.arange(len(task.validation))
    started = time.process_time()
    CFEncoderTask.validate(task, users, torch.device("cpu"))
    validated = time.process_time()
    evaluate([BackboneRanker(cf_encoder)], data, "full", "validation")
    evaluated = time.process_time()
    return {
        **facts,
        "positions": positions,
        "evaluation_seconds": validated - started,
        "retrieval_seconds": evaluated - validated,
        "evaluated_users": len(users),
    }


def scaling(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on generated data of a size."""
    data = generated(settings["interactions"], settings["num_items"], settings["seed"])
    task, arguments = task_of(data, settings)
    interactions = sum(map(len, data.sequences("train")))
    return {**train(task, arguments), "interactions": interactions, "num_users": data.num_users}


def profile(data: PreparedData, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and return the CPU time of each part of an epoch; what is left over is the loop itself."""
    task, arguments = task_of(data, settings)
    clock = Clock()
    task.batches = clock.timed("batches", task.batches)  # type: ignore[method-assign]
    task.collate = clock.timed("collate", task.collate)  # type: ignore[method-assign]
    task.module.forward = clock.timed("forward", task.module.forward)  # type: ignore[method-assign]
    torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    torch.optim.AdamW.step = clock.timed("optimizer", torch.optim.AdamW.step)  # type: ignore[method-assign]
    facts = train(task, arguments)
    whole = sum(task.epoch_seconds)
    parts = dict(clock.seconds)
    parts["batches"] *= settings["epochs"] / (settings["epochs"] + 1)  # the loop asks once more, to count steps
    parts["loop"] = whole - sum(parts.values())
    shares = {name: seconds / whole for name, seconds in parts.items()}
    return {**facts, "interactions": int(sum(map(len, data.sequences("train")))), "shares": shares}


def main() -> None:
    """Measure what the settings ask for."""
    folder, settings, output = sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8")), Path(sys.argv[3])
    torch.set_num_threads(settings["threads"])
    if settings["part"] == "scaling":
        facts = scaling(settings)
    else:
        facts = {"compare": compare, "profile": profile}[settings["part"]](PreparedData.load(folder), settings)
    write_timing(output, facts, ["torch", "transformers", "accelerate", "numpy"])


if __name__ == "__main__":
    main()
