"""Train the small run's stages and write their losses, in one process or several: `PARTS OUTPUT BATCH STAGE,STAGE`.

BATCH is that of all processes together; STAGE may also be `evaluate`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.llm_ranker import checkpoint_rankers
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.training.devices import process_state
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests.small_run import arguments, run_arguments, settings

EVALUATED_AT_ONCE = 32
OF_STAGES = ("backbone", "align", "warm-start", "project", "retrieve")


def losses(output: Path, stages: Any = OF_STAGES) -> dict[str, list[dict[str, float]]]:
    """Return the history of each stage that was trained."""
    files = {stage: output / "checkpoints" / stage / "training.json" for stage in stages}
    return {
        stage: json.loads(file.read_text(encoding="utf-8"))["result"]["history"]
        for stage, file in files.items()
        if file.exists()
    }


def trainer_of(parts: Path, output: Path, batch: int, **changes: Any) -> ALLMRecTrainer:
    small = {"hidden_size": 16, "max_history_length": 12, "num_layers": 1, "dropout": 0.0}
    chosen = settings(parts, backbone_options=small, text_recommendation_weight=0.5, fine_tune_text_encoder=False)
    each = batch // process_state().num_processes
    loops = arguments(per_device_train_batch_size=each, max_steps=6, **changes)
    loops["retrieve"] = {**loops["project"], "num_negatives": 16, "dim": 8}
    return ALLMRecTrainer(args=run_arguments(output, chosen, loops), data=PreparedData.load(parts / "data"))


def evaluated(trainer: ALLMRecTrainer, output: Path) -> None:
    """Write reports of both protocols and every user's ranks into a folder."""
    rankers = [*checkpoint_rankers(trainer.model, trainer.processor, ["likelihood"])]
    rankers.append(PopularityRanker(trainer.data.item_counts("train")))
    for protocol in ("candidates", "full", "paper"):
        result = trainer.evaluate(rankers, protocol=protocol, batch_size=EVALUATED_AT_ONCE, max_users=100)
        if process_state().is_main_process:
            result.write_json(output / f"{protocol}.json")
            result.write_per_user(output / f"{protocol}.parquet")


def main(parts: Path, output: Path, batch: int, stages: list[str]) -> None:
    trainer = trainer_of(parts, output, batch)
    trainer.train([stage for stage in stages if stage != "evaluate"])
    if "evaluate" in stages:
        evaluated(trainer, output)
    state = process_state()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
