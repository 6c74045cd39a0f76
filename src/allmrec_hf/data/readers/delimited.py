"""Text tables: CSV, TSV, RecBole's atomic files and what else divides the fields of a line by a delimiter.

Every value stays the text that the file holds. No row is lost without a word: lines with another number of fields than
the header are counted and named, and so are quotation marks that do not follow the rules of CSV.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from ...errors import DataError
from ..interactions import ITEM_ID, USER_ID
from .base import BLOCK_BYTES, LineCount, TextFormat, read_all
from .columns import OURS
from .dialect import SAMPLE_CHARS, Layout, layout_of
from .records import BrokenQuotes, Dialect, plain_record, quoted_record

logger = logging.getLogger(__name__)
EXCERPT = 80
UNIT_SEPARATOR = b"\x1f"  # stands for a delimiter of several characters where Polars reads
Choose = Callable[[list[str]], dict[str, str]]
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+")


def read_delimited(
    file: Path, ending: str, text: TextFormat, max_bad_lines: float, choose: Choose
) -> tuple[pl.DataFrame, int]:
    """Return chosen columns of a text table, every value as text and empty ones null, and the number of lines left out.

    Args:
        file: The file, plain or gzip.
        ending: The file's ending without `.gz`, which tells the delimiter where `text` does not.
        text: What the user says of the file.
        max_bad_lines: The share of lines that may have another number of fields than the header; they are left out.
        choose: From the names of the file's columns to what is wanted: our name to the file's.

    Raises:
        DataError: when the file holds bytes of another encoding, more than the allowed share of its lines has another
            number of fields, quotation marks swallow lines, or the header names a wanted column twice.
    """
    content = read_all(file, text.encoding)
    layout = layout_of(_head(content), ending, text)
    wanted = _wanted(file, layout, choose)
    body = content[len(_head(content)[: layout.start].encode()) :]
    del content
    dialect = _with_escapes(layout, body)
    table = _Table(file, replace(layout, dialect=dialect), wanted, text.quotes == "csv")
    frames = [frame for frame in table.frames(body) if frame.height]
    table.check(max_bad_lines)
    empty = pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
    return pl.concat([empty, *frames]), table.count.bad


def _wanted(file: Path, layout: Layout, choose: Choose) -> dict[str, str]:
    """Return the columns that are wanted: our name to the file's.

    Raises:
        DataError: when one stands more than once in the header, and the column map does not say which is meant.
    """
    try:  # as if each name stood once
        once = choose([*layout.names, *layout.repeated]) if layout.repeated else {}
    except DataError:
        once = {}
    twice = [theirs for ours, theirs in once.items() if ours in OURS and theirs in layout.repeated]
    if twice:
        raise DataError(
            f"{file}: the header names {twice} more than once, see {layout.names}; rename all but one, or choose a "
            "column by its number from 0, such as --column title=2"
        )
    return choose(layout.names)


def _head(content: bytes) -> str:
    """Return the text of a file's first lines."""
    return content[: 4 * SAMPLE_CHARS].decode("utf-8", "ignore")[:SAMPLE_CHARS]


def _with_escapes(layout: Layout, body: bytes) -> Dialect:
    r"""Return the dialect, with `\"` for a quotation mark in a field where more of the file follows these rules."""
    dialect = layout.dialect
    if not dialect.quoted or b'\\"' not in body:
        return dialect
    text = _head(body)
    escaped = replace(dialect, escaped=True)
    return min((dialect, escaped), key=lambda tried: _misread(text, tried, len(layout.names)))


def _misread(text: str, dialect: Dialect, width: int) -> int:
    """Count the records that do not follow the rules of a dialect."""
    wrong = place = 0
    while place < len(text):
        try:
            fields, end = quoted_record(text, place, dialect)
            wrong += len(fields) != width and bool(text[place:end].strip())
            place = end
        except BrokenQuotes:
            wrong += 1
            place = text.find("\n", place) + 1 or len(text)
    return wrong


