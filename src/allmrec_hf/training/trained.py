"""Which items of a backbone were trained: the rule behind `item_embedding="auto"`, for backbones of every origin.

An item that stands in the data is not trained by that alone. A backbone that reads sequences learns to score an item
where it is a target; the first item of a sequence never is one, and what a program cuts off is neither. Such a row was
at most an input, or a negative.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers.utils import cached_file

from ..catalog import ItemCatalog
from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..errors import CheckpointError
from ..files import PARQUET_ERRORS

TARGETS_FILE = "targets.parquet"
_SCHEMA = {"item_id": pl.String, "targets": pl.Int64}


def target_counts(cf_encoder: CFEncoder, data: PreparedData) -> torch.Tensor:
    """Return `(N + 1,)` how often each item was a target in one epoch of the backbone's training.

    Where the backbone does not say so itself, it is taken to be trained on these data in the way of its kind: on each
    interaction, or on the last `max_history_length` items of each sequence, which every program trains, but its first.
    A row of zeros was never trained, as of an item that an imported backbone lacks.
    """
    known = cf_encoder.target_counts
    if known is None:
        sequences = data.sequences("train")
        if cf_encoder.trains_on == "sequences":
            width = cf_encoder.config.max_history_length
            sequences = [sequence[1:][-width:] for sequence in sequences]
        known = torch.from_numpy(np.bincount(np.concatenate(sequences), minlength=data.num_items + 1).astype(np.int64))
    return known.masked_fill(~cf_encoder.item_embeddings.any(dim=1).to(known.device), 0)


def save_target_counts(cf_encoder: CFEncoder, catalog: ItemCatalog, folder: Path) -> None:
    """Write what the backbone says of its training to `targets.parquet`; nothing where it says nothing."""
    if cf_encoder.target_counts is not None:
        columns = {"item_id": catalog.item_ids, "targets": cf_encoder.target_counts[1:].tolist()}
        pl.DataFrame(columns, schema=_SCHEMA).write_parquet(folder / TARGETS_FILE)


def load_target_counts(name: str, catalog: ItemCatalog) -> torch.Tensor | None:
    """Return `(N + 1,)` what a saved backbone says of its training, in the order of a catalogue, matched by id.

    Args:
        name: Folder or Hub id of the backbone.
        catalog: The catalogue; an item that the backbone lacks counts 0.

    Returns:
        None where the backbone says nothing, as one of another program.

    Raises:
        CheckpointError: when the file is damaged.
    """
    try:
        path = Path(str(cached_file(name, TARGETS_FILE)))
    except OSError:  # there is none
        return None
    try:
        frame = pl.read_parquet(path, schema=_SCHEMA)
    except PARQUET_ERRORS as error:
        raise CheckpointError(f"{path} is no readable list of item_id and targets ({error}); write it again") from error
    counts = dict(frame.iter_rows())
    return torch.tensor([0, *(counts.get(item_id, 0) for item_id in catalog.item_ids)])
