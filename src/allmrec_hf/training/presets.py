"""The presets: by section, the values that differ from the defaults of `arguments`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cf_encoder import MODEL_TYPE_PREFIX
from ..errors import ALLMRecError
from .section_arguments import DEFAULT_BACKBONE, SECTIONS, is_backbone_name, recipe_of
from .stage_arguments import LOOPS, PRESETS, StageArguments

_OURS: dict[str, dict[str, Any]] = {
    "align": {"cross_reconstruction_weight": 1.0},
    "project": {"warm_start_steps": 600, "answer_boundary": "natural"},
}
_VALUES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "backbone": {"num_train_epochs": 200, "min_steps": 1_000, "early_stopping_patience": 10},
        "align": {
            **_OURS["align"],
            "min_steps": 2_000,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-4,
            "early_stopping_patience": 3,
        },
        "project": {
            **_OURS["project"],
            "num_train_epochs": 5,
            "min_steps": 1_000,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-4,
            "warmup_steps": 0.03,
            "max_grad_norm": 1.0,
            "early_stopping_patience": 2,
        },
        "retrieve": {
            "num_train_epochs": 20,
            "min_steps": 1_000,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 0.03,
            "max_grad_norm": 1.0,
            "early_stopping_patience": 2,
            "max_validation_users": 1_000,
        },
    },
    # The values of arXiv 2404.11343 and of the program published with it.
    "paper": {
        "backbone": {"num_train_epochs": 200},
        "align": {"per_device_train_batch_size": 32, "learning_rate": 1e-4},
        "project": {
            "num_train_epochs": 5,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-4,
            "targets": "train",
            "item_embedding": "cf",
        },
    },
    # Ends within minutes on two CPU cores whatever the data: the time limits see to that.
    "quick": {
        "backbone": {
            "num_train_epochs": 40,
            "min_steps": 300,
            "early_stopping_patience": 3,
            "max_validation_users": 1_000,
            "max_seconds": 60,
            "save_steps": 500,
        },
        "align": {
            **_OURS["align"],
            "text_recommendation_weight": 1.0,
            "fine_tune_text_encoder": False,
            "min_steps": 1_000,
            "early_stopping_patience": 2,
            "max_validation_users": 1_000,
            "max_seconds": 40,
            "save_steps": 200,
        },
        "project": {
            **_OURS["project"],
            "num_train_epochs": 3,
            "min_steps": 300,
            "per_device_train_batch_size": 16,
            "warmup_steps": 0.03,
            "max_grad_norm": 1.0,
            "early_stopping_patience": 1,
            "max_title_tokens": 16,
            "max_validation_users": 500,
            "max_seconds": 90,
            "save_steps": 100,
        },
        "retrieve": {
            "num_train_epochs": 5,
            "min_steps": 300,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 10,
            "max_grad_norm": 1.0,
            "max_validation_users": 200,
            "max_seconds": 300,
            "eval_strategy": "no",  # reading every candidate's title takes as long as a third of the training
            "history_titles": False,
            "history_in_prompt": 8,
            "num_llm_layers": 0.15,
        },
        "rank": {"rankers": "retrieval,fusion", "max_validation_users": 1_000},
    },
    # For the invented world: three minutes of training on one core. With fewer users, as many steps as with all 3,000.
    "demo": {
        "backbone": {
            "num_train_epochs": 20,
            "min_steps": 480,
            "learning_rate": 3e-3,
            "weight_decay": 0.01,
            "lr_scheduler_type": "linear",
            "eval_epochs": 5,
            "max_validation_users": 1_000,
        },
        "align": {
            **_OURS["align"],
            "joint_dim": 64,
            "num_train_epochs": 20,
            "min_steps": 480,
            "max_validation_users": 1_000,
        },
        "project": {
            **_OURS["project"],
            "num_train_epochs": 3,
            "min_steps": 339,
            "per_device_train_batch_size": 24,
            "weight_decay": 0.01,
            "lr_scheduler_type": "linear",
            "warmup_steps": 10,
            "max_grad_norm": 1.0,
            "max_validation_users": 300,
        },
        "retrieve": {
            "num_train_epochs": 2,
            "min_steps": 300,
            "max_steps": 300,
            "per_device_train_batch_size": 32,
            "learning_rate": 2e-3,
            "weight_decay": 0.01,
            "warmup_steps": 10,
            "max_grad_norm": 1.0,
            "positions": 3,
            "max_validation_users": 300,
        },
        "llm": {"include_llm": True},
    },
}


def resolved(preset: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return each section's object: its defaults, the preset's values, the backbone's recipe, what was given.

    `default` and `quick` take over the loop's settings that suit the backbone. The paper describes its SASRec alone;
    with another backbone the preset `paper` sets the width of its vectors and no more.

    Raises:
        ALLMRecError: when the preset or an option is unknown, or a value impossible.
    """
    if preset not in PRESETS:
        raise ALLMRecError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    name = str(given["backbone"].get("name") or DEFAULT_BACKBONE)
    sections = {}
    for section, kind in SECTIONS.items():
        values = dict(_VALUES[preset].get(section, {}))
        own = {option: value for option, value in given[section].items() if value is not None or option != "name"}
        if section == "backbone":
            values |= recipe_of(name) if preset in ("default", "quick") else {}
            options = {**_paper_options(preset, name), **(own.get("options") or {})}
            own |= {"options": options or None}
        if "num_train_epochs" in own and "min_steps" not in own:
            values.pop("min_steps", None)  # who gives epochs alone gets these
        if own.get("llm_depths") is not None:
            values = {
                option: value for option, value in values.items() if option not in ("num_llm_layers", "eval_strategy")
            }
        try:
            sections[section] = kind(**{**values, **own})
        except ALLMRecError as error:
            raise ALLMRecError(f"section {section}: {error}") from error
    return sections


def _paper_options(preset: str, name: str) -> dict[str, Any]:
    if preset != "paper" or not is_backbone_name(name):
        return {}
    width: dict[str, Any] = {"hidden_size": 50}
    own = {"dropout": 0.5, "loss": "bce", "attend_padding": True}
    return width | own if name.removeprefix(MODEL_TYPE_PREFIX) == DEFAULT_BACKBONE else width


def preset(name: str, stage: str, backbone: str | None = None) -> StageArguments:
    """Return the loop's settings of a preset for a stage (`backbone`, `align` or `project`).

    Args:
        name: The preset.
        stage: The stage.
        backbone: Name of the backbone, whose recipe `default` and `quick` take over; no recipe where not given.

    Raises:
        ALLMRecError: when the preset or the stage is unknown.

    Example:
        >>> preset("paper", "project").per_device_train_batch_size
        4
    """
    if name not in PRESETS or stage not in LOOPS:
        raise ALLMRecError(
            f"no preset {name!r} of stage {stage!r}; presets: {', '.join(PRESETS)}; stages: {', '.join(LOOPS)}"
        )
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if stage == "backbone" and backbone is not None:
        given["backbone"]["name"] = backbone
    section: StageArguments = resolved(name, given)[stage]
    return section.loop()
