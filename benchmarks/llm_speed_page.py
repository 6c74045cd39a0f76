"""The page and the plot of the benchmark of the LLM side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "speed.md"
PLOT = ROOT / "docs" / "results" / "llm_speed.svg"
START, END = "<!-- measured -->\n", "<!-- end of what was measured -->\n"
Report = dict[str, Any]


def _times(found: Report, name: str) -> str:
    one = found["times"].get(name)
    if one is None:
        return ""
    low, high = one["range_s"]
    return f"{one['median_s']:.3g} ({low:.3g}-{high:.3g})"


def _floor(found: Report) -> str:
    floors = [name for name in found["times"] if name.startswith("floor")]
    return _times(found, min(floors, key=lambda name: found["times"][name]["median_s"]))


def _beside(found: Report) -> float:
    return round(found["times"]["ours"]["median_s"] - found["times"]["floor"]["median_s"], 2)


def _met(value: float, goal: float, at_most: bool) -> str:
    return f"{value:g} {'✓' if (value <= goal if at_most else value >= goal) else '✗'}"


def _goals(reports: Sequence[Report]) -> str:
    lines = [
        "| goal | " + " | ".join(f"{report['llm']}, {report['dtype']}" for report in reports) + " |",
        "| --- |" + " ---: |" * len(reports),
    ]

    def row(goal: str, part: str, value: Any) -> None:
        cells = [value(report[part]) if part in report else "" for report in reports]
        lines.append(f"| {goal} | " + " | ".join(cells) + " |")

    row("stage 2: step at most 1.15 of the floor", "stage2", lambda r: _met(r["ours_of_floor"], 1.15, True))
    row("stage 2: naive at least 2 of ours", "stage2", lambda r: _met(r["naive_of_ours"], 2, False))
    row(
        "one request, 20 candidates: at most 1.35 of the prefill",
        "recommend",
        lambda r: _met(r["one request"]["ours_of_floor"], 1.35, True),
    )
    row(
        "a batch: tokens/s at least .9 of the prefill's",
        "recommend",
        lambda r: _met(r["a batch"]["tokens_per_second_of_floor"], 0.9, False),
    )
    row("stage 1: naive at least 1.3 of ours", "stage1", lambda r: _met(r["naive_of_ours"], 1.3, False))
    row("stage 1: naive at least 100 of frozen texts", "stage1", lambda r: _met(r["naive_of_frozen"], 100, False))
    row(
        "stage 2: peak memory at most half of naive's",
        "memory",
        lambda r: _met(r["ours_of_naive_peak"], 0.5, True),
    )
    row(
        "a checkpoint of 60,000 items: loading takes under 1 s more than its LLM's",
        "startup",
        lambda r: _met(_beside(r["60000 items"]), 1, True),
    )
    return "\n".join(lines)


def _details(reports: Sequence[Report]) -> str:
    lines = [
        "| part | LLM | ours, s | naive, s | floor, s | ours / floor | by FLOPs | naive / ours | by FLOPs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        found = {name: report[name] for name in ("stage1", "stage2") if name in report}
        found |= {f"recommend, {name}": one for name, one in report.get("recommend", {}).items()}
        found |= {f"loading, {name}": one for name, one in report.get("startup", {}).items()}
        for name, one in found.items():
            llm = one.get("text_encoder", report["llm"]) if name == "stage1" else report["llm"]
            figures = [_times(one, "ours"), _times(one, "naive"), _floor(one)]
            pairs = [(key, f"{key}_by_flops") for key in ("ours_of_floor", "naive_of_ours")]
            figures += [f"{one[key]:g}" if key in one else "" for pair in pairs for key in pair]
            lines.append(f"| {name} | {llm}, {report['dtype']} | " + " | ".join(figures) + " |")
    memory = [report for report in reports if "memory" in report]
    if memory:
        lines += [
            "",
            "| a step of stage 2 | users | kept for the backward pass, MB: ours / naive | peak, MB: ours / naive |"
            " bias of the tree for a user with 20 / 100 / 1,000 candidates, MB |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
    for report in memory:
        one = report["memory"]
        saved, peak = (f"{one[key]['ours']:g} / {one[key]['naive']:g}" for key in ("saved_mb", "peak_rss_mb"))
        tree = " / ".join(f"{row['bias_mb']:g}" for row in one["tree"].values())
        lines.append(f"| {report['llm']}, {report['dtype']} | {one['users']} | {saved} | {peak} | {tree} |")
    return "\n".join(lines)


def _plot(report: Report) -> None:
    """Draw the time of recommending against each quantity, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "llm_speed"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(report), figsize=(3 * len(report), 2.8), sharey=True)
    for axis, (name, values) in zip(axes, report.items(), strict=True):
        axis.loglog([int(value) for value in values], list(values.values()), marker="o")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU s")
    figure.tight_layout()
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def write(folder: Path) -> None:
    """Replace what was measured in docs/speed.md, and draw the plot, from the reports of a folder."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    reports.sort(key=lambda report: (report["dtype"] != "float32", report["parameters"]))
    machines = sorted({report["machine"] for report in reports})
    measured = f"Machine: {'; '.join(machines)}. PyTorch {reports[0]['torch']}.\n\n{_goals(reports)}\n\n"
    measured += _details(reports) + "\n"
    for report in reports:
        if "sweep" in report:
            _plot(report["sweep"])
            measured += "\n![Time against users, items, history, candidates and width](results/llm_speed.svg)\n"
            break
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{measured}\n{END}{after}", encoding="utf-8")
