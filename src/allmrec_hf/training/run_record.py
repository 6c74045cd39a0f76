"""`run.json`: what a run folder says of itself, and what resuming and later stages check against it.

A section of the arguments stands in it once the stage that is trained with it has begun; that of the LLM with stage 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..part_sources import CHECKPOINT_PART, LANGUAGE_MODEL_PART, TEXT_ENCODER_PART, recorded, same_source
from ..stored_values import json_value
from .arguments import ALLMRecTrainingArguments
from .section_arguments import SECTIONS
from .stage_arguments import STEPS, StageArguments

RUN_FILE = "run.json"
SECTIONS_OF_STAGE = {
    "backbone": ("backbone",),
    "align": ("align",),
    "project": ("project", "llm"),
    "retrieve": ("retrieve", "llm"),
    "rank": ("rank", "llm"),
}
# Options that name a folder or a Hub id.
SOURCES = {
    ("backbone", "name"): CHECKPOINT_PART,
    ("align", "text_encoder"): TEXT_ENCODER_PART,
    ("llm", "name"): LANGUAGE_MODEL_PART,
}
# What of the data a stage is trained on: parts of `PreparedData.digests`, and the domain, which words the prompts.
DATA_OF_STAGE = {
    "backbone": ("items", "interactions", "candidates"),
    "align": ("items", "texts", "interactions", "candidates"),
    "project": ("items", "texts", "interactions", "candidates", "domain"),
    "retrieve": ("items", "texts", "interactions", "candidates", "domain"),
    "rank": ("items", "texts", "interactions", "candidates", "domain"),
}


def read_run(path: Path) -> dict[str, Any]:
    """Return what `run.json` holds; nothing where there is none.

    Returns:
        `data`, `preset`, `processes`, `model_type` of the backbone, `arguments`: the sections of stages that have
        begun, with the default of each option that an earlier version did not have, and `others`: those of stages that
        have not, some options of which other stages read.

    Raises:
        ALLMRecError: when it is damaged, or was written before sections came into it.
    """
    if not path.exists():
        return {}
    try:
        record = dict(json_value(path.read_text(encoding="utf-8")))
        of_earlier_version = "settings" in record and "arguments" not in record
        noted = {} if of_earlier_version else record["arguments"]
        sections = {name: dict(noted[name]) for name in SECTIONS if name in noted}
        record["data"], record["processes"] = dict(record["data"]), int(record.get("processes", 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ALLMRecError(f"{path} is damaged ({error}); choose another output folder") from error
    if of_earlier_version:
        raise ALLMRecError(
            f"{path} was written by an earlier version, whose runs cannot be gone on with; its checkpoints load as "
            "before, and its backbone can be given as --backbone"
        )
    defaults = {name: {f.name: f.default for f in dataclasses.fields(kind)} for name, kind in SECTIONS.items()}  # type: ignore[arg-type]
    kept = {
        name: defaults[name] | {key: value for key, value in values.items() if key in defaults[name]}
        for name, values in sections.items()
    }
    return record | {"arguments": kept}


def begun_stages(record: Mapping[str, Any]) -> list[str]:
    """Return the stages whose sections a record holds."""
    return [stage for stage in STEPS if stage in record.get("arguments", {})]


def data_record(data: PreparedData) -> dict[str, Any]:
    """Return what `run.json` says of the data: name, domain, counts, and digests by which they are recognised."""
    known = {"in_training": data.in_training} if data.in_training else {}
    counts = data.info.get("counts", {})
    return {"name": data.name, "domain": data.domain, "counts": counts, "digests": data.digests, **known}


def with_absolute_paths(args: ALLMRecTrainingArguments) -> ALLMRecTrainingArguments:
    """Return arguments that name the same folders wherever a process runs."""
    changes: dict[str, dict[str, Any]] = {}
    for (section, name), part in SOURCES.items():
        value = getattr(getattr(args, section), name)
        if value is not None and name in args.given[section]:
            changes.setdefault(section, {})[name] = recorded(value, part)
    return args.replaced(**changes)


def check_same_data(run: Path, before: Mapping[str, Any], data: PreparedData, stages: Sequence[str]) -> None:
    """Check that a run whose stages have begun is gone on with on data of the same content.

    Args:
        run: The run folder.
        before: What its `run.json` holds.
        data: The data given.
        stages: The stages that were trained, or have begun to be.

    Raises:
        ALLMRecError: when a part of the data that one of the stages depends on differs; the message names it.
    """
    noted = before["data"] | before["data"].get("digests", {})
    own = {"domain": data.domain, **data.digests}
    parts = [part for part in DATA_OF_STAGE["project"] if any(part in DATA_OF_STAGE[stage] for stage in stages)]
    changed = [part for part in parts if noted.get(part) != own[part]]
    items = noted.get("counts", {}).get("items")
    if "items" in changed and items == data.num_items:
        changed = ["items (as many, but others or in another order, so other items stand at the same numbers)"]
    elif "items" in changed:
        changed = [f"items ({items} -> {data.num_items})"]
    if changed:
        raise ALLMRecError(
            f"{data.name} in {data.directory} holds other data than {run} was trained on (stage {', '.join(stages)}), "
            f"which these tell apart: {', '.join(changed)}; give the data of the earlier stages, or train into another "
            "folder"
        )


def check_same_arguments(
    path: Path,
    before: Mapping[str, Any],
    args: ALLMRecTrainingArguments,
    name: str,
    processes: int,
    finished: Mapping[str, bool],
) -> None:
    """Check that a run is resumed with what its stages are trained with.

    Args:
        path: The file `run.json`.
        before: What it holds.
        args: The arguments given.
        name: The data's name.
        processes: Processes that train.
        finished: The stages that have begun, and whether each is finished; others may get any options. What changes no
            weight may differ.

    Raises:
        ALLMRecError: when something differs; the message tells both values.
    """
    changed = []
    if finished and before["data"].get("name") != name:
        changed = [f"name {before['data'].get('name')!r} -> {name!r}"]
    for stage, done in finished.items():
        for section in SECTIONS_OF_STAGE[stage]:
            old = before["arguments"].get(section)
            if old is not None:
                now = getattr(args, section)
                changed += _changes(section, old, now, done, processes, before["processes"])
    if changed:
        raise ALLMRecError(
            f"--resume goes on with the same options, but these differ from {path}: {'; '.join(changed[:5])}; give "
            "the old ones, or train into another folder"
        )


def _changes(
    section: str, old: Mapping[str, Any], now: Any, finished: bool, processes: int, processes_then: int
) -> list[str]:
    changed, own = [], now.to_dict()
    fields = {field.name: field.metadata for field in dataclasses.fields(now)}
    loop = [name for name in own if fields[name]["loop"]]
    if isinstance(now, StageArguments):
        changed += [f"{section}.{change}" for change in now.loop().changes_since(old, processes, processes_then)]
    for name in own:
        free = fields[name]["free_on_resume"] and not finished
        source = SOURCES.get((section, name), "")
        if name not in loop and not free and not same_source(old.get(name), own[name], source):
            changed.append(f"{section}.{name} {old.get(name)!r} -> {own[name]!r}")
    return changed
