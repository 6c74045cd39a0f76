"""`allmrec recommend`, `allmrec add-items` and `allmrec push`: a trained model in use."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    ColumnOption,
    ConfigOption,
    JsonOption,
    PermutationsOption,
    column_map,
    emit,
    say,
    stderr,
    user_errors,
)

if TYPE_CHECKING:
    from ..pipeline_recommendation import RecommendationPipeline

logger = logging.getLogger(__name__)
MAX_BAD_LINES = 0.01
ModelOption = Annotated[
    str | None, typer.Option(help="Run folder or Hub id; the demo checkpoint of this package by default.")
]


def load_pipeline(model: str | None) -> RecommendationPipeline:
    """Return the recommendation pipeline of a checkpoint, or of the default one.

    Raises:
        CheckpointError: when it cannot be loaded.
    """
    from transformers import AutoConfig, pipeline

    from ..errors import CheckpointError
    from .evaluate import checkpoint_errors

    with checkpoint_errors(str(model)):
        config = None if model is None else AutoConfig.from_pretrained(model)
        if config is not None and config.model_type != "a-llmrec":
            article = "an" if config.model_type[:1] in "aeio" else "a"
            raise CheckpointError(
                f"{model} is {article} {config.model_type} model; only an A-LLMRec model can recommend, explain and "
                "take new items: give the folder of a run with all stages"
            )
        if config is not None and config.llm_dim is None:
            raise CheckpointError(
                f"{model} is trained to stage 1 only; run `allmrec train --stage project` into the same folder first"
            )
        return pipeline("recommendation", model=model)  # type: ignore[call-overload, no-any-return]


def _split(ids: str) -> list[str]:
    return [part.strip() for part in ids.split(",") if part.strip()]


def recommend(
    history: Annotated[
        str, typer.Option(help="Item ids (or titles without commas), oldest first, with commas between.")
    ],
    model: ModelOption = None,
    candidates: Annotated[
        str | None, typer.Option(help="Rank these; retrieved from the catalogue if not given.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Items to recommend.")] = 10,
    num_permutations: PermutationsOption = 1,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Recommend catalogue items after a history.

    **Examples**

    `allmrec recommend --model runs/games --history B0001,B0002,B0003`

    `allmrec recommend --model runs/games --history B0001 --candidates B0007,B0008 --json`
    """
    with user_errors():
        pipe = load_pipeline(model)
        request: dict[str, Any] = {"history": _split(history)}
        if candidates is not None:
            request["candidates"] = _split(candidates)
        resolved = pipe.resolve(request)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = pipe(request, top_k=top_k, num_permutations=num_permutations)
        if resolved.unknown_history:
            stderr.print(
                f"not in the catalogue, left out: {', '.join(resolved.unknown_history)}", markup=False, soft_wrap=True
            )
        if json_output:
            emit({"recommendations": found, "unknown_history": resolved.unknown_history, "notes": resolved.notes})
            return
        from ..prompt import clean_title

        width = max(len(item["item_id"]) for item in found)
        say(f"{'rank':>4}  {'score':>8}  {'item':<{width}}  title")
        for item in found:
            say(f"{item['rank']:>4}  {item['score']:>8.3f}  {item['item_id']:<{width}}  {clean_title(item['title'])}")


def add_items(
    model: Annotated[str, typer.Option(help="Run folder or Hub id.")],
    items: Annotated[Path, typer.Option(help="CSV, parquet or JSON lines with item_id, title, description.")],
    output: Annotated[Path | None, typer.Option(help="Write the grown checkpoint here; in place by default.")] = None,
    column: ColumnOption = None,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Add items by their text alone, without retraining; they can then be recommended.

    **Examples**

    `allmrec add-items --model runs/games --items new.csv --output runs/games-new`

    `allmrec add-items --model runs/shop --items new.csv --column item_id=sku --column title=name`
    """
    with user_errors():
        from ..data.interactions import told_of_column_map, validate_items
        from ..data.readers.tables import item_names, read_table
        from ..errors import ALLMRecError

        if output is None and not Path(model).is_dir():
            raise ALLMRecError(f"{model} is no folder that could be changed in place; give --output")
        if output is not None and output.exists() and not output.is_dir():
            raise ALLMRecError(f"the output {output} is a file; give a folder")
        if output is not None and output.exists() and any(output.iterdir()):
            raise ALLMRecError(f"the output folder {output} is not empty; choose another")
        columns = column_map(column)
        with told_of_column_map(columns):
            frame, _ = read_table(items, MAX_BAD_LINES, lambda names: item_names(names, columns, items))
        records, _ = validate_items(frame, str(items))
        pipe = load_pipeline(model)
        added = pipe.add_items(records.to_dicts())
        _warn_of_untitled(pipe, added)
        target = output or Path(model)
        pipe.save_pretrained(target)
        if json_output:
            emit({"added": added, "items": len(pipe.processor.catalog), "output": str(target)})
        else:
            say(f"Added {len(added)} items; the catalogue has {len(pipe.processor.catalog)} now. Saved to {target}.")


def _warn_of_untitled(pipe: RecommendationPipeline, added: list[str]) -> None:
    catalog = pipe.processor.catalog
    places = zip(added, catalog.indices(added), strict=True)
    untitled = [item_id for item_id, index in places if not catalog.has_title(index)]
    if untitled:
        logger.warning(
            "%d of %d added items have no title and are called 'Untitled item ID', first %s; a column of another name "
            "is mapped with --column title=NAME",
            len(untitled),
            len(added),
            untitled[:5],
        )


def push(
    model: Annotated[Path, typer.Option(help="Run folder.")],
    repo: Annotated[str, typer.Option(help="Repository on the Hub, such as org/a-llmrec-games.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Upload a run folder's checkpoint to the Hub, model card included.

    **Example**

    `allmrec push --model runs/games --repo org/a-llmrec-games`
    """
    with user_errors():
        from ..hub.publish import push_checkpoint

        address = push_checkpoint(model, repo, private=private or None, revision=revision)
        emit({"url": address}) if json_output else say(address)
