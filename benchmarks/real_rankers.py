"""Every ranker of a checkpoint on real data with a real LLM, beside its backbone and its controls.

    make real-parts
    python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS

`--data-root` holds one folder per data set with `interactions.parquet` and `items.parquet`. A benchmark run is one data
set, seed and LLM; its reports and the rank of every user's target are stored when it is done, and it is not computed
again. `random` is the LLM's architecture and tokenizer with weights drawn by the seed. Stage 1 was chosen on validation
users (`stage1_variants.py`), depth and steps of the LLM by the time there was. With `--table --output RUNS` it writes
`docs/results/real_rankers.json` and `.md` from all runs found, and with them `model_cards/office.*`.

With a GPU, larger LLMs by their Hub ids, all layers and more steps (never run here); their table stays in RUNS:

    python benchmarks/real_rankers.py --data-root DATA --output RUNS --dtype bfloat16 --num-llm-layers 0 \\
        --max-steps 2000 --datasets office ml-100k electronics beauty \\
        --llms facebook/opt-6.7b meta-llama/Llama-3.2-3B Qwen/Qwen3-4B random
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from allmrec_hf import ALLMRecModel, ALLMRecProcessor, ALLMRecTrainer, ALLMRecTrainingArguments, prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.evaluator import EvaluationResult, evaluate
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.evaluation.rankers import BackboneRanker, PopularityRanker
from allmrec_hf.evaluation.significance import average_over_seeds, holm, mean_interval, sign_flip_tests
from allmrec_hf.files import folder_written_whole, written_whole
from allmrec_hf.methods.baselines import TextCosine
from allmrec_hf.methods.controls import with_random_llm
from allmrec_hf.methods.method import Setting
from allmrec_hf.methods.registry import METHODS
from allmrec_hf.methods.shared import run_until, text_embeddings
from allmrec_hf.ranker_built_in import rankers_of
from allmrec_hf.ranking import Ranks, hit_at_k, ndcg_at_k
from allmrec_hf.training.devices import process_state
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.fusion_fitting import (
    WITHOUT_LLM,
    fit_fusion,
    fusion_candidates,
    fusion_samples,
    held_out_users,
    weights_of_users,
)
from allmrec_hf.training.pretrained_backbone import load_backbone
from allmrec_hf.training.samples import validation_targets
from allmrec_hf.training.section_arguments import RankArguments

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "real_rankers"
DATASETS = {
    "office": ("amazon_office_products_2018_tail", "Amazon Office Products 2018", "item"),
    "ml-100k": ("ml_100k", "MovieLens 100K", "movie"),
    "electronics": ("amazon_electronics_2023_sub", "Amazon Electronics 2023", "item"),
    "beauty": ("amazon2014_beauty_s3rec", "Amazon Beauty 2014", "item"),
}
ENCODER = "all-MiniLM-L6-v2"
DTYPE = "float32"
LLM = "SmolLM2-135M-Instruct"
RANDOM = "random"
REFIT = ", refit"  # stands behind the LLM of a run that was trained again on train and validation
PROTOCOLS = ("candidates", "full")
FITTED = ("text", "words", "fusion")  # by stage `rank`
BASELINES = ("morec", "item-knn")
SETTINGS: dict[str, Any] = {
    "preset": "default",
    "backbone": {"num_train_epochs": 60, "eval_epochs": 3, "early_stopping_patience": 3, "max_validation_users": 2_000},
    "align": {"fine_tune_text_encoder": False, "learning_rate": 1e-3, "text_recommendation_weight": 1.0},
    "project": {"max_title_tokens": 12},
    "retrieve": {
        "num_llm_layers": 4,
        "history_titles": False,
        "history_in_prompt": 8,
        "num_negatives": 8,
        "max_steps": 200,
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


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return `SETTINGS` with what the command line says of the LLM."""
    own = {"num_llm_layers": options.num_llm_layers or None, "max_steps": options.max_steps}
    changed = {**SETTINGS, "retrieve": {**SETTINGS["retrieve"], **own}}
    return changed if options.dtype == DTYPE else {**changed, "llm": {"dtype": options.dtype}}


