"""Run RecTools' SASRec for the quality benchmark; `cf_quality.py` starts this script.

The Python that runs it needs `pip install "rectools[torch]==0.19.0" torch==2.13.0`.

The library's own defaults hold but for the sizes. Training is the library's own (Lightning, softmax over the
catalogue); a callback validates after every epoch by NDCG@10 in the whole catalogue, keeps the best weights and stops
early. Items that the library does not know, because no training sequence holds them, are ranked last.
`popularity` is a check: the counts of the library's own data set.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from exchange import Problem, Watch, read_arguments, seed_python, write_result
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

CHECKED_USERS = 200  # whose top 10 by `recommend` are compared with the ranks taken from the scores


def frame(histories: list[np.ndarray]) -> pd.DataFrame:
    """Return interactions as the library wants them; the time is the position."""
    lengths = [len(history) for history in histories]
    positions = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(histories)), lengths),
            Columns.Item: np.concatenate(histories),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(positions, unit="s"),
        }
    )


class Scorer:
    """Score every item of the catalogue from histories, as `SASRecModel.recommend` does."""

    def __init__(self, problem: Problem, model: SASRecModel, length: int) -> None:
        self.problem, self.model = problem, model
        known = model.data_preparator.get_known_item_ids().astype(np.int64)
        self.rows = np.zeros(problem.num_items + 1, dtype=np.int64)  # catalogue index -> row of the library, 0 unknown
        self.rows[known] = model.data_preparator.get_known_items_sorted_internal_ids()
        self.length = length
        self.unknown = np.flatnonzero(self.rows[1:] == 0)

    @torch.no_grad()
    def __call__(self, users: np.ndarray, split: str) -> np.ndarray:
        """Return `(B, N)` scores."""
        histories = self.problem.histories(split)
        network = self.model.torch_model
        was_training = network.training
        network.eval()
        sessions = np.zeros((len(users), self.length), dtype=np.int64)
        for row, user in zip(sessions, users, strict=True):
            known = self.rows[histories[user]]
            known = known[known > 0][-self.length :]
            if len(known):
                row[-len(known) :] = known
        items = network.item_model.get_all_embeddings()
        states = [
            network.encode_sessions({"x": part}, items)[:, -1]
            for part in torch.from_numpy(sessions).split(256)
        ]  # fmt: skip
        scores = (torch.cat(states) @ items.T).numpy()[:, self.rows[1:]]
        if len(self.unknown):
            scores[:, self.unknown] = scores.min(axis=1, keepdims=True) - 1.0
        network.train(was_training)
        return scores


class Selection(Callback):
    """Validate after each epoch, keep the best weights, stop early or when the time is up."""

    def __init__(self, problem: Problem, settings: dict[str, Any]) -> None:
        self.problem, self.settings = problem, settings
        self.watch: Watch | None = None
        self.scorer: Scorer | None = None
        self.best: dict[str, torch.Tensor] = {}
        self.model: SASRecModel | None = None

    def __deepcopy__(self, memo: object) -> Selection:
        return self  # the library copies its trainer; what is kept must stay here

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Start the clock."""
        self.scorer = Scorer(self.problem, self.model, self.settings["max_history_length"])
        self.watch = Watch(self.problem, self.settings["time_limit_s"], self.settings["patience"])

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop within an epoch when the time is up."""
        if self.watch.seconds > self.watch.time_limit_s:
            self.watch.stopped_by = "time_limit"
            trainer.should_stop = True
            self._validate(trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)
            raise KeyboardInterrupt  # how Lightning is left at once

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """Validate."""
        self._validate(trainer.current_epoch + 1)
        trainer.should_stop = self.watch.exhausted

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        """Take nothing over from an epoch that was left early; it has been validated."""

    def _validate(self, epoch: float) -> None:
        if self.watch.validate(lambda users: self.scorer(users, "validation"), epoch):
            state = self.model.torch_model.state_dict()
            self.best = {name: value.detach().clone() for name, value in state.items()}


def train(problem: Problem, settings: dict[str, Any]) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Train SASRec and return the scores of test users."""
    selection = Selection(problem, settings)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1000,
            min_epochs=0,
            accelerator="cpu",
            devices=1,
            callbacks=[selection],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    options = {
        "n_factors": settings["hidden_size"],
        "n_blocks": settings["num_layers"],
        "session_max_len": settings["max_history_length"],
        **settings.get("options", {}),
    }
    model = SASRecModel(**options, get_trainer_func=trainer)
    selection.model = model
    try:
        model.fit(Dataset.construct(frame(problem.train)))
    except (SystemExit, KeyboardInterrupt):
        if selection.watch is None or selection.watch.stopped_by != "time_limit":
            raise
    model.is_fitted = True
    facts = selection.watch.facts() | {"settings": options}
    model.torch_model.load_state_dict(selection.best)
    facts["unknown_items"] = len(selection.scorer.unknown)
    facts["recommend_agrees"] = agreement(problem, model, selection.scorer)
    return (lambda users: selection.scorer(users, "test")), facts


def agreement(problem: Problem, model: SASRecModel, scorer: Scorer) -> float:
    """Return the share of items in the top 10 by `recommend` that our scores put there too."""
    users = problem.users("test", CHECKED_USERS)
    dataset = Dataset.construct(frame(problem.test_histories))
    found = model.recommend(users=users, dataset=dataset, k=10, filter_viewed=True)
    by_library = found.groupby(Columns.User)[Columns.Item].apply(set)
    scores = scorer(users, "test")
    hits = total = 0
    for row, user in zip(scores, users, strict=True):
        row = row.copy()
        row[problem.test_histories[user] - 1] = -np.inf
        own = set((np.argsort(-row, kind="stable")[:10] + 1).tolist())
        hits += len(own & by_library.get(user, set()))
        total += 10
    return hits / total


def popularity(problem: Problem) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Return the counts of items in the library's own data set."""
    dataset = Dataset.construct(frame(problem.train))
    counts = dataset.get_raw_interactions()[Columns.Item].value_counts()
    row = np.zeros(problem.num_items)
    row[counts.index.to_numpy() - 1] = counts.to_numpy()
    return (lambda users: np.tile(row, (len(users), 1))), {}


def main() -> None:
    """Run one model."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    problem, settings, output = read_arguments()
    torch.set_num_threads(settings["threads"])
    seed_python(settings["seed"])
    seed_everything(settings["seed"], verbose=False)
    score, facts = popularity(problem) if settings["model"] == "popularity" else train(problem, settings)
    packages = ["rectools", "torch", "pytorch-lightning", "numpy", "pandas"]
    write_result(output, problem.ranks(score, "test"), facts, packages)


if __name__ == "__main__":
    main()
