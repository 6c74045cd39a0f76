"""Write a folder atomically: in a temporary folder beside it, which is then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..files import WRITE_ERRORS, disk_error, sync


def check_output(output: Path, overwrite: bool, marker: str) -> None:
    """Check that an output folder may be written.

    Args:
        output: The folder.
        overwrite: Whether a folder that holds an earlier result may be replaced.
        marker: A file name by which an earlier result is known; a folder without it is never replaced.

    Raises:
        DataError: when it is a file, or a folder that is not empty and may not be replaced.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"the output {output} is a file; give a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise DataError(
            f"the output folder {output} is not empty; choose another, or replace it with overwrite=True, or "
            "--overwrite on the command line"
        )
    if not (output / marker).is_file():
        raise DataError(
            f"the output folder {output} is not empty and holds no {marker}, so it is no earlier result and is not "
            "replaced; choose another folder"
        )


@contextmanager
def replaced_folder(output: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """Give a new temporary folder beside `output` that takes its place when the block ends without an error.

    Raises:
        DataError: as `check_output`.
        ALLMRecError: when writing fails, e.g. because the disk is full; `output` is as it was, nothing else is left.
    """
    output = output.absolute()
    check_output(output, overwrite, marker)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        _take_place(temporary, output)
    except WRITE_ERRORS as error:
        raise disk_error(error, output) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, output: Path) -> None:
    """Rename the temporary folder; an earlier result is set aside first and put back if that fails."""
    aside = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        output.rename(aside)
    try:
        temporary.rename(output)
    except OSError:
        if aside.exists():
            aside.rename(output)
        raise
    sync(output.parent)
    shutil.rmtree(aside, ignore_errors=True)
