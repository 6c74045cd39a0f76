"""How stage 1 is best trained: cold items by text alone, on the validation targets of real data.

    python benchmarks/stage1_variants.py --data-root DATA --text-encoder all-MiniLM-L6-v2 --output RUNS

Every variant trains the aligner around the same frozen backbone; the texts are those of a frozen encoder but where
that is trained too. Ranked are the stored candidates
of validation users, by the backbone whose item vectors are decoded from texts: of all items (`text`), or of those that
the backbone was not trained on (`item`). `raw text` is the cosine of the encoder's own vectors, without training. A
target is `new` where the training part does not have it. The test part is not looked at. Mean and deviation over seeds
go to `benchmarks/results/stage1_variants.json`, with a row for each data set, variant, path and group.

`stopped by` trains three times as long at most and keeps the best of validations every 100 steps, by the loss or by
NDCG@10 of candidates decoded from texts, on validation users who are not measured. `trained encoder` trains the text
encoder of `--encoder-datasets` too, 32 users and 24 tokens of a text at a time, for `--encoder-steps` steps, with one
seed: these rows compare learning rates, and are no comparison with a frozen encoder, which all others have for longer.

Two more ways to keep what texts know: `and raw text` adds a fixed projection of the text to what the text encoder of
stage 1 computes; `ids beside text` has no stage 1 at all: a backbone of `text_components`, half of whose item
embeddings are the texts' largest directions and stay so while the other half is trained (AlphaFuse, arXiv 2504.19218).
A new item has the text's half alone. Path `full ranking` is NDCG@10 of 1,000 validation users in the whole
catalogue, by which training stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stage1_negatives import BUDGET, by_vectors, prepared, train_counts, trained_backbone
from torch import nn
from torch.nn import functional as F

from allmrec_hf.aligner import ItemTextAligner
from allmrec_hf.cf_encoder import CFEncoder
from allmrec_hf.cf_sasrec import SASRecConfig
from allmrec_hf.cf_texts import text_layer
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.files import written_whole
from allmrec_hf.ranking import ndcg_at_k, target_ranks
from allmrec_hf.training.alignment import AlignmentModule, AlignmentTask, text_embedding_table
from allmrec_hf.training.backbone_training import train_backbone
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.samples import drawn_rows
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.text_encoders import load_text_encoder, text_dim

RESULTS = Path(__file__).resolve().parent / "results" / "stage1_variants.json"
DATASETS = ("amazon_office_products_2018_tail", "amazon_electronics_2023_sub", "amazon2018_video_games")
STEPS = 1_000
PAPER = {"alpha": 0.5, "beta": 0.5, "cross_reconstruction": 1.0}
SLOW, FAST = {"learning_rate": 1e-4}, {"learning_rate": 1e-3}
SOFTMAX = {"text_recommendation": 1.0}
LONG = {"num_train_epochs": 3 * STEPS, "max_steps": 3 * STEPS, "eval_strategy": "steps", "eval_steps": 100}
STOPPED = {**FAST, **LONG, "early_stopping_patience": 3}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mse, 1e-4": (PAPER, SLOW),
    "mse, 1e-3": (PAPER, FAST),
    "infonce, 1e-3": ({**PAPER, "matching_loss": "infonce"}, FAST),
    "infonce with learned scale, 1e-3": (
        {**PAPER, "matching_loss": "infonce", "learn_matching_temperature": True},
        FAST,
    ),
    "infonce with learned scale and half decoded, 1e-3": (
        {**PAPER, **SOFTMAX, "matching_loss": "infonce", "learn_matching_temperature": True},
        FAST,
    ),
    "mse and half decoded, 1e-3": ({**PAPER, **SOFTMAX}, FAST),
    "mse and half decoded, whitened texts, 1e-3": ({**PAPER, **SOFTMAX}, FAST),
    "mse and half decoded, and raw text, 1e-3": ({**PAPER, **SOFTMAX}, FAST),
    "mse and half decoded, 1e-3, cosine": ({**PAPER, **SOFTMAX}, {**FAST, "lr_scheduler_type": "cosine"}),
    "mse and half decoded, 1e-3, stopped by loss": ({**PAPER, **SOFTMAX}, STOPPED),
    "mse and half decoded, 1e-3, stopped by ranking": ({**PAPER, **SOFTMAX}, STOPPED),
}
TRAINED_ENCODER: dict[str, tuple[dict[str, float], float | None]] = {  # the loop's settings, and the encoder's own rate
    "mse and half decoded, trained encoder, 1e-4": (SLOW, None),
    "mse and half decoded, trained encoder, 1e-3": (FAST, None),
    "mse and half decoded, trained encoder, 1e-3 and 1e-4": (FAST, 1e-4),
}
ENCODER_TOKENS, ENCODER_USERS = 24, 32
MEASURED = 3_000  # validation users
IDS_BESIDE_TEXT = "ids beside text"


class WithRawText(nn.Module):
    """A layer beside a fixed projection of texts on their largest directions, of unit variance each."""

    def __init__(self, layer: nn.Linear, texts: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.raw = text_layer(texts, layer.out_features, 1.0)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the sum of both, `(..., d_joint)`, of texts `(..., d_text)`."""
        return self.layer(texts) + self.raw(texts)


