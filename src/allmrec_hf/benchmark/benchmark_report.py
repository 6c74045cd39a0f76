"""Write the report of a benchmark: a self-contained HTML file, the same in Markdown, and its tables as parquet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evaluation.warmth import OVERALL
from ..files import written_whole
from . import plots, views
from .published import PublishedValue
from .result_tables import (
    BASE_SCENARIO,
    Tables,
    by_scenario,
    chance,
    default_reference,
    headline,
    labels_in_order,
    make_tables,
    measured,
)
from .runs import BenchmarkRun
from .verdicts import CONTROLS, name, parameters, verdicts

HTML_FILE, MARKDOWN_FILE, TABLES_FOLDER = "report.html", "report.md", "tables"
_TEMPLATES = {HTML_FILE: "report.html.jinja", MARKDOWN_FILE: "report.md.jinja"}
_SHARES = "share of the training data"
_SCALING = (
    (re.compile(r"few-shot-(\d+)"), "training users"),
    (re.compile(r"share-(0?\.\d+|1|1\.0)"), _SHARES),
)
_BADGES = {
    "alarm": "ALARM",
    "against": "against",
    "missing": "missing",
    "note": "note",
    "good": "holds",
    "quiet": "quiet",
}
_READING = (
    "A figure is a mean over users of values averaged over seeds; the range beside it is the 95 % interval of a paired "
    "bootstrap over users, ± the sample deviation of the mean over seeds, where there are several.",
    "Bold in tables of results: the highest mean of the column, and every method whose interval of the difference to "
    "it includes 0, so that the figures do not tell the two apart. This is not corrected for the number of methods. "
    "Groups of fewer than 10 users are too few to compare: nothing in them is bold.",
    "A user belongs to the group of the target item. Warm are the 35 % of the items with the most training "
    "interactions, cold the 35 % with the fewest and every item without any, so cold includes never seen; the 30 % of "
    "the items in the middle are in neither.",
    "A comparison is the method under test minus the other. p randomised: sign flips by user, two-sided. p McNemar: "
    "exact, on hits, the least favourable seed; none where ties make a hit a share of one. p Holm: the randomised p "
    "corrected over all methods and groups of that scenario and metric. Bold and coloured: p Holm below 0.05.",
    "Candidates of equal score are tied: every metric of a user is its mean over all orders of the tied, so a method "
    "that gives all candidates one score has what a random order has, and a hit may be a share of one.",
    "Where users rank among candidates, the same users also rank the whole catalogue, items they have seen left out, "
    "by every method but those whose LLM reads every item; the measures beside it are of the first 10 places. The last "
    "column is what the order of the histories is worth to a method: its figure less that after histories in random "
    "order.",
    "Epochs and variants are selected on the validation part; the test part is only ranked. Methods with an LLM, "
    "no-llm and fair-backbone learn from the validation part too, unless their targets are those of training (of a "
    "fusion its weights do); all others learn from the training part alone.",
    "Intervals and tests speak of other users of the same kind, not of other data, other candidates or, with one seed, "
    "other training runs.",
)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&#!])")


@dataclass(frozen=True)
class _Material:
    """The runs, tables and labels that all parts of a report use."""

    runs: Sequence[BenchmarkRun]
    tables: Tables
    reference: str | None
    first: Mapping[str, BenchmarkRun]
    kinds: Mapping[str, str]

    def points(self, dataset: str, scenario: str, group: str, metric: str) -> list[plots.Point]:
        """Return the means with intervals of one group, in the order of the tables."""
        rows = self.tables.results.filter(dataset=dataset, scenario=scenario, group=group, metric=metric)
        return [
            plots.Point(row["label"], self.kinds[row["label"]], row["mean"], row["low"], row["high"])
            for row in rows.iter_rows(named=True)
        ]

    def whole_methods(self, dataset: str, scenario: str, group: str, metric: str) -> list[plots.Point]:
        """Return the same without ablations, which have a plot of their own; all where there is nothing else."""
        points = self.points(dataset, scenario, group, metric)
        return [point for point in points if point.kind != plots.ABLATION] or points


def render(
    output: Path,
    runs: Sequence[BenchmarkRun],
    title: str,
    reference: str | None = None,
    *,
    command: str = "",
    order: Sequence[str] = (),
    published: Sequence[PublishedValue] = (),
    skipped: Sequence[Mapping[str, Any]] = (),
    failed: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `report.html`, `report.md` and `tables/*.parquet`; the same runs give the same bytes.

    Args:
        output: The benchmark's folder.
        runs: Finished runs; data sets and scenarios are shown in the order in which they first appear.
        title: The report's title.
        reference: Label of the method under test, which every other is compared with; None takes the first whole
            A-LLMRec, and where there is none, compares nothing.
        command: The command that ran the benchmark.
        order: Labels in the order of the tables.
        published: Published figures to print beside ours.
        skipped: Scenarios that could not be made, each with `dataset`, `scenario`, `reason`; with `label` and `seed`
            too, runs that are not there.
        failed: Runs that failed, each with `dataset`, `scenario`, `label`, `seed`, `error`.

    Returns:
        The path of the HTML file.

    Raises:
        ALLMRecError: when the reference is no label, or matplotlib is not installed.
        DataError: when runs cannot be compared: other candidates, users, groups, or one seed of a label twice.
    """
    reference = reference if reference is not None else default_reference(runs)
    tables = make_tables(runs, reference, order)
    first = labels_in_order(runs, order)
    kinds = {label: _kind(run, label == reference) for label, run in first.items()}
    material = _Material(runs, tables, reference, first, kinds)
    found = verdicts(runs, tables, reference)
    context = {
        "title": title,
        "command": command,
        "reference": reference,
        "subjects": {subject: [v for v in found if v.subject == subject] for subject in _unique(found, "subject")},
        "num_runs": len(runs),
        "seeds": sorted({run.key.seed for run in runs}),
        "llms": _llms(runs),
        "versions": _versions(runs),
        "data": views.data_grid(by_scenario(runs)),
        "methods": views.methods_grid(first, kinds),
        "datasets": [
            _dataset(material, dataset, published) for dataset in dict.fromkeys(key[0] for key in by_scenario(runs))
        ],
        "problems": _problems(skipped, failed),
        "colours": plots.COLOURS,
        "badges": _BADGES,
        "reading": _READING,
    }
    for file, template in _TEMPLATES.items():
        text = _environment(file == HTML_FILE).from_string(_template(template)).render(context)
        with written_whole(output / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    tables.write(output / TABLES_FOLDER)
    return output / HTML_FILE


def markdown_text(value: Any) -> str:
    """Return text that Markdown shows as it is: markup and pipes escaped, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def _environment(is_html: bool) -> Environment:
    environment = Environment(autoescape=is_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["md"] = markdown_text
    environment.filters["svg"] = Markup
    return environment


def _template(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _kind(run: BenchmarkRun, is_reference: bool) -> str:
    if is_reference:
        return plots.REFERENCE
    if run.details.get("ablation_of"):
        return plots.ABLATION
    return plots.CONTROL if run.key.method in CONTROLS else plots.METHOD


def _unique(entries: Iterable[Any], attribute: str) -> list[Any]:
    return list(dict.fromkeys(getattr(entry, attribute) for entry in entries))


def _llms(runs: Sequence[BenchmarkRun]) -> list[str]:
    known = {run.details.get("llm"): run.details.get("llm_parameters") for run in runs if run.details.get("llm")}
    return [f"{llm} ({parameters(size)} parameters)" if size else str(llm) for llm, size in known.items()]


def _versions(runs: Sequence[BenchmarkRun]) -> dict[str, str]:
    """Return each library's versions; more than one where runs were computed with different ones."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for library, version in (run.report.get("versions") or {}).items():
            if version not in found.setdefault(library, []):
                found[library].append(version)
    return {library: " and ".join(sorted(versions)) for library, versions in found.items()}


def _problems(skipped: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each missing or failed run; runs of a scenario missing for one reason share a line."""
    found = [f"{_place(entry)}: not made: {entry['reason']}" for entry in skipped if "label" not in entry]
    absent: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in skipped:
        if "label" in entry:
            absent.setdefault((_place(entry), str(entry["reason"])), []).append(entry)
    for (place, reason), entries in absent.items():
        if len(entries) == 1:
            found.append(f"{place}, {_run_of(entries[0])}: {reason}")
        else:
            found.append(f"{place}: {len(entries)} runs {reason}: {_labels_with_seeds(entries)}")
    return found + [f"{_place(entry)}, {_run_of(entry)}: failed: {entry.get('error', '')}" for entry in failed]


def _place(entry: Mapping[str, Any]) -> str:
    return f"{entry['dataset']}, {entry['scenario']}"


def _run_of(entry: Mapping[str, Any]) -> str:
    return f"{entry['label']}, seed {entry['seed']}"


def _labels_with_seeds(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the labels, each with its seeds, or without them where all are of one seed."""
    seeds: dict[str, list[str]] = {}
    for entry in entries:
        seeds.setdefault(str(entry["label"]), []).append(str(entry["seed"]))
    if len({seed for found in seeds.values() for seed in found}) == 1:
        return f"{', '.join(seeds)} (seed {entries[0]['seed']})"
    return ", ".join(
        f"{label} ({'seed' if len(found) == 1 else 'seeds'} {' and '.join(found)})" for label, found in seeds.items()
    )


def _dataset(material: _Material, dataset: str, published: Sequence[PublishedValue]) -> views.DatasetView:
    labels = list(material.first)
    scenes = {
        scenario: sorted(found, key=lambda run: labels.index(run.key.label))
        for (place, scenario), found in by_scenario(material.runs).items()
        if place == dataset
    }
    runs = [run for found in scenes.values() for run in found]
    runs.sort(key=lambda run: labels.index(run.key.label))
    base = BASE_SCENARIO if BASE_SCENARIO in scenes else next(iter(scenes))
    ablations = _ablation_rows(material, dataset)
    return views.DatasetView(
        name=dataset,
        scenes=[_scene(material, dataset, scenario, found) for scenario, found in scenes.items()],
        plots=[
            *_scaling(material, dataset, list(scenes)),
            *_sizes(material, dataset, base),
            *_ablation_plots(material, dataset, ablations),
        ],
        ablations=views.ablations_grid(ablations),
        geometry=views.geometry_grid(runs),
        published=views.published_grid(dataset, published, material.tables),
        published_note=views.published_note(published),
        cost=views.cost_grid(runs, list(scenes)),
    )


def _scene(material: _Material, dataset: str, scenario: str, runs: Sequence[BenchmarkRun]) -> views.SceneView:
    place = {"dataset": dataset, "scenario": scenario}
    results = list(material.tables.results.filter(**place).iter_rows(named=True))
    compared = material.tables.comparisons.filter(**place)
    compared = compared.filter(reference=material.reference or "")
    return views.SceneView(
        name=scenario,
        facts=views.scenario_facts(runs),
        results=views.results_grid(results, material.kinds, runs[0]),
        comparisons=views.comparisons_grid(list(compared.iter_rows(named=True))),
        plots=_scene_plots(material, dataset, scenario, runs),
        catalogue=views.catalogue_grid(runs),
    )


def _scene_plots(material: _Material, dataset: str, scenario: str, runs: Sequence[BenchmarkRun]) -> list[views.Plot]:
    metric = headline(measured(runs))[0]
    groups = (OVERALL, "warm", "cold")
    panels = {group: material.whole_methods(dataset, scenario, group, metric) for group in groups}
    panels = {group: points for group, points in panels.items() if points}
    where, shown = f"{dataset}, {scenario}", name(metric)
    named = {views.words(group): points for group, points in panels.items()}
    random_order = chance(runs[0], metric)
    caption = f"{shown} with 95 % intervals over users, {where}"
    found = [views.Plot(caption, plots.bars(named, shown, random_order, caption))]
    if "warm" in panels and "cold" in panels:
        caption = f"Warm against cold targets, {where}: up and to the right is better"
        pairs = list(zip(panels["warm"], panels["cold"], strict=True))
        found.append(views.Plot(caption, plots.scatter(pairs, shown, caption)))
    return found


def _scaling(material: _Material, dataset: str, scenarios: Sequence[str]) -> list[views.Plot]:
    found = []
    for pattern, x_label in _SCALING:
        matches = {scenario: pattern.fullmatch(scenario) for scenario in scenarios}
        places = sorted((float(match[1]), scenario) for scenario, match in matches.items() if match)
        if x_label == _SHARES and places and _same_questions(material.runs, dataset, places[-1][1], BASE_SCENARIO):
            places = [place for place in places if place[0] < 1] + [(1.0, BASE_SCENARIO)]
        lines: dict[str, list[tuple[float, plots.Point]]] = {}
        metric = _metric(material)
        for x, scenario in places:
            for point in material.whole_methods(dataset, scenario, OVERALL, metric):
                lines.setdefault(point.label, []).append((x, point))
        lines = {label: points for label, points in lines.items() if len(points) > 1}
        if lines:
            caption = f"{name(metric)} by {x_label}, {dataset}"
            found.append(views.Plot(caption, plots.curves(lines, x_label, name(metric), caption)))
    return found


def _same_questions(runs: Sequence[BenchmarkRun], dataset: str, *scenarios: str) -> bool:
    """Tell whether scenarios of a data set evaluate the same users on the same candidates."""
    asked = {
        (run.key.scenario, run.report["candidates_sha256"], run.report["users"])
        for run in runs
        if run.key.dataset == dataset and run.key.scenario in scenarios
    }
    return len(asked) == len(scenarios) and len({questions[1:] for questions in asked}) == 1


def _sizes(material: _Material, dataset: str, scenario: str) -> list[views.Plot]:
    """Return the curve over sizes of the LLM, where the method under test was run with several."""
    if material.reference is None:
        return []
    own, metric = material.first[material.reference].key, _metric(material)
    method = own.method
    alike = {
        label
        for label, run in material.first.items()
        if run.key.method == method and _but_llm(run) == _but_llm(material.first[material.reference])
    }
    points = {
        float(material.first[point.label].details["llm_parameters"]): point
        for point in material.points(dataset, scenario, OVERALL, metric)
        if point.label in alike and material.first[point.label].details.get("llm_parameters")
    }
    if len(points) < 2:
        return []
    caption = f"{name(metric)} by size of the LLM, {dataset}, {scenario}"
    svg = plots.curves({method: sorted(points.items())}, "parameters of the LLM", name(metric), caption)
    return [views.Plot(caption, svg)]


def _but_llm(run: BenchmarkRun) -> dict[str, Any]:
    """Return all that decides a run's result but its data, seed and LLM."""
    return {name: run.key.facts.get(name) for name in ("backbone", "options", "preset", "budget", "text_encoder")}


def _metric(material: _Material) -> str:
    return headline(measured(material.runs))[0]


def _ablation_rows(material: _Material, dataset: str) -> list[tuple[str, Mapping[str, Any]]]:
    metrics = headline(measured(material.runs))
    rows = material.tables.comparisons.filter(pl.col("metric").is_in(metrics), dataset=dataset, group=OVERALL)
    return [
        (row["scenario"], row)
        for row in rows.iter_rows(named=True)
        if material.first[row["label"]].details.get("ablation_of") == row["reference"]
    ]


def _ablation_plots(
    material: _Material, dataset: str, rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[views.Plot]:
    metric, found = _metric(material), []
    scenarios = list(dict.fromkeys(scenario for scenario, _ in rows))
    scenario = BASE_SCENARIO if BASE_SCENARIO in scenarios else next(iter(scenarios), None)
    shown = [row for place, row in rows if place == scenario and row["metric"] == metric]
    for parent in dict.fromkeys(row["reference"] for row in shown):
        points = [
            plots.Point(row["label"], plots.ABLATION, -row["difference"], -row["high"], -row["low"])
            for row in shown
            if row["reference"] == parent
        ]
        caption = f"Ablations of {parent}: {name(metric)} minus that of the whole, {dataset}, {scenario}"
        found.append(views.Plot(caption, plots.differences(points, name(metric), caption)))
    return found
