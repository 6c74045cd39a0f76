"""`allmrec`: every command, from `prepare` and `train` to `serve`, `space` and `push`."""

from __future__ import annotations

import typer

from .._version import __version__
from .benchmark import benchmark
from .card_command import card
from .demo import demo
from .evaluate import evaluate
from .explain import explain
from .export import export
from .import_backbone import import_backbone, import_users_module
from .options import setup_process, user_errors
from .prepare_command import prepare
from .recommend import add_items, push, recommend
from .refit_command import refit
from .serve import serve
from .space import space
from .train import SectionedCommand, train

app = typer.Typer(
    name="allmrec",
    help="A-LLMRec (KDD 2024): a frozen LLM that recommends with the knowledge of a collaborative-filtering model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens, on standard error."),
    backbone_module: str | None = typer.Option(
        None, help="Python module with a backbone of your own, imported before the command; this runs its code."
    ),
) -> None:
    setup_process(verbose)
    if backbone_module is not None:
        with user_errors():
            import_users_module(backbone_module)


for name, function in (
    ("prepare", prepare),
    ("train", train),
    ("refit", refit),
    ("import-backbone", import_backbone),
    ("evaluate", evaluate),
    ("benchmark", benchmark),
    ("recommend", recommend),
    ("explain", explain),
    ("add-items", add_items),
    ("serve", serve),
    ("space", space),
    ("export", export),
    ("card", card),
    ("push", push),
    ("demo", demo),
):
    app.command(name, cls=SectionedCommand if function is train else None)(function)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