def ids_beside_text(data: PreparedData, texts: torch.Tensor, seed: int, folder: Path) -> dict[str, Any]:
    """Train a SASRec half of whose item embeddings are the texts', and return its metrics."""
    config = SASRecConfig(num_items=data.num_items, text_components=SASRecConfig().hidden_size // 2)
    arguments = BUDGET["backbone"].replaced(seed=seed)
    cf_encoder = train_backbone(data, config, arguments, folder, resume=True, texts=texts)
    return {"item": measured(data, by_vectors(cf_encoder, cf_encoder.item_embeddings.detach()))}


def whitened(texts: torch.Tensor) -> torch.Tensor:
    """Return text embeddings `(N + 1, d)` whose components are uncorrelated and of one size; row 0 stays zeros."""
    rows = texts[1:] - texts[1:].mean(dim=0)
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    scale = sizes / len(rows) ** 0.5
    out = rows @ directions.T / (scale + 0.1 * scale.max())
    return torch.cat([texts[:1], out / out.norm(dim=1).mean()])


@torch.no_grad()
def measured(data: PreparedData, score: Any) -> dict[str, dict[str, float]]:
    """Return NDCG@10 of validation users by group, for `score(histories)` that gives `(B, N + 1)`."""
    candidates, values = data.candidates("validation"), []
    candidates = candidates.take(drawn_rows(len(candidates), MEASURED, 0))
    for start in range(0, len(candidates), 256):
        part = candidates.take(np.arange(start, min(start + 256, len(candidates))))
        scores = np.asarray(score([data.history(int(user), "validation") for user in part.users]), dtype=np.float64)
        values.append(ndcg_at_k(target_ranks(np.take_along_axis(scores, part.items, axis=1), part.target_columns), 10))
    trained, train, _ = train_counts(data)
    groups = {"overall": train >= 0, "trained": trained > 0, "new": train == 0}
    found = np.concatenate(values)
    masks = {name: mask[candidates.targets] for name, mask in groups.items()}
    return {name: {"users": int(m.sum()), "ndcg@10": float(found[m].mean())} for name, m in masks.items() if m.any()}


def aligned(
    data: PreparedData, cf_encoder: CFEncoder, texts: torch.Tensor, variant: str, seed: int, folder: Path
) -> ItemTextAligner:
    """Return the aligner of a variant: its last weights after `STEPS` steps, or the best where it is stopped."""
    loss, loop = VARIANTS[variant]
    torch.manual_seed(seed)
    aligner = ItemTextAligner(cf_encoder.config.hidden_size, texts.shape[1], 128)
    if "raw text" in variant:
        aligner.text_autoencoder.encoder = WithRawText(aligner.text_autoencoder.encoder, texts)
    module = AlignmentModule(cf_encoder, aligner, data.catalog.texts(), None, False, **loss, text_table=texts)
    length = {"num_train_epochs": STEPS, "max_steps": STEPS, "eval_epochs": STEPS, "max_validation_users": None}
    arguments = StageArguments(**{**length, "seed": seed, **loop})
    task = AlignmentTask(module, data, "last", arguments, "ndcg@10" if "by ranking" in variant else "loss")
    mine = np.arange(0)
    if "stopped" in variant:
        users = data.candidates("validation").users
        measured_users = users[drawn_rows(len(users), MEASURED, 0)]
        mine = np.flatnonzero(~np.isin(task.validation.users, measured_users))
        if not len(mine):
            raise SystemExit(f"{data.name} has too few validation users: all are measured, and none is left to stop by")
    task.validation, task.candidates = task.validation.take(mine), task.candidates.take(mine)
    run_stage(task, arguments, folder, resume=True)
    return aligner.eval()


def aligned_with_encoder(
    data: PreparedData, cf_encoder: CFEncoder, options: argparse.Namespace, variant: str, seed: int, folder: Path
) -> tuple[ItemTextAligner, torch.Tensor]:
    """Return the aligner of a variant whose text encoder is trained too, and the texts by that encoder."""
    loop, encoder_rate = TRAINED_ENCODER[variant]
    encoder = load_text_encoder(options.text_encoder)
    encoder.max_seq_length = ENCODER_TOKENS
    torch.manual_seed(seed)
    aligner = ItemTextAligner(cf_encoder.config.hidden_size, text_dim(encoder), 128)
    module = AlignmentModule(cf_encoder, aligner, data.catalog.texts(), encoder, True, **PAPER, **SOFTMAX)
    length = {"num_train_epochs": options.encoder_steps, "max_steps": options.encoder_steps, "eval_strategy": "no"}
    arguments = StageArguments(**length, per_device_train_batch_size=ENCODER_USERS, seed=seed, **loop)
    task = AlignmentTask(module, data, "last", arguments, text_encoder_learning_rate=encoder_rate)
    run_stage(task, arguments, folder, resume=True)
    return aligner.eval(), module.eval().embedding_table()


@torch.no_grad()
def paths(data: PreparedData, cf_encoder: CFEncoder, aligner: ItemTextAligner, texts: torch.Tensor) -> dict[str, Any]:
    """Return the metrics of both paths."""
    text = aligner.decode_items(aligner.encode_texts(texts))
    trained = torch.from_numpy(train_counts(data)[0] > 0).unsqueeze(1)
    item = torch.where(trained, cf_encoder.item_embeddings, text)
    return {name: measured(data, by_vectors(cf_encoder, table)) for name, table in (("item", item), ("text", text))}


def full_ranking(folders: list[Path]) -> list[dict[str, Any]]:
    """Return NDCG@10 in the whole catalogue at the best epoch, by the validation of training itself, for each seed."""
    records = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in folders]
    users = BUDGET["backbone"].max_validation_users
    return [{"overall": {"users": users, "ndcg@10": record["result"]["best"]}} for record in records]


