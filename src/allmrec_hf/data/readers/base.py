"""What every reader returns, and opening files that may be compressed."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from ...errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 25
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class RawData:
    """Interactions and items as a source gives them, already in the schema of `interactions`.

    Attributes:
        interactions: `user_id`, `item_id`, `timestamp` and, where known, `rating`; in file order.
        items: `item_id`, `title`, `description` and what else the source knows, one row per item; None without a file.
        name: A short name of the source.
        bad_lines: Lines that were no JSON and were left out.
        merged_items: Rows of the metadata that repeated an item id and were left out.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None
    name: str
    bad_lines: int = 0
    merged_items: int = 0


class Reader(Protocol):
    """A source of raw data; `readers.READERS` maps the source's name to one."""

    def __call__(
        self, interactions: PathLike, items: PathLike | None, columns: Mapping[str, str], max_bad_lines: float
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
        raise DataError(f"{path} is a folder; give the file itself")
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); download or write it again")
    return path


def is_gzip(path: Path) -> bool:
    """Tell by the first bytes whether a file is gzip, whatever its name says."""
    with path.open("rb") as handle:
        return handle.read(2) == GZIP_MAGIC


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield a plain or gzip file in blocks of whole lines.

    Raises:
        DataError: when the file is gzip and truncated or damaged.
    """
    rest = b""
    try:
        with gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as handle:
            while block := handle.read(block_bytes):
                block = rest + block
                end = block.rfind(b"\n") + 1
                rest = block[end:]
                if end:
                    yield block[:end]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); download it again") from error
    if rest:
        yield rest


def read_all(path: Path) -> bytes:
    """Return the whole content of a plain or gzip file.

    Raises:
        DataError: when the file is gzip and truncated or damaged, or there is nothing in it.
    """
    content = b"".join(read_blocks(path))
    if not content.strip():
        raise DataError(f"{path} is empty; expected one line for each row")
    return content


def stem(path: PathLike) -> str:
    """Return a file's name without its endings."""
    return Path(path).name.split(".")[0] or Path(path).name
