"""Time training batches and one full-ranking evaluation of RecBole's SASRec; `cf_speed.py` starts this script.

The Python that runs it needs what `recbole_run.py` needs. The library trains on every prefix of every sequence, so an
epoch takes long: the CPU time of `batches` batches is measured, after one to warm up, and scaled to the whole epoch.
The evaluation is the library's own full sort of all validation users with its metrics.
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from exchange import Problem, read_arguments, seed_python
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from recbole_run import configuration, write_atomic_file
from timing import write_timing


class EnoughBatches(Exception):
    """Raised from a training step when all that is timed has been trained."""


def measured(problem: Problem, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the times of a part of an epoch and of the evaluation."""
    write_atomic_file(problem, folder)
    options = {
        "n_heads": settings["num_heads"],
        "hidden_dropout_prob": settings["dropout"],
        "attn_dropout_prob": settings["dropout"],
        "inner_size": settings["hidden_size"],
    }
    config = configuration({**settings, "model": "sasrec", "options": options}, folder)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    times: list[float] = []

    def timed_loss(batch: Any) -> torch.Tensor:
        times.append(time.process_time())
        if len(times) == settings["batches"] + 2:
            raise EnoughBatches
        return model.calculate_loss(batch)

    model.train()
    with suppress(EnoughBatches):
        trainer._train_epoch(train_data, 0, timed_loss)
    started = time.process_time()
    trainer.evaluate(valid_data, load_best_model=False)
    evaluation = time.process_time() - started
    per_batch = (times[-1] - times[1]) / (len(times) - 2)
    prefixes = len(train_data.dataset)
    return {
        "epoch_seconds": [per_batch * prefixes / config["train_batch_size"]],
        "measured_batches": len(times) - 2,
        "batch_seconds": [after - before for before, after in pairwise(times[1:])],
        "batch_size": config["train_batch_size"],
        "targets": prefixes,
        "positions": prefixes * settings["max_history_length"],
        "evaluation_seconds": evaluation,
        "evaluated_users": len(problem.users("validation")),
    }


def main() -> None:
    """Train a part of an epoch and evaluate once."""
    problem, settings, output = read_arguments()
    logging.disable(logging.WARNING)
    torch.set_num_threads(settings["threads"])
    seed_python(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:
        facts = measured(problem, settings, Path(folder).resolve())
    write_timing(output, facts, ["recbole", "torch", "numpy", "pandas", "scipy"])


if __name__ == "__main__":
    main()
