"""Measure over-smoothing: how much of the joint space the item vectors use, and whether both sides of an item meet.

The paper argues that matching alone would make the joint embeddings of all items alike ("over-smoothed", section 4.1)
and shows no measurement.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import ALLMRecError
from ..modeling_allmrec import ALLMRecModel

ROUNDING = 1e-12  # of fp64 sums; what is shorter than this share of the longest vector counts as zero
TIE = 1e-9  # cosines this close are equal
CELLS_AT_ONCE = 1 << 22  # of the N x N cosines


def embedding_geometry(item_joint: torch.Tensor, text_joint: torch.Tensor) -> dict[str, float]:
    """Measure joint embeddings from both sides, row i of each the same item.

    Args:
        item_joint: `(N, d_joint)` `e_i`.
        text_joint: `(N, d_joint)` `q_i`.

    Returns:
        `items`: N. For `item` and `text`, as they are and, with `_centred`, after subtracting the mean vector:
        `*_mean_cosine` over all pairs of different items, 1 where all are alike (a zero vector has cosine 0 with any);
        `*_effective_rank`, the exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007),
        from 1 (one direction) to d_joint, 0 where all vectors are zero. `matched_accuracy` and
        `matched_accuracy_centred`: the share of items whose nearest `q_j` by cosine is their own `q_i`, 1 / N by
        chance; of k equally near ones each counts 1 / k.

    Raises:
        ALLMRecError: when shapes differ, there are fewer than two items, or a number is not finite.

    Example:
        >>> geometry = embedding_geometry(torch.eye(3), torch.eye(3))
        >>> geometry["item_mean_cosine"], round(geometry["item_effective_rank"], 6), geometry["matched_accuracy"]
        (0.0, 3.0, 1.0)
    """
    if item_joint.ndim != 2 or item_joint.shape != text_joint.shape:
        raise ALLMRecError(
            f"joint embeddings of both sides must be (N, d_joint) for the same items; got {tuple(item_joint.shape)} "
            f"and {tuple(text_joint.shape)}"
        )
    if len(item_joint) < 2:
        raise ALLMRecError(f"the geometry of embeddings needs at least two items, got {len(item_joint)}")
    if not (item_joint.isfinite().all() and text_joint.isfinite().all()):
        raise ALLMRecError("joint embeddings hold numbers that are not finite; the alignment has diverged")
    found = {"items": float(len(item_joint))}
    for ending in ("", "_centred"):
        sides = [side.detach().double() for side in (item_joint, text_joint)]
        if ending:
            sides = [_centred(side) for side in sides]
        for name, side in zip(("item", "text"), sides, strict=True):
            found[f"{name}_mean_cosine{ending}"] = _mean_cosine(side)
            found[f"{name}_effective_rank{ending}"] = _effective_rank(side)
        found[f"matched_accuracy{ending}"] = _matched_accuracy(*sides)
    return found


@torch.no_grad()
def joint_embedding_geometry(model: ALLMRecModel) -> dict[str, float]:
    """Return `embedding_geometry` of a model's `e_i` and `q_i` over its items with training interactions.

    Raises:
        ALLMRecError: when fewer than two items have any.
    """
    known = model.item_table.interaction_counts > 0
    known[0] = False
    item_joint = model.aligner.encode_items(model.cf_encoder.item_embeddings[known])
    return embedding_geometry(item_joint, model.item_table.text_joint_embeddings[known])


def _centred(vectors: torch.Tensor) -> torch.Tensor:
    centred = vectors - vectors.mean(dim=0)
    rounding = centred.norm(dim=1) <= ROUNDING * vectors.norm(dim=1).max()
    return centred.masked_fill(rounding.unsqueeze(1), 0.0)


def _mean_cosine(vectors: torch.Tensor) -> float:
    """Return the mean over all pairs, from the length of the sum: |sum u|^2 = sum |u|^2 + sum over pairs."""
    unit = F.normalize(vectors, dim=1)
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(pairs / (len(unit) * (len(unit) - 1)))


def _effective_rank(vectors: torch.Tensor) -> float:
    values = torch.linalg.svdvals(vectors)
    values = values[values > ROUNDING * values.max()]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def _matched_accuracy(item_joint: torch.Tensor, text_joint: torch.Tensor) -> float:
    items, texts = F.normalize(item_joint, dim=1), F.normalize(text_joint, dim=1)
    hits = 0.0
    for rows in torch.arange(len(items), device=items.device).split(max(1, CELLS_AT_ONCE // len(items))):
        cosines = items[rows] @ texts.T  # (rows, N)
        own = cosines.gather(1, rows.unsqueeze(1))
        nearest = (cosines <= own + TIE).all(dim=1)
        equal = (cosines >= own - TIE).sum(dim=1)
        hits += float((nearest / equal).sum())
    return hits / len(items)
