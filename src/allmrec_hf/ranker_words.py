"""The ranker `words`: the rare words that an item's text shares with those of the history."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .modeling_allmrec import ALLMRecModel
from .processing_allmrec import ALLMRecProcessor
from .ranker import CatalogueRanker, UserBatch, recency_shares


class SharedWords(CatalogueRanker):
    """Rank by words alone: the mean cosine of an item's words with those of the history, see `ItemWords`.

    `config.rankers["words"]` holds `recency`, the weight of a history item in parts of the next later one's, chosen on
    validation users, and `vocabulary`, how many words are known.
    """

    kind = "words"
    needs_llm = False

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        self.recency = float((model.config.rankers or {})[self.kind]["recency"])

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = "it keeps no words of item texts: allmrec train --stage rank"
        return None if cls.kind in (config.rankers or {}) else missing

    @property
    def _words(self) -> Any:
        return self.model.item_table.words

    @property
    def width(self) -> int:
        """The size of the vocabulary."""
        return len(self._words.keys)

    def vectors(self, users: UserBatch) -> Tensor:
        """Return the mean weight `(B, V)` of every word in the texts of a history, by how recent they are."""
        device = self._words.weights.device
        return torch.stack(
            [
                self._words.profile(history, recency_shares(len(history), self.recency, device))
                for history in users.histories
            ]
        )

    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score a part of the catalogue."""
        return self._words.score_rows(vectors, slice(start, stop))

    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items."""
        return self._words.score_items(vectors, items)

    def score_shared(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score the same items for all users."""
        return self._words.score_rows(vectors, items)
