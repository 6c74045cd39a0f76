"""Time one training epoch and one full-ranking evaluation of RecTools' SASRec; `cf_speed.py` starts this script.

The Python that runs it needs what `rectools_run.py` needs. Training is the library's own fit with its default trainer;
the evaluation is `recommend` for all users (ten items, seen ones left out) and the library's NDCG@10.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from exchange import Problem, read_arguments, seed_python
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, calc_metrics
from rectools.models import SASRecModel
from rectools_run import frame
from timing import write_timing

LOSSES = {"cross_entropy": "softmax", "bce": "BCE"}


class EpochTimer(Callback):
    """Take the CPU time of every epoch and count the targets and positions it trained on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.targets = self.positions = 0
        self.started = 0.0

    def __deepcopy__(self, memo: object) -> EpochTimer:
        return self  # the library copies its trainer; what is measured must stay here

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        """Start the clock."""
        self.targets = self.positions = 0
        self.started = time.process_time()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Count what the batch holds."""
        self.targets += int((batch["y"] > 0).sum())
        self.positions += batch["y"].numel()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.process_time() - self.started)


def evaluation_seconds(problem: Problem, model: SASRecModel, dataset: Dataset) -> tuple[float, int]:
    """Return the CPU time of the ranking of all validation users, and how many they are."""
    users = problem.users("validation")
    held_out = pd.DataFrame({Columns.User: users, Columns.Item: problem.validation_targets[users]})
    started = time.process_time()
    found = model.recommend(users=users, dataset=dataset, k=10, filter_viewed=True)
    calc_metrics({"ndcg@10": NDCG(k=10)}, found, held_out, catalog=np.arange(1, problem.num_items + 1))
    return time.process_time() - started, len(users)


def main() -> None:
    """Train and evaluate once."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    problem, settings, output = read_arguments()
    torch.set_num_threads(settings["threads"])
    seed_python(settings["seed"])
    seed_everything(settings["seed"], verbose=False)
    timer = EpochTimer()

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=settings["epochs"],
            min_epochs=settings["epochs"],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
        )

    model = SASRecModel(
        n_factors=settings["hidden_size"],
        n_blocks=settings["num_layers"],
        n_heads=settings["num_heads"],
        session_max_len=settings["max_history_length"],
        batch_size=settings["batch_size"],
        loss=LOSSES[settings["loss"]],
        n_negatives=1,
        dropout_rate=settings["dropout"],
        lr=settings["learning_rate"],
        get_trainer_func=trainer,
    )
    dataset = Dataset.construct(frame(problem.train))
    model.fit(dataset)
    seconds, users = evaluation_seconds(problem, model, dataset)
    facts = {
        "epoch_seconds": timer.seconds,
        "targets": timer.targets,
        "positions": timer.positions,
        "evaluation_seconds": seconds,
        "evaluated_users": users,
    }
    write_timing(output, facts, ["rectools", "torch", "pytorch-lightning", "numpy", "pandas"])


if __name__ == "__main__":
    main()
