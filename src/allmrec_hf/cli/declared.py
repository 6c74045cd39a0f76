"""The options of `allmrec train`, made from the fields of the argument classes: flags, help panels, values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from ..errors import ALLMRecError
from ..stored_values import json_value, yaml_value
from ..training.option_fields import Checked, choices_of
from ..training.section_arguments import SECTIONS
from ..training.stage_arguments import STAGES, STEPS, StageArguments

SEPARATOR = "__"  # in the name of a parameter, between section and option
PANELS = {
    "backbone": "Stage 0: the backbone (--backbone.OPTION)",
    "align": "Stage 1: the alignment (--align.OPTION)",
    "project": "Stage 2: the projection into the LLM (--project.OPTION)",
    "retrieve": "The ranker retrieval (--retrieve.OPTION)",
    "rank": "What the checkpoint ranks by (--rank.OPTION)",
    "llm": "The frozen LLM",
}
_KIND_WORDS = {int: "number", float: "number", Path: "path"}
_SIGNATURES: dict[str, dict[str, Any]] = {}
LOOP_PANEL = "The training of each stage (STAGE: backbone, align, project or retrieve)"


def with_declared_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all sections, in place of its parameter `**options`."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [_parameter(section, field) for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *made) if p is not None]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = _SIGNATURES[function.__name__] = {p.name: p.annotation for p in parameters}
    return function


def _parameter(section: str, field: dataclasses.Field[Any]) -> inspect.Parameter | None:
    loop, flag = field.metadata["loop"], field.metadata["flag"]
    if loop and flag is not None and section != STAGES[0]:
        return _option(section, field, None, hidden=True)
    return _option(section, field, flag, hidden=loop and flag is None)


def _option(section: str, field: dataclasses.Field[Any], flag: str | None, hidden: bool) -> inspect.Parameter:
    """Return the parameter of a field; without a value, the preset's holds."""
    hint = get_type_hints(SECTIONS[section])[field.name]
    kind: Any = _plain_kind(hint)
    plain = field.name.replace("_", "-")
    flag = flag or f"--{section}.{plain}"
    help_text = field.metadata["help"]
    panel = None if field.metadata["loop"] and flag.count(".") == 0 else PANELS[section]
    limits: dict[str, Any] = {}
    if choices_of(kind):
        kind = Literal[choices_of(kind)]  # type: ignore[valid-type]
    elif kind is bool and not field.name.startswith("no_"):
        negative = f"--no-{flag[2:]}" if "." not in flag else flag.replace(".", ".no-", 1)
        flag = f"{flag}/{negative}"
    elif get_origin(kind) is dict:
        kind, help_text = (
            (str, f"{help_text} A YAML or JSON file.")
            if field.name == "prompt"
            else (list[str], f"{help_text} NAME=VALUE; repeat.")
        )
    elif kind in (int, float):
        limits = {"min": field.metadata["at_least"], "max": field.metadata["at_most"]}
    name = f"{section}{SEPARATOR}{field.name}" if not (field.metadata["loop"] and "." not in flag) else field.name
    option = typer.Option(flag, help=help_text, rich_help_panel=panel, hidden=hidden, show_default=False, **limits)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def sections_of(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values by section that were given as options.

    Raises:
        ALLMRecError: when a mapping is written wrong.
    """
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in options.items():
        section, separator, option = name.partition(SEPARATOR)
        if value is None or value == [] or not separator:
            continue
        if isinstance(value, list):
            value = pairs(value, f"--{section}.{option}")
        if option == "prompt":
            value = _prompt(value)
        given[section][option] = value
    return given


def pairs(values: list[str], flag: str) -> dict[str, Any]:
    """Return names and values of options such as `hidden_size=128`.

    Raises:
        ALLMRecError: when one is not `NAME=VALUE`.
    """
    found = {}
    for pair in values:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ALLMRecError(f"{flag} takes NAME=VALUE, such as hidden_size=128; got {pair!r}")
        try:
            found[name] = json_value(value)
        except ValueError:
            found[name] = value
    return found


def _prompt(value: str) -> dict[str, str]:

    try:
        text = value if value.lstrip().startswith("{") else Path(value).read_text(encoding="utf-8")
        found = yaml_value(text)
    except (OSError, ValueError) as error:
        raise ALLMRecError(f"--prompt {value} cannot be read: {error}; give a YAML or JSON file") from error
    if not isinstance(found, dict):
        raise ALLMRecError(f"--prompt {value} must hold a mapping with the fields prompt, item, separator and answer")
    return found


class SectionedCommand(TyperCommand):
    """A command whose options have sections: an option without its stage is named with the stages that have it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = str(getattr(error, "option_name", None) or "").lstrip("-").replace("-", "_")
            owners = [section for section, kind in SECTIONS.items() if name in kind.names()]
            if not owners:
                raise
            flags = ", ".join(f"--{section}.{name.replace('_', '-')}" for section in owners)
            what = "a stage" if all(owner in STEPS for owner in owners) else "a section"
            raise typer.BadParameter(f"--{name.replace('_', '-')} belongs to {what}: {flags}", ctx) from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show one panel for each section; the options of a stage's loop stand once, for all stages."""
        console = Console()
        console.print(f"\n [bold yellow]Usage:[/] [bold]{escape(ctx.command_path)} [OPTIONS][/]\n", highlight=False)
        console.print(Padding(Markdown(inspect.cleandoc(self.help or "")), (0, 1)))
        loop = [field.name for field in dataclasses.fields(StageArguments) if field.metadata["flag"] is None]
        kinds = {name: get_args(hint)[0] for name, hint in _SIGNATURES[str(self.name)].items()}
        panels: dict[str, list[Any]] = {"Run": [], **{title: [] for title in PANELS.values()}, LOOP_PANEL: []}
        for parameter in self.get_params(ctx):
            section, _, option = str(parameter.name).partition(SEPARATOR)
            if section == STAGES[0] and option in loop:
                panels[LOOP_PANEL].append(parameter)
            elif not getattr(parameter, "hidden", False):
                panels[getattr(parameter, "rich_help_panel", None) or "Run"].append(parameter)
        for title, parameters in panels.items():
            table = Table.grid(padding=(0, 2))
            for parameter in parameters:
                table.add_row(_flag(parameter, title == LOOP_PANEL), _help(parameter, kinds.get(str(parameter.name))))
            console.print(Panel(table, title=title, title_align="left", border_style="dim", box=box.ROUNDED))


def _flag(parameter: Any, of_every_stage: bool) -> Text:
    flag = next(opt for opt in parameter.opts if opt.startswith("--"))
    flag = flag.replace(f"--{STAGES[0]}.", "--STAGE.") if of_every_stage else flag
    return Text(flag, style="bold cyan", no_wrap=True)


def _help(parameter: Any, kind: Any) -> Text:
    told = Text(str(getattr(parameter, "help", "") or "").replace("`", ""))
    values = choices_of(kind)
    if values:
        told.append(f" [{', '.join(map(str, values))}]", style="dim")
    elif parameter.secondary_opts:
        told.append(f" [or {parameter.secondary_opts[0]}]".replace(f"--{STAGES[0]}.no", "--STAGE.no"), style="dim")
    elif _plain_kind(kind) in _KIND_WORDS:
        told.append(f" [{_KIND_WORDS[_plain_kind(kind)]}]", style="dim")
    if parameter.required:
        told.append(" Required.", style="red")
    return told


def _plain_kind(hint: Any) -> Any:
    return next((part for part in get_args(hint) if part is not type(None)), hint) if _is_union(hint) else hint


def options_table(kind: type[Checked], presets: Mapping[str, Checked], names: Sequence[str]) -> str:
    """Return a Markdown table of some options: name, meaning, and the value of each preset."""
    lines = [f"| option | meaning | {' | '.join(presets)} |", f"| --- | --- |{' --- |' * len(presets)}"]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in names:
            continue
        values = [_shown(getattr(arguments, field.name)) for arguments in presets.values()]
        flag = f" (`{field.metadata['flag']}`)" if field.metadata["flag"] else ""
        lines.append(f"| `{field.name}`{flag} | {field.metadata['help']} | {' | '.join(values)} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else f"`{value}`"
