"""The data sets, scenarios and methods of a benchmark; `suite_parser` reads a suite from YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..data.prepared import INFO_FILE, read_info
from ..errors import ALLMRecError
from ..evaluation.scenarios import Scenario
from ..methods.registry import method, method_names
from ..training.section_arguments import DEFAULT_BACKBONE, DEFAULT_TEXT_ENCODER

SUITES = Path(__file__).parent / "suites"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of a suite.

    Attributes:
        name: Its name in the report and of its folder.
        source: `synthetic`, `prepared`, `table` or `amazon-2018`.
        options: What the source needs: the world's arguments, or file names under the data root.
        prepare: How it is prepared, as in `data.prepare.prepare`; `title` is the name in `dataset.json`.
        expected: Published numbers of users, items and interactions, which the prepared data must have.
    """

    name: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScenarioSpec:
    """One scenario with one value of each of its parameters.

    Attributes:
        label: Its name in runs and tables, such as `few-shot-256`.
        scenario: How the data are split.
        domains: For a scenario across data sets: the one to train on and the one to evaluate.
        only_datasets: Names of the data sets it is made of; empty for all.
    """

    label: str
    scenario: Scenario
    domains: tuple[str, ...] = ()
    only_datasets: tuple[str, ...] = ()

    def is_for(self, dataset: str) -> bool:
        """Tell whether the suite wants it with the targets of a data set."""
        return dataset == self.domains[-1] if self.domains else not self.only_datasets or dataset in self.only_datasets


