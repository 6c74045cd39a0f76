"""Choose how the ranker `text` compares texts, by how it ranks validation users."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import TextSimilarity, UserBatch
from ..ranking import ndcg_at_k, target_ranks
from .samples import Samples

WHITENINGS = (None, 0.0, 0.25, 0.5)
RECENCIES = (0.5, 0.7, 0.85, 1.0)
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


@torch.no_grad()
def fit_text(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    text_embeddings: Tensor,
    samples: Samples,
    candidates: np.ndarray,
) -> None:
    """Give a model the ranker `text` with the whitening and recency that have the best NDCG@10.

    Args:
        model: The model; its config and item table are changed.
        processor: Its processor.
        text_embeddings: `(N + 1, d_text)` by the checkpoint's text encoder.
        samples: Validation users.
        candidates: `(S, C)` catalogue indices, each target once in its row.
    """
    columns = (candidates == samples.targets[:, None]).argmax(axis=1)
    batches = list(user_batches(model, processor, samples, candidates))
    found = {}
    for whitening in WHITENINGS:
        model.keep_text_embeddings(text_embeddings, recency=1.0, whitening=whitening)
        for recency in RECENCIES:
            ranker = TextSimilarity(model, processor, recency)
            scores = torch.cat([ranker.score(users, rows).scores.cpu() for users, rows in batches])
            found[whitening, recency] = ndcg_at_k(target_ranks(scores.numpy(), columns), 10).mean()
    whitening, recency = max(found, key=lambda setting: found[setting])
    model.keep_text_embeddings(text_embeddings, recency=recency, whitening=whitening)
