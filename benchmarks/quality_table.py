"""Turn the runs of the quality benchmark into the committed table."""

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
    "bsarec": "BSARec",
    "hstu": "HSTU",
    "gru4rec": "GRU4Rec",
    "nextitnet": "NextItNet",
    "ncf": "NCF / NeuMF",
    "bprmf": "BPR-MF",
    "lightgcn": "LightGCN",
    "als": "ALS",
    "itemknn": "item-kNN",
}
BASELINES = ("popularity", "itemknn")
Run = Mapping[str, Any]


def grouped(runs: Iterable[Run]) -> dict[str, dict[tuple[str, str], list[Run]]]:
    """Return the runs by data set, then by model and library, seeds in order."""
    groups: dict[str, dict[tuple[str, str], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: (run["dataset"], run["seed"])):
        groups[run["dataset"]][run["model"], run["library"]].append(run)
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
    """Return a sort key: baselines first, then the models in the order of `NAMES`, then all others by name."""
    known = list(NAMES)
    return (model not in BASELINES, known.index(model) if model in known else len(known), model)


def table(rows: Mapping[tuple[str, str], Sequence[Run]]) -> str:
    """Return the Markdown table of one data set; the best mean NDCG@10 of each model is bold."""
    lines = ["| model | " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * 5 + " --- |"]
    means = {key: statistics.mean(run["metrics"]["ndcg@10"] for run in runs) for key, runs in rows.items()}
    for model, library in sorted(rows, key=lambda key: (model_order(key[0]), key[1] != OURS, key[1])):
        runs = rows[model, library]
        rivals = [mean for key, mean in means.items() if key[0] == model]
        figures = [mean_and_deviation([run["metrics"][metric] for run in runs]) for metric in METRICS]
        if len(rivals) > 1 and means[model, library] == max(rivals):
            figures[0] = f"**{figures[0]}**"
        figures += [_epochs(runs), _seconds(runs), _stops(runs)]
        lines.append(f"| {NAMES.get(model, model)} | {library} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def comparison(rows: Mapping[tuple[str, str], Sequence[Run]]) -> str:
    """Return a Markdown list: ours against the best counterpart of each model, behind or ahead."""
    lines = []
    for model in sorted({model for model, library in rows if library == OURS}, key=model_order):
        others = {library: runs for (name, library), runs in rows.items() if name == model and library != OURS}
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
        cut = [library for library in sorted(others) if any(_out_of_time(run) for run in others[library])]
        if cut:
            lines[-1] += f"; {' and '.join(cut)} ran out of time and might get further"
    return "\n".join(lines)


def versions(runs: Iterable[Run]) -> str:
    """Return the versions of every library's environment, one line for each library."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run in runs:
        for package, version in run["versions"].items():
            found[run["library"]][package].add(version)
    return "\n".join(
        f"- {library}: " + ", ".join(f"{name} {'/'.join(sorted(kinds))}" for name, kinds in packages.items())
        for library, packages in sorted(found.items())
    )


def limits(runs: Iterable[Run]) -> str:
    """Return the time limits that the runs were run with, one line for each library."""
    found: dict[str, set[float]] = defaultdict(set)
    for run in runs:
        if run.get("time_limit_s"):
            found[run["library"]].add(run["time_limit_s"])
    return "\n".join(
        f"- {library}: " + ", ".join(f"{limit:g}" for limit in sorted(times))
        for library, times in sorted(found.items())
    )


def page(runs: Sequence[Run], protocol: str, command: str, machine: str) -> str:
    """Return the whole Markdown page."""
    parts = ["# Backbones against other libraries", protocol.strip()]
    for dataset, rows in grouped(runs).items():
        users = next(iter(rows.values()))[0]["metrics"]["users"]
        parts += [f"## {dataset}", f"{users:,} test users. The better of each pair is bold.", table(rows)]
        if compared := comparison(rows):
            parts += ["Ours against the best counterpart:", compared]
    parts += ["## Limits, versions, command", "CPU seconds allowed for one run:", limits(runs)]
    parts += [f"Machine: {machine}.", versions(runs), f"```bash\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def _mean(runs: Sequence[Run]) -> float:
    return statistics.mean(run["metrics"]["ndcg@10"] for run in runs)


def _out_of_time(run: Run) -> bool:
    return run.get("stopped_by") == "time_limit"


def _epochs(runs: Sequence[Run]) -> str:
    if any(run.get("epochs") is None for run in runs):
        return ""
    epochs, best = (statistics.mean(run[name] for run in runs) for name in ("epochs", "best_epoch"))
    return f"{epochs:.3g} ({best:.3g})"


def _seconds(runs: Sequence[Run]) -> str:
    known = [run["seconds"] for run in runs if run.get("seconds") is not None]
    return f"{statistics.mean(known):.0f}" if known else ""


def _stops(runs: Sequence[Run]) -> str:
    reasons = [_stop(run) for run in runs if run.get("stopped_by") and run.get("epochs") is not None]
    if len(set(reasons)) < 2:
        return reasons[0] if reasons else ""
    return ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))


def _stop(run: Run) -> str:
    """Return why a run ended, with the limit where it ran out of time."""
    if _out_of_time(run):
        return f"limit of {run['time_limit_s']:g} s"
    return "patience" if run["stopped_by"] == "early_stopping" else str(run["stopped_by"])
