"""The gate of every export: the best items of real users, by the exported files and by this package."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ALLMRecError, DataError

logger = logging.getLogger(__name__)

TOP_K = 10
LEAST_OVERLAP = 0.99


@dataclass(frozen=True)
class RankParity:
    """How far the best items of an exported part are ours.

    Attributes:
        overlap: Mean over users of the share of our best items that the exported part has among its own.
        users: Users compared.
        top_k: Best items of each that are compared.
        ties: Items counted as ours because their score equals, to the last bit, that of our last item.
        differing_users: Users with an overlap below 1.
    """

    overlap: float
    users: int
    top_k: int
    ties: int
    differing_users: int

    def require(self, what: str) -> dict[str, Any]:
        """Return the figures, for the record of an export.

        Args:
            what: What was compared, for the message.

        Raises:
            ALLMRecError: when the overlap is below `LEAST_OVERLAP`.
        """
        told = (
            f"{what}: top-{self.top_k} overlap {self.overlap:.4f} on {self.users} users, {self.differing_users} of "
            "them with another list"
        )
        if not self.overlap >= LEAST_OVERLAP:
            raise ALLMRecError(
                f"the export is refused, and nothing was written: {told}; at least {LEAST_OVERLAP} is required"
            )
        logger.info("%s", told)
        return {**asdict(self), "required": LEAST_OVERLAP}


def rank_parity(expected: Tensor, found: Tensor, score: Callable[[Tensor], Tensor], top_k: int = TOP_K) -> RankParity:
    """Compare the best items of users by this package with those by an exported part.

    Only our scores decide what is a tie: an item that is not among our best counts where its score by `score` equals
    that of our last item exactly. Scores that the exported part gives do not, so one that makes all items equal gains
    nothing. An item named twice counts once.

    Args:
        expected: `(B, k)` our best items as catalogue indices, best first, 0 where there are fewer.
        found: `(B, k)` those of the exported part; 0 is no item.
        score: Gives our scores `(B, C)` of items `(B, C)`; one function, so that equal items score equally.
        top_k: The k.

    Raises:
        DataError: when there is no user to compare.

    Example:
        >>> ours, theirs = torch.tensor([[3, 1]]), torch.tensor([[1, 2]])
        >>> rank_parity(ours, theirs, lambda items: (items == 3).float(), top_k=2).overlap  # 1 and 2 score the same
        1.0
    """
    wanted = expected > 0
    if not wanted.any():
        raise DataError("there is no user with items left to recommend; the export cannot be checked without one")
    ours = (found.unsqueeze(2) == expected.unsqueeze(1)).any(dim=2) & (found > 0)  # (B, k)
    last = expected.gather(1, (wanted.sum(dim=1, keepdim=True) - 1).clamp(min=0))
    scores = score(torch.cat([last, found], dim=1))  # (B, 1 + k)
    equal = (scores[:, 1:] == scores[:, :1]) & (found > 0) & ~ours
    repeated = torch.zeros_like(ours)
    for column in range(1, found.shape[1]):
        repeated[:, column] = (found[:, :column] == found[:, column : column + 1]).any(dim=1)
    counts = wanted.sum(dim=1)
    hits = ((ours | equal) & ~repeated).sum(dim=1).minimum(counts)
    compared = counts > 0
    shares = hits[compared].double() / counts[compared]
    return RankParity(
        overlap=float(shares.mean()),
        users=int(compared.sum()),
        top_k=top_k,
        ties=int((equal & ~repeated)[compared].sum()),
        differing_users=int((shares < 1).sum()),
    )


def best_items(scores: Tensor, exclude: Tensor, top_k: int = TOP_K) -> Tensor:
    """Return the best items `(B, k)` of scores of the whole table; equal scores go by catalogue order.

    Args:
        scores: `(B, N + 1)`, column 0 padding.
        exclude: `(B, E)` catalogue indices never to return; 0 excludes nothing.
        top_k: The k; 0 follows where fewer items are left.

    Raises:
        ALLMRecError: when a score is NaN.
    """
    if scores[:, 1:].isnan().any():
        raise ALLMRecError("the export is refused, and nothing was written: an exported part gives scores that are NaN")
    scores = scores.clone()
    scores[:, 0] = float("-inf")
    scores.scatter_(1, exclude, float("-inf"))
    values, items = scores.sort(dim=1, descending=True, stable=True)
    items, values = items[:, :top_k], values[:, :top_k]
    return items.masked_fill(values == float("-inf"), 0)
