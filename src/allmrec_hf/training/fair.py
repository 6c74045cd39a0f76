"""Train the backbone of a run again on the items that stage 2 has seen too, for a fair comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..catalog import CATALOG_FILE
from ..cf_encoder import CFEncoder, cf_config_from_dict
from ..data.prepared import PreparedData
from ..errors import CheckpointError
from ..stored_values import json_value
from .backbone_training import train_backbone
from .loop import RECORD_FILE
from .pretrained_backbone import check_same_catalog, load_backbone, save_backbone
from .run_record import RUN_FILE, check_same_data, read_run
from .stage_arguments import StageArguments

FAIR_FOLDER = "backbone-train-validation"


def fair_backbone(run: Path, data: PreparedData) -> CFEncoder:
    """Return the run's backbone trained on train + validation, for as many epochs as were best on train alone.

    It is trained when first asked for, and kept in `backbone-train-validation/` of the run folder.

    Args:
        run: Run folder with the stage `backbone`.
        data: The data of the run.

    Raises:
        ALLMRecError: when the run was trained on other data.
        CheckpointError: when the folder holds no trained stage `backbone`.
    """
    if record := read_run(run / RUN_FILE):
        check_same_data(run, record, data, ["backbone"])
    if (run / "backbone" / CATALOG_FILE).exists():
        check_same_catalog(run, data)
    if (run / FAIR_FOLDER / "config.json").exists():
        return load_backbone(run / FAIR_FOLDER)
    path = run / "checkpoints" / "backbone" / RECORD_FILE
    try:
        arguments = StageArguments.from_dict(json_value(path.read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run} has no record of its stage backbone ({error}); the fair backbone is trained in the run's folder"
        ) from error
    trained = load_backbone(run / "backbone")
    cf_encoder = train_backbone(
        data,
        cf_config_from_dict(trained.config),
        arguments.replaced(**as_long_as_best(path)),
        run / "checkpoints" / FAIR_FOLDER,
        resume=True,
        split="train+validation",
        texts=trained,
    )
    save_backbone(cf_encoder, data.catalog, run / FAIR_FOLDER)
    return cf_encoder


def as_long_as_best(path: Path, by_steps: bool = False) -> dict[str, Any]:
    """Return what of a stage's settings makes it end where its best validation was, and validates it no more.

    Args:
        path: The stage's `training.json`.
        by_steps: Count steps also where the best validation came at the end of an epoch.

    Raises:
        CheckpointError: when it does not tell how the stage went.
    """
    try:
        result = json_value(path.read_text(encoding="utf-8"))["result"]
        metric, steps, epochs = f"validation/{result['metric']}", int(result["steps"]), max(1, int(result["epochs"]))
        ended = result["stopped_by"] in ("epochs", "early_stopping")  # else the last epoch may not be whole
        validated = [entry for entry in result["history"] if metric in entry]
        best = next((entry for entry in validated if entry[metric] == result["best"]), {"step": steps, "epoch": epochs})
        between = best in validated and not any(name.startswith("train/") for name in best)  # two steps of an epoch
        if by_steps or between or (best["step"] == steps and not ended):
            length: dict[str, Any] = {"num_train_epochs": epochs, "max_steps": int(best["step"])}
        else:
            length = {"num_train_epochs": int(best["epoch"]), "max_steps": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not tell how the stage went ({error!r}); a run is trained again by the records of its stages"
        ) from error
    return {
        **length,
        "min_steps": None,
        "max_seconds": None,
        "eval_strategy": "no",
        "eval_steps": None,
        "early_stopping_patience": None,
    }
