"""Rankers without an LLM: popularity, a collaborative-filtering encoder alone, text alone.

Each is a `Ranker` (see `protocol`): it gets histories of catalogue indices in time order and never sees the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..cf_encoder import MODEL_TYPE_PREFIX, CFEncoder
from ..errors import ALLMRecError
from ..histories import pad_histories, seen_items
from ..indices import check_histories, check_padded
from .protocol import History, Ranker

Scores = NDArray[np.floating[Any]]
DEFAULT_BATCH_SIZE = 256


def best_unseen(scores: Scores, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
    """Return the best items of each row that the user has not seen, best first, equal ones in catalogue order.

    Args:
        scores: `(B, N + 1)` for the whole catalogue, higher is better; column 0 is padding and never returned.
        histories: B arrays of catalogue indices to leave out.
        top_k: How many items to return at most.

    Returns:
        `(B, k)` catalogue indices and `(B, k)` scores, k = min(top_k, N); index 0 and `-inf` fill up short rows.

    Raises:
        ALLMRecError: when a score is NaN, or a history holds no catalogue index.
    """
    scores = np.array(scores, dtype=np.float64)
    check_histories(histories, scores.shape[1] - 1)
    if np.isnan(scores).any():
        raise ALLMRecError(f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} rows hold NaN scores")
    for row, history in zip(scores, histories, strict=True):
        row[history] = -np.inf
    scores[:, 0] = -np.inf
    k = min(top_k, scores.shape[1] - 1)
    border = np.partition(scores, -k, axis=1)[:, -k]  # (B,) the k-th best score
    top = np.empty((len(scores), k), dtype=np.int64)
    for row, (values, lowest) in enumerate(zip(scores, border, strict=True)):
        better = np.flatnonzero(values > lowest)
        tied = np.flatnonzero(values == lowest)[: k - len(better)]
        top[row] = np.sort(np.concatenate([better, tied]))
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
    top = np.take_along_axis(top, order, axis=1)
    values = np.take_along_axis(scores, top, axis=1)
    return np.where(np.isneginf(values), 0, top), values


def reranked_scores(
    items: NDArray[np.int64], scores: Scores, second: Scores, name: str
) -> tuple[NDArray[np.int64], Scores]:
    """Return what was retrieved with its first items in the order of another score, and one scale for both orders.

    Args:
        items: `(B, k)` retrieved catalogue indices, best first; 0 where there are fewer.
        scores: `(B, k)` by which they were retrieved.
        second: `(B, r)` the other score of the first r.
        name: The ranker's name, for the error.

    Returns:
        `(B, k)` catalogue indices and scores: places, counted down from -1, shared by items tied in their part;
        `-inf` where the index is 0.

    Raises:
        ALLMRecError: when one of the other scores is NaN, which the places would hide.
    """
    count = second.shape[1]
    second = np.where(items[:, :count] > 0, second, -np.inf)
    broken = int(np.isnan(second).any(axis=1).sum())
    if broken:
        raise ALLMRecError(
            f"ranker {name!r} has NaN scores for {broken} of {len(second)} users of a batch; its weights are broken or "
            "its numbers overflow (try float32)"
        )
    order = np.argsort(-second, axis=1, kind="stable")
    first = np.take_along_axis(items[:, :count], order, axis=1)
    items = np.concatenate([first, items[:, count:]], axis=1)
    places = [_shared_places(np.take_along_axis(second, order, axis=1)), count + _shared_places(scores[:, count:])]
    return items, np.where(items > 0, -np.concatenate(places, axis=1), -np.inf)


def _shared_places(scores: Scores) -> NDArray[np.float64]:
    """Return places `(B, k)` from 1 of scores in descending order; equal ones have the first of theirs."""
    starts = np.ones(scores.shape, dtype=bool)
    starts[:, 1:] = scores[:, 1:] != scores[:, :-1]
    return np.maximum.accumulate(np.where(starts, np.arange(1.0, scores.shape[1] + 1), 0.0), axis=1)


class PopularityRanker:
    """Rank by the number of interactions in the known data, the same for every user.

    Args:
        item_counts: `(N + 1,)` interactions per catalogue index; index 0 is padding.
        name: The method's name in reports.

    Example:
        >>> ranker = PopularityRanker([0, 5, 2, 9])
        >>> ranker.score([np.array([1])], np.array([[3, 2]])).tolist()
        [[9.0, 2.0]]
        >>> ranker.retrieve([np.array([3])], top_k=2)[0].tolist()
        [[1, 2]]
    """

    def __init__(self, item_counts: ArrayLike, name: str = "popularity") -> None:
        self.item_counts = np.asarray(item_counts, dtype=np.float64)
        self.name = name
        if self.item_counts.ndim != 1 or len(self.item_counts) < 2 or not np.isfinite(self.item_counts).all():
            raise ALLMRecError(f"item_counts must be (N + 1,) finite numbers, N > 0; got {self.item_counts.shape}")
        self._most_popular = np.argsort(-self.item_counts[1:], kind="stable") + 1  # (N,)

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the `(B, C)` interaction counts of the candidates."""
        check_padded(candidates, len(self.item_counts) - 1, "candidates")
        return self.item_counts[candidates]

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the most popular unseen items; among equally popular ones the earlier in the catalogue."""
        check_histories(histories, len(self.item_counts) - 1)
        k = min(top_k, len(self.item_counts) - 1)
        items = np.zeros((len(histories), k), dtype=np.int64)
        for row, history in zip(items, histories, strict=True):
            head = self._most_popular[: k + len(history)]
            unseen = head[~np.isin(head, history)][:k]
            row[: len(unseen)] = unseen
        return items, np.where(items > 0, self.item_counts[items], -np.inf)


class BackboneRanker:
    """Rank by a collaborative-filtering encoder alone, the backbone without the LLM.

    Args:
        cf_encoder: Any backbone; it is put into evaluation mode.
        name: The method's name in reports; None takes the backbone's, such as `sasrec`.
        batch_size: Users at a time.
    """

    def __init__(self, cf_encoder: CFEncoder, name: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        self.cf_encoder = cf_encoder.eval()
        self.name = name or cf_encoder.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
        self.batch_size = batch_size

    @torch.no_grad()
    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the encoder's `(B, C)` scores."""
        parts = []
        for start in range(0, len(histories), self.batch_size):
            users = self._encode(histories[start : start + self.batch_size])
            items = torch.as_tensor(candidates[start : start + self.batch_size], device=users.device)
            parts.append(self.cf_encoder.score(users, items).float().cpu().numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the unseen items with the highest scores of the encoder."""
        items, scores = [], []
        for start in range(0, len(histories), self.batch_size):
            batch = histories[start : start + self.batch_size]
            best, values = self.cf_encoder.top_items(self._encode(batch), top_k, exclude=seen_items(batch))
            items.append(best.cpu().numpy())
            scores.append(values.float().cpu().numpy())
        return np.concatenate(items), np.concatenate(scores)

    def _encode(self, histories: Sequence[History]) -> torch.Tensor:
        device = self.cf_encoder.item_embeddings.device
        length = self.cf_encoder.config.max_history_length
        item_ids, attention_mask = pad_histories(histories, length, self.cf_encoder.num_items)
        return self.cf_encoder.encode_users(item_ids.to(device), attention_mask.to(device))  # (B, d_cf)


class TextCosineRanker:
    """Rank by text alone: the mean cosine between a candidate's text embedding and those of the last history items.

    No interaction trains it, so it shows what the text gives away by itself. An empty history scores 0 everywhere.

    Args:
        text_embeddings: `(N + 1, d_text)`, row 0 is padding; a zero row has cosine 0 with everything.
        last_items: How many of the latest history items count; fewer can be stronger, choose on validation.
        name: The method's name in reports.
        batch_size: Users at a time when the whole catalogue is ranked.
    """

    def __init__(
        self,
        text_embeddings: ArrayLike,
        last_items: int = 10,
        name: str = "text",
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        vectors = np.asarray(text_embeddings, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) < 2 or not np.isfinite(vectors).all():
            raise ALLMRecError(f"text_embeddings must be (N + 1, d_text) finite numbers, N > 0; got {vectors.shape}")
        if last_items < 1:
            raise ALLMRecError(f"last_items must be at least 1; got {last_items}")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.directions = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        self.last_items = last_items
        self.name = name
        self.batch_size = batch_size

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the `(B, C)` mean cosines."""
        check_padded(candidates, len(self.directions) - 1, "candidates")
        return np.einsum("bd,bcd->bc", self._profiles(histories), self.directions[candidates])

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the unseen items with the highest mean cosine."""
        items, scores = [], []
        for start in range(0, len(histories), self.batch_size):
            batch = histories[start : start + self.batch_size]
            best, values = best_unseen(self._profiles(batch) @ self.directions.T, batch, top_k)
            items.append(best)
            scores.append(values)
        return np.concatenate(items), np.concatenate(scores)

    def _profiles(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """Return `(B, d_text)` mean unit vectors: their dot product with a unit vector is the mean cosine."""
        check_histories(histories, len(self.directions) - 1)
        profiles = np.zeros((len(histories), self.directions.shape[1]), dtype=np.float32)
        for profile, history in zip(profiles, histories, strict=True):
            if len(history):
                profile[:] = self.directions[history[-self.last_items :]].mean(axis=0)
        return profiles


class ShuffledHistories:
    """Rank with the order of each history destroyed: what a ranker loses so, the order was worth to it.

    Args:
        ranker: What ranks; its name is kept.
        seed: Of the orders; a history always gets the same one.
    """

    def __init__(self, ranker: Ranker, seed: int = 0) -> None:
        self.ranker = ranker
        self.name = ranker.name
        self.seed = seed

    def _shuffled(self, histories: Sequence[History]) -> list[History]:
        return [np.random.default_rng([self.seed, *map(int, history)]).permutation(history) for history in histories]

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the ranker's scores after shuffled histories."""
        return self.ranker.score(self._shuffled(histories), candidates)

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return what the ranker retrieves after shuffled histories."""
        return self.ranker.retrieve(self._shuffled(histories), top_k)
