"""Run the command line in this process."""

from __future__ import annotations

import re
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
