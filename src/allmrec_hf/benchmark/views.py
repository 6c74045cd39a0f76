"""Lay out a report as plain tables for both templates, with neither statistics nor markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.warmth import OVERALL
from .published import PublishedValue
from .result_tables import FEW_USERS, SIGNIFICANT, Tables, chance, headline
from .runs import BenchmarkRun
from .verdicts import name, p_value, parameters, signed

NONE = "-"


@dataclass(frozen=True)
class Entry:
    """One field of a grid.

    Attributes:
        text: What it says.
        detail: What stands smaller beside it.
        strong: Whether it is emphasised.
        tone: `up`, `down`, or a kind of method, for its colour.
    """

    text: str
    detail: str = ""
    strong: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under a heading."""

    heading: str
    rows: Sequence[Sequence[Entry]]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        header: Names of the columns.
        sections: Its rows.
        texts: How many columns at the left hold text; the others hold numbers.
    """

    header: Sequence[str]
    sections: Sequence[Section]
    texts: int = 1


@dataclass(frozen=True)
class Plot:
    """A picture with the sentence under it."""

    caption: str
    svg: str


@dataclass(frozen=True)
class SceneView:
    """A scenario of a dataset."""

    name: str
    facts: str
    results: Grid
    comparisons: Grid | None
    plots: Sequence[Plot]
    catalogue: Grid | None = None


@dataclass(frozen=True)
class DatasetView:
    """All tables and plots of one dataset."""

    name: str
    scenes: Sequence[SceneView]
    plots: Sequence[Plot] = ()
    ablations: Grid | None = None
    geometry: Grid | None = None
    published: Grid | None = None
    published_note: str = ""
    cost: Grid | None = None


def texts(*words: str) -> list[Entry]:
    """Return entries without emphasis."""
    return [Entry(word) for word in words]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested facts as one level, names joined by a space."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key} ")
        else:
            found[f"{prefix}{key}"] = value
    return found


def words(group: str) -> str:
    """Return a group's name for readers."""
    return "all users" if group == OVERALL else group.replace("_", " ")


def group_heading(group: str, users: int) -> str:
    """Return a group's name with its size, and whether that allows a comparison."""
    remark = "; too few users to compare" if users < FEW_USERS else ""
    return f"{words(group)} ({users:,} {'user' if users == 1 else 'users'}{remark})"


def number(value: Any) -> str:
    """Return a figure for readers: counts with separators, other numbers with four digits, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def results_grid(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], run: BenchmarkRun) -> Grid:
    """Return means with intervals and spread over seeds, the best and those not told apart from it emphasised."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    sections = []
    for group in dict.fromkeys(row["group"] for row in rows):
        found = {(row["label"], row["metric"]): row for row in rows if row["group"] == group}
        labels = list(dict.fromkeys(label for label, _ in found))
        users = next(iter(found.values()))["users"]
        emphasised = len(labels) > 1 and users >= FEW_USERS
        lines = []
        for label in labels:
            line = [Entry(label, kinds[label], tone=kinds[label])]
            for metric in metrics:
                row = found[label, metric]
                spread = f" ±{row['deviation']:.4f}" if row["deviation"] is not None else ""
                detail = f"{row['low']:.3f} to {row['high']:.3f}{spread}"
                line.append(Entry(f"{row['mean']:.4f}", detail, strong=emphasised and row["among_best"]))
            lines.append(line)
        by_chance = texts(*(f"{chance(run, metric, group):.4f}" for metric in metrics))
        lines.append([Entry("chance", "a random order"), *by_chance])
        sections.append(Section(group_heading(group, users), lines))
    return Grid(["method", *map(name, metrics)], sections)


