"""Write docs/command_line.md from the command line's own declarations.

python scripts/render_cli_docs.py
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from allmrec_hf.cli.main import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command_line.md"
INTRODUCTION = """# Command line

<!-- Written by scripts/render_cli_docs.py from the commands themselves. -->

`allmrec COMMAND --help` prints the same. Every option can stand in a YAML file that `--config` names, and those on the
command line win. A mistake of the user ends with one line on standard error and exit code 2; with `--json`, standard
output holds one JSON object and nothing else.
"""
FLAG = "flag"


def _parameters(function: Any) -> list[tuple[str, Any, Any, Any]]:
    """Return name, type, declaration and default of a command's parameters."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, default = hints[name], parameter.default
        declared = [
            extra for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, (OptionInfo, ArgumentInfo))
        ]
        kind = kind.__origin__ if hasattr(kind, "__metadata__") else kind
        if isinstance(default, (OptionInfo, ArgumentInfo)):
            declared, default = [default], default.default
        if declared:
            found.append((name, kind, declared[0], default))
    return found


def _without_none(kind: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether it is a list of values."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    many = typing.get_origin(kind) is list
    return (typing.get_args(kind)[0] if many else kind), many


def _value(kind: Any) -> str:
    kind, many = _without_none(kind)
    if kind is bool:
        return FLAG
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        name = ", ".join(f"`{member.value}`" for member in kind)
    elif typing.get_origin(kind) is typing.Literal:
        name = ", ".join(f"`{value}`" for value in typing.get_args(kind))
    else:
        name = {str: "text", int: "whole number", float: "number", Path: "path"}.get(
            kind, getattr(kind, "__name__", "")
        )
    return f"{name}; may be repeated" if many else name


def _names(name: str, kind: Any, info: Any, default: Any) -> str:
    """Return an option as it is written; an argument by its name in capitals."""
    if isinstance(info, ArgumentInfo):
        return f"`{name.upper()}`"
    given = (info.default, *(info.param_decls or ()))  # in Annotated[...] the first name stands where a default does
    written = [one for one in given if isinstance(one, str) and one.startswith("-")]
    if not written:
        flag = name.strip("_").replace("_", "-")
        both = _without_none(kind)[0] is bool
        written = [f"--{flag}/--no-{flag}" if both else f"--{flag}"]
    return ", ".join(f"`{part}`" for one in written for part in one.split("/"))


def _default(default: Any) -> str:
    if default is ...:
        return "required"
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False or default == [] or callable(default):
        return ""
    return f"`{default.value if isinstance(default, enum.Enum) else 'on' if default is True else default}`"


def _cell(text: str) -> str:
    """Return a text that may stand in a cell of a table."""
    return " ".join(inspect.cleandoc(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _table(function: Any) -> list[str]:
    lines = ["| option | value | default | |", "| --- | --- | --- | --- |"]
    for name, kind, info, default in _parameters(function):
        if not info.hidden:
            cells = (_names(name, kind, info, default), _value(kind), _default(default), _cell(info.help or ""))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    if any(info.hidden for _, _, info, _ in _parameters(function)):
        options = "[all of them](training_options.md)"
        lines += ["", f"The training of each stage has options too, such as `--project.learning-rate`: {options}."]
    return lines


def _description(function: Any) -> str:
    """Return a command's help, its examples as one block."""
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("**Examples**")
    commands = [" ".join(command.split()) for command in re.findall(r"`([^`]+)`", examples)]
    block = "\n".join(["```bash", *commands, "```"]) if commands else ""
    return "\n\n".join(part for part in (text.strip(), block) if part)


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION, "## Before any command\n", *_table(app.registered_callback.callback)]  # type: ignore[union-attr]
    for command in app.registered_commands:
        parts += ["", f"## allmrec {command.name}\n", _description(command.callback), "", *_table(command.callback)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
