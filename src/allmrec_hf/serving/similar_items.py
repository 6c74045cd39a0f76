"""The items nearest to one, by the cosine of their vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError
from ..modeling_allmrec import ALLMRecModel
from ..retrieval import exact_top_items


@torch.no_grad()
def similar_items(model: ALLMRecModel, item: int, top_k: int, by: str = "joint") -> list[tuple[int, float]]:
    """Return the nearest items of the whole catalogue, without the item itself, as pairs of index and cosine.

    Args:
        model: The model.
        item: A catalogue index.
        top_k: How many.
        by: `joint`, the joint embeddings as the LLM reads them; `cf`, the backbone's; `text`, the text's.

    Raises:
        CheckpointError: when the checkpoint keeps no text embeddings.
    """

    def vectors(items: Tensor) -> Any:
        if by == "cf":
            return model.cf_encoder.item_embeddings[items]
        if by == "joint":
            return model.item_vectors(items)
        table = model.item_table.text_directions
        return model.item_table.text_joint_embeddings[items] if table is None else table[items]

    if by not in ("joint", "cf", "text"):
        raise CheckpointError(f"items are compared by joint, cf or text, not {by!r}")
    wanted = F.normalize(vectors(torch.tensor([item], device=model.device)).float(), dim=-1)  # (1, d)

    def cosines(user: Tensor, start: int, stop: int) -> Tensor:
        rows = torch.arange(start, stop, device=model.device)
        return user @ F.normalize(vectors(rows).float(), dim=-1).T

    itself = torch.tensor([[item]], device=model.device)
    indices, scores = exact_top_items(cosines, wanted, model.cf_encoder.num_items, top_k, itself)
    pairs = zip(indices[0].tolist(), scores[0].tolist(), strict=True)
    return [(index, score) for index, score in pairs if index > 0]
