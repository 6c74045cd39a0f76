"""Choose how the rankers `text` and `words` compare texts, by how they rank validation users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import TextSimilarity, UserBatch
from ..ranker_fusion import FusionParts
from ..ranker_words import SharedWords
from .conditional_logit import held_out_loss
from .samples import Samples

WHITENINGS = (None, 0.0, 0.125, 0.25, 0.5)
RECENCIES = (0.5, 0.7, 0.85, 1.0)
USUAL_WHITENING = 0.25  # with which the recency is chosen
USERS_AT_ONCE = 128


def user_batches(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    samples: Samples,
    candidates: np.ndarray,
    at_once: int = USERS_AT_ONCE,
) -> Iterator[tuple[UserBatch, list[list[int]]]]:
    """Yield users, some at once, and the candidates `(S, C)` of each."""
    for start in range(0, len(samples), at_once):
        histories = [history.tolist() for history in samples.histories[start : start + at_once]]
        yield UserBatch.encode(model, processor, histories), candidates[start : start + at_once].tolist()


class TextLoss:
    """The loss by which a fusion is fitted, of one part alone, on users whose weight the others have given.

    Args:
        kind: The part.
        model: The model.
        processor: Its processor.
        samples: Validation users.
        candidates: `(S, C)` catalogue indices, each target once in its row.
        seed: Of the folds.
    """

    def __init__(
        self,
        kind: str,
        model: ALLMRecModel,
        processor: ALLMRecProcessor,
        samples: Samples,
        candidates: np.ndarray,
        seed: int,
    ) -> None:
        self.kind, self.model, self.processor, self.seed = kind, model, processor, seed
        self.columns = torch.from_numpy((candidates == samples.targets[:, None]).argmax(axis=1))
        self.batches = list(user_batches(model, processor, samples, candidates))

    def __call__(self) -> float:
        """Return the loss with the settings that the model has."""
        parts = FusionParts(self.model, self.processor, [self.kind])
        with torch.no_grad():
            scores = torch.cat([parts.of_lists(users, rows, 1).cpu() for users, rows in self.batches], dim=1)
        return held_out_loss(scores.movedim(0, -1), self.columns, self.seed)

    def with_recency(self, recency: float) -> float:
        """Return the loss with another recency, which the model's settings then have."""
        rankers: Any = self.model.config.rankers
        rankers[self.kind]["recency"] = recency
        return self()


def fit_text(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    text_embeddings: Tensor,
    samples: Samples,
    candidates: np.ndarray,
    seed: int = 0,
) -> None:
    """Give a model the ranker `text` with the recency and then the whitening of the least loss.

    Args:
        model: The model; its config and item table are changed.
        processor: Its processor.
        text_embeddings: `(N + 1, d_text)` by the checkpoint's text encoder.
        samples: Validation users.
        candidates: `(S, C)` catalogue indices, each target once in its row.
        seed: Of the folds.
    """
    loss = TextLoss(TextSimilarity.kind, model, processor, samples, candidates, seed)

    def loss_in(whitening: float | None) -> float:
        model.keep_text_embeddings(text_embeddings, recency, whitening)
        return loss()

    model.keep_text_embeddings(text_embeddings, whitening=USUAL_WHITENING)
    recency = min(RECENCIES, key=loss.with_recency)
    whitening = min(WHITENINGS, key=loss_in)
    model.keep_text_embeddings(text_embeddings, recency, whitening)


def fit_words(
    model: ALLMRecModel, processor: ALLMRecProcessor, samples: Samples, candidates: np.ndarray, seed: int = 0
) -> None:
    """Give a model the ranker `words` with the recency of the least loss; the arguments are those of `fit_text`."""
    model.keep_words(processor.catalog.texts())
    loss = TextLoss(SharedWords.kind, model, processor, samples, candidates, seed)
    loss.with_recency(min(RECENCIES, key=loss.with_recency))
