"""Tables of items that grow at their end without a copy of the rows that are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ROOM = 0.5  # rows made beyond those that are needed, as a share of them


class _Room:
    """Memory with more rows than the table that lies at its start.

    Attributes:
        memory: `(capacity, ...)`.
        used: Rows that the longest table in it has; those behind it are free.
    """

    def __init__(self, memory: torch.Tensor, used: int) -> None:
        self.memory, self.used = memory, used


@torch.inference_mode(False)  # memory made in that mode could not be written to outside of it
@torch.no_grad()
def appended(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return a table with rows at its end.

    The first call copies the table to memory with half as many rows more; calls with what it returned write only the
    new rows, until the memory is full. So n rows, one by one, cost O(n) on average. A table in whose memory another one
    has grown already is copied, so no table ever sees another's new rows; rows that both have are shared, and a change
    in place to one of them is seen in both.

    Args:
        table: `(n, ...)`; a table that was moved, cloned or loaded has no room and gets it.
        rows: `(k, ...)`, cast to the table's dtype and device.

    Returns:
        `(n + k, ...)`, contiguous; not a parameter.
    """
    count, total = len(table), len(table) + len(rows)
    room: Any = getattr(table, "_allmrec_room", None)
    fits = (
        room is not None
        and room.used == count
        and room.memory.data_ptr() == table.data_ptr()
        and (room.memory.dtype, room.memory.device) == (table.dtype, table.device)
        and total <= len(room.memory)
    )
    if not fits:
        memory = table.new_empty((total + int(total * ROOM), *table.shape[1:]))
        memory[:count] = table.detach()
        room = _Room(memory, count)
    room.memory[count:total] = rows.to(room.memory)
    room.used = total
    return _with_room(room.memory[:total], room)


def _with_room(table: torch.Tensor, room: _Room) -> torch.Tensor:
    table._allmrec_room = room  # type: ignore[attr-defined]
    return table


@torch.inference_mode(False)
@torch.no_grad()
def appended_embedding(embedding: nn.Embedding, rows: torch.Tensor) -> nn.Embedding:
    """Return a table of item embeddings with rows `(k, d)` at its end, see `appended`; row 0 is padding."""
    old = embedding.weight
    table = appended(old, rows)
    grown = nn.Embedding(len(table), table.shape[1], padding_idx=0, _weight=table)
    grown.weight.requires_grad_(old.requires_grad)
    _with_room(grown.weight, table._allmrec_room)  # type: ignore[attr-defined]
    return grown.train(embedding.training)
