"""Data sets of the Hugging Face Hub, or any folder that `datasets.load_dataset` reads."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ...errors import DataError
from ..interactions import validate_interactions, validate_items
from .base import PathLike, RawData
from .tables import interaction_names, item_names, renamed


def read_hub(
    interactions: PathLike, items: PathLike | None, columns: Mapping[str, str], max_bad_lines: float
) -> RawData:
    """Read interactions and items from data sets named `ID[:CONFIGURATION[:SPLIT]]`.

    Without a split, all splits are read one after the other. The column map is that of `read_tables`.

    Args:
        interactions: The data set of interactions.
        items: The data set of items, or None; often the same id with another configuration.
        columns: Our column name to the data set's.
        max_bad_lines: Not used; kept for the common signature of readers.

    Raises:
        DataError: when a data set cannot be loaded or lacks columns.
    """
    frame = load_hub_frame(str(interactions))
    frame = renamed(frame.lazy(), interaction_names(frame.columns, columns, interactions)).collect()
    rows = validate_interactions(frame, str(interactions))
    catalog = None
    if items is not None:
        frame = load_hub_frame(str(items))
        frame = renamed(frame.lazy(), item_names(frame.columns, columns, items)).collect()
        catalog, _ = validate_items(frame, str(items))
    return RawData(rows, catalog, str(interactions).split(":")[0].split("/")[-1])


def load_hub_frame(reference: str) -> pl.DataFrame:
    """Return the data set `ID[:CONFIGURATION[:SPLIT]]` as one frame.

    Raises:
        DataError: when it cannot be loaded; the message holds the reason that `datasets` gives.
    """
    from datasets import DatasetDict, load_dataset

    identifier, configuration, split = [*reference.split(":"), "", ""][:3]
    try:
        loaded = load_dataset(identifier, configuration or None, split=split or None)
        parts = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
        frames = [pl.from_arrow(part.with_format("arrow")[:]) for part in parts]
        return pl.concat([frame for frame in frames if isinstance(frame, pl.DataFrame)], how="diagonal_relaxed")
    except (OSError, ValueError, RuntimeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"the data set {identifier!r} (configuration {configuration or 'default'}, split {split or 'all'}) cannot "
            f"be loaded: {error}. Expected an id of the Hub as ID[:CONFIGURATION[:SPLIT]], or a folder of data files"
        ) from error