def part(folder: Path, name: str, hub: str | None = None) -> str:
    """Return the folder of a part, or the name it has on the Hub."""
    return str(folder / name) if (folder / name).is_dir() else hub or name


def text_encoder(folder: Path) -> str:
    """Return the folder of the text encoder, or its id on the Hub."""
    return part(folder, ENCODER, f"sentence-transformers/{ENCODER}")


def arguments(folder: Path, llm: str, encoder: str, seed: int, settings: Mapping[str, Any]) -> ALLMRecTrainingArguments:
    """Return the settings of a run."""
    sections = {name: dict(value) for name, value in settings.items() if name != "preset"}
    sections["align"]["text_encoder"] = encoder
    sections["llm"] = {"dtype": DTYPE, **sections.get("llm", {}), "name": llm, "include_llm": False}
    return ALLMRecTrainingArguments(folder, settings["preset"], **sections, seed=seed)


def begun(data: PreparedData, args: ALLMRecTrainingArguments, setting: Setting) -> Path:
    """Make a run's folder begin with backbone and stage 1, which runs of one seed share; return where they are."""
    shared, folder = run_until(data, setting, args, "align"), Path(args.output_dir)
    if not folder.exists():
        heavy = shutil.ignore_patterns("step-*", "best-*", "backbone-train-validation*", ".*")
        with folder_written_whole(folder) as temporary:
            shutil.copytree(shared, temporary, dirs_exist_ok=True, ignore=heavy)
    return shared


