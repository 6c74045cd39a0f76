"""Every ranker of a checkpoint on real data with a real LLM, beside its backbone and its controls.

    make real-parts
    python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS

`--data-root` holds one folder per data set with `interactions.parquet` and `items.parquet`. A benchmark run is one data
set, seed and LLM; its reports and the rank of every user's target are stored when it is done, and it is not computed
again. `random` is the LLM's architecture and tokenizer with weights drawn by the seed. Settings were chosen on
validation users; the test part is looked at once, for this table. With `--table --output RUNS` it writes
`docs/results/real_rankers.json` and `.md` from all runs found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from allmrec_hf import ALLMRecModel, ALLMRecProcessor, ALLMRecTrainer, ALLMRecTrainingArguments, prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.evaluator import EvaluationResult, evaluate
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.evaluation.rankers import BackboneRanker, PopularityRanker
from allmrec_hf.files import folder_written_whole
from allmrec_hf.methods.controls import with_random_llm
from allmrec_hf.methods.method import Setting
from allmrec_hf.methods.shared import run_until, text_embeddings
from allmrec_hf.ranker_built_in import rankers_of
from allmrec_hf.ranking import Ranks, hit_at_k, ndcg_at_k
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.fusion_fitting import fit_fusion, fusion_candidates, fusion_samples, held_out_users
from allmrec_hf.training.pretrained_backbone import load_backbone
from allmrec_hf.training.samples import validation_targets

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "real_rankers"
DATASETS = {
    "office": ("amazon_office_products_2018_tail", "Amazon Office Products 2018", "item"),
    "ml-100k": ("ml_100k", "MovieLens 100K", "movie"),
    "electronics": ("amazon_electronics_2023_sub", "Amazon Electronics 2023", "item"),
    "beauty": ("amazon2014_beauty_s3rec", "Amazon Beauty 2014", "item"),
}
ENCODER = "all-MiniLM-L6-v2"
RANDOM = "random"
GROUPS = ("overall", "warm", "cold", "never seen")
PROTOCOLS = ("candidates", "full")
SETTINGS: dict[str, Any] = {
    "preset": "default",
    "backbone": {"max_validation_users": 2_000},
    "align": {"fine_tune_text_encoder": False},
    "project": {"max_title_tokens": 16},
    "retrieve": {
        "num_llm_layers": 4,
        "history_titles": False,
        "history_in_prompt": 8,
        "num_negatives": 32,
        "max_steps": 300,
        "num_train_epochs": 100,
        "min_steps": None,
        "warmup_steps": 20,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 100,
        "max_validation_users": 300,
    },
    "rank": {"rankers": "retrieval,fusion", "max_validation_users": 1_000},
}
MAX_USERS = 2_000
BACKBONE, FAIR, NO_LLM, POPULARITY = "backbone", "backbone, train and validation", "fusion without an LLM", "popularity"


def dataset(name: str, data_root: Path, output: Path) -> PreparedData:
    """Return a data set, prepared once without a filter."""
    folder, (source, title, domain) = output / "data" / name, DATASETS[name]
    if not (folder / "dataset.json").exists():
        tables = (pl.read_parquet(data_root / source / f"{part}.parquet") for part in ("interactions", "items"))
        return prepare(*tables, output=folder, name=title, domain=domain, filter="none")
    return PreparedData.load(folder)


def arguments(folder: Path, llm: Path, encoder: Path, seed: int) -> ALLMRecTrainingArguments:
    """Return the settings of a run."""
    sections = {name: dict(value) for name, value in SETTINGS.items() if name != "preset"}
    sections["align"]["text_encoder"] = str(encoder)
    sections["llm"] = {"name": str(llm), "dtype": "float32", "include_llm": False}
    return ALLMRecTrainingArguments(folder, SETTINGS["preset"], **sections, seed=seed)


def compute_run(data: PreparedData, name: str, llm: Path, random: bool, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one run, and store what came out."""
    where = options.output / "work" / f"{name}-{seed}"
    encoder = options.parts / ENCODER
    args = arguments(where / (RANDOM if random else llm.name), llm, encoder, seed)
    setting = Setting(where, where / "parts", options.output / "work" / "common", seed, str(llm), str(encoder))
    if random:
        args = with_random_llm(args, setting)
    folder, started = Path(args.output_dir), time.monotonic()
    texts = text_embeddings(data, setting)
    shared = run_until(data, setting, args, "align")
    aligned = time.monotonic()
    if not folder.exists():
        heavy = shutil.ignore_patterns("step-*", "best-*", "backbone-train-validation*", ".*")
        with folder_written_whole(folder) as temporary:
            shutil.copytree(shared, temporary, dirs_exist_ok=True, ignore=heavy)
    trainer = ALLMRecTrainer(args=args, data=data, text_table=texts)
    for stage in ("retrieve", "rank"):
        trainer.train(stage, resume_from_checkpoint=True)
    trained = time.monotonic()

    model = ALLMRecModel.from_pretrained(folder, dtype="float32").eval()
    processor = ALLMRecProcessor.from_pretrained(folder)
    chosen = model.config.ranker
    rankers: list[Any] = [
        ALLMRecRanker(model, processor, name=kind, batch_size=64, ranker=kind) for kind in rankers_of(model.config)
    ]
    weights = dict(model.config.rankers["fusion"])
    if not random:
        model.config.rankers = {**model.config.rankers, "fusion": _without_llm(model, processor, data, args)}
        rankers.append(ALLMRecRanker(model, processor, name=NO_LLM, batch_size=64, ranker="fusion"))
        rankers += [
            BackboneRanker(load_backbone(shared / "backbone").eval(), name=BACKBONE),
            BackboneRanker(fair_backbone(shared, data), name=FAIR),
            PopularityRanker(data.item_counts("train")),
        ]
    reports, seconds = {}, {}
    where = options.output / "runs" / f"{name}-{seed}-{folder.name}"
    with folder_written_whole(where) as temporary:
        for protocol in PROTOCOLS:
            began = time.monotonic()
            shown = [ranker for ranker in rankers if protocol == "candidates" or ranker.name != "fusion_ranks"]
            result: EvaluationResult = evaluate(shown, data, protocol, max_users=MAX_USERS)
            reports[protocol], seconds[protocol] = result.to_dict(), time.monotonic() - began
            result.write_per_user(temporary / f"{protocol}.parquet")
        facts = {
            "dataset": name,
            "title": data.name,
            "llm": f"random weights, as {llm.name}" if random else llm.name,
            "seed": seed,
            "settings": SETTINGS,
            "default_ranker": chosen,
            "fusion": weights,
            "seconds": {
                "backbone and stage 1": aligned - started,
                "retrieve and rank": trained - aligned,
                **{f"evaluate, {protocol}": value for protocol, value in seconds.items()},
            },
            "reports": reports,
        }
        (temporary / "result.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _without_llm(
    model: ALLMRecModel, processor: ALLMRecProcessor, data: PreparedData, args: ALLMRecTrainingArguments
) -> dict[str, Any]:
    """Return the fusion of backbone and text alone, fitted on the users that the other was fitted on."""
    samples = validation_targets(data).take(held_out_users(data, None, args.rank))
    drawn = fusion_candidates(data, samples, args.rank.num_candidates, args.rank.seed)
    parts = ["cf", "text"]
    return fit_fusion(fusion_samples(model, processor, parts, samples, drawn), parts, args.rank.seed)