def raw_text(data: PreparedData, texts: torch.Tensor) -> dict[str, Any]:
    """Return the metrics of the mean cosine with the last ten items of the history."""
    rows = F.normalize(texts, dim=-1).numpy()
    return measured(data, lambda histories: np.stack([rows[h[-10:]].sum(axis=0) for h in histories]) @ rows.T)


def main() -> None:
    """Compute every variant and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--encoder-datasets", nargs="*", default=DATASETS[:1])
    parser.add_argument("--encoder-steps", type=int, default=200)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.datasets:
        data = prepared(name, options.data_root, options.output)
        table = options.output / "data" / f"{name}-texts.safetensors"
        texts = _texts(data, options.text_encoder, table)
        backbone = "all windows, whole catalogue"
        cf_encoder, _ = trained_backbone(data, 0, backbone, options.output / "runs" / f"{name}-backbone")
        found = {("raw text", "text"): [raw_text(data, texts)]}
        for variant in VARIANTS:
            own = whitened(texts) if "whitened" in variant else texts
            for seed in options.seeds:
                folder = options.output / "runs" / f"{name}-{variant.replace(' ', '_')}-{seed}"
                aligner = aligned(data, cf_encoder, own, variant, seed, folder)
                for path, values in paths(data, cf_encoder, aligner, own).items():
                    found.setdefault((variant, path), []).append(values)
        for variant in TRAINED_ENCODER if name in options.encoder_datasets else ():
            folder = options.output / "runs" / f"{name}-{variant.replace(' ', '_')}"
            aligner, own = aligned_with_encoder(data, cf_encoder, options, variant, options.seeds[0], folder)
            for path, values in paths(data, cf_encoder, aligner, own).items():
                found[variant, path] = [values]
        stem = f"{name}-{IDS_BESIDE_TEXT.replace(' ', '_')}"
        beside = [options.output / "runs" / f"{stem}-{seed}" for seed in options.seeds]
        for seed, folder in zip(options.seeds, beside, strict=True):
            own = ids_beside_text(data, texts, seed, folder)
            found.setdefault((IDS_BESIDE_TEXT, "item"), []).append(own["item"])
        found["backbone", "full ranking"] = full_ranking([options.output / "runs" / f"{name}-backbone"])
        found[IDS_BESIDE_TEXT, "full ranking"] = full_ranking(beside)
        for (variant, path), seeds in found.items():
            for group in seeds[0]:
                values = [each[group]["ndcg@10"] for each in seeds]
                row = {"dataset": name, "variant": variant, "path": path, "group": group}
                row |= {"users": seeds[0][group]["users"], "seeds": len(values)}
                row |= {"ndcg@10": round(statistics.mean(values), 4)}
                row |= {"sd": round(statistics.stdev(values), 4) if len(values) > 1 else None}
                rows.append(row)
                print(json.dumps(row), flush=True)
    with written_whole(RESULTS) as temporary:
        temporary.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


def _texts(data: PreparedData, text_encoder: str, path: Path) -> torch.Tensor:
    from safetensors.torch import load_file, save_file

    if not path.exists():
        table = text_embedding_table(load_text_encoder(text_encoder), data.catalog.texts())
        with written_whole(path) as temporary:
            save_file({"texts": table.contiguous()}, temporary)
    return load_file(path)["texts"]


if __name__ == "__main__":
    main()
