"""Every option of a run: the sections of its three stages and of the LLM, over a preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ALLMRecError
from ..gguf_files import is_gguf, split_gguf
from ..stored_values import yaml_value
from .option_fields import unknown_options
from .presets import resolved
from .section_arguments import SECTIONS
from .stage_arguments import LOOPS, RUN_WIDE, StageArguments


def _flat_names() -> dict[str, tuple[str, str]]:
    """Return section and field of every setting that is no loop's, by its name or by `SECTION_NAME`."""
    names = {}
    for section, kind in SECTIONS.items():
        for name in kind.own_names():
            own = ("missing_items", "include_llm", "load_in_8bit", "gguf_file", "gguf_packed")
            alone = section in ("align", "project") or name in own
            names[name if alone else f"{section}_{name}"] = (section, name)
    return names


FLAT_NAMES = _flat_names()


@dataclass(frozen=True)
class ALLMRecTrainingArguments:
    """Hold every option of a run: its stages, its rankers and the LLM, each a section.

    Args:
        output_dir: The run folder; it becomes a loadable checkpoint.
        preset: `"default"` is the strongest recipe we know, `"paper"` the published one (arXiv 2404.11343), `"quick"`
            a few minutes on two cores whatever the data, `"demo"` the default on the invented world.
        backbone: Stage 0: values of `BackboneArguments` that replace the preset's, or the backbone's name.
        align: Stage 1: values of `AlignArguments`.
        project: Stage 2: values of `ProjectArguments`.
        retrieve: The ranker `retrieval`: values of `RetrieveArguments`.
        rank: What the checkpoint ranks by: values of `RankArguments`, or names of rankers with commas between.
        llm: Values of `LLMArguments`, or the LLM's name.
        seed: Seed of every stage that gives none of its own.
        report_to: Tracker of every stage that gives none of its own.

    After construction each section is an object with the preset's values filled in; `given` holds what was given.

    Raises:
        ALLMRecError: when an option is unknown (the message offers the nearest) or a value impossible.

    Example:
        >>> args = ALLMRecTrainingArguments("runs/shop", preset="quick", retrieve={"learning_rate": 5e-4})
        >>> args.retrieve.learning_rate, args.retrieve.per_device_train_batch_size
        (0.0005, 32)
    """

    output_dir: str | Path
    preset: str = "default"
    backbone: Any = None
    align: Any = None
    project: Any = None
    retrieve: Any = None
    rank: Any = None
    llm: Any = None
    seed: int | None = None
    report_to: str | None = None
    given: dict[str, dict[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        given = {section: _as_mapping(section, getattr(self, section)) for section in SECTIONS}
        for name in RUN_WIDE:
            if getattr(self, name) is not None:
                for section, kind in SECTIONS.items():
                    if name in kind.names():
                        given[section].setdefault(name, getattr(self, name))
        object.__setattr__(self, "given", given)
        for section, value in resolved(self.preset, given).items():
            object.__setattr__(self, section, value)

    def replaced(self, **changes: Any) -> ALLMRecTrainingArguments:
        """Return a copy with other values: fields of this class; of a section, those given replace earlier ones.

        Example:
            >>> ALLMRecTrainingArguments("runs/x").replaced(align={"joint_dim": 64}).align.joint_dim
            64
        """
        known = {field.name for field in dataclasses.fields(self) if field.init}
        if set(changes) - known:
            raise unknown_options(set(changes) - known, known, "a run")
        values = {name: getattr(self, name) for name in ("output_dir", "preset", *RUN_WIDE)}
        values |= {name: changes[name] for name in values if name in changes}
        for section in SECTIONS:
            before = dict(self.given[section])
            for name in RUN_WIDE:  # what the whole run gave is not the section's own
                if name in changes and before.get(name) == getattr(self, name):
                    before.pop(name, None)
            values[section] = before | _as_mapping(section, changes.get(section))
        return ALLMRecTrainingArguments(**values)

    def with_flat(self, **changes: Any) -> ALLMRecTrainingArguments:
        """Return a copy with settings by name alone, such as `joint_dim`; those of a loop need their stage.

        Raises:
            ALLMRecError: when a name is unknown, or belongs to the loop of each stage.
        """
        sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for name, value in changes.items():
            if name not in FLAT_NAMES:
                raise _no_flat_name(name)
            section, own = FLAT_NAMES[name]
            sections[section][own] = value
        return self.replaced(**sections)

    @classmethod
    def from_yaml(cls, path: str | Path, **changes: Any) -> ALLMRecTrainingArguments:
        """Return the arguments of a YAML file with the sections `backbone`, `align`, `project` and `llm`.

        Raises:
            ALLMRecError: when it cannot be read, or names an unknown option.
        """
        try:
            values = yaml_value(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ALLMRecError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise ALLMRecError(f"{path} must be a mapping with the sections {', '.join(SECTIONS)}")
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        if set(values) - known:
            raise unknown_options(set(values) - known, known, str(path))
        given = {**values, **changes}
        if "output_dir" not in given:
            raise ALLMRecError(f"{path} names no output_dir; add it, or give it beside the file (output_dir=)")
        return cls(**given)

    @cached_property
    def stages(self) -> dict[str, StageArguments]:
        """The settings of each stage's loop."""
        return {stage: getattr(self, stage) for stage in LOOPS}

    def to_dict(self) -> dict[str, Any]:
        """Return every section as JSON can hold it."""
        return {section: getattr(self, section).to_dict() for section in SECTIONS}


def _no_flat_name(name: str) -> ALLMRecError:
    if name in StageArguments.names():
        stages = ", ".join(f"{stage}.{name}" for stage in LOOPS)
        return ALLMRecError(f"{name} belongs to a stage: {stages}")
    return unknown_options([name], FLAT_NAMES, "a run")


def _as_mapping(section: str, value: Any) -> dict[str, Any]:
    """Return the values that a section was given; a name alone stands for backbone and LLM."""
    kind = SECTIONS[section]
    if value is None:
        return {}
    if isinstance(value, kind):
        value = {name: getattr(value, name) for name in kind.names()}
    elif isinstance(value, (str, Path)) and {"name", "rankers"} & set(kind.names()):
        value = {"name" if "name" in kind.names() else "rankers": str(value)}
    if not isinstance(value, Mapping):
        raise ALLMRecError(f"the section {section} must be a mapping of option names to values, got {value!r}")
    kind.check_names(map(str, value), f"the section {section}")
    if section == "llm" and value.get("name") is not None and is_gguf(str(value["name"])):
        name, gguf_file = split_gguf(str(value["name"]), value.get("gguf_file"))
        return {**value, "name": name, **({} if gguf_file is None else {"gguf_file": gguf_file})}
    return dict(value)
