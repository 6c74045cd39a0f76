"""The parts of an unfinished result: written whole or not at all, kept when the process dies, joined at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from ..errors import ALLMRecError
from ..files import PARQUET_ERRORS, WRITE_ERRORS, check_writable, disk_error, written_whole
from ..stored_values import json_value

RECORD = "run.json"
LOCK = ".lock"
ROW_GROUP = 2**16


class PartsFolder:
    """The folder `OUTPUT.parts`, with one file for each part that is done and a record of what they are parts of.

    Args:
        output: The file that the parts become.
        rows: Rows of the whole.
        rows_per_part: Rows of a part; the last one may have fewer.
    """

    def __init__(self, output: Path, rows: int, rows_per_part: int) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.rows = rows
        self.rows_per_part = rows_per_part
        self.count = max(1, -(-rows // rows_per_part))  # no rows are one empty part

    @contextmanager
    def held(self, record: Mapping[str, Any], overwrite: bool = False) -> Iterator[None]:
        """Keep other processes out; start, or continue what another one has begun of the same run.

        Args:
            record: What decides the result: the input, the checkpoint and the settings.
            overwrite: Replace a finished file, and drop the parts of another run.

        Raises:
            ALLMRecError: when another process is at work there, the folder holds parts of another run, the output is
                there already, or the disk cannot be written.
        """
        check_writable(self.output)
        if self.output.exists() and not overwrite:
            raise ALLMRecError(f"{self.output} is there already; give another --output, or --overwrite")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ALLMRecError(f"another process is writing {self.output}; wait for it, or stop it") from error
        except OSError as error:
            raise disk_error(error, self.output) from error
        try:
            self._begin(json.loads(json.dumps(record)), overwrite)
            yield
        finally:
            lock.release()
            if self.folder.exists() and not any(self.folder.glob("part-*.parquet")):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, record: dict[str, Any], overwrite: bool) -> None:
        record = {**record, "rows": self.rows, "rows_per_part": self.rows_per_part}
        path = self.folder / RECORD
        known = _read_record(path)
        if known is not None and known != record:
            if not overwrite:
                changed = sorted(key for key in {*known, *record} if known.get(key) != record.get(key))
                told = "; ".join(f"{key} was {known.get(key)}, is {record.get(key)}" for key in changed)
                raise ALLMRecError(
                    f"{self.folder} holds parts of another run ({told}); run that one to its end, give another "
                    "--output, or --overwrite to drop them"
                )
            known = None
        for old in self.folder.glob(".*.tmp"):  # of a process that was killed
            old.unlink(missing_ok=True)
        if known is None:
            for old in self.folder.glob("part-*.parquet"):
                old.unlink()
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:08d}.parquet"

    def span(self, number: int) -> tuple[int, int]:
        """Return the first row of a part, and how many it has."""
        start = number * self.rows_per_part
        return start, min(self.rows_per_part, self.rows - start)

    def missing(self) -> list[int]:
        """Return the parts that are not there; one that is damaged is removed."""
        found = []
        for number in range(self.count):
            path = self.path(number)
            if path.exists() and _num_rows(path) != self.span(number)[1]:
                path.unlink()
            if not path.exists():
                found.append(number)
        return found

    def write(self, number: int, table: pl.DataFrame) -> None:
        """Write a part, whole or not at all.

        Raises:
            ALLMRecError: when the disk is full or cannot be written; parts that are done stay.
        """
        try:
            with written_whole(self.path(number)) as temporary:
                table.write_parquet(temporary)
        except ALLMRecError as error:
            raise ALLMRecError(f"{error}. {self.continued}") from error

    @property
    def continued(self) -> str:
        """What to tell of an unfinished run."""
        return f"The parts that are done stay in {self.folder}: the same command continues there"

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet([self.path(number) for number in range(self.count)], glob=False)

    def rows_without_recommendations(self) -> int:
        """Return the rows of all parts that have no recommendations."""
        return int(self._scan().select(pl.col("recommendations").is_null().sum()).collect(engine="streaming").item())

    def join(self) -> None:
        """Write the output from all parts, in order, and remove them; few of their rows are in memory at once.

        Raises:
            ALLMRecError: when the disk is full or cannot be written; the parts stay.
        """
        try:
            with written_whole(self.output) as temporary:
                self._scan().sink_parquet(temporary, row_group_size=ROW_GROUP, maintain_order=True)
        except WRITE_ERRORS as error:
            raise ALLMRecError(f"{disk_error(error, self.output)}. {self.continued}") from error
        except ALLMRecError as error:
            raise ALLMRecError(f"{error}. {self.continued}") from error
        (self.folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _num_rows(path: Path) -> int | None:
    try:
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    except PARQUET_ERRORS:
        return None


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        found = json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
