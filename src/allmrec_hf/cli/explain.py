"""`allmrec explain`: explain one recommendation, or answer a free-text task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import GgufFileOption, LlmOption, ModelOption, OtherLlmOption, TrustOption, load_pipeline, named_llm
from .options import ConfigOption, JsonOption, emit, say, stderr, user_errors, visible
from .recommend import CandidateTitlesOption, TitlesOption, as_titles

if TYPE_CHECKING:
    from ..pipeline_recommendation import RecommendationPipeline


def explain(
    model: ModelOption = None,
    history: Annotated[list[str] | None, typer.Option(help="Item ids, oldest first, with commas between.")] = None,
    titles: TitlesOption = None,
    item: Annotated[str | None, typer.Option(help="The id of the item to explain.")] = None,
    item_title: Annotated[str | None, typer.Option(help="Its title, in place of its id.")] = None,
    candidates: Annotated[
        list[str] | None, typer.Option(help="Ids of the prompt's list; retrieved from the catalogue if not given.")
    ] = None,
    candidate_titles: CandidateTitlesOption = None,
    contrast: Annotated[
        bool, typer.Option("--contrast", help="Explain the score minus the candidates' mean: what decides the ranking.")
    ] = False,
    removal: Annotated[
        str, typer.Option(help="How an item leaves the prompt: neutral (same places) or delete (shorter list).")
    ] = "neutral",
    top_tokens: Annotated[int, typer.Option(min=1, help="Nearest tokens for each vector.")] = 5,
    gradient_steps: Annotated[
        int, typer.Option(min=1, help="Places over which the gradient is averaged; 1 takes it at the input alone.")
    ] = 8,
    output: Annotated[Path | None, typer.Option(help="Write the explanation here, as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it here: .svg, .png or .html.")] = None,
    task: Annotated[
        str | None, typer.Option(help="A free-text task instead: favourite-category, why-this, or a JSON file.")
    ] = None,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Explain one recommendation: contributions, nearest tokens, both scores; or ask the LLM a free-text question.

    **Examples**

    `allmrec explain --model runs/games --history B0001,B0002 --item B0007 --output why.json --picture why.svg`

    `allmrec explain --model runs/films --titles "Heat" --titles "Heat, The" --item-title "Alien"`

    `allmrec explain --model runs/games --history B0001,B0002 --item B0007 --task why-this`

    `allmrec explain --model runs/games --history B0001,B0002 --task favourite-category`
    """
    with user_errors():
        from ..errors import DataError
        from ..files import check_writable

        if not _ids(history) and not titles:
            raise DataError("the history is empty; give --history ID,ID,... or --titles TITLE")
        if task is None and item is None and item_title is None:
            raise DataError("give --item, the item to explain (or --item-title), or --task")
        if removal not in ("neutral", "delete"):
            raise DataError(f"--removal is neutral or delete, not {removal!r}")
        if task is not None and (contrast or picture is not None):
            raise DataError(
                "--contrast and --picture are of one recommendation's explanation; leave them out with --task"
            )
        for path in (output, picture):
            if path is not None:
                check_writable(path)
        if picture is not None and picture.suffix.lower() not in (".svg", ".png", ".html"):
            raise DataError(f"--picture {picture} must end in .svg, .png or .html")
        pipe = load_pipeline(model, named_llm(llm, gguf_file), None, trust_remote_code, allow_other_llm)
        named = as_titles(pipe.processor.catalog, titles)
        if task is not None:
            asked: dict[str, Any] = {"history": _ids(history), "titles": named, "item": item, "item_title": item_title}
            found = _run_task(pipe, task, asked)
            _write(found, output)
            emit(found) if json_output else say(found["answer"])
            _say_written(output)
            return
        from ..explaining.explanation import explain as explained
        from ..explaining.explanation import write_explanation

        settings: dict[str, Any] = {"contrast": contrast, "removal": removal, "gradient_steps": gradient_steps}
        settings |= {"candidates": _ids(candidates) or None, "top_tokens": top_tokens}
        settings |= {"titles": named, "item_title": item_title}
        settings["candidate_titles"] = as_titles(pipe.processor.catalog, candidate_titles)
        found = explained(pipe.model, pipe.processor, _ids(history), item, **settings)
        if picture is not None:
            from ..explaining.picture import draw_explanation

            draw_explanation(found, picture)
        if output is not None:
            write_explanation(found, output)
        for note in found["notes"]:
            stderr.print(note, markup=False, soft_wrap=True)
        emit(found) if json_output else _say_explanation(found)
        _say_written(output, picture)


def _ids(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def _write(found: dict[str, Any], output: Path | None) -> None:
    from ..files import written_whole

    if output is not None:
        with written_whole(output) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _say_written(*paths: Path | None) -> None:
    """Say which files were written, on standard error: standard output may be JSON."""
    written = ", ".join(str(path) for path in paths if path is not None)
    if written:
        stderr.print(f"Written to {visible(written)}.", markup=False, soft_wrap=True)


def _run_task(pipe: RecommendationPipeline, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    from ..explaining.explanation import one_or_none, require_items
    from ..explaining.tasks import find_task, generate_answers

    task, catalog = find_task(name), pipe.processor.catalog
    known = require_items(catalog, asked["history"], "history", asked["titles"])
    item, item_title = one_or_none(asked["item"]), one_or_none(asked["item_title"])
    items = require_items(catalog, item, "item", item_title) if task.asks_about_item else None
    texts = generate_answers(pipe.model, pipe.processor, task, [known], items)
    return {"task": task.to_dict(), "answer": texts[0]}


def _say_explanation(found: dict[str, Any]) -> None:
    """Print the explanation as three tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..explaining.nearest_words import visible_text

    console = Console(highlight=False)

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=Text(title), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(Text(visible_text(cell)) for cell in row))
        console.print(table)

    value, name = found["value"], visible_text(found["item"]["title"])
    show(
        f"{name}: {value['kind'].replace('_', ' ')} {value['nats']:.3f} nats",
        ["contribution of", "leave-one-out", "gradient x input"],
        [
            [
                one.get("title", "user vector"),
                *(f"{round(one[method]['total'], 3) + 0.0:+.3f}" for method in ("leave_one_out", "gradient_x_input")),
            ]
            for one in found["contributions"]
        ],
    )
    show(
        "Nearest tokens",
        ["vector of", "tokens (cosine)"],
        [
            [
                near.get("title", "user"),
                ", ".join(f'"{token["text"]}" {token["cosine"]:.2f}' for token in near["tokens"]),
            ]
            for near in found["nearest_tokens"]
        ],
    )
    show(
        "Candidates",
        ["title", "LLM score", "rank", "CF score", "rank"],
        [
            [
                row["title"],
                f"{row['llm_score']:.4f}",
                str(row["llm_rank"]),
                f"{row['cf_score']:.4f}",
                str(row["cf_rank"]),
            ]
            for row in found["candidates"]
        ],
    )