@dataclass(frozen=True)
class MethodSpec:
    """One row of the tables.

    Attributes:
        label: Its name there, unique within the suite.
        method: The method's name in the registry.
        options: The method's own options.
        ablation_of: Label of the method of which this is a changed form.
        llm: Its LLM, where it is not the suite's.
        backbone: Its backbone, where it is not the suite's.
        only_scenarios: Names or labels of the scenarios it is run in; empty for all.
        only_datasets: Names of the data sets it is run on; empty for all.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ablation_of: str | None = None
    llm: str | None = None
    backbone: str | None = None
    only_scenarios: tuple[str, ...] = ()
    only_datasets: tuple[str, ...] = ()

    def runs_in(self, dataset: str, scenario: ScenarioSpec) -> bool:
        """Tell whether the suite wants this method there."""
        named = not self.only_scenarios or {scenario.scenario.name, scenario.label} & set(self.only_scenarios)
        return bool(named) and (not self.only_datasets or dataset in self.only_datasets)


@dataclass(frozen=True)
class EvaluationSpec:
    """The options of the evaluation.

    Attributes:
        protocol: `candidates`, or `full` for the whole catalogue with seen items left out.
        max_users: A seeded sample of this many users, the same for every run; None for all.
        cutoffs: The k of Hit@k and NDCG@k; None for those of 1, 5 and 10 that are no more than the candidates.
        history_buckets: The largest history length of each bucket but the last; None for the scenario's own.
    """

    protocol: Literal["candidates", "full"] = "candidates"
    max_users: int | None = None
    cutoffs: tuple[int, ...] | None = None
    history_buckets: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Suite:
    """A whole benchmark.

    Attributes:
        title: Heading of the report.
        datasets: The data.
        scenarios: The scenarios, lists of parameters taken apart.
        methods: The methods.
        seeds: Seeds of every method that draws anything; splits and candidates are the same for all.
        llm: Id or path of the LLM; `demo` is the tiny one that comes with the package.
        text_encoder: Id or path of the text encoder; `demo` as above.
        backbone: Name of the backbone.
        preset: Preset of the stages.
        budget: By stage, fields of `StageArguments` that replace the preset's.
        reference: Label of the method that all others are compared with.
        evaluation: How rankers are evaluated.
        published: Whose figures are printed beside ours: a data set of `published`, or `s3rec`, whose figures are those
            of `published_full_ranking` for the suite's data sets by name.
        only_datasets: Names of the data sets whose runs are computed and reported; empty for all.
    """

    title: str
    datasets: tuple[DatasetSpec, ...]
    scenarios: tuple[ScenarioSpec, ...]
    methods: tuple[MethodSpec, ...]
    seeds: tuple[int, ...] = (0,)
    llm: str | None = None
    text_encoder: str = DEFAULT_TEXT_ENCODER
    backbone: str = DEFAULT_BACKBONE
    preset: str = "default"
    budget: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    published: str | None = None
    only_datasets: tuple[str, ...] = ()

    def with_methods(self, names: Sequence[str]) -> Suite:
        """Return the suite with some methods only: labels of its own, or names of the registry."""
        own = {spec.label: spec for spec in self.methods}
        unknown = [name for name in names if name not in own and name not in method_names()]
        if unknown:
            known = ", ".join(dict.fromkeys([*own, *method_names()]))
            raise ALLMRecError(f"--methods names unknown methods {unknown}; known ones: {known}")
        chosen = tuple(own.get(name, MethodSpec(name, name)) for name in dict.fromkeys(names))
        labels = [spec.label for spec in chosen]
        return replace(
            self, methods=chosen, reference=self.reference if self.reference in labels else default_reference(labels)
        )

    def ranked_by(self, ranker: str) -> Suite:
        """Return the suite whose methods rank by another ranker, as far as they have it and name none of their own."""
        ways = {spec.label: method(spec.method).ranked_by for spec in self.methods}
        if not any(ranker in known for known in ways.values()):
            known = ", ".join(dict.fromkeys(kind for kinds in ways.values() for kind in kinds))
            raise ALLMRecError(f"--ranker {ranker}: no method of this benchmark ranks so; known are {known or 'none'}")
        methods = tuple(
            replace(spec, options={"ranker": ranker, **spec.options}) if ranker in ways[spec.label] else spec
            for spec in self.methods
        )
        return replace(self, methods=methods)

    def with_datasets(self, names: Sequence[str]) -> Suite:
        """Return the suite on the targets of some of its data sets only."""
        known = [spec.name for spec in self.datasets]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ALLMRecError(f"--datasets names unknown data sets {unknown}; known ones: {', '.join(known)}")
        return replace(self, only_datasets=tuple(names))

    def with_data(self, folder: Path) -> Suite:
        """Return the suite on one folder of prepared data; scenarios across data sets are left out.

        Data with the expected counts of one of several data sets stand for it, beside the same published figures.
        """
        known = self._with_counts_of(folder) if len(self.datasets) > 1 else None
        found = NAME.search(folder.resolve().name)
        name = known or (found[0] if found else "data")
        spec = DatasetSpec(name, "prepared", {"path": str(folder.resolve())})
        parts = {part.label: replace(part, only_datasets=()) for part in self.scenarios if not part.domains}
        kept = tuple(parts.values())
        methods = tuple(replace(part, only_datasets=()) for part in self.methods)
        published = self.published if known else None
        return replace(self, datasets=(spec,), scenarios=kept, methods=methods, published=published, only_datasets=())

    def _with_counts_of(self, folder: Path) -> str | None:
        """Return the data set that a folder of prepared data has the expected counts of; None where there is none."""
        try:
            counts = read_info(folder / INFO_FILE)["counts"]
        except (ALLMRecError, OSError, KeyError):
            return None  # what is wrong with the folder is told where it is read
        for spec in self.datasets:
            if spec.expected and all(counts.get(name) == count for name, count in spec.expected.items()):
                return spec.name
        return None


def default_reference(labels: Sequence[str]) -> str:
    """Return the label that all others are compared with where none is named: A-LLMRec, or the first."""
    return "a-llmrec" if "a-llmrec" in labels else labels[0]


def suite_names() -> list[str]:
    """Return the names of the suites that come with this package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def check_cutoffs(suite: Suite, dataset: str, num_candidates: int, where: str = "the suite") -> None:
    """Check that no Hit@k has a k above the number of candidates: it would be 1 for every method."""
    highest = max(suite.evaluation.cutoffs or (1,))
    if suite.evaluation.protocol == "candidates" and highest > num_candidates:
        raise ALLMRecError(
            f"{where}: evaluation.cutoffs names {highest}, but {dataset} has sets of {num_candidates} candidates, so "
            f"Hit@{highest} would be 1 for every method; lower the cut-off, or raise the data's num_candidates"
        )
