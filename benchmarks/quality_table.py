"""Turn the cells of the quality benchmark into the committed table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OURS = "allmrec-hf"
METRICS = ("ndcg@10", "hit@10", "mrr")
HEADINGS = ("library", "NDCG@10", "Hit@10", "MRR", "epochs (best)", "CPU seconds", "stopped by")
NAMES = {
    "sasrec": "SASRec",
    "ligr": "LiGR",
    "gru4rec": "GRU4Rec",
    "nextitnet": "NextItNet",
    "ncf": "NCF / NeuMF",
    "bprmf": "BPR-MF",
    "lightgcn": "LightGCN",
    "als": "ALS",
    "itemknn": "item-kNN",
}
FLOORS = ("popularity", "itemknn")
Cell = Mapping[str, Any]


def grouped(cells: Iterable[Cell]) -> dict[str, dict[tuple[str, str], list[Cell]]]:
    """Return the cells by data set, then by model and library, seeds in order."""
    groups: dict[str, dict[tuple[str, str], list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in sorted(cells, key=lambda cell: (cell["dataset"], cell["seed"])):
        groups[cell["dataset"]][cell["model"], cell["library"]].append(cell)
    return {dataset: dict(rows) for dataset, rows in groups.items()}


def mean_and_deviation(values: Sequence[float], digits: int = 4) -> str:
    """Return a mean with the sample deviation behind it where there is more than one value.

    Example:
        >>> mean_and_deviation([0.1, 0.2, 0.3]), mean_and_deviation([0.25])
        ('0.2000 ± 0.1000', '0.2500')
    """
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def model_order(model: str) -> tuple[int, int, str]:
    """Return a sort key: floors first, then the models in the order of `NAMES`, then all others by name."""
    known = list(NAMES)
    return (model not in FLOORS, known.index(model) if model in known else len(known), model)


def table(rows: Mapping[tuple[str, str], Sequence[Cell]]) -> str:
    """Return the Markdown table of one data set; the best mean NDCG@10 of each model is bold."""
    lines = ["| model | " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * 5 + " --- |"]
    means = {key: statistics.mean(cell["metrics"]["ndcg@10"] for cell in cells) for key, cells in rows.items()}
    for model, library in sorted(rows, key=lambda key: (model_order(key[0]), key[1] != OURS, key[1])):
        cells = rows[model, library]
        rivals = [mean for key, mean in means.items() if key[0] == model]
        figures = [mean_and_deviation([cell["metrics"][metric] for cell in cells]) for metric in METRICS]
        if len(rivals) > 1 and means[model, library] == max(rivals):
            figures[0] = f"**{figures[0]}**"
        figures += [_epochs(cells), _seconds(cells), _stops(cells)]
        lines.append(f"| {NAMES.get(model, model)} | {library} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def comparison(rows: Mapping[tuple[str, str], Sequence[Cell]]) -> str:
    """Return a Markdown list: ours against the best counterpart of each model, behind or ahead."""
    lines = []
    for model in sorted({model for model, library in rows if library == OURS}, key=model_order):
        others = {library: cells for (name, library), cells in rows.items() if name == model and library != OURS}
        if not others:
            continue
        own = _mean(rows[model, OURS])
        best = max(others, key=lambda library: _mean(others[library]))
        difference = own - _mean(others[best])
        word = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
        lines.append(
            f"- {NAMES.get(model, model)}: {word} {best} by {abs(difference):.4f} NDCG@10 "
            f"({own:.4f} against {_mean(others[best]):.4f}, {len(rows[model, OURS])} and {len(others[best])} seeds)"
        )
        cut = [library for library in sorted(others) if any(_out_of_time(cell) for cell in others[library])]
        if cut:
            lines[-1] += f"; {' and '.join(cut)} ran out of time and might get further"
    return "\n".join(lines)


def versions(cells: Iterable[Cell]) -> str:
    """Return the versions of every library's environment, one line for each library."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        for package, version in cell["versions"].items():
            found[cell["library"]][package].add(version)
    return "\n".join(
        f"- {library}: " + ", ".join(f"{name} {'/'.join(sorted(kinds))}" for name, kinds in packages.items())
        for library, packages in sorted(found.items())
    )


def limits(cells: Iterable[Cell]) -> str:
    """Return the time limits that the cells were run with, one line for each library."""
    found: dict[str, set[float]] = defaultdict(set)
    for cell in cells:
        if cell.get("time_limit_s"):
            found[cell["library"]].add(cell["time_limit_s"])
    return "\n".join(
        f"- {library}: " + ", ".join(f"{limit:g}" for limit in sorted(times))
        for library, times in sorted(found.items())
    )


def page(cells: Sequence[Cell], protocol: str, command: str, machine: str) -> str:
    """Return the whole Markdown page."""
    parts = ["# CF backbones against other libraries", protocol.strip()]
    for dataset, rows in grouped(cells).items():
        users = next(iter(rows.values()))[0]["metrics"]["users"]
        parts += [f"## {dataset}", f"{users:,} test users. The better of each pair is bold.", table(rows)]
        if compared := comparison(rows):
            parts += ["Ours against the best counterpart:", compared]
    parts += ["## Limits, versions, command", "CPU seconds allowed for one run:", limits(cells)]
    parts += [f"Machine: {machine}.", versions(cells), f"```bash\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def _mean(cells: Sequence[Cell]) -> float:
    return statistics.mean(cell["metrics"]["ndcg@10"] for cell in cells)


def _out_of_time(cell: Cell) -> bool:
    return cell.get("stopped_by") == "time_limit"


def _epochs(cells: Sequence[Cell]) -> str:
    if any(cell.get("epochs") is None for cell in cells):
        return ""
    epochs, best = (statistics.mean(cell[name] for cell in cells) for name in ("epochs", "best_epoch"))
    return f"{epochs:.3g} ({best:.3g})"


def _seconds(cells: Sequence[Cell]) -> str:
    known = [cell["seconds"] for cell in cells if cell.get("seconds") is not None]
    return f"{statistics.mean(known):.0f}" if known else ""


def _stops(cells: Sequence[Cell]) -> str:
    reasons = [_stop(cell) for cell in cells if cell.get("stopped_by") and cell.get("epochs") is not None]
    if len(set(reasons)) < 2:
        return reasons[0] if reasons else ""
    return ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))


def _stop(cell: Cell) -> str:
    """Return why a run ended, with the limit where it ran out of time."""
    if _out_of_time(cell):
        return f"limit of {cell['time_limit_s']:g} s"
    return "patience" if cell["stopped_by"] == "early_stopping" else str(cell["stopped_by"])
