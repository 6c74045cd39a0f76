"""Run the command line, in this process or in one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from allmrec_hf.cli.main import app

USER_ERROR = 2


def run(*arguments: Any) -> Result:
    """Run a command; an error that is no exit would be a traceback for the user."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def refused(*arguments: Any) -> str:
    """Run a command that must end with exit code 2; return what it says on standard error, on one line."""
    result = run(*arguments)
    assert result.exit_code == USER_ERROR, result.output
    assert result.stdout == ""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


def succeeded(*arguments: Any) -> Result:
    """Run a command that must end well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def in_own_process(*arguments: Any, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh interpreter, after some lines of Python."""
    code = f"from allmrec_hf.cli.main import main\n{before}\nmain()\n"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def each_stage(option, value):
    """Return an option of the loop for all three stages."""
    return [text for stage in ("backbone", "align", "project") for text in (f"--{stage}.{option}", value)]
