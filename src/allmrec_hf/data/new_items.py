"""Add items to a trained model from a table of their texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import ALLMRecError
from ..part_sources import CHECKPOINT_PART, DEMO, located
from ..pipeline_recommendation import RecommendationPipeline
from .interactions import told_of_column_map, validate_items
from .readers.base import AS_FOUND, TextFormat
from .readers.columns import item_names
from .readers.frames import is_frame, items_of_frame
from .readers.table_files import read_table

logger = logging.getLogger(__name__)
MAX_BAD_LINES = 0.01


def add_items(
    model: str | Path | RecommendationPipeline,
    items: Any,
    output: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    text: TextFormat = AS_FOUND,
    **loading: Any,
) -> list[str]:
    """Add items by their text alone, without retraining; they can then be recommended.

    Args:
        model: A run folder or Hub id, or a pipeline, which is changed in memory.
        items: A frame (Polars, pandas, Arrow, `datasets.Dataset`), mappings, or the path of a CSV, parquet or JSON
            lines file, with the columns `item_id`, `title` and optionally `description`.
        output: An empty or new folder for the grown checkpoint; by default a run folder is changed in place, and a
            pipeline is not saved.
        columns: Our name -> the table's own, such as `{"item_id": "sku"}`.
        text: How a text file is written, where it is not to be found out.
        **loading: Passed to `transformers.pipeline` with the model's name, such as `model_kwargs`.

    Returns:
        The ids of the new items.

    Raises:
        ALLMRecError: when there is no place to write to, checked before anything is loaded.
        DataError: when the table cannot be read, an id is known already, or a column is missing or of a wrong type.

    Example:
        >>> from transformers import pipeline
        >>> recommend = pipeline("recommendation")
        >>> add_items(recommend, [{"item_id": "NEW1", "title": "The Lost Harbor", "description": "A crime film."}])
        ['NEW1']
    """
    target = None if output is None else Path(output)
    if not isinstance(model, RecommendationPipeline):
        if target is None and (str(model) == DEMO or not Path(model).is_dir()):
            raise ALLMRecError(f"{model} is no folder that could be changed in place; give an output (--output)")
        target = target or Path(model)
    if output is not None:
        check_empty(Path(output))
    rows = read_new_items(items, columns or {}, text)
    pipe = model if isinstance(model, RecommendationPipeline) else _loaded(str(model), loading)
    added = pipe.add_items(rows.to_dicts())
    _warn_of_untitled(pipe, added)
    if target is not None:
        pipe.save_pretrained(target)
    return added


def read_new_items(items: Any, columns: Mapping[str, str], text: TextFormat = AS_FOUND) -> pl.DataFrame:
    """Return items of a frame or a file in the catalogue's columns; the arguments are those of `add_items`."""
    if is_frame(items):
        return items_of_frame(items, columns)[0]
    path = Path(items)
    with told_of_column_map(columns):
        rows, _ = read_table(path, MAX_BAD_LINES, lambda names: item_names(names, columns, path), text)
    return validate_items(rows, str(path))[0]


def check_empty(output: Path) -> None:
    """Check that an output folder is new or empty.

    Raises:
        ALLMRecError: when it is a file, or holds something.
    """
    if output.exists() and not output.is_dir():
        raise ALLMRecError(f"the output {output} is a file; give a folder")
    if output.exists() and any(output.iterdir()):
        raise ALLMRecError(f"the output folder {output} is not empty; choose another")


def _loaded(model: str, loading: Mapping[str, Any]) -> RecommendationPipeline:
    from transformers import pipeline

    task: Any = "recommendation"  # a task of this package, which no overload names
    return pipeline(task, model=located(model, CHECKPOINT_PART), **loading)


def _warn_of_untitled(pipe: RecommendationPipeline, added: list[str]) -> None:
    catalog = pipe.processor.catalog
    places = zip(added, catalog.indices(added), strict=True)
    untitled = [item_id for item_id, index in places if not catalog.has_title(index)]
    if untitled:
        logger.warning(
            "%d of %d added items have no title and are called 'Untitled item ID', first %s; a column of another name "
            "is mapped with columns={'title': NAME}, on the command line with --column title=NAME",
            len(untitled),
            len(added),
            untitled[:5],
        )
