"""Files of one JSON object per line, plain or gzip, in which a few lines may be broken."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import DataError
from .base import PathLike, existing_file, read_blocks

logger = logging.getLogger(__name__)
DISCOVERY_LINES = 10_000
EXCERPT = 80
TEXTS = pl.List(pl.String)
TEXT = pl.String()
Fields = Mapping[str, pl.DataType]


@dataclass
class LineCount:
    """How many lines were read, how many were no JSON object, and the first of those."""

    good: int = 0
    bad: int = 0
    first_bad: int = 0
    excerpt: str = ""

    @property
    def total(self) -> int:
        """Return the number of lines that are not blank."""
        return self.good + self.bad


def read_json_lines(
    path: PathLike, fields: Fields, required: Sequence[str] = (), max_bad_lines: float = 0.01
) -> tuple[pl.DataFrame, LineCount]:
    """Read chosen fields of a file of JSON lines.

    Polars parses block after block; only a block that it refuses is looked at line by line, to leave out and count
    what is no JSON object.

    Args:
        path: The file, plain or gzip.
        fields: Field name to `pl.String()` (numbers and objects arrive as their JSON text) or `pl.List(pl.String)`
            (a single text arrives as a list of one).
        required: Fields that must occur in the file.
        max_bad_lines: The share of lines that may be no JSON object.

    Returns:
        One row per good line with every field (null where a line lacks it), and the counts.

    Raises:
        DataError: when the file is missing, empty or a truncated gzip, more than the allowed share of its lines is no
            JSON object (the first is named), or a required field never occurs.
    """
    path = existing_file(path)
    count, frames, first_line = LineCount(), [], 1
    for block in read_blocks(path):
        frames.append(_parse_block(block, fields, first_line, count))
        first_line += block.count(b"\n")
    _check_lines(path, count, max_bad_lines)
    frame = pl.concat(frames)
    absent = [name for name in required if frame[name].null_count() == frame.height]
    if absent:
        raise DataError(
            f"{path}: the fields {absent} occur in none of its {frame.height} lines; the first line has "
            f"{list(discover_fields(path, lines=1))}. Is this a file of another source?"
        )
    return frame, count


def discover_fields(path: PathLike, lines: int = DISCOVERY_LINES) -> dict[str, pl.DataType]:
    """Return the fields that the first lines of a file hold: lists as `pl.List(pl.String)`, all else as text."""
    fields: dict[str, pl.DataType] = {}
    content = itertools.chain.from_iterable(block.splitlines() for block in read_blocks(existing_file(path), 1 << 20))
    for line in itertools.islice(content, lines):
        for name, value in (_parse_object(line) or {}).items():
            if isinstance(value, list):
                fields[name] = TEXTS
            else:
                fields.setdefault(name, TEXT)
    return fields


def _parse_block(block: bytes, fields: Fields, first_line: int, count: LineCount) -> pl.DataFrame:
    """Parse a block of lines, by Polars where it can."""
    if not block.strip():
        return pl.DataFrame(schema=dict(fields))
    frame = _parse_fast(block, fields)
    if frame is None:
        rows = list(_good_rows(block, fields, first_line, count))
        frame = pl.DataFrame(rows, schema=dict(fields), orient="row")
    count.good += frame.height
    return frame


def _parse_fast(block: bytes, fields: Fields) -> pl.DataFrame | None:
    """Return the block as Polars parses it, or None where a line may be no JSON object."""
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict(fields))
    except pl.exceptions.PolarsError:
        return None
    nothing = frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()  # so older versions show `12` or `null`
    return None if nothing else frame


def _good_rows(block: bytes, fields: Fields, first_line: int, count: LineCount) -> Iterator[list[Any]]:
    """Yield the fields of every line that is a JSON object, and count the others."""
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        record = _parse_object(line)
        if record is not None:
            yield [_convert(record.get(name), kind) for name, kind in fields.items()]
            continue
        count.bad += 1
        if not count.first_bad:
            count.first_bad, count.excerpt = number, line[:EXCERPT].decode("utf-8", "replace")


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, or None where it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _convert(value: Any, kind: pl.DataType) -> Any:
    """Return a JSON value as text or as a list of texts."""
    if value is None:
        return None
    if kind == TEXTS:
        values = value if isinstance(value, list) else [value]
        return [_as_text(entry) for entry in values if entry is not None]
    return _as_text(value)


def _as_text(value: Any) -> str:
    """Return a text as it is and any other JSON value as its JSON text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is legal JSON but no legal text


def _check_lines(path: Path, count: LineCount, max_bad_lines: float) -> None:
    """Raise when nothing was read or too much was broken; log what was left out."""
    if not count.total:
        raise DataError(f"{path} is empty; expected one JSON object on each line")
    if not count.bad:
        return
    found = f"{path}: {count.bad} of {count.total} lines are no JSON object, first line {count.first_bad}"
    found += f": {count.excerpt!r}"
    if count.bad > max_bad_lines * count.total:
        raise DataError(
            f"{found}; at most {max_bad_lines:.2%} may be. Download the file again, check that it is JSON lines, or "
            "raise max_bad_lines"
        )
    logger.warning("%s; they are left out", found)
