"""Format an evaluation report as tables, from the stored JSON alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]
MISSING = "-"
NOBODY = {"users": 0}
_PIPE = re.compile(r"(?<!\\)\|")


def metric_names(report: Report) -> list[str]:
    """Return the metrics shown in tables, in the order of the report; NDCG@1 equals Hit@1 and is left out."""
    names: list[str] = []
    for groups in report["methods"].values():
        for metrics in groups.values():
            names += [name for name in metrics if name not in (*names, "users", "ndcg@1")]
    return names


def group_names(report: Report) -> list[str]:
    """Return the groups of users that a report has, in its order."""
    return list(dict.fromkeys(group for groups in report["methods"].values() for group in groups))


def table_rows(report: Report) -> list[list[str]]:
    """Return the table as text cells: a header, then one row for each group and method."""
    metrics = metric_names(report)
    rows = [["targets", "method", "users", *metrics]]
    for group in group_names(report):
        for method, groups in report["methods"].items():
            values = groups.get(group, NOBODY)
            cells = [f"{values[name]:.4f}" if name in values else MISSING for name in metrics]
            rows.append([group.replace("_", " "), method, f"{values['users']:,}", *cells])
    return rows


def describe(report: Report) -> str:
    """Return one sentence that says what the numbers of a report are about."""
    users = f"{report['users']:,} users"
    if report["users"] < report["users_available"]:
        users = f"a sample of {report['users']:,} of {report['users_available']:,} users (seed {report['seed']})"
    choice = {
        "candidates": f"each target among {report['num_candidates']} seeded candidates, the same for every method",
        "paper": f"top-1 or generated title among {report['num_candidates']} seeded candidates, exact match",
        "full": f"the first {report['num_retrieved']} of all {report['num_items']:,} items, a target beyond is a miss",
    }[report["protocol"]]
    scenario = f", scenario {report['scenario']['label']}" if "scenario" in report else ""
    return f"{report['dataset']}{scenario}, {report['split']} split, protocol {report['protocol']}: {users}, {choice}"


def about_ties(report: Report) -> str:
    """Return how a report's metrics treat candidates of equal score; reports of format 1 did it otherwise."""
    if report.get("format", 1) < 2:
        return "Ties get the expected rank."
    return "Metrics are means over all orders of tied candidates."


def shuffle_rows(report: Report) -> list[list[str]]:
    """Return the shuffle test as text cells: of all users each metric, that after shuffled histories, and the loss."""
    names = [name for name in metric_names(report) if name.startswith("ndcg")]
    rows = [["histories in random order", "method", *(word for n in names for word in (n, "shuffled", "loss"))]]
    for method, groups in report["shuffled"].items():
        pairs = [(report["methods"][method]["overall"][name], groups["overall"][name]) for name in names]
        cells = [f"{value:.4f}" for own, other in pairs for value in (own, other, own - other)]
        rows.append(["overall", method, *cells])
    return rows


def beyond_accuracy_rows(report: Report) -> list[list[str]]:
    """Return what the methods' lists are like as text cells, see `beyond_accuracy`."""
    methods = report["beyond_accuracy"]
    names = list(dict.fromkeys(name for values in methods.values() for name in values if name != "places"))
    places = next(int(values["places"]) for values in methods.values())
    rows = [[f"the first {places} places", "method", *(name.replace("_", " ") for name in names)]]
    for method, values in methods.items():
        rows.append(["lists", method, *(f"{values[name]:.4f}" if name in values else MISSING for name in names)])
    return rows


def further_rows(report: Report) -> list[list[list[str]]]:
    """Return the tables that follow the first: the shuffle test and the measures beyond accuracy, where there are."""
    found = [(shuffle_rows, "shuffled"), (beyond_accuracy_rows, "beyond_accuracy")]
    return [rows(report) for rows, name in found if name in report]


def format_table(report: Report) -> str:
    """Return aligned text tables under one line that says what they show; the full ranking comes last."""
    parts = [_aligned(rows) for rows in (table_rows(report), *further_rows(report))]
    whole = [format_table(report["full_ranking"])] if "full_ranking" in report else []
    return "\n\n".join([describe(report), *parts, *whole])


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        if number and row[0] != rows[number - 1][0]:
            lines.append("  ".join("-" * width for width in widths))
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_markdown(report: Report) -> str:
    """Return the table in Markdown; a pipe in a method's name is escaped, other markup is the caller's to escape."""
    parts = [_markdown(rows) for rows in (table_rows(report), *further_rows(report))]
    whole = report.get("full_ranking")
    return "\n\n".join([*parts, *([] if whole is None else [describe(whole), format_markdown(whole)])])


def _markdown(table: list[list[str]]) -> str:
    header, *rows = [[_PIPE.sub(r"\\|", cell) for cell in row] for row in table]
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
