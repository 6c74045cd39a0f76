"""What several commands share: YAML defaults, logging, printing, and the way from an error to an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from ..errors import ALLMRecError, DataError
from ..stored_values import yaml_value
from ..training.option_fields import nearest
from ..training.stage_arguments import LARGEST_SEED

USER_ERROR = 2
stderr = Console(stderr=True, highlight=False)
# Control characters (but tab and line break), line separators, lone surrogates and changes of direction.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return text in which characters that would command a terminal are written as `\\uXXXX`."""
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file the defaults of a command's options; flags on the command line win.

    Raises:
        typer.BadParameter: when the file is no mapping, or names an option the command does not have.
    """
    if path is None:
        return None
    try:
        values = yaml_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must be a mapping of option names to values, such as `output: runs/shop`")
    known = {_plain_name(flag): option for option in context.command.params for flag in option.opts}
    known |= {
        str(option.name).replace("__", "."): option for option in context.command.params if "__" in str(option.name)
    }
    known = {name: option for name, option in known.items() if name not in ("config", "help")}
    given: dict[str, Any] = {}
    for name, value in values.items():
        name = _plain_name(str(name))
        if isinstance(value, dict) and any(option.startswith(f"{name}.") for option in known):
            given |= {f"{name}.{_plain_name(str(part))}": inner for part, inner in value.items()}
        elif name == "data" and isinstance(value, dict):  # the section of what the data are
            given |= {"data" if part == "folder" else _plain_name(str(part)): inner for part, inner in value.items()}
        else:
            given[name] = value
    unknown = sorted(set(given) - set(known))
    if unknown:
        near = [match for name in unknown for match in nearest(name, known)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
        raise typer.BadParameter(f"{path} names unknown options {unknown}; {hint}known are {', '.join(sorted(known))}")
    defaults = {}
    for name, value in given.items():
        option = known[name]
        many = bool(getattr(option, "multiple", False))
        if isinstance(value, dict) and "." in name:
            value = [f"{key}={json.dumps(part)}" for key, part in value.items()] if many else json.dumps(value)
        if isinstance(value, dict) or (isinstance(value, list) and not many):
            raise typer.BadParameter(f"{path}: {name} takes one value, got {value!r}")
        if value is not None:  # an empty value leaves the option's own default
            defaults[str(option.name)] = [value] if many and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _plain_name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


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
SeedOption = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of all that is drawn.")]
PermutationsOption = Annotated[int, typer.Option(min=1, help="Candidate orders whose scores are averaged.")]


ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="OURS=THEIRS, a column of yours; repeat, e.g. --column user_id=customer."),
]


def column_map(pairs: list[str] | None) -> dict[str, str]:
    """Return our column name to the file's from the values of `--column`.

    Raises:
        DataError: when one is not `OURS=THEIRS`.
    """
    parts = [pair.partition("=") for pair in pairs or []]
    wrong = [ours + sep + theirs for ours, sep, theirs in parts if not (ours and sep and theirs)]
    if wrong:
        raise DataError(f"--column takes OURS=THEIRS, such as title=name; got {wrong}")
    return {ours: theirs for ours, _, theirs in parts}


def setup_logging(verbose: bool = False) -> None:
    """Send this package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("allmrec_hf")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    for name in ("training.cost", "evaluation.evaluation_cost"):  # the cost of a run with an LLM is always logged
        logging.getLogger(f"allmrec_hf.{name}").setLevel(logging.INFO)


def setup_process(verbose: bool = False) -> None:
    """Set up the log of a process, and keep the libraries' own talk out of it."""
    setup_logging(verbose)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging as transformers_logging

    if not stderr.is_terminal:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def emit(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(visible(json.dumps(value, indent=2, ensure_ascii=False)))


def say(text: str) -> None:
    """Print text for a person on standard output, never as markup."""
    click.echo(visible(text))


_OF_A_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that a user can mend into one line on standard error and exit code 2."""
    try:
        yield
    except ALLMRecError as error:
        _tell(str(error))
        raise typer.Exit(USER_ERROR) from error
    except OSError as error:
        if error.errno not in _OF_A_PLACE or error.filename is None:
            raise
        _tell(f"{error.filename}: {os.strerror(error.errno)}; give another place, or permission to use this one")
        raise typer.Exit(USER_ERROR) from error


def _tell(text: str) -> None:
    stderr.print(f"[bold red]error:[/] {_plain(text)}", soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(visible(text))
