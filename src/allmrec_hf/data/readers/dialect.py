"""Detect the dialect of a text table: its delimiter, its quotation marks and the names of its columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .base import TextFormat
from .columns import OURS
from .records import Dialect, next_record

COMMA_FILES = (".csv",)
TAB_FILES = (".tsv", ".tab", ".inter", ".item", ".user", ".kg", ".link", ".net")
PIPE_FILES = (".psv",)
OTHER_FILES = (".txt", ".dat", ".data")
TEXT_FILES = (*COMMA_FILES, *TAB_FILES, *PIPE_FILES, *OTHER_FILES)
CANDIDATES = (",", "\t", ";", "|", "::")
UNQUOTED = ("\t", "::", " ")  # what such files hold in quotation marks is text
SAMPLE_LINES = 20
SAMPLE_CHARS = 1 << 24
_TYPE = re.compile(r":(?:token|token_seq|float|float_seq)$")
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?\s*")
_QUOTED = re.compile(r'"[^"]*"')
_EXCEL = re.compile(r"sep=(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """The dialect of a text table, detected at its beginning.

    Attributes:
        dialect: Delimiter and quotation marks.
        names: The columns, without types and surrounding space; numbers from 0 where the file has no header.
        repeated: Names that stand more than once in the header; these columns got other names.
        start: Where the first row begins, in characters.
        line: The number of its line, from 1.
        header: Whether a header was read.
    """

    dialect: Dialect
    names: list[str]
    repeated: frozenset[str]
    start: int
    line: int
    header: bool


def layout_of(head: str, ending: str, text: TextFormat) -> Layout:
    """Tell the layout of a text table from its first lines.

    Blank lines and lines that begin with `#` are skipped before the header, and so is Excel's `sep=;`. The last comment
    is the header where it has as many fields as the line below and either holds our names, or numbers stand below.

    Args:
        head: How the file begins; whole, if it is short.
        ending: The file's ending, in lower case.
        text: What the user says of the file.
    """
    start, line, comment, comment_start, excel = 0, 1, "", 0, None
    while start < len(head):
        end = head.find("\n", start)
        end = len(head) if end < 0 else end
        row = head[start:end]
        if line == 1 and (found := _EXCEL.fullmatch(row.strip())):
            excel = found[1].strip() or "\t"
        elif row.lstrip().startswith("#"):
            comment, comment_start = row, start
        elif row.strip():
            break
        start, line = end + 1, line + 1
    sample = [row for row in head[start : start + SAMPLE_CHARS].split("\n", SAMPLE_LINES)[:SAMPLE_LINES] if row.strip()]
    if not sample:  # nothing but comments: the last one may be the header
        sample, start, line, comment = [comment], comment_start, line - 1, ""
    delimiter = text.delimiter or excel or _delimiter(sample, ending)
    commented = comment.lstrip().lstrip("#").strip()
    if text.header and _names_columns(commented.split(delimiter), sample[0].split(delimiter)):
        names = [name.strip() for name in commented.split(delimiter)]
        dialect = Dialect(delimiter, _is_quoted(text, delimiter, sample[0]))
    else:
        dialect = Dialect(delimiter, _is_quoted(text, delimiter, sample[0]))
        first, end = next_record(head, start, dialect)
        names = [name.strip().lstrip("#") for name in first]
        if text.header:
            line += head.count("\n", start, end)
            start = end
    if not text.header:
        return Layout(dialect, [str(place) for place in range(len(names))], frozenset(), start, line, False)
    return Layout(dialect, *_unique(_untyped(names)), start, line, True)


def _names_columns(comment: list[str], first: list[str]) -> bool:
    """Tell whether a comment above the first row is the header: as many fields, and numbers or our names tell them."""
    if len(comment) != len(first) or len(comment) < 2:
        return False
    ours = any(_TYPE.sub("", name.strip()).lower() in OURS for name in comment)
    return ours or (any(map(_NUMBER.fullmatch, first)) and not any(map(_NUMBER.fullmatch, comment)))


def _delimiter(sample: Sequence[str], ending: str) -> str:
    """Return the delimiter that the ending tells, or another that divides the first lines better."""
    rows = [_QUOTED.sub("", row) for row in sample]
    preferred = "," if ending in COMMA_FILES else "\t" if ending in TAB_FILES else "|" if ending in PIPE_FILES else ""
    counts = {candidate: [row.count(candidate) for row in rows] for candidate in CANDIDATES}
    steady = [candidate for candidate, found in counts.items() if found[0] and len(set(found)) == 1]
    if preferred and counts[preferred][0]:
        if preferred in steady or not steady:
            return preferred
        best = max(steady, key=lambda candidate: counts[candidate][0])
        return best if counts[best][0] >= counts[preferred][0] else preferred
    found = steady or [candidate for candidate in CANDIDATES if counts[candidate][0]]
    if found:
        return max(found, key=lambda candidate: counts[candidate][0])
    if not preferred and len({row.strip().count(" ") for row in rows}) == 1 and " " in rows[0].strip():
        return " "
    return preferred or ","


def _is_quoted(text: TextFormat, delimiter: str, first: str) -> bool:
    """Tell whether quotation marks enclose fields."""
    if text.quotes != "auto":
        return text.quotes == "csv"
    if delimiter not in UNQUOTED:
        return True
    fields = first.strip().split(delimiter)  # R writes every name in quotation marks
    return all(len(field) > 1 and field.startswith('"') and field.endswith('"') for field in fields)


def _untyped(names: list[str]) -> list[str]:
    """Return names without the types of RecBole's files (`user_id:token`), where all have one."""
    return [_TYPE.sub("", name) for name in names] if all(map(_TYPE.search, names)) else names


def _unique(names: list[str]) -> tuple[list[str], frozenset[str]]:
    """Return names of which none is empty or stands twice, and those that stood twice."""
    repeated = frozenset(name for name in names if name and names.count(name) > 1)
    unique = [
        f"{name or 'unnamed'} (column {place})" if not name or name in repeated else name
        for place, name in enumerate(names)
    ]
    return unique, repeated
