"""Run a model of RecBole for the quality benchmark; `cf_quality.py` starts this script.

RecBole 1.2.1 is older than today's NumPy, pandas, SciPy and setuptools. The Python that runs it needs

    pip install recbole==1.2.1 torch==2.13.0 "numpy<2" "pandas<3" scipy==1.11.4 "setuptools<81" ray thop tabulate

Models: SASRec, GRU4Rec, NextItNet, NeuMF, BPR, LightGCN and `popularity` (its Pop with exact counts, a check). The
library's own defaults hold but for the sizes (a width of 64, a history of 50) and, in sequential models, batches of 256
instead of 2048 examples: these models train on every prefix of every sequence, and larger batches would leave them few
steps within the time. Training is the library's own trainer on its own batches; validation is NDCG@10 in the whole
catalogue after each epoch, and the best weights are kept in memory. The interactions go in as an atomic file whose time
is the position, and the library's leave-one-out split is compared with ours, user by user, before anything is trained.
General models score test users with the vectors trained on the training part, because the library cannot fold in the
validation item.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

warnings.filterwarnings("ignore")
import torch  # noqa: E402
from exchange import Problem, TimeIsUp, Watch, read_arguments, seed_python, write_result  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.utils import ModelType, get_model, get_trainer, init_seed  # noqa: E402

NAMES = {
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "nextitnet": "NextItNet",
    "ncf": "NeuMF",
    "bprmf": "BPR",
    "lightgcn": "LightGCN",
    "popularity": "Pop",
}
EPOCHS_PER_VALIDATION = {"bprmf": 5, "lightgcn": 5}  # whose epochs are short and whose plateaus are long
NEURAL_MF_USERS = 1000  # validation users of NeuMF, whose full ranking passes every pair through a network


def write_atomic_file(problem: Problem, folder: Path) -> None:
    """Write all interactions in the library's format."""
    (folder / "data").mkdir()
    with open(folder / "data" / "data.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, history in enumerate(problem.test_histories):
            items = [*history.tolist(), *([problem.test_targets[user]] if problem.test_targets[user] else [])]
            file.writelines(f"u{user}\ti{item}\t{position}\n" for position, item in enumerate(items))


def configuration(settings: dict[str, Any], folder: Path) -> Config:
    """Return the library's configuration: its defaults, our sizes and split."""
    width, is_sequential = settings["hidden_size"], settings["model"] in ("sasrec", "gru4rec", "nextitnet")
    values: dict[str, Any] = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "use_gpu": False,
        "seed": settings["seed"],
        "show_progress": False,
        "state": "ERROR",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "MAX_ITEM_LIST_LENGTH": settings["max_history_length"],
        "embedding_size": width,
        "mf_embedding_size": width,
        "mlp_embedding_size": width,
        "epochs": 1 if settings["model"] == "popularity" else 1000,
        "eval_step": EPOCHS_PER_VALIDATION.get(settings["model"], 1),
        "stopping_step": 10**6,  # our patience counts
    }
    if is_sequential:
        values["train_neg_sample_args"] = None  # cross entropy over the catalogue, the library's default loss
        values["train_batch_size"] = 256
    if settings["model"] == "sasrec":
        values |= {"hidden_size": width, "n_layers": settings["num_layers"]}
    return Config(model=NAMES[settings["model"]], dataset="data", config_dict={**values, **settings.get("options", {})})


class Scorer:
    """Score every item of the catalogue with a model of the library, after checking that its split is ours."""

    def __init__(self, problem: Problem, model: Any, dataset: Any, held_out: dict[str, Any]) -> None:
        self.problem, self.model, self.dataset = problem, model, dataset
        items = np.array([int(token[1:]) for token in dataset.field2id_token[dataset.iid_field][1:]])
        users = np.array([int(token[1:]) for token in dataset.field2id_token[dataset.uid_field][1:]])
        if len(items) != problem.num_items:
            raise ValueError(f"the library has {len(items)} items, the problem {problem.num_items}")
        self.column_of_item = np.argsort(items) + 1  # item c + 1 -> the library's id
        self.index_of_id = np.concatenate([[0], items])
        self.user_of_id = np.concatenate([[-1], users])
        self.rows: dict[str, Any] = {}
        for split, data in held_out.items():
            self.rows[split] = self._checked(split, data.dataset.inter_feat)

    def _checked(self, split: str, rows: Any) -> tuple[Any, np.ndarray]:
        """Return the library's held-out rows and the row of each user."""
        dataset = self.dataset
        users = self.user_of_id[rows[dataset.uid_field].numpy()]
        targets = self.index_of_id[rows[dataset.iid_field].numpy()]
        place = np.full(self.problem.num_users, -1)
        place[users] = np.arange(len(users))
        wanted = self.problem.users(split)
        if not np.array_equal(np.sort(users), wanted) or (targets != self.problem.targets(split)[users]).any():
            raise ValueError(f"the library's {split} targets are not ours")
        lists = f"{dataset.iid_field}_list"
        if lists in rows.interaction:
            sequences, lengths = self.index_of_id[rows[lists].numpy()], rows["item_length"].numpy()
            for user, sequence, length in zip(users, sequences, lengths, strict=True):
                if not np.array_equal(
                    sequence[:length], self.problem.histories(split)[user][-len(sequence) :]
                ):  # fmt: skip
                    raise ValueError(f"the library's {split} history of user {user} is not ours")
        return rows, place

    @torch.no_grad()
    def __call__(self, users: np.ndarray, split: str) -> np.ndarray:
        """Return `(B, N)` scores."""
        self.model.eval()
        rows, place = self.rows[split]
        batch = rows[torch.from_numpy(place[users])]
        parts = []
        for start in range(0, len(users), 512):
            part = batch[start : start + 512]
            try:
                scores = self.model.full_sort_predict(part)
            except NotImplementedError:
                scores = self._predict_pairs(part)
            parts.append(scores.view(len(part), -1).numpy()[:, self.column_of_item])
        return np.concatenate(parts)

    def _predict_pairs(self, part: Any) -> torch.Tensor:
        users, items = part[self.dataset.uid_field], torch.arange(self.dataset.item_num)
        rows = []
        for user in users.split(16):
            pairs = {
                self.dataset.uid_field: user.repeat_interleave(len(items)),
                self.dataset.iid_field: items.repeat(len(user)),
            }
            rows.append(self.model.predict(Interaction(pairs)).view(len(user), -1))
        return torch.cat(rows)


