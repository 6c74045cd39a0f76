"""A small invented world and a setting for it, on which a method learns within seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.protocol import Ranker
from allmrec_hf.methods.method import Setting
from allmrec_hf.part_sources import DEMO_PARTS

CHANCE = {"hit@1": 1 / 20, "ndcg@10": 0.227}  # of 20 candidates in random order: the mean of 1 / log2(1 + rank)


def small_world(tmp_path: Path) -> PreparedData:
    """Return 300 invented films, a fifth of them never trained on, and 600 users; prepared once in a folder."""
    folder = tmp_path / "small_world"
    if folder.exists():
        return PreparedData.load(folder)
    world = SyntheticWorld(num_items=300, num_users=600, num_topics=8)
    return prepare(
        world.interactions(),
        world.items(),
        output=folder,
        filter="none",
        keep_items="all",
        name="small world",
        domain="movie",
    )


def small_setting(tmp_path: Path, **changes: Any) -> Setting:
    """Return a setting with the demo's parts: its language model, its text encoder, and a SASRec of seconds."""
    values: dict[str, Any] = {
        "folder": tmp_path / "method",
        "parts": tmp_path / "parts",
        "llm": str(DEMO_PARTS / "language_model"),
        "text_encoder": str(DEMO_PARTS / "text_encoder"),
        "preset": "demo",
        "budget": {
            "backbone": {"num_train_epochs": 15, "eval_epochs": 5},
            "align": {"num_train_epochs": 10},
            "project": {"num_train_epochs": 1},
        },
    }
    return Setting(**{**values, **changes})


def metrics_on_test(
    rankers: Sequence[Ranker], data: PreparedData, group: str = "overall"
) -> dict[str, dict[str, float]]:
    """Return the metrics of every ranker on the stored test candidates of a group of targets."""
    methods = evaluate(rankers, data).report["methods"]
    return {name: groups[group] for name, groups in methods.items()}
