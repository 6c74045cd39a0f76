"""Write files and folders atomically: whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polars.exceptions import PolarsError
from safetensors import SafetensorError

from .errors import ALLMRecError

WRITE_ERRORS = (OSError, SafetensorError, PolarsError)
"""The exceptions of writing: safetensors and Polars wrap the system's errors in classes of their own."""


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
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ALLMRecError(f"{path} cannot be written: {parent} is no folder in which files can be made")


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


@contextmanager
def folder_written_whole(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder whose files move into `directory` when the block ends without an error.

    Every file is synced before the first one moves; files of `directory` that are not replaced stay.

    Raises:
        ALLMRecError: when the disk is full or the folder cannot be written; no file was replaced then.
    """
    directory = Path(directory)
    temporary: Path | None = None
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=directory))  # the same disk, also when mounted
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.name == "config.json", path))  # what makes a folder a checkpoint comes last
        for path in files:
            sync(path)
        for path in files:
            target = directory / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    except Exception as error:
        if _is_write_error(error):
            raise disk_error(error, directory) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if is_new and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
