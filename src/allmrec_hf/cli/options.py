"""What several commands share: YAML defaults, logging, printing, and the way from an error to an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import yaml
from rich.console import Console

from ..errors import ALLMRecError

USER_ERROR = 2
stderr = Console(stderr=True, highlight=False)


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file the defaults of a command's options; flags on the command line win.

    Raises:
        typer.BadParameter: when the file is no mapping, or names an option the command does not have.
    """
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must be a mapping of option names to values, such as `epochs: 3`")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = {parameter.name for parameter in context.command.params}
    unknown = sorted(set(values) - known)
    if unknown:
        names = ", ".join(sorted(str(name) for name in known if name not in ("config", "help")))
        raise typer.BadParameter(f"{path} names unknown options {unknown}; known are {names}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with options by name; flags on the command line win.",
        callback=load_config,
        is_eager=True,
        exists=True,
        dir_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]


def setup_logging(verbose: bool = False) -> None:
    """Send this package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("allmrec_hf")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def emit(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print text for a person on standard output, never as markup."""
    click.echo(text)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that a user can mend into one line on standard error and exit code 2."""
    try:
        yield
    except ALLMRecError as error:
        stderr.print(f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True)
        raise typer.Exit(USER_ERROR) from error


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
