"""`run.json`: reads what a run folder says of itself, and refuses to go on with other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ALLMRecError
from ..part_sources import CHECKPOINT_PART, LANGUAGE_MODEL_PART, TEXT_ENCODER_PART, same_source
from .arguments import STAGES, StageArguments
from .settings import RunSettings

RUN_FILE = "run.json"
TRUST = "trust_remote_code"
_PARTS = {"llm": LANGUAGE_MODEL_PART, "text_encoder": TEXT_ENCODER_PART, "cf_checkpoint": CHECKPOINT_PART}


def read_run(path: Path) -> dict[str, Any]:
    """Return what `run.json` holds; nothing where there is none.

    Raises:
        ALLMRecError: when it is damaged.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: dict(record[key]) for key in ("data", "settings", "stages")}
        stages = {stage: dict(kept["stages"][stage]) for stage in STAGES}
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


def refuse_changes(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], arguments: Mapping[str, StageArguments]
) -> None:
    """Refuse to go on with a run whose data, settings or stages differ from what `run.json` says.

    Raises:
        ALLMRecError: when something differs; the message tells both values.
    """
    changed = [
        f"{name} {before[key].get(name)!r} -> {now[key].get(name)!r}"
        for key in ("data", "settings")
        for name in sorted({*before[key], *now[key]})
        if not same_source(before[key].get(name), now[key].get(name), _PARTS.get(name, ""))
    ]
    for stage, own in arguments.items():
        changed += [f"{change} (stage {stage})" for change in own.changes_since(before["stages"][stage])]
    if changed:
        raise ALLMRecError(
            f"--resume goes on with the same settings, but these differ from {path}: {'; '.join(changed[:5])}; give "
            "the old ones, or train into another folder"
        )
