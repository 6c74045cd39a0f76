"""Train a finished run again on more interactions, with what its validation chose: the model that one ships."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData, TargetSplit
from ..errors import ALLMRecError, CheckpointError
from ..stored_values import json_value
from .arguments import ALLMRecTrainingArguments
from .loop import RECORD_FILE
from .run import Run
from .run_record import RUN_FILE, begun_stages, check_same_data, read_run
from .stage_arguments import LOOPS, SECTIONS, STEPS

Known = Literal["train+validation", "all"]
IN_TRAINING: dict[str, tuple[TargetSplit, ...]] = {
    "train+validation": ("validation",),
    "all": ("validation", "test"),
}


def finished_stages(folder: Path, data: PreparedData) -> tuple[str, ...]:
    """Return the finished stages of a run that can be trained again.

    Args:
        folder: The run.
        data: What it was trained on.

    Raises:
        ALLMRecError: when it was trained on other data, is not finished, or did not train its backbone itself.
    """
    run = Run(data, ALLMRecTrainingArguments(folder))
    record = run.record()
    if not record:
        raise ALLMRecError(f"{folder} has no {RUN_FILE}, so it is no run; give the output folder of `allmrec train`")
    if record["data"].get("in_training"):
        raise ALLMRecError(f"{folder} was trained by refit, without a validation; refit the run that it was made from")
    done, begun = [stage for stage in STEPS if run.is_done(stage)], begun_stages(record)
    unfinished = [stage for stage in begun if stage not in done]
    if unfinished or not done:
        raise ALLMRecError(
            f"{folder} is not finished (stage {(unfinished or ['backbone'])[0]}); go on with `allmrec train --resume` "
            "first"
        )
    check_same_data(folder, record, data, done)
    if not (run.stage_folder("backbone") / RECORD_FILE).exists():
        raise ALLMRecError(
            f"the backbone of {folder} was not trained there, so nothing says how it is trained again; train one with "
            "`allmrec train --stage backbone`"
        )
    return tuple(done)


def refit_arguments(folder: Path, output: Path) -> ALLMRecTrainingArguments:
    """Return the settings of a finished run without its validations, each stage as long as was best.

    Stage 2 learns from the last training items, since no held-out ones are left. A schedule of the learning rate ends
    where the stage does.

    Args:
        folder: The run.
        output: The folder of the new one.

    Raises:
        CheckpointError: when a stage has no record.
    """
    record = read_run(folder / RUN_FILE)
    sections: dict[str, Any] = {}
    for name, values in record["arguments"].items():
        changes: dict[str, Any] = {}
        trained = folder / "checkpoints" / name
        if name == "project":
            changes["targets"] = "train"
        if name == "retrieve" and values["llm_depths"] is not None:
            layers = (_config(folder).rankers or {})["retrieval"]["num_llm_layers"]
            changes, trained = {"llm_depths": None, "num_llm_layers": layers}, trained / f"layers-{layers}"
        if name in LOOPS:
            changes |= _as_long_as_best(trained / RECORD_FILE)
        sections[name] = SECTIONS[name](**{**values, **changes})
    return ALLMRecTrainingArguments(output, record["preset"], **sections)


def fitted_config(folder: Path) -> ALLMRecConfig | None:
    """Return the configuration of a run whose rankers stage `rank` has fitted; None where it has not."""
    config = _config(folder) if (folder / "rank" / "done").exists() else None
    return config if config is not None and "fusion" in (config.rankers or {}) else None


def _config(folder: Path) -> ALLMRecConfig:
    return ALLMRecConfig.from_pretrained(str(folder))  # type: ignore[return-value]


def _as_long_as_best(path: Path) -> dict[str, Any]:
    """Return what of a stage's settings makes it end where its best validation was, and validates it no more."""
    try:
        record = json_value(path.read_text(encoding="utf-8"))
        result = record["result"]
        metric, steps, epochs = f"validation/{result['metric']}", int(result["steps"]), math.ceil(result["epochs"])
        validated = [entry for entry in result["history"] if metric in entry]
        best = next((entry for entry in validated if entry[metric] == result["best"]), {"step": steps})
        whole = record["arguments"]["eval_strategy"] == "epoch" or not validated
        if whole and (best["step"] < steps or result["stopped_by"] in ("epochs", "early_stopping")):
            length = {"num_train_epochs": int(best.get("epoch", epochs)), "max_steps": None}
        else:
            length = {"num_train_epochs": max(1, epochs), "max_steps": int(best["step"])}
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
