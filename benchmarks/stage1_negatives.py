"""Which items may be negatives: measure stages 0, 1 and 2 on real data, by what training knows of a user's target.

    python benchmarks/stage1_negatives.py --data-root DATA --text-encoder all-MiniLM-L6-v2 --output RUNS

`--data-root` holds one folder per data set with `interactions.parquet` and `items.parquet`. Each benchmark run (data
set, seed, what is compared) is a JSON file in `RUNS/results`, written when it is done and not computed again; parts can
run side by side (`--datasets --seeds --parts`). At the end all runs found become
`benchmarks/results/stage1_negatives.json`.

Compared are, with the text encoder frozen and no LLM:

- `cf`: stage 0 with windows of whole sequences or their last window alone, and a softmax over the catalogue or over the
  items that are targets;
- `align`: stage 1 with negatives out of the items seen in the training and the validation part, or out of the items
  that the backbone was trained on. Items are ranked by the CF vector decoded from `e_i` (from `q_i` for items that are
  no target in training: path `item`), or from `q_i` for all (path `text`);
- `project`: the projectors of stage 2 matched by cosine with no LLM (method `no-llm`), trained on the targets "train",
  with the same choices of negatives.

Stages 1 and 2 take a fixed number of steps and keep the last weights, so that no choice is stopped earlier than the
other; the seeds are theirs, the backbone is that of `--backbone-seed`.

A target is `trained` where it is a target of stage 0, `first only` where it is in the training part but never as a
target, `validation only` where only the validation part has it, else `unseen`; `warm` and `cold` as in the reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.cf_encoder import CFEncoder
from allmrec_hf.cf_losses import full_cross_entropy
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.configuration_allmrec import ALLMRecConfig
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.warmth import WarmthGroups
from allmrec_hf.files import written_whole
from allmrec_hf.histories import pad_histories
from allmrec_hf.methods.controls import TwoTowers, _NoPrompts
from allmrec_hf.modeling_allmrec import ALLMRecModel
from allmrec_hf.ranking import Ranks, hit_at_k, ndcg_at_k, target_ranks
from allmrec_hf.training.alignment import AlignmentModule, AlignmentTask, text_embedding_table
from allmrec_hf.training.backbone_training import CFEncoderTask
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.samples import NegativeSampler
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.text_encoders import load_text_encoder
from allmrec_hf.training.warm_start import BATCH_SIZE, LEARNING_RATE, WarmStartTask

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "stage1_negatives.json"
DATASETS = ("amazon_office_products_2018_tail", "amazon_electronics_2023_sub", "amazon2018_video_games", "ml_100k")
PARTS = ("backbone", "align", "project")
NEGATIVES = ("train+validation", "trained items")
BACKBONES = {
    "last window, whole catalogue": (False, False),
    "all windows, whole catalogue": (True, False),
    "all windows, trained items": (True, True),
}
BUDGET = {
    "backbone": StageArguments(
        num_train_epochs=40,
        min_steps=1_000,
        eval_epochs=2,
        early_stopping_patience=2,
        max_validation_users=1_000,
    ),
    "align": StageArguments(num_train_epochs=500, max_steps=500, learning_rate=1e-3, eval_epochs=500),
    "project": StageArguments(
        num_train_epochs=200,
        max_steps=200,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        eval_epochs=200,
    ),
}
USERS = 6_000  # of a data set at most
TEST_USERS = 3_000
USERS_AT_ONCE = 256


class AmongTargets(SASRecModel):
    """SASRec whose cross entropy compares with the items that are targets alone."""

    compared: torch.Tensor  # (K,) ascending

    def _loss_of_states(
        self, states: torch.Tensor, targets: torch.Tensor, batch: Mapping[str, torch.Tensor], wanted: torch.Tensor
    ) -> torch.Tensor:
        rows = F.embedding(F.pad(self.compared, (1, 0)), self.item_embeddings)  # (K + 1, d_cf)
        return full_cross_entropy(states, rows, torch.searchsorted(self.compared, targets) + 1)


def train_counts(data: PreparedData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how often each item is a target of stage 0, in the training part, and in training and validation part."""
    targets = np.concatenate([sequence[1:] for sequence in data.sequences("train")])
    return np.bincount(targets, minlength=data.num_items + 1), data.item_counts(), data.item_counts("train+validation")


