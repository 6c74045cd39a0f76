"""A-LLMRec on top of every backbone, on the invented world: each backbone alone, and with A-LLMRec.

python benchmarks/backbones.py --output runs/backbones --seeds 0 1 2

A benchmark run is one backbone and one seed (another world, other weights, other candidates). Its report is stored when
it is done; an interrupted run is resumed. The table goes to docs/results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import AutoModel

from allmrec_hf.cf_encoder import BUILT_IN, MODEL_TYPE_PREFIX
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.evaluation.evaluator import REPORT_FORMAT, evaluate
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.evaluation.protocol import Ranker
from allmrec_hf.evaluation.rankers import BackboneRanker, PopularityRanker
from allmrec_hf.files import written_whole
from allmrec_hf.part_sources import DEMO
from allmrec_hf.processing_allmrec import ALLMRecProcessor
from allmrec_hf.training import loop
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.presets import preset
from allmrec_hf.training.trainer import ALLMRecTrainer

ALONE, FAIR, NO_LM, WITH = "alone", "alone, data of stage 2", "same vectors, no LM", "with A-LLMRec"
GROUPS = ("overall", "warm", "cold")
METRICS = ("hit@1", "ndcg@10")
CF_SECONDS = 60
ALIEN = ("recbole-sasrec",)  # another library's SASRec, for imported weights


def backbones() -> list[str]:
    """Return the names of the backbones of this package."""
    names = [name.removeprefix(MODEL_TYPE_PREFIX) for name in BUILT_IN]
    return [name for name in names if name not in ALIEN]


def world(seed: int, folder: Path) -> PreparedData:
    """Return the invented world of a seed."""
    source = SyntheticWorld(seed=seed)
    return prepare(
        source.interactions(),
        source.items(),
        output=folder,
        filter="none",
        keep_items="all",
        name="invented films",
        domain="movie",
        source="allmrec_hf.data.synthetic",
        seed=seed,
    )


def run_arguments(name: str, seed: int, output: Path) -> ALLMRecTrainingArguments:
    """Return the demo's settings of stages 1 and 2, and for the backbone its own recipe in limited time."""
    quick = preset("quick", "backbone", name)
    epochs = max(quick.num_train_epochs, 200)
    loop = {**quick.to_dict(), "num_train_epochs": epochs, "min_steps": None, "max_seconds": CF_SECONDS, "seed": seed}
    parts = {"align": {"text_encoder": DEMO}, "llm": DEMO}
    return ALLMRecTrainingArguments(output, "demo", backbone={**loop, "name": name}, **parts, seed=seed)


def compute_run(name: str, seed: int, max_users: int, folder: Path) -> dict[str, Any]:
    """Train every stage on top of one backbone and evaluate it beside the backbone alone."""
    started = time.monotonic()
    data, run = world(seed, folder / "data"), folder / "run"
    trainer = ALLMRecTrainer(args=run_arguments(name, seed, run), data=data)
    with mock.patch.object(loop, "monotonic", time.process_time):  # limits in CPU seconds
        trainer.train()
    model = AutoModel.from_pretrained(run)
    rankers: list[Ranker] = [
        BackboneRanker(AutoModel.from_pretrained(run / "backbone"), name=ALONE),
        BackboneRanker(fair_backbone(run, data), name=FAIR),
        BackboneRanker(model.cf_encoder, name=NO_LM),
        ALLMRecRanker(model, ALLMRecProcessor.from_pretrained(run), name=WITH, batch_size=32),
        PopularityRanker(data.item_counts("train")),
    ]
    report = evaluate(rankers, data, max_users=max_users, seed=seed).to_dict()
    result = json.loads((run / "checkpoints" / "backbone" / "training.json").read_text(encoding="utf-8"))["result"]
    kept = ("epochs", "seconds", "stopped_by", "best_epoch", "best")
    return report | {"seconds": time.monotonic() - started, "cf_training": {key: result[key] for key in kept}}


def table(reports: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Return a Markdown table of mean and sample deviation over the seeds, Hit@1 / NDCG@10."""
    lines = ["| backbone | method | " + " | ".join(GROUPS) + " |", "| --- | --- |" + " ---: |" * len(GROUPS)]
    for name, runs in reports.items():
        for method in (ALONE, FAIR, NO_LM, WITH):
            shown = [_mean([report["methods"][method][group] for report in runs.values()]) for group in GROUPS]
            lines.append(f"| {name} | {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, float]]) -> str:
    parts = []
    for metric in METRICS:
        values = [row[metric] for row in rows]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        parts.append(f"{statistics.mean(values):.3f}{spread}")
    return " / ".join(parts)


def _is_done(path: Path) -> bool:
    """Tell whether a run is there, with metrics of today's meaning."""
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["format"] >= REPORT_FORMAT


def main() -> None:
    """Compute the missing benchmark runs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="where the runs' reports are kept")
    parser.add_argument("--backbones", nargs="+", default=backbones())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-users", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    reports: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.backbones:
            path = options.output / f"{name}-{seed}.json"
            if not _is_done(path):
                folder = Path(tempfile.mkdtemp())
                report = compute_run(name, seed, options.max_users, folder)
                shutil.rmtree(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as temporary:
                    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                print(f"{name}, seed {seed}: {report['seconds']:.0f} s", flush=True)
            reports.setdefault(name, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    text = (
        f"Hit@1 / NDCG@10 on the invented world with the demo's tiny LM, mean ± sample deviation over seeds "
        f"{', '.join(map(str, options.seeds))}; {options.max_users} test users a seed.\n\n{table(reports)}\n"
    )
    content = json.dumps({name: {str(seed): r for seed, r in runs.items()} for name, runs in reports.items()}, indent=1)
    for name, whole in (("backbones_with_llm.json", content + "\n"), ("backbones_with_llm.md", text)):
        with written_whole(options.results / name) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
