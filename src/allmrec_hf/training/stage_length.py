"""How long a stage is trained again, by the record of its first training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..stored_values import json_value


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
