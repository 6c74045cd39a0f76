"""Draw an explanation: its contributions, and the two scores beside each other."""

from __future__ import annotations

import contextlib
import html
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ALLMRecError
from ..files import written_whole
from .nearest_words import visible_text

logger = logging.getLogger(__name__)
FORMATS = ("svg", "png", "html")
LONGEST_LABEL = 40
_MISSING_GLYPH = re.compile(r"Glyph (\d+) .*missing from")


def draw_explanation(explanation: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw an explanation into an SVG, PNG or HTML file and return its path; equal explanations give equal files.

    Titles are drawn as plain text: nothing in them is read as markup or mathematics. A character that the picture's
    font lacks is drawn as a box, and the log says which.

    Args:
        explanation: What `explain` returned.
        path: The file; its ending picks the format.

    Raises:
        ALLMRecError: when the ending is another, or matplotlib is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ALLMRecError(f"a picture is one of {', '.join(FORMATS)}; {path.name!r} ends otherwise")
    figure, settings = _figure(explanation)
    import matplotlib

    with matplotlib.rc_context(settings), written_whole(path) as temporary, _lacking_characters_logged():
        if kind == "png":
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
        else:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        if kind == "html":
            temporary.write_text(_page(explanation, temporary.read_text(encoding="utf-8")), encoding="utf-8")
    return path


@contextlib.contextmanager
def _lacking_characters_logged() -> Iterator[None]:
    """Gather matplotlib's warnings, several for each character that its font lacks, into one line of the log."""
    lacking: dict[str, None] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        glyph = _MISSING_GLYPH.match(str(warning.message))
        if glyph:
            lacking[chr(int(glyph[1]))] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if lacking:
        logger.warning("the picture's font lacks these characters, drawn as boxes: %s", " ".join(sorted(lacking)))


def _label(text: str) -> str:
    shown = visible_text(" ".join(text[: 10 * LONGEST_LABEL].split()))
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"


def _figure(explanation: dict[str, Any]) -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ALLMRecError("pictures need matplotlib: pip install 'allmrec-hf[benchmark]'") from error
    settings: Any = {"svg.hashsalt": "allmrec", "svg.fonttype": "path", "text.parse_math": False, "font.size": 9}
    bars, scores = explanation["contributions"], explanation["candidates"]
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(12, 1.8 + 0.34 * max(len(bars), len(scores) / 2)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places = list(range(len(bars)))
        for shift, method, color in ((-0.2, "leave_one_out", "#2b6ca3"), (0.2, "gradient_x_input", "#e0973b")):
            values = [bar[method]["total"] for bar in bars]
            left.barh([place + shift for place in places], values, 0.38, color=color, label=method.replace("_", " "))
        left.set_yticks(places, [_label(bar.get("title", "user vector")) for bar in bars], parse_math=False)
        left.invert_yaxis()
        left.axvline(0, color="black", linewidth=0.8)
        kind = explanation["value"]["kind"].replace("_", " ")
        left.set_xlabel(f"contribution to the {kind}, nats")
        left.legend(frameon=False)
        title = _label(explanation["item"]["title"])
        left.set_title(f"{title}: {kind} {explanation['value']['nats']:.2f}", parse_math=False)
        chosen = explanation["item"]["item_id"]
        for row in scores:
            marked = row["item_id"] == chosen
            right.scatter(
                row["cf_score"], row["llm_score"], color="#b8322a" if marked else "#8a8a8a", zorder=2 + marked
            )
        right.set_xlabel("CF score")
        right.set_ylabel("LLM log-likelihood")
        right.set_title("candidates; the item in red")
    return figure, settings


def _page(explanation: dict[str, Any], svg: str) -> str:
    """Return one HTML page that needs no other file; every text from outside is escaped."""
    rows = []
    for near in explanation["nearest_tokens"]:
        name = near.get("title", "user vector")
        words = ", ".join(f'"{token["text"]}" ({token["cosine"]:.2f})' for token in near["tokens"])
        cells = (near["source"], visible_text(name), words)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    title = html.escape(visible_text(explanation["item"]["title"]))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font-family:sans-serif}td{padding:2px 10px;border-bottom:1px solid #ddd}</style></head>\n"
        f"<body><h1>Why {title}?</h1>\n{svg[svg.index('<svg') :]}\n<h2>Nearest tokens of each vector</h2>\n"
        f"<table>{''.join(rows)}</table></body></html>\n"
    )
