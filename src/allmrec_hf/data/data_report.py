"""The report of `prepare`: counts after every step, as text and for `dataset.json`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ..catalog import ItemCatalog
from .interactions import HOW_TO_MAP, ITEM_ID, TEXT_COLUMNS, TITLE, USER_ID

logger = logging.getLogger(__name__)
MAPPED_SOURCES = ("table", "hub")  # of which the names of the columns are anyone's
STEP_COLUMNS = ("step", "users", "items", "interactions", "note")


class Steps:
    """Collects the counts after each step, and logs them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    def add(self, step: str, interactions: pl.DataFrame, note: str = "") -> None:
        """Count users, items and interactions after a step."""
        row = {
            "step": step,
            "users": interactions[USER_ID].n_unique(),
            "items": interactions[ITEM_ID].n_unique(),
            "interactions": interactions.height,
            "note": note,
        }
        self.rows.append(row)
        logger.info("%(step)s: %(users)d users, %(items)d items, %(interactions)d interactions. %(note)s", row)

    def resources(self) -> dict[str, float | None]:
        """Return the seconds since the start and the process's peak memory in MiB (None where it is not known)."""
        return {"seconds": round(time.perf_counter() - self._started, 3), "peak_memory_mib": peak_memory_mib()}


def peak_memory_mib() -> float | None:
    """Return the largest memory (resident set, MiB) that this process has held, or None where the system tells none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def warn_of_missing_titles(catalog: ItemCatalog, items: pl.DataFrame | None, source: str) -> None:
    """Log a warning where more than half of the items have no title, which mostly is a column under another name.

    Args:
        catalog: The items that are kept.
        items: The items as they were read, further columns included; None where none were given.
        source: Where they come from, see `prepare`.
    """
    without = catalog.frame[TITLE].null_count()
    if 2 * without <= len(catalog):
        return
    if items is None:
        told = "no items were given (--items on the command line)"
    else:
        unused = [name for name in items.columns if name not in (ITEM_ID, *TEXT_COLUMNS)]
        told = f"columns of the items that were not used: {unused}"
        if unused and source in MAPPED_SOURCES:
            told += f"; if one holds the titles, map it: {HOW_TO_MAP.format(TITLE)}"
    logger.warning("%d of %d items have no title; %s", without, len(catalog), told)


def format_report(info: Mapping[str, Any]) -> str:
    """Return the report in `dataset.json` as an aligned table with the facts below it."""
    table = [[_cell(row.get(name, "")) for name in STEP_COLUMNS] for row in info.get("report", [])]
    lines = [f"{info['name']} ({info['domain']}, from {info.get('source', 'unknown')})", ""]
    lines += _aligned([list(STEP_COLUMNS), *table])
    counts, resources = info.get("counts", {}), info.get("resources", {})
    facts = [[name.replace("_", " "), _cell(value)] for name, value in counts.items()]
    for what in ("title", "description"):
        share = info.get("shares", {}).get(f"without_{what}")
        if share is not None:
            facts.append([f"share of items without {what}", f"{share:.1%}"])
    facts += [[name.replace("_", " "), f"{value:,.1f}"] for name, value in resources.items() if value is not None]
    return "\n".join(line.rstrip() for line in [*lines, "", *_aligned(facts)])


def _cell(value: Any) -> str:
    """Return a count with thousands separators, and text as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns of equal width; the counts, in columns 1 to 3, to the right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in (1, 2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return lines
