"""Files of one JSON object per line or one JSON array of objects, plain or gzip, of which a few may be broken.

A line may also be the literal of a Python dictionary, as in the Amazon review data of 2014 and the files of Steam.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import DataError
from ...values import value_text
from .base import LineCount, PathLike, existing_file, read_all, read_blocks
from .encoding import HOW_TO_TELL

logger = logging.getLogger(__name__)
DISCOVERY_LINES = 10_000
EXCERPT = 80
LITERAL_CHARS = 1 << 20
LITERAL_DEPTH = 50
TEXTS = pl.List(pl.String)
TEXT = pl.String()
Fields = Mapping[str, pl.DataType]
_SPELT_OTHERWISE = re.compile(
    rb'"\s*:\s*-(?:0(?:\.0*)?\s*[,}])|"\s*:\s*-?[0-9.]+[eE]'
)  # numbers Polars spells in its own way


def read_json_lines(
    path: PathLike,
    fields: Fields,
    required: Sequence[str] = (),
    max_bad_lines: float = 0.01,
    encoding: str | None = None,
    ids: Sequence[str] = (),
) -> tuple[pl.DataFrame, LineCount]:
    """Read chosen fields of a file of JSON lines, of Python literals, or of one JSON array.

    Polars parses block after block; only a block that it refuses is looked at line by line, to leave out and count
    what is no JSON object.

    Args:
        path: The file, plain or gzip.
        fields: Field name to `pl.String()` (numbers and objects arrive as their JSON text) or `pl.List(pl.String)`
            (a single text arrives as a list of one).
        required: Fields that must occur in the file.
        max_bad_lines: The share of lines (or elements of the array) that may be no JSON object.
        encoding: The file's encoding; None for UTF-8 or what a byte order mark says.
        ids: Fields that hold ids, where a truth value or a fraction is refused: as text it could not be told from one.

    Returns:
        One row per good line with every field (null where a line lacks it), and the counts.

    Raises:
        DataError: when the file is missing, empty or a truncated gzip, an array is broken, more than the allowed share
            of lines is no JSON object (the first is named), a required field never occurs, or an id is no id.
    """
    path = existing_file(path)
    count, frames, first_line = LineCount(), [], 1
    if is_array(path, encoding):
        frames.append(_parse_array(path, fields, count, encoding, ids))
    else:
        for block in read_blocks(path, encoding=encoding):
            _check_ids(path, block, ids, first_line)
            frames.append(_parse_block(block, fields, first_line, count))
            first_line += block.count(b"\n")
    _check_lines(path, count, max_bad_lines)
    frame = pl.concat(frames)
    absent = [name for name in required if frame[name].null_count() == frame.height]
    if absent:
        raise DataError(
            f"{path}: the fields {absent} occur in none of its {frame.height} lines; the first line has "
            f"{list(discover_fields(path, 1, encoding))}. Is this a file of another source?"
        )
    return frame, count


def discover_fields(
    path: PathLike, lines: int | None = DISCOVERY_LINES, encoding: str | None = None, wanted: Sequence[str] = ()
) -> dict[str, pl.DataType]:
    """Return the fields that the first lines of a file hold: lists as `pl.List(pl.String)`, all else as text.

    Args:
        path: The file.
        lines: How many lines are looked at; None for all.
        encoding: The file's encoding.
        wanted: Fields for which all lines are looked at if the first do not have one of them and others do.
    """
    path = existing_file(path)
    fields: dict[str, pl.DataType] = {}
    records: Iterator[Any]
    if is_array(path, encoding):
        records = _elements(path, encoding)
    else:
        blocks = read_blocks(path, 1 << 20, encoding)
        records = map(_parse_object, itertools.chain.from_iterable(block.split(b"\n") for block in blocks))
    for record in itertools.islice(records, lines):
        for name, value in record.items() if isinstance(record, dict) else ():
            if isinstance(value, (list, tuple)):
                fields[str(name)] = TEXTS
            else:
                fields.setdefault(str(name), TEXT)
    late = [f'"{name}"'.encode() for name in wanted if name not in fields]
    goes_on = lines is not None and late and next(records, None) is not None
    if goes_on and any(name in block for block in read_blocks(path, encoding=encoding) for name in late):
        return discover_fields(path, None, encoding)
    return fields


def is_array(path: Path, encoding: str | None = None) -> bool:
    """Tell whether a file is one JSON array of objects, by how it begins."""
    start = b""
    for block in read_blocks(path, 1 << 16, encoding):
        start = (start + block).lstrip()
        if len(start) > 1 and start[:1] == b"[" and not start[1:].strip():
            continue  # only white space so far after the bracket
        if start:
            break
    return start[:1] == b"[" and start[1:].lstrip()[:1] in (b"{", b"]", b"")


def _elements(path: Path, encoding: str | None) -> Iterator[Any]:
    """Yield the elements of a file that is one JSON array.

    Raises:
        DataError: when the array is broken; the message holds line and column.
    """
    text = read_all(path, encoding).decode()
    decoder = json.JSONDecoder(strict=False)
    place = _after_space(text, text.index("[") + 1)
    number = 0
    while text[place : place + 1] != "]":
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else place
            raise _broken_array(path, text, at, number, getattr(error, "msg", "too deeply nested")) from error
        number += 1
        yield value
        place = _after_space(text, place)
        if text[place : place + 1] == ",":
            place = _after_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise _broken_array(path, text, place, number, "Expecting ',' or ']'")
    rest = _after_space(text, place + 1)
    if rest < len(text):
        raise _broken_array(path, text, rest, number, "the array has ended, but the file goes on")


def _after_space(text: str, place: int) -> int:
    """Return the first place from `place` on that is no white space."""
    while text[place : place + 1] in (" ", "\n", "\t", "\r"):
        place += 1
    return place


def _broken_array(path: Path, text: str, at: int, number: int, reason: str) -> DataError:
    """Return the error about a JSON array that cannot be read."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return DataError(
        f"{path}: the JSON array is broken at line {line}, column {column}, after {number} elements ({reason}): "
        f"{text[at : at + EXCERPT]!r}; download or write the file again"
    )