def compute_run(data: PreparedData, name: str, llm: str, random: bool, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one run, and store what came out."""
    where, settings = options.output / "work" / f"{name}-{seed}", chosen_settings(options)
    encoder, short = text_encoder(options.parts), Path(llm).name
    args = arguments(where / (RANDOM if random else short), llm, encoder, seed, settings)
    setting = Setting(where, where / "parts", options.output / "work" / "common", seed, llm, encoder)
    if random:
        args = with_random_llm(args, setting)
    folder, started = Path(args.output_dir), time.monotonic()
    texts = text_embeddings(data, setting)
    shared = begun(data, args, setting)
    aligned = time.monotonic()
    trainer = ALLMRecTrainer(args=args, data=data, text_table=texts)
    for stage in ("retrieve", "rank"):
        trainer.train(stage, resume_from_checkpoint=True)
    trained = time.monotonic()

    model = ALLMRecModel.from_pretrained(folder, dtype=options.dtype).to(process_state().device).eval()
    processor = ALLMRecProcessor.from_pretrained(folder)
    chosen = model.config.ranker
    rankers: list[Any] = [
        ALLMRecRanker(model, processor, name=kind, batch_size=64, ranker=kind) for kind in rankers_of(model.config)
    ]
    fitted = {name: dict(model.config.rankers[name]) for name in FITTED}
    if not random:
        model.config.rankers = {
            **model.config.rankers,
            "fusion": fitted_anew(model, processor, data, args.rank, WITHOUT_LLM),
        }
        rankers.append(ALLMRecRanker(model, processor, name=NO_LLM, batch_size=64, ranker="fusion"))
        rankers += [
            BackboneRanker(load_backbone(shared / "backbone").eval(), name=BACKBONE),
            BackboneRanker(fair_backbone(shared, data), name=FAIR),
            TextCosine().fit(data, setting),
            PopularityRanker(data.item_counts("train")),
        ]
    facts = {
        "dataset": name,
        "title": data.name,
        "llm": f"random weights, as {short}" if random else short,
        "seed": seed,
        "settings": settings,
        "default_ranker": chosen,
        **fitted,
        "seconds": {"backbone and stage 1": aligned - started, "retrieve and rank": trained - aligned},
    }
    store(rankers, data, facts, options.output / "runs" / f"{name}-{seed}-{folder.name}")


def compute_refit(data: PreparedData, name: str, llm: str, seed: int, options: argparse.Namespace) -> None:
    """Train the stages of a finished run again on train and validation, evaluate and store what came out."""
    where, short = options.output / "work" / f"{name}-{seed}", Path(llm).name
    encoder = text_encoder(options.parts)
    run = options.output / "runs" / f"{name}-{seed}-{short}"
    settings = json.loads((run / "result.json").read_text(encoding="utf-8"))["settings"]
    setting = Setting(where, where / "parts", options.output / "work" / "common", seed, llm, encoder)
    first = ALLMRecTrainer(
        args=arguments(where / short, llm, encoder, seed, settings),
        data=data,
        text_table=text_embeddings(data, setting),
    )
    began = time.monotonic()
    folder = first.refit(where / f"{short}-refit", "train+validation", resume_from_checkpoint=True).output_dir
    trained = time.monotonic() - began
    model = ALLMRecModel.from_pretrained(folder, dtype=options.dtype).to(process_state().device).eval()
    processor = ALLMRecProcessor.from_pretrained(folder)
    rankers = [
        ALLMRecRanker(model, processor, name=kind, batch_size=64, ranker=kind) for kind in ("retrieval", "fusion", "cf")
    ]
    facts = {
        "dataset": name,
        "title": data.name,
        "llm": short + REFIT,
        "seed": seed,
        "settings": settings,
        "default_ranker": model.config.ranker,
        **{name: model.config.rankers[name] for name in FITTED},
        "seconds": {"all stages": trained},
    }
    store(rankers, data, facts, run.with_name(f"{run.name}-refit"))


def compute_weighted(data: PreparedData, name: str, llm: str, seed: int, options: argparse.Namespace) -> None:
    """Fit the fusion of a finished run with more weight on cold targets, evaluate it and store what came out."""
    short, weight = Path(llm).name, options.cold_weight
    folder, run = options.output / "work" / f"{name}-{seed}" / short, options.output / "runs" / f"{name}-{seed}-{short}"
    settings = json.loads((run / "result.json").read_text(encoding="utf-8"))["settings"]
    rank = arguments(folder, llm, text_encoder(options.parts), seed, settings).rank
    model = ALLMRecModel.from_pretrained(folder, dtype=options.dtype).to(process_state().device).eval()
    processor, began = ALLMRecProcessor.from_pretrained(folder), time.monotonic()
    parts = model.config.rankers["fusion"]["parts"]
    fusion = fitted_anew(model, processor, data, rank, parts, weight)
    model.config.rankers = {**model.config.rankers, "fusion": fusion}
    facts = {
        "dataset": name,
        "title": data.name,
        "llm": short,
        "seed": seed,
        "settings": settings,
        "cold_weight": weight,
        **{part: model.config.rankers[part] for part in FITTED},
        "seconds": {"all stages": time.monotonic() - began},
    }
    ranker = ALLMRecRanker(model, processor, name=f"fusion, cold weight {weight:g}", batch_size=64, ranker="fusion")
    store([ranker], data, facts, run.with_name(f"{run.name}-cold-{weight:g}"))


def compute_baselines(data: PreparedData, name: str, seed: int, options: argparse.Namespace) -> None:
    """Train the methods without an LLM that are no control of ours, evaluate and store what came out."""
    where, encoder = options.output / "work" / f"{name}-{seed}", text_encoder(options.parts)
    began, rankers = time.monotonic(), []
    for method in BASELINES:
        common = options.output / "work" / "common"
        budget = {"backbone": SETTINGS["backbone"]}
        setting = Setting(where / method, where / "parts", common, seed, None, encoder, budget=budget)
        rankers.append(METHODS[method]().fit(data, setting))
    facts = {
        "dataset": name,
        "title": data.name,
        "llm": "none: " + ", ".join(BASELINES),
        "seed": seed,
        "settings": SETTINGS,
        "seconds": {"all stages": time.monotonic() - began},
    }
    store(rankers, data, facts, options.output / "runs" / f"{name}-{seed}-baselines")


def store(rankers: Sequence[Any], data: PreparedData, facts: dict[str, Any], folder: Path) -> None:
    """Evaluate rankers on test users and write their reports, ranks and what is known of the run."""
    reports, seconds = {}, {}
    with folder_written_whole(folder) as temporary:
        for protocol in PROTOCOLS:
            began = time.monotonic()
            shown = [ranker for ranker in rankers if protocol == "candidates" or ranker.name != "fusion_ranks"]
            result: EvaluationResult = evaluate(shown, data, protocol, max_users=MAX_USERS)
            reports[protocol], seconds[protocol] = result.to_dict(), time.monotonic() - began
            result.write_per_user(temporary / f"{protocol}.parquet")
        facts["seconds"] |= {f"evaluate, {protocol}": value for protocol, value in seconds.items()}
        facts["reports"] = reports
        (temporary / "result.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def fitted_anew(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    data: PreparedData,
    rank: RankArguments,
    parts: Sequence[str],
    cold_weight: float = 1.0,
) -> dict[str, Any]:
    """Return the fusion of some parts, fitted on the users that the run's was fitted on."""
    samples = validation_targets(data).take(held_out_users(data, None, rank))
    drawn = fusion_candidates(data, samples, rank.num_candidates, rank.seed)
    found = fusion_samples(model, processor, parts, samples, drawn)
    return fit_fusion(found, parts, rank.seed, weights_of_users(data, samples.targets, cold_weight))


# -- the table

METRICS = {"candidates": ("hit@1", 1), "full": ("hit@10", 10)}
TESTED = ("overall", "warm", "cold", "never_seen")


def per_user(folder: Path, protocol: str) -> pl.DataFrame:
    """Return a row for each user and method of a run: its groups, `hit` and `ndcg@10`."""
    frame = pl.read_parquet(folder / f"{protocol}.parquet").with_columns(pl.lit(True).alias("overall"))
    limit = 100.0 if protocol == "full" else np.inf
    ranks = Ranks.of_expected(frame["rank"].to_numpy(), frame["tied"].to_numpy(), limit)
    _, cutoff = METRICS[protocol]
    return frame.with_columns(
        pl.Series("hit", hit_at_k(ranks, cutoff)), pl.Series("ndcg@10", ndcg_at_k(ranks, 10))
    ).select("user_id", "target", *TESTED, "method", "hit", "ndcg@10")


def label(method: str, llm: str) -> str:
    """Return a method's name in the table; with the LLM where it asks one."""
    kinds = ("retrieval", "fusion", "fusion_sum", "fusion_ranks", "likelihood", "letter")
    asks = method.split(",")[0] in kinds  # of "fusion, cold weight 2" the fusion
    if asks:
        return f"{method}, {llm}"
    shown = {"cf": "backbone, new items from text"}.get(method, method)
    return shown + REFIT if llm.endswith(REFIT) else shown


def collected(output: Path, name: str, protocol: str) -> dict[str, dict[int, pl.DataFrame]]:
    """Return the rows of each method by seed."""
    found: dict[str, dict[int, pl.DataFrame]] = {}
    for folder in sorted((output / "runs").glob(f"{name}-[0-9]*")):
        facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        llm = RANDOM + " LLM" if facts["llm"].startswith("random") else facts["llm"]
        for (method,), rows in per_user(folder, protocol).group_by("method", maintain_order=True):
            found.setdefault(label(str(method), llm), {}).setdefault(facts["seed"], rows)
    return found


def averaged(seeds: Mapping[int, pl.DataFrame], column: str, mask: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return the values of a group's users, averaged over the seeds, and the means of each seed."""
    return average_over_seeds([rows[column].to_numpy()[mask] for rows in seeds.values()])


def summary(output: Path, name: str) -> dict[str, Any]:
    """Return means, intervals and paired tests of a data set."""
    out: dict[str, Any] = {"methods": {}, "tests": []}
    for protocol in PROTOCOLS:
        found = collected(output, name, protocol)
        users = next(iter(next(iter(found.values())).values()))
        masks = {group: users[group].to_numpy() for group in TESTED}
        for method, seeds in found.items():
            for group, mask in masks.items():
                if not mask.any():
                    continue
                row: dict[str, Any] = {"seeds": sorted(seeds), "users": int(mask.sum())}
                for column, metric in (("hit", METRICS[protocol][0]), ("ndcg@10", "ndcg@10")):
                    values, means = averaged(seeds, column, mask)
                    interval = mean_interval(values)
                    row[metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "seeds": means}
                out["methods"].setdefault(method, {}).setdefault(protocol, {})[group] = row
        out["tests"] += _tests(found, masks, protocol)
    return out


def _tests(found: Mapping[str, Any], masks: Mapping[str, np.ndarray], protocol: str) -> list[dict[str, Any]]:
    """Return the fusion with each pretrained LLM against every other method, by NDCG@10, corrected by Holm."""
    rows: list[dict[str, Any]] = []
    for fusion in [name for name in found if name.startswith("fusion, ") and not name.endswith("random LLM")]:
        first_run = fusion.removesuffix(REFIT)
        for other in [name for name in found if name != fusion] if fusion == first_run else [FAIR, first_run]:
            seeds = sorted(set(found[fusion]) & set(found[other]))
            if fusion + REFIT == other:
                continue  # the same two the other way round
            for group in [group for group in ("overall", "cold") if masks[group].any()]:
                first, second = (
                    averaged({seed: found[method][seed] for seed in seeds}, "ndcg@10", masks[group])[0]
                    for method in (fusion, other)
                )
                p = float(sign_flip_tests((first - second)[:, None])[0])
                row = {"protocol": protocol, "group": group, "method": fusion, "against": other, "seeds": seeds}
                rows.append({**row, "difference": float((first - second).mean()), "p": p})
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(corrected)
    return rows


def table(found: Mapping[str, Any], protocol: str) -> str:
    """Return a Markdown table: mean and sample deviation over seeds of the hit rate / NDCG@10, by group."""
    metric, groups = METRICS[protocol][0], list(TESTED)
    head = f"| {protocol}, {metric} / NDCG@10 | seeds | " + " | ".join(g.replace("_", " ") for g in groups) + " |"
    lines = [head, "| --- | --- |" + " ---: |" * len(groups)]
    for method, protocols in found["methods"].items():
        if protocol not in protocols:
            continue
        cells = []
        for group in groups:
            row = protocols[protocol].get(group)
            cells.append("-" if row is None else " / ".join(_shown(row[name]["seeds"]) for name in (metric, "ndcg@10")))
        seeds = protocols[protocol]["overall"]["seeds"]
        lines.append(f"| {method} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(means: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.3f}{spread}"


def test_table(found: Mapping[str, Any]) -> str:
    """Return the paired tests in Markdown."""
    head = "| protocol, targets | fusion | against | difference of NDCG@10 | p (Holm) |"
    lines = [head, "| --- | --- | --- | ---: | ---: |"]
    for row in found["tests"]:
        cells = (
            f"{row['protocol']}, {row['group']}",
            row["method"].removeprefix("fusion, "),
            row["against"],
            f"{row['difference']:+.4f}",
            f"{row['p_holm']:.4f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEAD = """# Rankers on real data with a real LLM

```bash
make real-parts
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 0 --refit \\
    --datasets office ml-100k electronics beauty
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 1 2 --refit \\
    --datasets office ml-100k electronics beauty --llms SmolLM2-135M-Instruct
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 0 \\
    --datasets office electronics ml-100k beauty --llms gemma-3-270m
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 1 2 \\
    --datasets electronics office ml-100k beauty --llms random
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 0 --baselines \\
    --datasets office ml-100k electronics beauty
python benchmarks/real_rankers.py --data-root DATA --parts runs/parts --output RUNS --seeds 0 1 2 --cold-weight 2 \\
    --datasets office ml-100k electronics beauty --llms SmolLM2-135M-Instruct
python benchmarks/real_rankers.py --table --output RUNS
```

SmolLM2-135M-Instruct (30 layers) and, where it stands, Gemma 3 270M (18) in float32, cut to their first {layers}
layers, frozen; text encoder all-MiniLM-L6-v2, frozen; backbone SASRec. The ranker `retrieval` is trained for {steps}
steps of 32 users, histories as vectors alone, titles cut to {tokens} tokens; `fusion` puts backbone, text, words and
retrieval together with weights fitted on at most {users} validation users. `random LLM` is SmolLM2 with random weights,
`fusion without an LLM` the same fusion of backbone, text and words alone. `text` compares texts whitened and with
recency, `words` by their rare words, `text-cosine` as they are with the last items, all as chosen on validation users.
`morec` is SASRec over frozen text embeddings, `item-knn` neighbours by interactions. `backbone, train and validation`
saw what the fusion was fitted on; `refit` is the run trained again on these data (`--refit`, `allmrec refit`), by the
lengths and fusion that its validation chose. At most {test} test users, the same for every method; leave-one-out. Mean
and, of several seeds, sample deviation. Stage 1 was chosen on validation users of three data sets, Office Products
among them; the depth of the LLM, steps and lengths by the time there was, not by quality: of 2, 4 and 8 layers 4 were
later seen to be the best on validation users of Office Products ([llm_depths](llm_depths.md)). `cold weight 2` is the
fusion fitted with cold targets counting twice, as [cold_weight](cold_weight.md) chose on validation users of seed 0; it
came after the fusion's own test figures were known, and was evaluated on test users once. Before this choice of stage 1
took effect, one run of Office Products with plain matching was evaluated on test users too, and so was one run each of
Office Products and MovieLens before stage 0 drew its batches at random, a refit of Beauty that read whole titles by a
fault, all runs of seed 0 with a ranker `text` of raw cosines (NDCG@10 among candidates of their fusion, overall: Office
.490, MovieLens .735, Electronics .507, Beauty .602), and those of seed 0 and 1 (MovieLens 0) before words were a part
(.513, .742, .519, .635; in the whole catalogue .105, .111, .024, .064). Whitening, recency and words, each seen on
validation users to be better, came after, and nothing was chosen by test users. Runs of seed 2 (MovieLens 1 and 2) came
after all of this and were evaluated once. Random LLMs of seeds 1 and 2 on Electronics came after that of seed 0 was
seen to be below on cold targets, those on the other sets later still. An earlier rule, NDCG@10 among
500, was looked at on the test users of one run of Office Products too (.511). Training was not repeated for it but for
stage `rank`; the minutes of training are those of before. Tests: the fusion against each other method, a refit's
against the fair backbone and the first run's, paired by user over the seeds both have, sign flips, corrected by Holm
over the table. Intervals of every figure: [real_rankers.json](real_rankers.json)."""


COST = """## Cost

Minutes on one core, which other work shared at times, most of the time since seed 2 (whose training, and MovieLens' of
seed 1, are the stages' own records). A run around another LLM takes backbone and stage 1 from the one before. Ranking
is that of all test users by every ranker, control and backbone of the run; users a second of each ranker alone:
[speed](../speed.md).

| data set | LLM | seed | backbone and stage 1 | retrieve and rank | ranking candidates | ranking the catalogue |
| --- | --- | --- | ---: | ---: | ---: | ---: |"""
TIMED = ("backbone and stage 1", "retrieve and rank", "evaluate, candidates", "evaluate, full")


def cost_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the minutes of every run in Markdown; a refit's training has one figure."""
    lines = [COST]
    for run in runs:
        minutes = {name: f"{seconds / 60:.1f}" for name, seconds in run["seconds"].items()}
        whole = minutes.get("all stages")
        cells = [minutes[name] if whole is None or name in minutes else "" for name in TIMED]
        cells[0] = cells[0] if whole is None else f"{whole} in all"
        weighted = f", cold weight {run['cold_weight']:g}" if "cold_weight" in run else ""
        lines.append(f"| {run['title']} | {run['llm']}{weighted} | {run['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(target: Path, found: Any, page: str) -> None:
    """Write what was found as JSON, and its page in Markdown, side by side."""
    for suffix, text in ((".json", json.dumps(found, indent=1)), (".md", page.rstrip("\n"))):
        with written_whole(target.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def write_table(output: Path) -> None:
    """Write the report of all runs found."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((output / "runs").glob("*/result.json"))]
    older = [f"{run['dataset']}-{run['seed']}-{run['llm']}" for run in runs if "fusion" in run and "words" not in run]
    if older:
        raise SystemExit(f"the fusions of {older} have no words: remove their stage rank and their runs, and run again")
    titles = {run["dataset"]: run["title"] for run in runs}
    ours = all(run["settings"] == SETTINGS for run in runs)
    target = REPORT if ours else output / REPORT.name
    report: dict[str, Any] = {
        "settings": runs[0]["settings"] if runs else SETTINGS,
        "max_users": MAX_USERS,
        "datasets": {},
        "runs": [],
    }
    settings = {"layers": SETTINGS["retrieve"]["num_llm_layers"], "steps": SETTINGS["retrieve"]["max_steps"]}
    settings |= {"tokens": SETTINGS["project"]["max_title_tokens"], "test": f"{MAX_USERS:,}"}
    settings |= {"users": f"{SETTINGS['rank']['max_validation_users']:,}"}
    parts = [HEAD.format(**settings) if ours else f"# Rankers on real data\n\nSettings: `{report['settings']}`."]
    for name, title in titles.items():
        report["datasets"][name] = found = {"title": title, **summary(output, name)}
        tables = [table(found, protocol) for protocol in PROTOCOLS]
        parts.append("\n\n".join([f"## {title}", *tables, test_table(found)]))
    parts.append(cost_table(runs))
    for run in runs:
        kept = ("dataset", "llm", "seed", "cold_weight", "default_ranker", *FITTED, "seconds")
        beyond = run["reports"]["full"].get("beyond_accuracy")
        report["runs"].append({**{name: run[name] for name in kept if name in run}, "beyond_accuracy": beyond})
    write_report(target, report, "\n\n".join(parts))
    if ours:
        subprocess.run([sys.executable, str(HERE.parent / "scripts" / "make_office_card.py"), str(output)], check=True)


def main() -> None:
    """Compute the runs that are missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["office", "ml-100k", "electronics"], choices=list(DATASETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--llms", nargs="+", default=[LLM, RANDOM], help="folders of --parts, Hub ids, random")
    parser.add_argument("--dtype", default=DTYPE, help="of the LLM (%(default)s)")
    layers, steps = (SETTINGS["retrieve"][name] for name in ("num_llm_layers", "max_steps"))
    parser.add_argument("--num-llm-layers", type=int, default=layers, help="its first layers, 0: all (%(default)s)")
    parser.add_argument("--max-steps", type=int, default=steps, help="of the ranker retrieval (%(default)s)")
    parser.add_argument("--refit", action="store_true", help="also train each run again on train and validation")
    parser.add_argument("--cold-weight", type=float, help="fit the fusions of finished runs with it, and nothing else")
    parser.add_argument("--baselines", action="store_true", help=f"train {' and '.join(BASELINES)} and nothing else")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        write_table(options.output)
        return
    first = next((name for name in options.llms if name != RANDOM), LLM)
    for seed in options.seeds:
        for name in options.datasets:
            data = dataset(name, options.data_root, options.output)
            if options.baselines:
                if not (options.output / "runs" / f"{name}-{seed}-baselines" / "result.json").exists():
                    compute_baselines(data, name, seed, options)
                    print(f"{name}, seed {seed}, {' and '.join(BASELINES)}: done", flush=True)
                continue
            for llm in options.llms:
                if options.cold_weight is not None:
                    run = f"{name}-{seed}-{Path(llm).name}-cold-{options.cold_weight:g}"
                    if not (options.output / "runs" / run / "result.json").exists():
                        compute_weighted(data, name, part(options.parts, llm), seed, options)
                        print(f"{name}, seed {seed}, {llm}, cold weight {options.cold_weight:g}: done", flush=True)
                    continue
                if not (options.output / "runs" / f"{name}-{seed}-{Path(llm).name}" / "result.json").exists():
                    chosen = part(options.parts, first if llm == RANDOM else llm)
                    compute_run(data, name, chosen, llm == RANDOM, seed, options)
                    print(f"{name}, seed {seed}, {llm}: done", flush=True)
                again = options.output / "runs" / f"{name}-{seed}-{Path(llm).name}-refit"
                if options.refit and llm != RANDOM and not (again / "result.json").exists():
                    compute_refit(data, name, part(options.parts, llm), seed, options)
                    print(f"{name}, seed {seed}, {llm}{REFIT}: done", flush=True)


if __name__ == "__main__":
    main()
