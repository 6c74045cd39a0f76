"""A parquet file or folder with a request in each row, of which a part is read at a time."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import polars as pl

from ..errors import DataError
from ..files import PARQUET_ERRORS
from ..pipeline_recommendation import KEYS, OPTION_KEYS, further_keys
from .results import RESULT_COLUMNS

BLOCK_BYTES = 2**22
_ENTRIES = (pl.String, pl.Categorical, pl.Enum)


class UsersFile:
    """Rows of users: what a request holds (`history` or `titles`, candidates, options), and columns of your own.

    Args:
        path: A parquet file, or a folder of parquet files, which are read in the order of their names.

    Attributes:
        files: The files.
        rows: Their rows.
        schema: Their columns.
        own: The columns that are no part of a request; the result repeats them.

    Raises:
        DataError: when there is no such file, it is no parquet, or its columns are not those of requests.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise DataError(f"{path} has no parquet files; give a file, or a folder of files named *.parquet")
        if not path.exists():
            raise DataError(f"{path} is no file; give a parquet file with a column `history` of item ids")
        try:
            self.schema = self._scan().collect_schema()
            self.rows = int(self._scan().select(pl.len()).collect().item())
        except PARQUET_ERRORS as error:
            raise DataError(
                f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); JSON lines are for --requests"
            ) from error
        self.own = [name for name in self.schema if name not in (*KEYS, *OPTION_KEYS)]
        self._check_columns()

    def _check_columns(self) -> None:
        try:
            further_keys(dict.fromkeys(self.schema))
        except DataError as error:
            raise DataError(f"{self.path}, columns {list(self.schema)}: {error}") from error
        taken = [name for name in self.own if name in RESULT_COLUMNS]
        if taken:
            raise DataError(f"{self.path} has the column {taken[0]!r}, which the result has; call it by another name")
        for name in KEYS:
            kind = self.schema.get(name, pl.Null)
            entry = getattr(kind, "inner", None)
            if kind == pl.Null or (entry is not None and (entry.is_integer() or entry.base_type() in _ENTRIES)):
                continue
            if entry == pl.Null:  # lists without any entry
                continue
            raise DataError(
                f"{self.path}: the column {name!r} is {kind}, not a list of ids or titles; in Polars "
                f"pl.col({name!r}).str.split(',') makes one of text with commas"
            )

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.files, glob=False)

    def read(self, start: int, count: int) -> pl.DataFrame:
        """Return some rows; no more of the file than the row groups that hold them is looked at.

        Raises:
            DataError: when the file cannot be read there.
        """
        try:
            return self._scan().slice(start, count).collect()
        except PARQUET_ERRORS as error:
            raise DataError(f"{self.path} cannot be read from row {start} on: {str(error).splitlines()[0]}") from error

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digits over the bytes of all files."""
        found = hashlib.sha256()
        for file in self.files:
            found.update(f"{file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                while block := opened.read(BLOCK_BYTES):
                    found.update(block)
        return found.hexdigest()[:32]