# -- the table


def values_of(folder: Path, protocol: str, shown: Mapping[str, str]) -> tuple[dict[str, np.ndarray], pl.DataFrame]:
    """Return the metrics of each user `(U, 2)` (Hit@1, NDCG@10; Hit@10 under `full`) of each method, and the users."""
    frame = pl.read_parquet(folder / f"{protocol}.parquet")
    found = {}
    for method, name in shown.items():
        rows = frame.filter(pl.col("method") == method)
        if len(rows):
            limit = 100 if protocol == "full" else None
            ranks = Ranks.of_expected(rows["rank"].to_numpy(), rows["tied"].to_numpy(), limit)
            first = hit_at_k(ranks, 10 if protocol == "full" else 1)
            found[name] = np.stack([first, ndcg_at_k(ranks, 10)], axis=1)
    return found, frame.filter(pl.col("method") == frame["method"][0])


def main() -> None:
    """Compute the runs that are missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["office", "ml-100k", "electronics"], choices=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--llms", nargs="+", default=["SmolLM2-135M-Instruct", RANDOM], help="folders of --parts, random"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    first = next((name for name in options.llms if name != RANDOM), "SmolLM2-135M-Instruct")
    for seed in () if options.table else options.seeds:
        for name in options.datasets:
            data = dataset(name, options.data_root, options.output)
            for llm in options.llms:
                if not (options.output / "runs" / f"{name}-{seed}-{llm}" / "result.json").exists():
                    chosen = options.parts / (first if llm == RANDOM else llm)
                    compute_run(data, name, chosen, llm == RANDOM, seed, options)
                    print(f"{name}, seed {seed}, {llm}: done", flush=True)


if __name__ == "__main__":
    main()