def timed_trainer(config: Config, model: Any, scorer: Scorer, watch: Watch) -> Any:
    """Return the library's trainer for the model, with our clock in its steps and our validation after its epochs."""
    base = get_trainer(config["MODEL_TYPE"], config["model"])

    class TimedTrainer(base):  # type: ignore[misc, valid-type]
        best: dict[str, torch.Tensor] = {}
        epoch_of_step = 0

        def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False):
            steps, self.epoch_of_step = 0, epoch_idx

            def timed_loss(batch: Any) -> Any:
                nonlocal steps
                if watch.seconds > watch.time_limit_s:
                    self.validate(epoch_idx + steps / len(train_data))
                watch.check()
                steps += 1
                return self.model.calculate_loss(batch)

            return super()._train_epoch(train_data, epoch_idx, timed_loss, show_progress)

        def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
            self.validate(self.epoch_of_step + 1)
            if watch.exhausted:
                raise TimeIsUp
            return watch.best, {"ndcg@10": watch.best}

        def validate(self, epoch: float) -> None:
            if hasattr(self.model, "restore_user_e"):
                self.model.restore_user_e = self.model.restore_item_e = None  # cached for older weights
            if watch.validate(lambda users: scorer(users, "validation"), epoch):
                self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    return TimedTrainer(config, model)


def train(
    problem: Problem, settings: dict[str, Any], folder: Path
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Train a model and return the scores of test users."""
    write_atomic_file(problem, folder)
    config = configuration(settings, folder)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    interactions = len(train_data.dataset)
    expected = sum(map(len, problem.train))
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        expected -= problem.num_users  # the first item of a sequence has no prefix
    if interactions != expected:
        raise ValueError(f"the library trains on {interactions} examples, not on {expected}")
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset)
    scorer = Scorer(problem, model, dataset, {"validation": valid_data, "test": test_data})
    if settings["model"] == "popularity":
        # Its own trainer counts an item that is twice in a batch once, so the counts are set here.
        counts = torch.bincount(train_data.dataset.inter_feat[dataset.iid_field], minlength=dataset.item_num)
        model.item_cnt, model.max_cnt = counts.unsqueeze(1), counts.max().unsqueeze(0)
        return (lambda users: scorer(users, "test")), {}
    users = NEURAL_MF_USERS if settings["model"] == "ncf" else None
    watch = Watch(problem, settings["time_limit_s"], settings["patience"], users)
    trainer = timed_trainer(config, model, scorer, watch)
    with contextlib.suppress(TimeIsUp):
        trainer.fit(train_data, valid_data, saved=False, verbose=False)
    facts = watch.facts()
    model.load_state_dict(trainer.best)
    if hasattr(model, "restore_user_e"):
        model.restore_user_e = model.restore_item_e = None
    names = ("train_batch_size", "learning_rate", "loss_type", "n_layers", "num_layers", "hidden_size", "block_num")
    facts["settings"] = {
        "embedding_size": settings["hidden_size"],
        **{name: config[name] for name in names if config[name] is not None},
        **settings.get("options", {}),
    }
    return (lambda users: scorer(users, "test")), facts


def main() -> None:
    """Run one model."""
    problem, settings, output = read_arguments()
    logging.disable(logging.WARNING)
    torch.set_num_threads(settings["threads"])
    seed_python(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:
        score, facts = train(problem, settings, Path(folder).resolve())
        ranks = problem.ranks(score, "test")
    write_result(output, ranks, facts, ["recbole", "torch", "numpy", "pandas", "scipy"])


if __name__ == "__main__":
    main()