def _check_ids(path: Path, block: bytes, ids: Sequence[str], first_line: int) -> None:
    """Refuse lines in which an id is a truth value or a fraction."""
    if not ids:
        return
    names = b"|".join(re.escape(name).encode() for name in ids)
    wrong = rb"[\"'](?:" + names + rb")[\"']\s*:\s*(?:[tT]rue|[fF]alse|-?\d+\.\d*[1-9]\d*)\s*[,}]"
    for found in re.finditer(wrong, block):
        start = block.rfind(b"\n", 0, found.start()) + 1
        end = block.find(b"\n", found.end())
        record = _parse_object(block[start : end if end >= 0 else len(block)]) or {}
        line = first_line + block.count(b"\n", 0, start)
        _check_id_values(path, record, ids, f"line {line}")


def _check_id_values(path: Path, record: Mapping[str, Any], ids: Sequence[str], place: str) -> None:
    """Refuse an id that is a truth value or a fraction.

    Raises:
        DataError: when one is; the message names it and its place.
    """
    for name in ids:
        value = record.get(name)
        if isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value) and value % 1 != 0):
            shown = json.dumps(value)
            raise DataError(f"{path}: {name} is {shown} in {place}; ids are text or whole numbers, so write it as text")


def _parse_array(
    path: Path, fields: Fields, count: LineCount, encoding: str | None, ids: Sequence[str]
) -> pl.DataFrame:
    """Return the fields of every element of an array that is an object, and count the others."""
    rows = []
    for number, record in enumerate(_elements(path, encoding), start=1):
        if isinstance(record, dict):
            _check_id_values(path, record, ids, f"element {number}")
            rows.append([_convert(record.get(name), kind) for name, kind in fields.items()])
            continue
        count.bad += 1
        if not count.first_bad:
            count.first_bad, count.excerpt, count.note = number, str(record)[:EXCERPT], "element"
    count.good += len(rows)
    return pl.DataFrame(rows, schema=dict(fields), orient="row")


