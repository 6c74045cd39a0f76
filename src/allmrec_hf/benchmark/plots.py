"""Draw plots as self-contained SVG text; equal figures give equal bytes, and nothing is fetched."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..errors import ALLMRecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE, METHOD, CONTROL, ABLATION = "method under test", "method", "control", "ablation"
COLOURS = {REFERENCE: "#c2410c", METHOD: "#2563eb", CONTROL: "#64748b", ABLATION: "#7c3aed"}
_INK, _FAINT = "#1e293b", "#cbd5e1"
_MARKERS = "osD^vPX*<>"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, readable aloud
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Point:
    """A value with its interval.

    Attributes:
        label: Whose it is.
        kind: One of the keys of `COLOURS`.
        mean: The value.
        low: Lower end of its interval.
        high: Upper end.
    """

    label: str
    kind: str
    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(isfinite(value) for value in (self.mean, self.low, self.high)):
            raise ALLMRecError(f"{self.label!r} has no finite value to plot: {self.mean}, {self.low} to {self.high}")


def bars(panels: Mapping[str, Sequence[Point]], metric: str, chance: float | None, title: str) -> str:
    """Return bars with intervals, a panel for each group of users, the methods in the same order in all."""
    first = next(iter(panels.values()))
    labels = [point.label for point in sorted(first, key=lambda point: point.mean)]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(2.0 + 2.6 * len(panels), 0.9 + 0.27 * len(labels))
        for axes, (group, points) in zip(_row(figure, len(panels)), panels.items(), strict=True):
            _bars(axes, [labels.index(point.label) for point in points], points)
            if chance is not None:
                axes.axvline(chance, color=_INK, linewidth=0.9, linestyle=(0, (3, 3)))
            axes.set_yticks(range(len(labels)), [shown(label) for label in labels])
            axes.set_title(shown(group), loc="left")
            axes.set_xlabel(metric + (", dashed: chance" if chance is not None else ""))
            axes.set_xlim(left=0)
            axes.grid(axis="x")

    return _svg(draw, title)


def differences(points: Sequence[Point], metric: str, title: str) -> str:
    """Return bars left and right of zero."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 0.9 + 0.3 * len(points))
        axes = figure.subplots()
        _bars(axes, list(range(len(points)))[::-1], points)
        axes.axvline(0, color=_INK, linewidth=0.9)
        axes.set_yticks(range(len(points)), [shown(point.label) for point in reversed(points)])
        axes.set_xlabel(f"difference in {metric}")
        axes.grid(axis="x")

    return _svg(draw, title)


def scatter(points: Sequence[tuple[Point, Point]], metric: str, title: str) -> str:
    """Return a point for each method, warm targets to the right, cold targets upwards, with both intervals."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 4.6)
        axes = figure.subplots()
        for number, (warm, cold) in enumerate(points):
            axes.errorbar(
                warm.mean,
                cold.mean,
                xerr=_arms([warm]),
                yerr=_arms([cold]),
                color=COLOURS[warm.kind],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=7,
                linestyle="none",
                elinewidth=0.8,
                clip_on=False,
                label=shown(warm.label),
            )
        axes.set_xlabel(f"{metric}, warm targets")
        axes.set_ylabel(f"{metric}, cold targets")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return _svg(draw, title)


def curves(lines: Mapping[str, Sequence[tuple[float, Point]]], x_label: str, metric: str, title: str) -> str:
    """Return a line with intervals for each method, over a logarithmic axis."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 3.9)
        axes = figure.subplots()
        for number, (label, points) in enumerate(lines.items()):
            kind = points[0][1].kind
            axes.errorbar(
                [x for x, _ in points],
                [point.mean for _, point in points],
                yerr=_arms([point for _, point in points]),
                color=COLOURS[kind],
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="-" if kind == REFERENCE else (0, (5, 1 + number % 4)),
                linewidth=2.2 if kind == REFERENCE else 1.1,
                elinewidth=0.8,
                capsize=2,
                label=shown(label),
            )
        axes.set_xscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:,g}" for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(metric)
        axes.set_ylim(bottom=0)
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return _svg(draw, title)


def shown(label: str) -> str:
    """Return a label as plots show it: short, on one line, and not hidden in legends by a leading underscore."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in label).split())
    text = text if len(text) <= 40 else text[:39] + "…"
    return f" {text}" if text.startswith("_") else text


def _row(figure: Figure, columns: int) -> Sequence[Axes]:
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    return list(axes[0])


def _bars(axes: Axes, rows: Sequence[int], points: Sequence[Point]) -> None:
    means = [point.mean for point in points]
    axes.barh(rows, means, height=0.66, color=[COLOURS[point.kind] for point in points], alpha=0.85)
    axes.errorbar(means, rows, xerr=_arms(points), color=_INK, linestyle="none", elinewidth=1.1, capsize=2.2)


def _arms(points: Sequence[Point]) -> list[list[float]]:
    """Return the lengths of the error bars; the percentile interval of few users may lie beside the mean."""
    low = [max(point.mean - point.low, 0.0) for point in points]
    return [low, [max(point.high - point.mean, 0.0) for point in points]]


def _svg(draw: Callable[[Figure], None], title: str) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ALLMRecError(
            "the report's plots need matplotlib, which is not installed: pip install 'allmrec-hf[benchmark]'"
        ) from error
    salt = hashlib.sha256(title.encode()).hexdigest()[:8]  # ids of two plots of a page must differ
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        figure = Figure(layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=True)
    return _inline(text.getvalue())


def _inline(svg: str) -> str:
    """Return the `<svg>` element alone, without the ids that several plots of one page would share."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1).strip()
