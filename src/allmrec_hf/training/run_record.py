"""`run.json`: what a run folder says of itself, and what `--resume` and later stages refuse because of it.

A stage stands in it once it has begun: with its own settings, with those of its loop, and with the data of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..part_sources import CHECKPOINT_PART, LANGUAGE_MODEL_PART, TEXT_ENCODER_PART, same_source
from .arguments import STAGES, StageArguments
from .settings import SETTINGS_OF_STAGE, RunSettings

RUN_FILE = "run.json"
TRUST = "trust_remote_code"
_PARTS = {"llm": LANGUAGE_MODEL_PART, "text_encoder": TEXT_ENCODER_PART, "cf_checkpoint": CHECKPOINT_PART}
# What of the data a stage is trained on: parts of `PreparedData.digests`, and the domain, which words the prompts.
DATA_OF_STAGE = {
    "cf": ("items", "interactions", "candidates"),
    "align": ("items", "texts", "interactions", "candidates"),
    "project": ("items", "texts", "interactions", "candidates", "domain"),
}
# Settings that change no weight, so that a stage which is not finished may go on with others.
_FREE_WHILE_UNFINISHED = ("include_llm", "checkpoint_activations")
_FREE_LLM_OPTIONS = ("device_map", "max_memory")


def read_run(path: Path) -> dict[str, Any]:
    """Return what `run.json` holds; nothing where there is none.

    Returns:
        `data`, `settings` (those of stages that have not begun are the defaults) and `stages`.

    Raises:
        ALLMRecError: when it is damaged.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: dict(record[key]) for key in ("data", "settings", "stages")}
        stages = {stage: dict(kept["stages"][stage]) for stage in STAGES if stage in kept["stages"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ALLMRecError(f"{path} is damaged ({error}); choose another output folder") from error
    known = plain_settings(RunSettings())  # a run of an earlier version lacks some
    return kept | {"settings": known | kept["settings"], "stages": stages}


def plain_settings(settings: RunSettings) -> dict[str, Any]:
    """Return settings as JSON holds them, but whether code of others may run: that is given anew each time."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    if values["llm_options"]:
        values["llm_options"].pop(TRUST, None)
    return values


def settings_of(stages: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of all settings that some stages are trained with."""
    return {name: values[name] for stage in stages for name in SETTINGS_OF_STAGE[stage]}


def data_record(data: PreparedData) -> dict[str, Any]:
    """Return what `run.json` says of the data: name, domain, counts, and digests by which they are recognised."""
    counts = data.info.get("counts", {})
    return {"name": data.name, "domain": data.domain, "counts": counts, "digests": data.digests}


def refuse_other_data(run: Path, before: Mapping[str, Any], data: PreparedData, stages: Sequence[str]) -> None:
    """Refuse to go on with a run whose stages were trained on data of another content.

    Args:
        run: The run folder.
        before: What its `run.json` holds.
        data: The data given.
        stages: The stages that were trained, or have begun to be.

    Raises:
        ALLMRecError: when a part of the data that one of the stages depends on differs; the message names it.
    """
    recorded = before["data"]
    parts = [part for part in DATA_OF_STAGE["project"] if any(part in DATA_OF_STAGE[stage] for stage in stages)]
    if "digests" not in recorded:  # a run of an earlier version
        counts, now = recorded.get("counts", {}), data.info.get("counts", {})
        changed = [f"{name} {counts[name]!r} -> {now[name]!r}" for name in counts if counts[name] != now.get(name)]
    else:
        noted, own = recorded | recorded["digests"], {"domain": data.domain, **data.digests}
        changed = [part for part in parts if noted.get(part) != own[part]]
        if "items" in changed and recorded.get("counts", {}).get("items") == data.num_items:
            changed = ["items (as many, but others or in another order, so other items stand at the same numbers)"]
        elif "items" in changed:
            changed = [f"items ({recorded['counts'].get('items')} -> {data.num_items})"]
    if changed and stages:
        raise ALLMRecError(
            f"{data.name} in {data.directory} holds other data than {run} was trained on (stage {', '.join(stages)}), "
            f"which these tell apart: {', '.join(changed)}; give the data of the earlier stages, or train into another "
            "folder"
        )


def refuse_changes(
    path: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    arguments: Mapping[str, StageArguments],
    stages: Mapping[str, bool],
) -> None:
    """Refuse to go on with a run where what its stages are trained with differs from what `run.json` says.

    Args:
        path: The file.
        before: What it holds.
        now: `data` (its name) and `settings` of the run that would go on.
        arguments: The loop's settings of that run.
        stages: The stages that have begun, and whether each is finished; others may get any settings.

    Raises:
        ALLMRecError: when something differs; the message tells both values.
    """
    changed = []
    if stages and before["data"].get("name") != now["data"]["name"]:
        changed = [f"name {before['data'].get('name')!r} -> {now['data']['name']!r}"]
    owner = {name: stage for stage in stages for name in SETTINGS_OF_STAGE[stage]}
    for name, stage in sorted(owner.items()):
        if not stages[stage] and name in _FREE_WHILE_UNFINISHED:
            continue
        old, new = before["settings"].get(name), now["settings"].get(name)
        if not stages[stage] and name == "llm_options":
            old, new = _that_change_weights(old), _that_change_weights(new)
        if not same_source(old, new, _PARTS.get(name, "")):
            changed.append(f"{name} {old!r} -> {new!r}")
    for stage in stages:
        if stage in before["stages"]:
            changed += [
                f"{change} (stage {stage})" for change in arguments[stage].changes_since(before["stages"][stage])
            ]
    if changed:
        raise ALLMRecError(
            f"--resume goes on with the same settings, but these differ from {path}: {'; '.join(changed[:5])}; give "
            "the old ones, or train into another folder"
        )


def _that_change_weights(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if name not in _FREE_LLM_OPTIONS}