def _parse_block(block: bytes, fields: Fields, first_line: int, count: LineCount) -> pl.DataFrame:
    """Parse a block of lines, by Polars where it can."""
    if not block.strip():
        return pl.DataFrame(schema=dict(fields))
    frame = _parse_fast(block, fields)
    if frame is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (SyntaxWarning, DeprecationWarning))  # r"\d" in Python literals
            rows = list(_good_rows(block, fields, first_line, count))
        frame = pl.DataFrame(rows, schema=dict(fields), orient="row")
    count.good += frame.height
    return frame


def _parse_fast(block: bytes, fields: Fields) -> pl.DataFrame | None:
    """Return the block as Polars parses it, or None where a line needs a closer look.

    That is a line that may be no JSON object, a number that Polars spells otherwise than `value_text`, and a lone
    surrogate, for which Polars writes a NUL.
    """
    if _SPELT_OTHERWISE.search(block):
        return None
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict(fields))
    except pl.exceptions.PolarsError:
        return None
    nothing = frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()  # so older versions show `12` or `null`
    if nothing:
        return None
    texts = [name for name, kind in fields.items() if kind == TEXT]
    nul = b"\\ud" in block.lower() and any(frame[name].str.contains("\x00", literal=True).any() for name in texts)
    return None if nul else frame


def _good_rows(block: bytes, fields: Fields, first_line: int, count: LineCount) -> Iterator[list[Any]]:
    """Yield the fields of every line that is an object, and count the others."""
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
            count.note = _undecodable(line)


def _undecodable(line: bytes) -> str:
    """Return which byte of a line is no UTF-8 and what to do, or nothing where all are."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return (
            f"its byte {error.start + 1}, 0x{line[error.start]:02X}, is no UTF-8; name the file's encoding: "
            + HOW_TO_TELL.format("latin-1")
        )
    return ""


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object or Python dictionary, or None where it holds none."""
    try:
        record = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        record = _parse_literal(line)
    return record if isinstance(record, dict) else None


def _parse_literal(line: bytes) -> Any:
    """Return the dictionary that a line writes as Python does, or None; nothing of the line is run.

    The literal must be no longer than `LITERAL_CHARS` and no deeper than `LITERAL_DEPTH`.
    """
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}") and len(line) <= LITERAL_CHARS):
        return None
    try:
        text = line.decode()
        deepest = max(itertools.accumulate(1 if char in "[({" else -1 for char in re.findall(r"[\[({\])}]", text)))
        return ast.literal_eval(text) if deepest <= LITERAL_DEPTH else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _convert(value: Any, kind: pl.DataType) -> Any:
    """Return a value as text or as a list of texts; null where it is NaN."""
    if value is None:
        return None
    if kind == TEXTS:
        values = value if isinstance(value, (list, tuple)) else [value]
        return [text for entry in values if (text := value_text(entry)) is not None]
    return value_text(value)


def _check_lines(path: Path, count: LineCount, max_bad_lines: float) -> None:
    """Raise when nothing was read or too much was broken; log what was left out."""
    if not count.total:
        raise DataError(f"{path} is empty; expected one JSON object on each line")
    if not count.bad:
        return
    unit = "element" if count.note == "element" else "line"
    found = f"{path}: {count.bad} of {count.total} {unit}s are no JSON object, first {unit} {count.first_bad}"
    found += f": {count.excerpt!r}"
    if count.note and unit == "line":
        found += f" ({count.note})"
    if count.bad > max_bad_lines * count.total:
        raise DataError(
            f"{found}; at most {max_bad_lines:.2%} may be. Download the file again, check that it is JSON lines, or "
            "raise max_bad_lines"
        )
    logger.warning("%s; they are left out", found)