def group_masks(data: PreparedData, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Return which users each group holds, by their targets."""
    trained, train, known = train_counts(data)
    warmth = WarmthGroups.from_counts(train, known).members(targets)
    return {
        **{name: warmth[name] for name in ("overall", "warm", "cold")},
        "trained": trained[targets] > 0,
        "first only": (trained[targets] == 0) & (train[targets] > 0),
        "validation only": (train[targets] == 0) & (known[targets] > 0),
        "unseen": known[targets] == 0,
    }


@torch.no_grad()
def measured(data: PreparedData, score: Any) -> dict[str, dict[str, float]]:
    """Return the metrics of each group for `score(histories)`, which gives `(B, N + 1)` scores of test users."""
    candidates = data.candidates("test")
    rows = np.sort(np.random.default_rng(0).permutation(len(candidates))[:TEST_USERS])
    candidates = candidates.take(rows)
    few, all_items = [], []
    for start in range(0, len(candidates), USERS_AT_ONCE):
        part = candidates.take(np.arange(start, min(start + USERS_AT_ONCE, len(candidates))))
        histories = [data.history(int(user), "test") for user in part.users]
        scores = np.asarray(score(histories), dtype=np.float64)
        few.append(target_ranks(np.take_along_axis(scores, part.items, axis=1), part.target_columns))
        own = scores[np.arange(len(part)), part.targets]
        for row, history in enumerate(histories):
            scores[row, history] = -np.inf
        scores[:, 0] = -np.inf
        scores[np.arange(len(part)), part.targets] = own
        all_items.append(target_ranks(scores, part.targets))
    ranks, full = Ranks.concatenate(few), Ranks.concatenate(all_items)
    values = {
        "hit@1 of 20": hit_at_k(ranks, 1), "ndcg@10 of 20": ndcg_at_k(ranks, 10),
        "recall@20 full": hit_at_k(full, 20), "ndcg@10 full": ndcg_at_k(full, 10),
    }  # fmt: skip
    return {
        group: {"users": int(mask.sum()), **{name: float(each[mask].mean()) for name, each in values.items()}}
        for group, mask in group_masks(data, candidates.targets).items()
        if mask.any()
    }


def by_vectors(cf_encoder: CFEncoder, vectors: torch.Tensor) -> Any:
    """Return the scoring of item vectors `(N + 1, d_cf)` for histories."""

    def score(histories: list[np.ndarray]) -> np.ndarray:
        ids, mask = pad_histories(histories, cf_encoder.config.max_history_length)
        return np.asarray((cf_encoder.encode_users(ids, mask) @ vectors.T).numpy())

    return score


def trained_backbone(data: PreparedData, seed: int, variant: str, folder: Path) -> tuple[CFEncoder, dict[str, Any]]:
    """Return a SASRec of one kind, trained in the folder or, where it was, loaded from there."""
    windows, restricted = BACKBONES[variant]
    arguments = BUDGET["backbone"].replaced(seed=seed)
    torch.manual_seed(seed)
    cf_encoder = (AmongTargets if restricted else SASRecModel)(SASRecConfig(num_items=data.num_items))
    if isinstance(cf_encoder, AmongTargets):
        cf_encoder.compared = torch.from_numpy(train_counts(data)[0]).nonzero().flatten()
    task = CFEncoderTask(cf_encoder, data, arguments)
    if not windows:
        last = np.append(-1, task.examples.users[:-1]) != task.examples.users  # the latest of each sequence comes first
        for name in ("users", "ends", "lengths"):
            setattr(task.examples, name, getattr(task.examples, name)[last])
    result = run_stage(task, arguments, folder, resume=True)
    facts = {"epochs": result.epochs, "best_epoch": result.best_epoch, "steps": result.steps, "seconds": result.seconds,
             "validation": result.best}  # fmt: skip
    return cf_encoder.eval(), facts


def choose(task: AlignmentTask | WarmStartTask, data: PreparedData, negatives: str) -> None:
    """Give a task the negatives of one of `NEGATIVES`, of which it has the second, and nobody to validate on."""
    if negatives == "train+validation":
        task.sampler = NegativeSampler(data, "train+validation")
    task.validation = task.validation.take(np.arange(0))


def aligned(
    data: PreparedData, seed: int, negatives: str, cf_encoder: CFEncoder, texts: torch.Tensor, folder: Path
) -> ItemTextAligner:
    """Return stage 1's aligner, trained with these negatives."""
    torch.manual_seed(seed)
    aligner = ItemTextAligner(cf_encoder.config.hidden_size, texts.shape[1], 128)
    module = AlignmentModule(
        cf_encoder, aligner, data.catalog.texts(), None, False, 0.5, 0.5, cross_reconstruction=1.0, text_table=texts
    )
    arguments = BUDGET["align"].replaced(seed=seed)
    task = AlignmentTask(module, data, "last", arguments)
    choose(task, data, negatives)
    run_stage(task, arguments, folder, resume=True)
    return aligner.eval()


@torch.no_grad()
def paths(data: PreparedData, cf_encoder: CFEncoder, aligner: ItemTextAligner, texts: torch.Tensor) -> dict[str, Any]:
    """Return the metrics of items decoded from their joint embeddings (`item`), and from text alone (`text`)."""
    trained = torch.from_numpy(train_counts(data)[0] > 0).unsqueeze(1)
    text = aligner.encode_texts(texts)
    item = torch.where(trained, aligner.encode_items(cf_encoder.item_embeddings), text)
    joint = {"item": item, "text": text}
    return {name: measured(data, by_vectors(cf_encoder, aligner.decode_items(value))) for name, value in joint.items()}


def projected(
    data: PreparedData, seed: int, negatives: str, cf_encoder: CFEncoder, aligner: ItemTextAligner,
    texts: torch.Tensor, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Return the metrics of stage 2's projectors without an LLM, trained on the targets "train"."""
    model = ALLMRecModel(ALLMRecConfig(cf_config=cf_encoder.config, joint_dim=128, text_dim=texts.shape[1]))
    model.cf_encoder.load_state_dict(cf_encoder.state_dict())
    model.aligner.load_state_dict(aligner.state_dict())
    model.item_table.text_joint_embeddings = aligner.encode_texts(texts).detach()
    model.item_table.interaction_counts = torch.from_numpy(train_counts(data)[0])
    module = TwoTowers(model.eval(), 128, seed)
    arguments = BUDGET["project"].replaced(seed=seed)
    history: Any = _NoPrompts(cf_encoder.config.max_history_length)
    task = WarmStartTask(module, history, data, "train", 20, arguments)
    choose(task, data, negatives)
    module.prepare(task)
    run_stage(task, arguments, folder, resume=True)
    ranker = module.ranker("no-llm")

    def score(histories: list[np.ndarray]) -> np.ndarray:
        return np.asarray(ranker._users(histories) @ np.asarray(ranker.item_vectors).T)

    return {"cosine": measured(data, score)}


def prepared(name: str, data_root: Path, output: Path) -> PreparedData:
    """Return a data set, prepared once without a filter; of a large one a seeded part of the users."""
    folder, source = output / "data" / name, data_root / name
    if (folder / "dataset.json").exists():
        return PreparedData.load(folder)
    interactions = pl.read_parquet(source / "interactions.parquet")
    users = interactions["user_id"].unique().sort()
    if len(users) > USERS:
        users = users.sample(USERS, seed=0)
        interactions = interactions.filter(interactions["user_id"].is_in(users.implode()))
    items = pl.read_parquet(source / "items.parquet")
    return prepare(interactions, items, output=folder, name=name, filter="none")


def compute_runs(data: PreparedData, variant: str, options: argparse.Namespace, texts: torch.Tensor) -> None:
    """Compute what is missing of one data set and kind of backbone."""
    output, backbone_seed = options.output, options.backbone_seed

    def done(run: Mapping[str, Any]) -> None:
        name = "-".join(str(run[key]).replace(" ", "_") for key in ("dataset", "seed", "part", "backbone", "choice"))
        with written_whole(output / "results" / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")

    where = output / "runs" / f"{data.name}-{backbone_seed}-{variant.replace(' ', '_')}"
    base = {"dataset": data.name, "backbone": variant}
    cf_encoder, facts = trained_backbone(data, backbone_seed, variant, where / "backbone")
    if "backbone" in options.parts:
        found = measured(data, by_vectors(cf_encoder, cf_encoder.item_embeddings.detach()))
        done({**base, "seed": backbone_seed, "part": "backbone", "choice": "", **facts, "paths": {"backbone": found}})
    for seed in options.seeds if {"align", "project"} & set(options.parts) else ():
        for negatives in NEGATIVES:
            name, run = negatives.replace(" ", "_"), {**base, "seed": seed, "choice": negatives}
            aligner = aligned(data, seed, negatives, cf_encoder, texts, where / f"align-{seed}-{name}")
            done({**run, "part": "align", "paths": paths(data, cf_encoder, aligner, texts)})
            if "project" in options.parts:
                folder = where / f"project-{seed}-{name}"
                done({**run, "part": "project",
                      "paths": projected(data, seed, negatives, cf_encoder, aligner, texts, folder)})  # fmt: skip


def summary(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and sample deviation over the seeds for each choice, path and group."""
    groups: dict[tuple[str, ...], list[Mapping[str, float]]] = defaultdict(list)
    for run in found:
        for path, values in run["paths"].items():
            for group, metrics in values.items():
                key = (run["dataset"], run["part"], run["backbone"], run["choice"], path, group)
                groups[key].append(metrics)
    rows = []
    for key, metrics in groups.items():
        row: dict[str, Any] = dict(zip(("dataset", "part", "backbone", "negatives", "path", "group"), key, strict=True))
        row |= {"seeds": len(metrics), "users": metrics[0]["users"]}
        for name in metrics[0]:
            if name != "users":
                values = [each[name] for each in metrics]
                row[name] = round(statistics.mean(values), 4)
                row[f"{name} sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
        rows.append(row)
    return rows


def main() -> None:
    """Compute the runs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS[:3]), choices=DATASETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone-seed", type=int, default=0)
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES)[1:], choices=list(BACKBONES))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    for name in options.datasets:
        data = prepared(name, options.data_root, options.output)
        path = options.output / "data" / f"{name}.pt"
        if not path.exists():
            torch.save(text_embedding_table(load_text_encoder(options.text_encoder), data.catalog.texts()).cpu(), path)
        texts = torch.load(path)
        for variant in options.backbones:
            compute_runs(data, variant, options, texts)
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((options.output / "results").glob("*.json"))
    ]
    with written_whole(RESULTS) as temporary:
        rows = ",\n".join(json.dumps(row) for row in summary(found))
        temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