@dataclass
class _Table:
    """Reads the rows of a text table, and counts what does not fit.

    Attributes:
        file: What the table is called in an error.
        layout: Delimiter, quotation marks and columns.
        wanted: Our column name to the file's.
        trusts_quotes: Whether a field that runs over lines which look like rows is taken for one field.
        count: The lines that were read and left out.
        broken: Fields whose quotation marks do not follow the rules, and the first one's line.
        swallowed: First and last line of fields that run over lines which look like rows.
    """

    file: Path
    layout: Layout
    wanted: Mapping[str, str]
    trusts_quotes: bool
    count: LineCount = field(default_factory=LineCount)
    broken: list[int] = field(default_factory=list)
    several: list[tuple[int, int]] = field(default_factory=list)
    swallowed: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = self.layout.names
        self.width = len(names)
        self.places = [names.index(theirs) for theirs in self.wanted.values()]
        self.id_places = [names.index(self.wanted[ours]) for ours in (USER_ID, ITEM_ID) if ours in self.wanted]
        self.line = self.layout.line

    def frames(self, body: bytes) -> Iterator[pl.DataFrame]:
        """Yield the rows in blocks."""
        start = 0
        while start < len(body):
            limit = start + BLOCK_BYTES
            end = len(body)
            if limit < end:
                end = body.rfind(b"\n", start, limit) + 1 or body.find(b"\n", limit) + 1 or end
            frame = self._fast(body[start:end])
            if frame is None:
                frame, used = self._careful(body[start:end].decode(), final=end == len(body))
                if not used:  # a field runs over the whole block
                    frame, used = self._careful(body[start:].decode(), final=True)
                end = start + used
            yield frame
            start = end

    def _fast(self, block: bytes) -> pl.DataFrame | None:
        """Return a block as Polars reads it, or None where a line needs a closer look."""
        dialect, delimiter = self.layout.dialect, self.layout.dialect.delimiter.encode()
        if len(delimiter) > 1 and not dialect.quoted and UNIT_SEPARATOR not in block:
            block, delimiter = block.replace(delimiter, UNIT_SEPARATOR), UNIT_SEPARATOR
        if not block.endswith(b"\n"):
            block += b"\n"
        marks = np.zeros(0, dtype=np.int64)
        codes = np.frombuffer(block, dtype=np.uint8)
        if dialect.quoted and b'"' in block:
            marks = np.flatnonzero(codes == ord('"'))
            if dialect.escaped or not _follow_the_rules(codes, marks, delimiter):
                return None
        ends = np.flatnonzero(codes == ord("\n"))
        if len(delimiter) != 1 or _within(ends, marks).any():
            return None
        delimiters = np.flatnonzero(codes == delimiter[0])
        counts = np.diff(np.searchsorted(delimiters[~_within(delimiters, marks)], ends), prepend=0)
        if (counts != self.width - 1).any() or (np.diff(ends, prepend=-1) == 1).any():
            return None
        if self.width == 1 and any(not line.strip() for line in block.split(b"\n")[:-1]):
            return None
        columns = [pl.col(str(at)).alias(ours) for ours, at in zip(self.wanted, self.places, strict=True)]
        rows = pl.scan_csv(
            io.BytesIO(block),
            has_header=False,
            separator=delimiter.decode(),
            quote_char='"' if len(marks) else None,
            schema={str(place): pl.String for place in range(self.width)},
        )
        frame = rows.select(columns).collect()
        if frame.height != len(ends):
            return None
        if len(marks):
            frame = frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
        self.line += len(ends)
        self.count.good += len(ends)
        return frame

    def _careful(self, text: str, final: bool) -> tuple[pl.DataFrame, int]:
        """Return the rows of text record by record, and how many bytes were read.

        Args:
            text: The text, from the beginning of a record.
            final: Whether it is the end of the file; else a last field whose end is not there is left for later.
        """
        rows: list[list[str]] = []
        several: list[tuple[int, int, list[str], list[list[str]]]] = []
        place, dialect = 0, self.layout.dialect
        while place < len(text):
            end = text.find("\n", place)
            end = len(text) if end < 0 else end
            line, lines = text[place:end], 1
            if not dialect.quoted or '"' not in line:
                fields, after = line.split(dialect.delimiter), end + 1
            else:
                try:
                    fields, after = quoted_record(text, place, dialect)
                except BrokenQuotes as error:
                    if error.open_end and not final:
                        break
                    fields, after = plain_record(line, dialect), end + 1
                    self.broken.append(self.line)
                lines = text.count("\n", place, min(after, len(text))) or 1
                if lines > 1:
                    inner = [plain_record(row, dialect) for row in text[place : after - 1].split("\n")]
                    several.append((self.line, self.line + lines - 1, fields, inner))
            if len(fields) == self.width > 1:
                self.count.good += 1
                rows.append(fields)
            else:
                self._take(fields, line, rows)
            self.line += lines
            place = after
        place = min(place, len(text))
        self._look_for_swallowed(several, rows)
        columns = list(zip(*rows, strict=True)) or [()] * self.width
        series = [
            pl.Series(ours, columns[at], dtype=pl.String) for ours, at in zip(self.wanted, self.places, strict=True)
        ]
        frame = pl.DataFrame(series)
        used = len(text[:place].encode()) if place < len(text) else len(text.encode())
        return frame.with_columns(pl.when(pl.all() != "").then(pl.all())), used

    def _take(self, fields: list[str], line: str, rows: list[list[str]]) -> None:
        """Add a record to the rows, or count it as left out; blank lines and comments are neither."""
        if len(fields) > self.width and not any(fields[self.width :]):
            fields = fields[: self.width]  # delimiters at the end of a line
        if len(fields) == self.width and line.strip():
            self.count.good += 1
            rows.append(fields)
            return
        if not line.strip() or line.lstrip().startswith("#"):
            return
        count = self.count
        count.bad += 1
        count.widths[len(fields)] = count.widths.get(len(fields), 0) + 1
        if not count.first_bad:
            count.first_bad, count.excerpt = self.line, line[:EXCERPT]
            count.note = f"{len(fields)} fields"

    def _look_for_swallowed(
        self, several: list[tuple[int, int, list[str], list[list[str]]]], rows: list[list[str]]
    ) -> None:
        """Note the records over several lines each of which is a row by itself, with ids like those of other rows."""
        if self.trusts_quotes or not several or self.width == 1:
            return
        spread = {id(fields) for _, _, fields, _ in several}
        places = self.id_places or [0]
        shapes = {_shape(row, places) for row in rows if id(row) not in spread}
        for first, last, _, inner in several:
            if all(len(row) == self.width for row in inner):
                found = {_shape(row, places) for row in inner[1:]}
                if found <= shapes or (not shapes and not any(" " in part for shape in found for part in shape)):
                    self.swallowed.append((first, last))

    def check(self, max_bad_lines: float) -> None:
        """Log what was left out or read word for word.

        Raises:
            DataError: when too many lines have another number of fields, or quotation marks swallow lines.
        """
        count, dialect = self.count, self.layout.dialect
        if self.swallowed:
            first, last = self.swallowed[0]
            raise DataError(
                f"{self.file}: {len(self.swallowed)} fields begin with a quotation mark and end lines later, and each "
                f"of these lines is a row by itself, first lines {first} to {last}. If quotation marks are part of the "
                'text, read the file with --quotes none (quotes="none" in Python), or double and enclose them; if '
                'these fields do hold line breaks, with --quotes csv (quotes="csv")'
            )
        if self.broken:
            logger.warning(
                "%s: %d lines hold quotation marks that do not follow the rules of CSV, first line %d; what stands "
                "there was read as it is. If the file encloses no fields in quotation marks, say so: --quotes none",
                self.file,
                len(self.broken),
                self.broken[0],
            )
        if not count.bad:
            return
        found = (
            f"{self.file}: {count.bad} of {count.total} lines have not the {self.width} fields "
            f"{self.layout.names if self.layout.header else 'of the first line'} that {dialect.delimiter!r} divides, "
            f"first line {count.first_bad} with {count.note}: {count.excerpt!r}"
        )
        if count.bad > max_bad_lines * count.total:
            raise DataError(f"{found}; at most {max_bad_lines:.2%} may be so. {self._advice()}")
        logger.warning("%s; they are left out", found)

    def _advice(self) -> str:
        """Return what to do about lines with another number of fields."""
        count, dialect = self.count, self.layout.dialect
        if not count.good and set(count.widths) == {self.width + 1} and self.layout.header:
            return "Every line has one field more than the header: name the first column there"
        quoting = (
            "enclose fields that hold the delimiter in double quotation marks"
            if dialect.quoted
            else "read the file with --quotes csv if quotation marks enclose fields"
        )
        return (
            f"Mend these lines, {quoting}, name another delimiter (--delimiter, delimiter= in Python), or raise "
            "max_bad_lines"
        )


def _follow_the_rules(codes: np.ndarray, marks: np.ndarray, delimiter: bytes) -> bool:
    """Tell whether every quotation mark of a block opens or closes a whole field, or is doubled in one.

    Args:
        codes: The bytes of the block, which ends with a line break.
        marks: The places of the quotation marks.
        delimiter: What stands between fields.
    """
    if len(marks) % 2:
        return False
    opening, closing = marks[::2], marks[1::2]
    doubled = np.append(opening[1:] == closing[:-1] + 1, False)
    borders = (delimiter[0], ord("\n"))
    before = np.where(opening > 0, codes[opening - 1], ord("\n"))
    opens = np.isin(before, borders) | np.append(False, doubled[:-1])
    return bool(opens.all() and (np.isin(codes[closing + 1], borders) | doubled).all())


def _within(places: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Tell which places of a block lie within a quoted field, given the places of all quotation marks."""
    return np.searchsorted(marks, places) % 2 == 1


def _shape(row: list[str], places: list[int]) -> tuple[str, ...]:
    """Return what ids of a row look like: letters as `a`, digits as `9`, all else as it is."""
    return tuple(_NUMBER.sub("9", _WORD.sub("a", row[place].strip())) for place in places)
