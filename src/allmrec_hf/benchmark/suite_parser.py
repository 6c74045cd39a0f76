"""Read a suite from YAML; every mistake is reported with its file and place before anything is computed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.synthetic import SyntheticWorld
from ..errors import ALLMRecError
from ..evaluation.scenarios import CrossDomain, FewShot, scenario
from ..methods.registry import backbone_names, method_names
from ..stored_values import yaml_value
from ..training.section_arguments import DEFAULT_BACKBONE, DEFAULT_TEXT_ENCODER
from ..training.stage_arguments import LOOPS, PRESETS, StageArguments
from .published import DATASETS
from .published_full_ranking import S3REC
from .suite import (
    NAME,
    SUITES,
    DatasetSpec,
    EvaluationSpec,
    MethodSpec,
    ScenarioSpec,
    Suite,
    check_cutoffs,
    default_reference,
    suite_names,
)

NUM_CANDIDATES = 20
SOURCES = ("synthetic", "prepared", "table", "amazon-2018")
PREPARE_KEYS = (
    *("k_core", "filter", "count_min_rating", "keep_items", "domain", "seed", "num_candidates", "drop_duplicates"),
    *("min_rating", "repeats", "order", "time_format", "split", "test_from", "validation_from"),
    "title",
)
COUNTS = ("users", "items", "interactions")
_SUITE_KEYS = (
    *("title", "seeds", "llm", "text_encoder", "backbone", "preset", "budget", "reference", "datasets", "scenarios"),
    *("methods", "evaluation", "published"),
)
_METHOD_KEYS = ("label", "method", "options", "ablation_of", "llm", "backbone", "only_scenarios", "only_datasets")
_NOT_IN_LABEL = ("largest", "overlap")  # the same for every scenario of a suite that has them
_NO_LIST = "history_buckets"  # the one parameter of a scenario that is a list itself


def load_suite(name: str | Path) -> Suite:
    """Read a suite: the path of a YAML file, or the name of one that comes with this package.

    Raises:
        ALLMRecError: when it cannot be read, or says something that cannot be done; file and place are named.
    """
    path = SUITES / f"{name}.yaml" if str(name) in suite_names() else Path(name)
    try:
        values = yaml_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ALLMRecError(
            f"there is no suite {str(name)!r}: give a YAML file, or one of {', '.join(suite_names())}"
        ) from None
    except (OSError, ValueError) as error:
        raise ALLMRecError(f"the suite {path} cannot be read as YAML: {error}") from error
    return parse_suite(values, path.name)


def parse_suite(values: Any, where: str) -> Suite:
    """Return a suite from what YAML or JSON gives.

    Args:
        values: The content.
        where: What to call the file in errors.

    Raises:
        ALLMRecError: when it says something that cannot be done.
    """
    given = _mapping(values, where, _SUITE_KEYS, ("datasets", "scenarios", "methods"))
    datasets = tuple(_dataset(value, place) for value, place in _entries(given, "datasets", where))
    names = _unique([spec.name for spec in datasets], f"{where}: datasets", "name")
    lists = [_scenario(value, place, names) for value, place in _entries(given, "scenarios", where)]
    scenarios = tuple(itertools.chain.from_iterable(lists))
    for name in names:
        _unique([spec.label for spec in scenarios if spec.is_for(name)], f"{where}: scenarios of {name}", "label")
    methods = tuple(_method(value, place, names, scenarios) for value, place in _entries(given, "methods", where))
    labels = _unique([spec.label for spec in methods], f"{where}: methods", "label")
    for spec in methods:
        if spec.ablation_of is not None:
            _one_of(spec.ablation_of, labels, f"{where}: methods, {spec.label}.ablation_of", "label")
    reference = given.get("reference", default_reference(labels))
    published = given.get("published")
    suite = Suite(
        title=_text(given.get("title", Path(where).stem), f"{where}: title"),
        datasets=datasets,
        scenarios=scenarios,
        methods=methods,
        seeds=tuple(_numbers(given.get("seeds", [0]), f"{where}: seeds", least=0)),
        llm=None if given.get("llm") is None else _text(given["llm"], f"{where}: llm"),
        text_encoder=_text(given.get("text_encoder", DEFAULT_TEXT_ENCODER), f"{where}: text_encoder"),
        backbone=_one_of(given.get("backbone", DEFAULT_BACKBONE), backbone_names(), f"{where}: backbone", "backbone"),
        preset=_one_of(given.get("preset", "default"), PRESETS, f"{where}: preset", "preset"),
        budget=_budget(given.get("budget") or {}, f"{where}: budget"),
        reference=_one_of(reference, labels, f"{where}: reference", "label"),
        evaluation=_evaluation(given.get("evaluation") or {}, f"{where}: evaluation"),
        published=None
        if published is None
        else _one_of(published, (*DATASETS, S3REC), f"{where}: published", "data set"),
    )
    _unique([str(seed) for seed in suite.seeds], f"{where}: seeds", "seed")
    for data in datasets:
        if data.source != "prepared":
            check_cutoffs(suite, data.name, int(data.prepare.get("num_candidates", NUM_CANDIDATES)), where)
    return suite


def _dataset(value: Any, place: str) -> DatasetSpec:
    given = _mapping(value, place, ("name", "prepare", "expected", *SOURCES), ("name",))
    name = _text(given["name"], f"{place}.name")
    if not NAME.fullmatch(name):
        raise ALLMRecError(f"{place}.name is {name!r}; letters, digits, dot, dash and underscore only")
    sources = [source for source in SOURCES if source in given]
    if len(sources) != 1:
        raise ALLMRecError(f"{place} ({name}) must have exactly one source of {', '.join(SOURCES)}; it has {sources}")
    source = sources[0]
    options = given[source]
    if source == "prepared":
        options = {"path": _text(options, f"{place}.prepared")}
    elif source == "synthetic":
        options = _mapping(options or {}, f"{place}.synthetic", tuple(inspect.signature(SyntheticWorld).parameters))
    else:
        options = _mapping(options, f"{place}.{source}", ("interactions", "items", "columns"), ("interactions",))
    prepare = _mapping(given.get("prepare") or {}, f"{place}.prepare", PREPARE_KEYS)
    expected = _mapping(given.get("expected") or {}, f"{place}.expected", COUNTS)
    if source == "prepared" and (prepare or expected):
        raise ALLMRecError(f"{place} ({name}) is prepared already; leave out `prepare` and `expected`")
    return DatasetSpec(name, source, options, prepare, expected)


def _scenario(value: Any, place: str, datasets: Sequence[str]) -> list[ScenarioSpec]:
    """Return the scenarios that one entry stands for: a list of values stands for one scenario each."""
    given: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(_mapping(value, place, None, ("name",)))
    name = _text(given.pop("name"), f"{place}.name")
    only = tuple(_names(given.pop("only_datasets", []), datasets, f"{place}.only_datasets", "data set"))
    domains = _domains(given, place, datasets) if name == CrossDomain.name else ()
    if name == FewShot.name and isinstance(given.get("num_users"), list):
        given.setdefault("largest", max(given["num_users"], default=None, key=_order))  # all evaluate the same users
    lists = [part if isinstance(part, list) and key != _NO_LIST else [part] for key, part in given.items()]
    found = []
    for values in itertools.product(*lists):
        parameters = dict(zip(given, values, strict=True))
        try:
            made = scenario(name, **parameters)
            label = scenario(name, **{key: part for key, part in parameters.items() if key not in _NOT_IN_LABEL}).label
        except ALLMRecError as error:
            raise ALLMRecError(f"{place}: {error}") from error
        found.append(ScenarioSpec("-".join([label, *domains]), made, domains, only))
    return found


def _order(number: Any) -> float:
    return float(number) if isinstance(number, int) else 0.0  # what is no number is refused by the scenario


def _domains(given: dict[str, Any], place: str, datasets: Sequence[str]) -> tuple[str, str]:
    train, test = (_one_of(given.pop(key, None), datasets, f"{place}.{key}", "data set") for key in ("train", "test"))
    if train == test:
        raise ALLMRecError(f"{place}: train and test are both {test!r}; name two data sets")
    return train, test


def _method(value: Any, place: str, datasets: Sequence[str], scenarios: Sequence[ScenarioSpec]) -> MethodSpec:
    given = {"method": value} if isinstance(value, str) else _mapping(value, place, _METHOD_KEYS, ("method",))
    name = _one_of(given["method"], method_names(), f"{place}.method", "method")
    known = list(dict.fromkeys(part for spec in scenarios for part in (spec.scenario.name, spec.label)))
    options = _mapping(given.get("options") or {}, f"{place}.options", None)
    backbone = given.get("backbone")
    return MethodSpec(
        label=_text(given.get("label", name), f"{place}.label"),
        method=name,
        options=options,
        ablation_of=given.get("ablation_of"),
        llm=None if given.get("llm") is None else _text(given["llm"], f"{place}.llm"),
        backbone=None if backbone is None else _one_of(backbone, backbone_names(), f"{place}.backbone", "backbone"),
        only_scenarios=tuple(_names(given.get("only_scenarios", []), known, f"{place}.only_scenarios", "scenario")),
        only_datasets=tuple(_names(given.get("only_datasets", []), datasets, f"{place}.only_datasets", "data set")),
    )


def _budget(value: Any, place: str) -> dict[str, dict[str, Any]]:
    budget = {
        stage: dict(_mapping(part, f"{place}.{stage}", None)) for stage, part in _mapping(value, place, LOOPS).items()
    }
    for stage, part in budget.items():
        if "seed" in part:
            raise ALLMRecError(f"{place}.{stage} sets the seed, which would make all seeds one run; use `seeds`")
        try:
            StageArguments.from_dict(part)
        except ALLMRecError as error:
            raise ALLMRecError(f"{place}.{stage}: {error}") from error
    return budget


def _evaluation(value: Any, place: str) -> EvaluationSpec:
    given = _mapping(value, place, ("protocol", "max_users", "cutoffs", "history_buckets"))
    protocol = _one_of(given.get("protocol", "candidates"), ("candidates", "full"), f"{place}.protocol", "protocol")
    users, buckets, cutoffs = given.get("max_users"), given.get("history_buckets"), given.get("cutoffs")
    if buckets is not None and sorted(set(_numbers(buckets, f"{place}.history_buckets", empty=True))) != list(buckets):
        raise ALLMRecError(f"{place}.history_buckets must be growing numbers, got {buckets!r}")
    return EvaluationSpec(
        protocol="full" if protocol == "full" else "candidates",
        max_users=None if users is None else _numbers([users], f"{place}.max_users")[0],
        cutoffs=None if cutoffs is None else tuple(_numbers(cutoffs, f"{place}.cutoffs")),
        history_buckets=None if buckets is None else tuple(_numbers(buckets, f"{place}.history_buckets", empty=True)),
    )


def _entries(given: Mapping[str, Any], key: str, where: str) -> list[tuple[Any, str]]:
    values = given[key]
    if not isinstance(values, list) or not values:
        raise ALLMRecError(f"{where}: {key} must be a list with at least one entry, got {values!r}")
    return [(value, f"{where}: {key}[{number}]") for number, value in enumerate(values)]


def _mapping(value: Any, place: str, known: Sequence[str] | None, needed: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ALLMRecError(f"{place} must be a mapping of names to values, got {value!r}")
    unknown = [key for key in value if not isinstance(key, str) or (known is not None and key not in known)]
    if unknown:
        raise ALLMRecError(f"{place} has unknown keys {unknown}; known ones: {', '.join(known or ['any text'])}")
    missing = [key for key in needed if value.get(key) is None]
    if missing:
        raise ALLMRecError(f"{place} lacks {', '.join(missing)}")
    return value


def _unique(names: Sequence[str], place: str, what: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ALLMRecError(f"{place}: each {what} may stand there once; more than once: {', '.join(twice)}")
    return list(names)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ALLMRecError(f"{place} must be a text, got {value!r}")
    return value


def _one_of(value: Any, known: Sequence[str], place: str, what: str) -> str:
    if value not in known:
        raise ALLMRecError(f"{place}: unknown {what} {value!r}; known ones: {', '.join(known)}")
    return str(value)


def _names(value: Any, known: Sequence[str], place: str, what: str) -> list[str]:
    return [_one_of(name, known, place, what) for name in (value if isinstance(value, list) else [value])]


def _numbers(value: Any, place: str, least: int = 1, empty: bool = False) -> list[int]:
    whole = isinstance(value, list) and all(type(number) is int and number >= least for number in value)
    if not whole or not (value or empty):
        raise ALLMRecError(f"{place} must be whole numbers of at least {least}, got {value!r}")
    return list(value)
