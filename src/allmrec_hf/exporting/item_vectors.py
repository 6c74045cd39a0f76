"""The vectors of items and users by which a ranker scores, as other programs take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ALLMRecError, CheckpointError, DataError
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import CatalogueRanker, CFScore, UserBatch
from ..ranker_retrieval import RetrievalRanker
from ..retrieval import require_dot_product
from .rank_parity import TOP_K, RankParity, rank_parity

VECTOR_RANKERS: dict[str, type[CatalogueRanker]] = {"cf": CFScore, "retrieval": RetrievalRanker}
USERS_AT_ONCE = 64


def vector_rankers(config: Any, wanted: list[str] | None = None) -> list[str]:
    """Return the rankers whose vectors are exported: those asked for, else all that a checkpoint has.

    Args:
        config: The checkpoint's configuration.
        wanted: Some of `VECTOR_RANKERS`.

    Raises:
        CheckpointError: when one is unknown, or the checkpoint lacks it.
    """
    found = [name for name, kind in VECTOR_RANKERS.items() if kind.lacks(config) is None]
    for name in wanted or []:
        if name not in VECTOR_RANKERS:
            raise CheckpointError(
                f"the ranker {name!r} has no vectors to export; those that have are {', '.join(VECTOR_RANKERS)}"
            )
        reason = VECTOR_RANKERS[name].lacks(config)
        if reason is not None:
            raise CheckpointError(f"this checkpoint has no ranker {name!r} ({reason}); it can export {found}")
    return [name for name in found if not wanted or name in wanted]


@dataclass
class RankedUsers:
    """Real users and what one ranker makes of them.

    Attributes:
        ranker: The ranker.
        users: The users.
    """

    ranker: CatalogueRanker
    users: UserBatch

    @cached_property
    def vectors(self) -> Tensor:
        """The users' vectors `(B, d)`, float32 on the CPU."""
        parts = [
            self.ranker.vectors(self.users.take(range(start, min(start + USERS_AT_ONCE, len(self.users)))))
            for start in range(0, len(self.users), USERS_AT_ONCE)
        ]
        return torch.cat(parts).float().cpu()

    @cached_property
    def expected(self) -> Tensor:
        """The best items `(B, k)` by this package, without what a user has seen."""
        return self._retrieved().cpu()

    def _retrieved(self) -> Tensor:
        with torch.no_grad():
            return self.ranker.retrieve(self.users, TOP_K).item_indices

    @torch.no_grad()
    def scores(self, items: Tensor) -> Tensor:
        """Return our scores `(B, C)` of items `(B, C)`, `-inf` at 0 and at what a user has seen."""
        device = self.users.representations.device
        vectors, items = self.vectors.to(device), items.to(device)
        found = self.ranker.score_items(vectors, items).float()
        seen = (items.unsqueeze(2) == self.users.seen_ids.unsqueeze(1)).any(dim=2)
        return found.masked_fill(seen | (items == 0), float("-inf")).cpu()

    def parity(self, found: Tensor) -> RankParity:
        """Compare the best items `(B, k)` of an exported part with ours."""
        return rank_parity(self.expected, found, self.scores)


@dataclass(frozen=True)
class VectorTable:
    """The vectors of all items of one ranker, whose dot product with a user's vector is the score.

    Attributes:
        name: The ranker.
        vectors: `(N, d)` float32; row i is the item with the catalogue index i + 1.
    """

    name: str
    vectors: np.ndarray

    @classmethod
    def of(cls, ranker: CatalogueRanker) -> VectorTable:
        """Return the vectors of a ranker.

        Raises:
            ALLMRecError: when the backbone does not score by dot product.
            DataError: when a value is not finite.
        """
        if isinstance(ranker, RetrievalRanker):
            table = ranker.item_table()
        else:
            require_dot_product(ranker.model.cf_encoder)
            table = ranker.model.cf_encoder.item_embeddings
        vectors = table[1:].detach().to("cpu", torch.float32).contiguous().numpy()
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]) + 1
            raise DataError(f"the vector of item {row} of the ranker {ranker.kind} holds NaN or infinite values")
        return cls(ranker.kind, vectors)

    @property
    def width(self) -> int:
        """The length d of a vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        """Return N."""
        return len(self.vectors)


def ranked_users(
    name: str, model: ALLMRecModel, processor: ALLMRecProcessor, histories: list[list[int]]
) -> RankedUsers:
    """Return users as a ranker of a model sees them; exact, whatever index the backbone may have.

    Args:
        name: One of `VECTOR_RANKERS`.
        model: The model.
        processor: Its processor.
        histories: B lists of catalogue indices in time order.
    """
    model.cf_encoder.use_index(None)
    return RankedUsers(VECTOR_RANKERS[name](model, processor), UserBatch.encode(model, processor, histories))


def missing_package(package: str, extra: str, error: ImportError) -> ALLMRecError:
    """Return the error that names the extra which brings a package."""
    return ALLMRecError(f"this format needs the package {package} ({error}): pip install 'allmrec-hf[{extra}]'")
