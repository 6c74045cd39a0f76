"""Write files and folders atomically: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from polars.exceptions import PanicException, PolarsError
from safetensors import SafetensorError

from .errors import ALLMRecError, DataError

WRITE_ERRORS = (OSError, SafetensorError, PolarsError)
"""The exceptions of writing: safetensors and Polars wrap the system's errors in classes of their own."""
PARQUET_ERRORS = (OSError, PolarsError, PanicException)
"""The exceptions of reading parquet; a panic of Polars, which damaged metadata can cause, is no `Exception`."""


MOST_ROWS, MOST_ROWS_PER_BYTE = 10_000_000, 100


def check_rows(path: Path) -> None:
    """Check, by its metadata alone, that a parquet file does not unfold to what would fill the memory.

    Raises:
        DataError: when it has far more rows than bytes.
    """
    rows, size = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item(), path.stat().st_size
    if rows > max(MOST_ROWS, MOST_ROWS_PER_BYTE * size):
        raise DataError(
            f"{path} says that it holds {rows:,} rows in {size:,} bytes, as no real table does; write or download it "
            "again"
        )


def sync(path: Path) -> None:
    """Force a file or folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_write_error(error: Exception) -> bool:
    return isinstance(error, WRITE_ERRORS) or (type(error) is Exception and "(os error " in str(error))  # tokenizers


def disk_error(error: Exception, path: str | os.PathLike[str]) -> ALLMRecError:
    """Return the error that tells a user why `path` could not be written; `error` is one of `WRITE_ERRORS`."""
    full, text = (errno.ENOSPC, errno.EDQUOT), str(error)
    known = getattr(error, "errno", None)
    if known in full or (known is None and any(f"os error {c})" in text or os.strerror(c) in text for c in full)):
        return ALLMRecError(
            f"no space left on the disk while writing {path}; nothing was changed. Free some space and retry"
        )
    return ALLMRecError(f"cannot write {path}: {error}; nothing was changed")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before hours of work, that a file can be written later.

    Raises:
        ALLMRecError: when `path` is a folder, or no file can be made beside it.
    """
    path = Path(path)
    if path.is_dir():
        raise ALLMRecError(f"{path} is a folder; give the name of a file")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ALLMRecError(f"{path} cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ALLMRecError(f"{path} cannot be written: there is no permission to make files in {parent}")


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place, synced to disk, when the block ends without an error.

    Raises:
        ALLMRecError: when the disk is full or the folder cannot be written; `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except Exception as error:
        if _is_write_error(error):
            raise disk_error(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


_open = threading.local()
_READY = re.compile(r"\.[a-z0-9_]+\.ready")


def _folders_being_written() -> dict[Path, Path]:
    """Return this thread's open `folder_written_whole` blocks: the folder, and where its files are gathered."""
    if not hasattr(_open, "folders"):
        _open.folders = {}
    found: dict[Path, Path] = _open.folders
    return found


@contextmanager
def folder_written_whole(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder whose files move into `directory` when the block ends without an error.

    Every file is synced before the first one moves, and a process that is killed while they move leaves the rest in
    `directory`, where `finish_interrupted_write` takes it up: all files are of one block. Files of `directory` that are
    not replaced stay. Inside another block of the same folder, the files move when the outer block ends.

    Raises:
        ALLMRecError: when the disk is full or the folder cannot be written; no file was replaced then.
    """
    directory = Path(directory)
    temporary: Path | None = None
    is_new = not directory.exists()
    opened, key = _folders_being_written(), directory.absolute()
    outer = opened.get(key)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        finish_interrupted_write(directory)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=directory))  # the same disk, also when mounted
        opened[key] = temporary
        yield temporary
        files = _files_of(temporary)
        if outer is not None:
            _move(files, temporary, outer)
            return
        for path in files:
            sync(path)
        ready = temporary.rename(temporary.with_suffix(".ready"))  # from here on the new files count
        temporary = None
        sync(directory)
        _finish(ready, directory)
    except Exception as error:
        if _is_write_error(error):
            raise disk_error(error, directory) from error
        raise
    finally:
        opened.pop(key, None)
        if outer is not None:
            opened[key] = outer
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if is_new and outer is None and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def finish_interrupted_write(directory: str | os.PathLike[str]) -> bool:
    """Move what a killed process had written whole into a folder, and tell whether there was any.

    Raises:
        ALLMRecError: when the folder cannot be written; it holds files of two versions then.
    """
    directory = Path(directory)
    try:
        found = sorted(path for path in directory.iterdir() if _READY.fullmatch(path.name) and path.is_dir())
    except OSError:  # no folder, or none that can be read
        return False
    try:
        for ready in found:
            _finish(ready, directory)
    except OSError as error:
        raise ALLMRecError(
            f"a process that wrote {directory} was killed, and what it left there cannot be put in place ({error}); "
            "give permission to write there and retry"
        ) from error
    return bool(found)


def _files_of(folder: Path) -> list[Path]:
    """Return the files of a folder; what makes a folder a checkpoint comes last."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "config.json", path))


def _finish(ready: Path, directory: Path) -> None:
    _move(_files_of(ready), ready, directory)
    shutil.rmtree(ready, ignore_errors=True)


def _move(files: Iterable[Path], source: Path, directory: Path) -> None:
    for path in files:
        target = directory / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # moved by a reader, who finishes what seems to be interrupted
            path.replace(target)
