"""The result and the options of every reader, and opening of files that may be compressed."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast, get_args

import polars as pl

from ...errors import DataError
from ..times import TimeRules
from .encoding import check_encoding, utf8_blocks

GZIP_MAGIC = b"\x1f\x8b"
PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
BLOCK_BYTES = 1 << 25
MOST_UNPACKED, MOST_RATIO = 1 << 28, 200  # bytes that a gzip file unfolds to, and times its size: beyond both, a bomb
PathLike = str | os.PathLike[str]
Quotes = Literal["auto", "csv", "none"]
DELIMITER_WORDS = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True)
class TextFormat:
    """The format of text files as a user gives it, where the files do not show it.

    Attributes:
        delimiter: What stands between the fields of a line, e.g. `";"`, `"::"` or the word `"tab"`; by default it is
            told from the file's ending and first lines.
        encoding: Python's name of the encoding, e.g. `"latin-1"`; by default UTF-8, or what a byte order mark says.
        header: Whether the first line of the interactions holds names; without, columns are named `0`, `1`, `2`, ...
        items_header: The same of the items; None for as `header`.
        quotes: `"csv"` where quotation marks enclose fields, `"none"` where they are part of the text; `"auto"` is
            `"none"` for fields that tabs, spaces or `::` divide, and `"csv"` for all others.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool = True
    items_header: bool | None = None
    quotes: Quotes = "auto"

    def __post_init__(self) -> None:
        """Refuse what no file can be read with, and turn words for a delimiter into it."""
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", DELIMITER_WORDS.get(self.delimiter.lower(), self.delimiter))
            if not self.delimiter or any(char in self.delimiter for char in '\r\n"'):
                raise DataError(
                    f"the delimiter is {self.delimiter!r}; expected one or more characters other than quotation marks "
                    f"and line breaks, or one of the words {[word for word in DELIMITER_WORDS if word.isalpha()]}"
                )
        check_encoding(self.encoding)
        if self.quotes not in get_args(Quotes):
            raise DataError(f"quotes is {self.quotes!r}; choose one of {list(get_args(Quotes))}")

    def of_items(self) -> TextFormat:
        """Return the format of the file of items."""
        if self.items_header is None or self.items_header == self.header:
            return self
        return TextFormat(self.delimiter, self.encoding, self.items_header, None, self.quotes)


AS_FOUND = TextFormat()
"""A text file that says itself how it is written."""


@dataclass(frozen=True)
class RawData:
    """Interactions and items as a source gives them, already in the schema of `interactions`.

    Attributes:
        interactions: `user_id`, `item_id`, `timestamp` and, where known, `rating`; in file order.
        items: `item_id`, `title`, `description` and what else the source knows, one row per item; None without a file.
        name: A short name of the source.
        bad_lines: Lines that were no JSON object, or had another number of fields than the header, and were left out.
        merged_items: Rows of the metadata that repeated an item id and were merged into its first row.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None
    name: str
    bad_lines: int = 0
    merged_items: int = 0


@dataclass
class LineCount:
    """The number of lines read and left out, and the first line left out.

    Attributes:
        good: Lines, or objects of an array, that became rows.
        bad: Those that did not.
        first_bad: The number of the first bad line, from 1.
        excerpt: How that line begins.
        note: What else is known of it.
    """

    good: int = 0
    bad: int = 0
    first_bad: int = 0
    excerpt: str = ""
    note: str = ""
    widths: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the number of lines that are not blank."""
        return self.good + self.bad


class Reader(Protocol):
    """A source of raw data; `readers.READERS` maps the source's name to one."""

    def __call__(
        self,
        interactions: PathLike,
        items: PathLike | None,
        columns: Mapping[str, str],
        max_bad_lines: float,
        text: TextFormat = ...,
        rules: TimeRules = ...,
    ) -> RawData:
        """Read the interactions and, where given, the items."""
        ...


def existing_file(path: PathLike) -> Path:
    """Return the path of a file.

    Raises:
        DataError: when there is none, or it is empty.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())[:5]
        raise DataError(
            f"{path} is a folder; give the file itself"
            + (f" (it holds {inside})" if inside else "")
            + ", or for a folder of MovieLens --source movielens, for a data set's folder --source hub"
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); download or write it again")
    return path


def is_gzip(path: Path) -> bool:
    """Tell by the first bytes whether a file is gzip, whatever its name says.

    Raises:
        DataError: when it is compressed in another way.
    """
    with path.open("rb") as handle:
        start = handle.read(6)
    packed = next((name for magic, name in PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise DataError(f"{path} is a {packed} file; unpack it, or compress it as gzip")
    return start.startswith(GZIP_MAGIC)


class _GzipFile(gzip.GzipFile):
    """A gzip file that stops where it unfolds to what no text table or JSON is packed like."""

    def read(self, size: int | None = -1) -> bytes:
        """Return some bytes.

        Raises:
            DataError: when it has become far larger than it is on the disk.
        """
        most = max(MOST_UNPACKED, MOST_RATIO * os.path.getsize(self.name))
        found = super().read(min(size, most + 1) if size is not None and size >= 0 else most + 1)
        if self.tell() > most:
            raise DataError(
                f"{self.name} unfolds to over {most:,} bytes, {MOST_RATIO} times its size, as no real table does; "
                "unpack it yourself where it is right"
            )
        return found


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip file.

    Raises:
        DataError: when the file is gzip and truncated or damaged.
    """
    try:
        with _GzipFile(path, "rb") if is_gzip(path) else path.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); download it again") from error


def read_blocks(
    path: Path, block_bytes: int | None = None, encoding: str | None = None, strict: bool = False
) -> Iterator[bytes]:
    """Yield a plain or gzip file in blocks of whole lines, in UTF-8 without a byte order mark.

    Args:
        path: The file.
        block_bytes: About how many bytes a block holds; `BLOCK_BYTES` by default.
        encoding: The file's encoding; None for UTF-8 or what a byte order mark says.
        strict: Whether bytes that are no UTF-8 are refused where the file is UTF-8; else they are handed on.

    Raises:
        DataError: when the file is gzip and truncated or damaged, or holds bytes that the encoding does not have.
    """
    rest = b""
    with opened(path) as handle:
        for block in utf8_blocks(handle, path, block_bytes or BLOCK_BYTES, encoding, strict):
            block = rest + block if rest else block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if end:
                yield block[:end]
    if rest:
        yield rest


def read_all(path: Path, encoding: str | None = None) -> bytes:
    """Return the whole content of a plain or gzip text file in UTF-8, line ends as `\\n`, without a byte order mark.

    Raises:
        DataError: when the file is gzip and truncated or damaged, there is nothing in it, or it holds bytes that the
            encoding does not have.
    """
    content = b"".join(read_blocks(path, encoding=encoding, strict=True))
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n")
        if b"\n" not in content:  # old Macintosh
            content = content.replace(b"\r", b"\n")
    if not content.strip():
        raise DataError(f"{path} is empty; expected one line for each row")
    return content


def stem(path: PathLike) -> str:
    """Return a file's name without its endings."""
    return Path(path).name.split(".")[0] or Path(path).name
