"""List the benchmark runs of a suite in the order in which they are computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import ALLMRecError
from ..methods.llm_parts import chosen_arguments
from ..methods.method import Method, Setting
from ..methods.registry import backbone_names, method
from ..part_sources import part_name, part_path
from ..training.arguments import ALLMRecTrainingArguments
from .runs import RunKey
from .sources import fingerprint
from .suite import DatasetSpec, MethodSpec, ScenarioSpec, Suite


@dataclass(frozen=True)
class PlannedRun:
    """One benchmark run that the suite asks for.

    Attributes:
        key: The run.
        dataset: Its data; those of the targets where the scenario has two.
        scenario: Its scenario.
        method: Its method.
        setting: What the method is trained with; its two folders are names under the benchmark's output.
    """

    key: RunKey
    dataset: DatasetSpec
    scenario: ScenarioSpec
    method: MethodSpec
    setting: Setting

    @property
    def group(self) -> tuple[str, str, int]:
        """Return what runs that share trained parts have in common."""
        return self.key.dataset, self.key.scenario, self.key.seed

    def __str__(self) -> str:
        return f"{self.key.dataset}, {self.key.scenario}, {self.key.label}, seed {self.key.seed}"


def plan(suite: Suite) -> list[PlannedRun]:
    """Return all benchmark runs of a suite; runs that share trained parts follow one another.

    Raises:
        ALLMRecError: when a method does not know an option, prepared data are missing, or a method has no run at all.
    """
    methods = {spec.label: _checked(spec) for spec in suite.methods}
    digests = {spec.name: fingerprint(spec) for spec in suite.datasets}
    planned_runs: list[PlannedRun] = []
    for seed in suite.seeds:
        for scenario, dataset in _scenarios_of_data(suite):
            data = {name: digests[name] for name in (dataset.name, *scenario.domains)}
            for spec in suite.methods:
                seeded = methods[spec.label].seeded
                if spec.runs_in(dataset.name, scenario) and (seeded or seed == suite.seeds[0]):
                    planned_runs.append(_planned_run(suite, dataset, scenario, spec, seed, data))
    without = [
        spec.label for spec in suite.methods if not any(planned.method.label == spec.label for planned in planned_runs)
    ]
    if without:
        raise ALLMRecError(f"no scenario and data set of the suite is for {', '.join(without)}; see only_...")
    wanted = suite.only_datasets or [spec.name for spec in suite.datasets]
    planned_runs = [planned for planned in planned_runs if planned.dataset.name in wanted]
    return sorted(planned_runs, key=lambda planned: suite.datasets.index(planned.dataset))


def _checked(spec: MethodSpec) -> Method:
    found = method(spec.method)
    try:
        chosen_arguments(found, Setting(Path(), Path(), options=spec.options))
    except ALLMRecError as error:
        raise ALLMRecError(f"the suite's method {spec.label}: {error}") from error
    return found


def _evaluation(suite: Suite) -> dict[str, Any]:
    """Return the options of the evaluation; the protocol of every suite of old is not said."""
    options = asdict(suite.evaluation)
    return options if options["protocol"] == "full" else {k: v for k, v in options.items() if k != "protocol"}


def _scenarios_of_data(suite: Suite) -> list[tuple[ScenarioSpec, DatasetSpec]]:
    return [
        (scenario, dataset)
        for dataset in suite.datasets
        for scenario in suite.scenarios
        if scenario.is_for(dataset.name)
    ]


def _planned_run(
    suite: Suite, dataset: DatasetSpec, scenario: ScenarioSpec, spec: MethodSpec, seed: int, data: Mapping[str, str]
) -> PlannedRun:
    llm = spec.llm or suite.llm
    llm = None if llm is None else part_path(llm, "language_model")
    text_encoder = part_path(suite.text_encoder, "text_encoder")
    shared: dict[str, Any] = {
        "data": dict(sorted(data.items())),
        "scenario": scenario.scenario.describe() | {"domains": list(scenario.domains)},
        "text_encoder": part_name(text_encoder),
        "package": __version__,
        "preset": ALLMRecTrainingArguments("", preset=suite.preset).to_dict(),
        "budget": suite.budget,
    }
    backbone = spec.method if spec.method in backbone_names() else spec.backbone or suite.backbone
    facts = shared | {
        "backbone": backbone,
        "llm": None if llm is None else part_name(llm),
        "options": dict(spec.options),
        "evaluation": _evaluation(suite),
    }
    key = RunKey(dataset.name, scenario.label, spec.label, spec.method, seed, json.loads(json.dumps(facts)))
    parts = RunKey(dataset.name, scenario.label, "parts", "parts", seed, shared)
    setting = Setting(
        folder=Path("work") / key.digest,
        parts=Path("parts") / parts.digest,
        common=Path("parts") / "common",
        seed=seed,
        llm=llm,
        text_encoder=text_encoder,
        backbone=backbone,
        preset=suite.preset,
        budget=suite.budget,
        options=spec.options,
    )
    return PlannedRun(key, dataset, scenario, spec, setting)
