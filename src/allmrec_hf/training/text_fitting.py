"""Choose how the ranker `text` compares texts, by how it ranks validation users."""

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


def fit_text(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    text_embeddings: Tensor,
    samples: Samples,
    candidates: np.ndarray,
    seed: int = 0,
) -> None:
    """Give a model the ranker `text` with the recency and then the whitening of the least loss.

    The loss is that by which a fusion is fitted, on users whose weight the others have given.

    Args:
        model: The model; its config and item table are changed.
        processor: Its processor.
        text_embeddings: `(N + 1, d_text)` by the checkpoint's text encoder.
        samples: Validation users.
        candidates: `(S, C)` catalogue indices, each target once in its row.
        seed: Of the folds.
    """
    columns = torch.from_numpy((candidates == samples.targets[:, None]).argmax(axis=1))
    batches = list(user_batches(model, processor, samples, candidates))

    def loss() -> float:
        parts = FusionParts(model, processor, [TextSimilarity.kind])
        with torch.no_grad():
            scores = torch.cat([parts.of_lists(users, rows, 1).cpu() for users, rows in batches], dim=1)
        return held_out_loss(scores.movedim(0, -1), columns, seed)

    def loss_with(recency: float) -> float:
        settings["text"]["recency"] = recency
        return loss()

    def loss_in(whitening: float | None) -> float:
        model.keep_text_embeddings(text_embeddings, recency, whitening)
        return loss()

    model.keep_text_embeddings(text_embeddings, whitening=USUAL_WHITENING)
    settings: Any = model.config.rankers
    recency = min(RECENCIES, key=loss_with)
    whitening = min(WHITENINGS, key=loss_in)
    model.keep_text_embeddings(text_embeddings, recency, whitening)
