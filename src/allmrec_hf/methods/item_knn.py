"""Item-kNN: items that the same users have seen are alike (Deshpande and Karypis, ACM TOIS 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..data.prepared import PreparedData
from ..evaluation.protocol import History
from ..evaluation.rankers import DEFAULT_BATCH_SIZE, Scores, best_unseen
from ..indices import check_histories, check_padded
from .method import Method, Setting
from .model_selection import best_on_validation, grid_of
from .shared import stage_arguments

ROWS_AT_ONCE = 1024  # items whose similarities are computed at a time
ALL_ITEMS = 0  # as `last_items`: the whole history counts
GRID = {"neighbors": (20, 100, 400), "shrinkage": (0, 5, 50), "last_items": (ALL_ITEMS, 1, 3, 10)}


def item_similarities(
    users: NDArray[np.int64], items: NDArray[np.int64], num_items: int, neighbors: int, shrinkage: float
) -> sparse.csr_array:
    """Return the similarity of each item to its nearest others, `(N + 1, N + 1)`, row 0 and the diagonal empty.

    Two items that n users have both seen have the similarity n / (sqrt(a * b) + shrinkage), where a and b users have
    seen each: the cosine of their columns of the user-item matrix, less for items that few users have seen.

    Args:
        users: `(E,)` user numbers of the interactions; a pair that comes twice counts once.
        items: `(E,)` catalogue indices.
        num_items: N.
        neighbors: k, the similarities kept in each row; among equal ones those earlier in the catalogue.
        shrinkage: 0 is the plain cosine.

    Example:
        >>> table = item_similarities(np.array([0, 0, 1]), np.array([1, 2, 2]), 2, neighbors=1, shrinkage=0)
        >>> table.toarray()[1].round(3).tolist()
        [0.0, 0.0, 0.707]
    """
    shape = (int(users.max(initial=-1)) + 1, num_items + 1)
    seen = sparse.csr_array((np.ones(len(users)), (users, items)), shape=shape)
    seen.data[:] = 1.0  # what was summed over repeats counts once
    norms = np.sqrt(seen.sum(axis=0))  # (N + 1,)
    by_item = sparse.csr_array(seen.T)
    parts = []
    for start in range(0, num_items + 1, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, num_items + 1)
        common = sparse.coo_array(by_item[start:stop] @ seen)  # (rows, N + 1) users of both items
        rows, columns = common.coords
        values = common.data / (norms[rows + start] * norms[columns] + shrinkage)
        parts.append(_nearest(rows, columns, np.where(rows + start == columns, 0.0, values), neighbors, common.shape))
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def _nearest(
    rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float64], count: int, shape: tuple[int, ...]
) -> sparse.csr_array:
    """Return a matrix with the highest positive values of each row only."""
    kept = np.flatnonzero(values > 0)
    rows, columns, values = rows[kept], columns[kept], values[kept]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # (E,) 0 for the nearest of its row
    near = place < count
    return sparse.csr_array((values[near], (rows[near], columns[near])), shape=shape)


class ItemKNNRanker:
    """Score a candidate by the sum of its similarities to the items of the history.

    Args:
        similarities: `(N + 1, N + 1)`, see `item_similarities`; row h holds the neighbours of the history item h.
        last_items: How many of the latest history items count; 0 for all.
        name: The method's name in reports.
        batch_size: Users at a time.
    """

    def __init__(
        self,
        similarities: sparse.csr_array,
        last_items: int = ALL_ITEMS,
        name: str = "item-knn",
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self.similarities = similarities
        self.last_items = last_items
        self.name = name
        self.batch_size = batch_size

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the `(B, C)` sums of similarities."""
        parts = []
        for start, batch in self._batches(histories):
            items = candidates[start : start + self.batch_size]
            check_padded(items, self.similarities.shape[0] - 1, "candidates")
            parts.append(self._all_scores(batch)[np.arange(len(items))[:, None], items].toarray())
        return np.concatenate(parts)

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the unseen items with the highest sums of similarities."""
        found = [best_unseen(self._all_scores(batch).toarray(), batch, top_k) for _, batch in self._batches(histories)]
        return np.concatenate([items for items, _ in found]), np.concatenate([values for _, values in found])

    def _batches(self, histories: Sequence[History]) -> list[tuple[int, Sequence[History]]]:
        starts = range(0, len(histories), self.batch_size)
        return [(start, histories[start : start + self.batch_size]) for start in starts]

    def _all_scores(self, histories: Sequence[History]) -> sparse.csr_array:
        """Return `(B, N + 1)` scores, most of them 0; an item that comes twice in a history counts once."""
        check_histories(histories, self.similarities.shape[0] - 1)
        kept = [np.unique(np.asarray(history, dtype=np.int64)[-self.last_items :]) for history in histories]
        rows = np.repeat(np.arange(len(kept)), [len(history) for history in kept])
        columns = np.concatenate(kept)
        shape = (len(kept), self.similarities.shape[0])
        profiles = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        return sparse.csr_array(profiles @ self.similarities)


class ItemKNN(Method):
    """Rank by the neighbours of the history's items; nothing is trained by gradient.

    Options fix `neighbors`, `shrinkage` and `last_items` (0 for the whole history); others are selected on
    the validation part.
    """

    name = "item-knn"
    paper = "Deshpande and Karypis, Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004"
    simplified = (
        "cosine with a shrinkage in the denominator; the user rows and the similarity rows are not normalised further"
    )
    options: ClassVar[tuple[str, ...]] = tuple(GRID)

    def fit(self, data: PreparedData, setting: Setting) -> ItemKNNRanker:
        """Count the users of each item, and select neighbours, shrinkage and history length."""
        grid = grid_of(self.name, self.checked(setting), GRID)
        sequences = data.sequences("train")
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        items = np.concatenate(sequences)
        rankers = (
            ItemKNNRanker(similarities, last_items, self.name)
            for neighbors, shrinkage in product(grid["neighbors"], grid["shrinkage"])
            for similarities in [item_similarities(users, items, data.num_items, neighbors, shrinkage)]
            for last_items in grid["last_items"]
        )
        max_users = stage_arguments(setting, "backbone").max_validation_users
        return best_on_validation(rankers, data, max_users, setting.seed)