def comparisons_grid(rows: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Return differences of the headline metrics with their p values; None where nothing was compared."""
    if not rows:
        return None
    metrics = headline(list(dict.fromkeys(row["metric"] for row in rows)))
    header = ["against"]
    for metric in metrics:
        hit = metric.startswith("hit@")
        header += [f"{name(metric)} difference", "p randomised", *(["p McNemar"] if hit else []), "p Holm"]
    sections = []
    for group in dict.fromkeys(row["group"] for row in rows):
        found = {(row["label"], row["metric"]): row for row in rows if row["group"] == group}
        lines = []
        for label in dict.fromkeys(label for label, _ in found):
            line = [Entry(label)]
            for metric in metrics:
                row = found[label, metric]
                mcnemar = [row["p_mcnemar"]] if metric.startswith("hit@") else []
                values = [row["p_randomisation"], *mcnemar, row["p_holm"]]
                line += [difference(row), *texts(*map(p_value, values))]
            lines.append(line)
        sections.append(Section(group_heading(group, next(iter(found.values()))["users"]), lines))
    return Grid(header, sections)


def difference(row: Mapping[str, Any], sign: int = 1) -> Entry:
    """Return a difference with its interval, emphasised and coloured where Holm's correction leaves it significant.

    In a group of few users nothing is emphasised.
    """
    value = sign * row["difference"]
    low, high = sorted((sign * row["low"], sign * row["high"]))
    significant = row["p_holm"] < SIGNIFICANT and row["users"] >= FEW_USERS
    tone = ("up" if value > 0 else "down") if significant else ""
    return Entry(signed(value), f"{signed(low, 3)} to {signed(high, 3)}", significant, tone)


def ablations_grid(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Grid | None:
    """Return, for each ablation's row of `Tables.comparisons` with its scenario, ablation minus the whole method."""
    lines = [
        [
            *texts(row["label"], row["reference"], scenario, name(row["metric"])),
            difference(row, -1),
            Entry(p_value(row["p_holm"])),
        ]
        for scenario, row in rows
    ]
    header = ["ablation", "of", "scenario", "metric", "difference", "p Holm"]
    return Grid(header, [Section("", lines)], texts=4) if lines else None


def methods_grid(first: Mapping[str, BenchmarkRun], kinds: Mapping[str, str]) -> Grid:
    """Return what each method is, where it comes from and what is simplified."""
    lines = []
    for label, run in first.items():
        details = run.details
        llm = str(details.get("llm") or NONE)
        if details.get("llm_parameters"):
            llm += f" ({parameters(details['llm_parameters'])} parameters)"
        options = ", ".join(f"{key}: {value}" for key, value in flat(details.get("options") or {}).items())
        paper, simplified = str(details.get("paper") or NONE), str(details.get("simplified") or NONE)
        words_of_it = texts(run.key.method, llm, paper, simplified, options or NONE)
        lines.append([Entry(label, kinds[label], tone=kinds[label]), *words_of_it])
    header = ["label", "method", "LLM", "paper", "what is simplified or differs", "options"]
    return Grid(header, [Section("", lines)], texts=len(header))


def data_grid(scenes: Mapping[tuple[str, str], Sequence[BenchmarkRun]]) -> Grid:
    """Return what was evaluated in each dataset and scenario."""
    lines = []
    for (dataset, scenario), runs in scenes.items():
        report = runs[0].report
        seeds = sorted({run.key.seed for run in runs})
        available = number(report.get("users_available", report["users"]))
        lines.append(
            [
                *texts(dataset, scenario, report["protocol"], report["split"]),
                Entry(number(report["users"]), f"of {available}"),
                *texts(number(report["num_items"]), number(report["num_candidates"])),
                *texts(", ".join(map(str, seeds)), str(report["candidates_sha256"])[:12]),
            ]
        )
    header = ["data", "scenario", "protocol", "split", "users", "items", "candidates", "seeds", "candidate file"]
    return Grid(header, [Section("", lines)], texts=4)


def scenario_facts(runs: Sequence[BenchmarkRun]) -> str:
    """Return what the runs say of their scenario, as one line."""
    described = runs[0].details.get("scenario") or runs[0].report.get("scenario") or {}
    if not isinstance(described, Mapping):
        return str(described)
    return " · ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in flat(described).items())


def catalogue_grid(runs: Sequence[BenchmarkRun]) -> Grid | None:
    """Return what the whole catalogue ranked for the same users gives, and what the order of histories is worth.

    Means over seeds; None where no run has it. A method whose LLM reads every item is not in it.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        whole = run.report.get("full_ranking")
        if whole is not None:
            found.setdefault(run.key.label, []).append(_catalogue_figures(run, whole))
    if not found:
        return None
    columns = list(dict.fromkeys(column for seeds in found.values() for one in seeds for column in one))
    lines = []
    for label, seeds in found.items():
        values = [[one[column] for one in seeds if column in one] for column in columns]
        lines.append([Entry(label), *texts(*(f"{sum(own) / len(own):.4f}" if own else NONE for own in values))])
    return Grid(["whole catalogue", *columns], [Section("", lines)])


def _catalogue_figures(run: BenchmarkRun, whole: Mapping[str, Any]) -> dict[str, float]:
    """Return what a row of `catalogue_grid` shows of one run."""
    method = run.key.label
    groups, lists = whole["methods"][method], whole.get("beyond_accuracy", {}).get(method, {})
    found = {
        name(metric) + ("" if group == OVERALL else f", {words(group)}"): groups[group][metric]
        for group in (OVERALL, "cold")
        for metric in ("hit@10", "ndcg@10")
        if metric in groups.get(group, {})
    }
    found |= {measure.replace("_", " "): value for measure, value in lists.items() if measure != "places"}
    shuffled = run.report.get("shuffled", {}).get(method, {}).get(OVERALL, {})
    metric = next((one for one in reversed(shuffled) if one.startswith("ndcg")), None)
    if metric is not None:
        lost = run.report["methods"][method][OVERALL][metric] - shuffled[metric]
        found[f"{name(metric)} among candidates, lost in random order"] = lost
    return found


def cost_grid(runs: Sequence[BenchmarkRun], scenarios: Sequence[str]) -> Grid:
    """Return seconds of training and evaluation, the mean over seeds, by label and scenario."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        seconds.setdefault((run.key.label, run.key.scenario), []).append(run.seconds)
    lines = []
    for label in dict.fromkeys(run.key.label for run in runs):
        found = [seconds.get((label, scenario)) for scenario in scenarios]
        lines.append([Entry(label), *texts(*(f"{sum(one) / len(one):,.1f}" if one else NONE for one in found))])
    total = [sum(run.seconds for run in runs if run.key.scenario == scenario) for scenario in scenarios]
    lines.append([Entry("all runs, summed", strong=True), *texts(*(f"{value:,.1f}" for value in total))])
    return Grid(["seconds, mean over seeds", *scenarios], [Section("", lines)])


def geometry_grid(runs: Sequence[BenchmarkRun]) -> Grid | None:
    """Return the geometry of joint embeddings, the mean over seeds; None where no run has any.

    Methods that share an alignment stand in one row.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        if isinstance(run.details.get("geometry"), Mapping):
            found.setdefault((run.key.label, run.key.scenario), []).append(flat(run.details["geometry"]))
    if not found:
        return None
    columns = list(dict.fromkeys(key for seeds in found.values() for one in seeds for key in one))
    rows: dict[tuple[str, ...], list[str]] = {}
    for (label, scenario), seeds in found.items():
        row = (scenario, *(_average([one.get(column) for one in seeds]) for column in columns))
        rows.setdefault(row, []).append(label)
    lines = [texts(", ".join(labels), *row) for row, labels in rows.items()]
    return Grid(["method", "scenario", *(column.replace("_", " ") for column in columns)], [Section("", lines)], 2)


def _average(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    return number(sum(numbers) / len(numbers)) if numbers else NONE


def published_grid(dataset: str, values: Sequence[PublishedValue], tables: Tables | None = None) -> Grid | None:
    """Return published figures beside ours of the same scenario, group, label and metric, where there are any.

    Where the figures name sources, each row says its own, and methods of ours that nobody published follow.
    """
    results = [] if tables is None else tables.results.filter(dataset=dataset).iter_rows(named=True)
    ours = {(row["scenario"], row["group"], row["metric"], row["label"].casefold()): row for row in results}
    values = [value for value in values if value.dataset == dataset]
    sourced = any(value.source for value in values)
    lines: dict[tuple[str, str, str], list[list[Entry]]] = {}
    for value in values:
        place = (value.scenario, value.group, value.metric)
        row = ours.pop((*place, value.label.casefold()), None)
        apart = signed(row["mean"] - value.value) if row else NONE
        line = [Entry(value.label), Entry(f"{value.value:.4f}"), _measured(row), Entry(apart)]
        lines.setdefault(place, []).append([*line, Entry(value.source)] if sourced else line)
    for (*where, _), row in ours.items():
        if sourced and tuple(where) in lines:
            lines[where[0], where[1], where[2]].append(
                [Entry(row["label"]), Entry(NONE), _measured(row), *texts(NONE, NONE)]
            )
    header = ["method", "published", "here", "here minus published", *(["source"] if sourced else [])]
    headings = (f"{scenario}, {words(group)}, {name(metric)}" for scenario, group, metric in lines)
    sections = [Section(heading, found) for heading, found in zip(headings, lines.values(), strict=True)]
    return Grid(header, sections) if sections else None


def _measured(row: Mapping[str, Any] | None) -> Entry:
    """Return a mean with its interval and its spread over seeds."""
    if row is None:
        return Entry(NONE)
    spread = f" ±{row['deviation']:.4f}" if row["deviation"] is not None else ""
    return Entry(f"{row['mean']:.4f}", f"{row['low']:.3f} to {row['high']:.3f}{spread}")


def published_note(values: Sequence[PublishedValue]) -> str:
    """Return what a reader of published figures has to know of them."""
    if any(value.source for value in values):
        return (
            "Published by the sources named beside the figures: the same sequences, every item ranked but those seen. "
            "They chose other settings and mostly other losses; a difference is no test."
        )
    other = "other candidates, another LLM and one unseeded run"
    return f"Published in arXiv 2404.11343 with {other}; a difference is no test."


def grid_lines(grid: Grid) -> list[str]:
    """Return a table as lines of plain text, its columns aligned."""
    rows = [[*grid.header], *([_plain(cell) for cell in row] for part in grid.sections for row in part.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(grid.header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    found: list[str] = []
    for section in grid.sections:
        found += [section.heading, line(grid.header), *(line([*map(_plain, row)]) for row in section.rows)]
    return found


def _plain(cell: Entry) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text
