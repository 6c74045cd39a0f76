"""Split a text table into records: by the rules of CSV where they hold, else line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_QUOTED = 1 << 24  # characters; a longer field counts as one whose quotation mark is never closed
_ESCAPED = re.compile(r'\\([\\"])')


@dataclass(frozen=True)
class Dialect:
    r"""The delimiter and quotation of the fields of a line.

    Attributes:
        delimiter: What stands between fields.
        quoted: Whether quotation marks enclose fields; else they are part of the text.
        escaped: Whether a quotation mark within a field is written `\"`; else it is doubled.
    """

    delimiter: str
    quoted: bool
    escaped: bool = False


class BrokenQuotes(Exception):
    """A field that begins with a quotation mark does not end with one.

    Args:
        open_end: Whether the text ended before a closing mark was found.
    """

    def __init__(self, open_end: bool) -> None:
        super().__init__(open_end)
        self.open_end = open_end


def quoted_record(text: str, start: int, dialect: Dialect) -> tuple[list[str], int]:
    """Return the fields of the record that begins at `start`, by the rules of CSV, and where the next one begins.

    A quoted field may hold delimiters and line breaks. A quotation mark in a field that does not begin with one is
    part of the text.

    Raises:
        BrokenQuotes: when a field begins with a quotation mark and the rules do not hold.
    """
    fields, place, width = [], start, len(dialect.delimiter)
    line_end = _line_end(text, start)
    while True:
        opening = place
        while text[opening : opening + 1] == " " and dialect.delimiter != " ":
            opening += 1
        if text[opening : opening + 1] == '"':
            value, place = _quoted_field(text, opening, dialect)
            fields.append(value)
            if place > line_end:
                line_end = _line_end(text, place)
        else:
            end = text.find(dialect.delimiter, place, line_end)
            end = line_end if end < 0 else end
            fields.append(text[place:end])
            place = end
        if place >= line_end:
            return fields, line_end + 1
        place += width


def _quoted_field(text: str, opening: int, dialect: Dialect) -> tuple[str, int]:
    """Return a quoted field and where it ends: at a delimiter, a line break or the end of the text."""
    place = opening + 1
    while True:
        mark = text.find('"', place, opening + MAX_QUOTED)
        if mark < 0:
            raise BrokenQuotes(open_end=len(text) < opening + MAX_QUOTED)
        if dialect.escaped and _is_escaped(text, mark, opening):
            place = mark + 1
        elif text.startswith('"', mark + 1):
            place = mark + 2
        else:
            break
    value = text[opening + 1 : mark].replace('""', '"')
    if dialect.escaped:
        value = _ESCAPED.sub(r"\1", value)
    place = mark + 1
    while text[place : place + 1] in (" ", "\r") and not text.startswith(dialect.delimiter, place):
        place += 1
    if place < len(text) and text[place] != "\n" and not text.startswith(dialect.delimiter, place):
        raise BrokenQuotes(open_end=False)
    return value, place


def _is_escaped(text: str, mark: int, opening: int) -> bool:
    """Tell whether an odd number of backslashes stands before a quotation mark."""
    place = mark
    while place - 1 > opening and text[place - 1] == "\\":
        place -= 1
    return (mark - place) % 2 == 1


def plain_record(line: str, dialect: Dialect) -> list[str]:
    """Return the fields of one line: without quotation marks where those follow the rules, else as they stand."""
    if not dialect.quoted or '"' not in line:
        return line.split(dialect.delimiter)
    fields, place, width = [], 0, len(dialect.delimiter)
    while True:
        opening = place
        while line[opening : opening + 1] == " " and dialect.delimiter != " ":
            opening += 1
        try:
            if line[opening : opening + 1] != '"':
                raise BrokenQuotes(open_end=False)
            value, place = _quoted_field(line, opening, dialect)
        except BrokenQuotes:
            end = line.find(dialect.delimiter, place)
            end = len(line) if end < 0 else end
            value, place = line[place:end], end
        fields.append(value)
        if place >= len(line):
            return fields
        place += width


def next_record(text: str, start: int, dialect: Dialect) -> tuple[list[str], int]:
    """Return the fields of the record that begins at `start`, and where the next one begins; never fails."""
    if dialect.quoted:
        try:
            return quoted_record(text, start, dialect)
        except BrokenQuotes:
            pass
    end = _line_end(text, start)
    return plain_record(text[start:end], dialect), end + 1


def _line_end(text: str, start: int) -> int:
    """Return where a line ends: at its line break or the end of the text."""
    end = text.find("\n", start)
    return len(text) if end < 0 else end
