"""Retrieve the best items of the whole catalogue for each user: exactly in slices, or with a FAISS index."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ALLMRecError, DataError
from .indices import check_padded

logger = logging.getLogger(__name__)

ScoreRange = Callable[[Tensor, int, int], Tensor]
"""Scores users `(B, d_cf)` against the items `start..stop - 1`, giving `(B, stop - start)`."""

_SLICE_SCORES = {"cpu": 2**21}  # scores held at once: 8 MB in float32, which stays in a CPU's cache
_SLICE_SCORES_ELSEWHERE = 2**24
_MOST_USERS = 1024  # users worked off together; more would make the slices too narrow
_WIDEST_SLICE = 2**16
_GROUP = 32  # neighbouring items of which only the best score is compared with the running threshold


@torch.no_grad()
def exact_top_items(
    score_range: ScoreRange, users: Tensor, num_items: int, k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the best k items of the whole catalogue, best first, holding only a slice of the scores at a time.

    The k-th best score so far is a threshold: of every later slice only scores above it are looked at, and the best of
    each group of neighbouring items says which groups have any. Items with equal scores follow in catalogue order.

    Args:
        score_range: Scores users `(B, d_cf)` against the items `start..stop - 1`, giving `(B, stop - start)`; it is
            never asked for index 0, which is padding, and its result is not written to.
        users: `(B, d_cf)` user representations.
        num_items: N, the number of items.
        k: Number of items; at most N are returned.
        exclude: `(B, E)` catalogue indices never to return, such as the history; 0 excludes nothing.

    Returns:
        Indices and scores, both `(B, min(k, N))`. Where fewer items are left, index 0 with score `-inf` follows.

    Raises:
        DataError: when a score of an item that may be returned is NaN, or an excluded index is not in 0..N.

    Example:
        >>> table = torch.tensor([[0.0], [3.0], [1.0], [2.0]])  # N = 3 items of width 1 after the padding
        >>> items, scores = exact_top_items(lambda u, a, b: u @ table[a:b].T, torch.ones(1, 1), 3, k=2)
        >>> items.tolist(), scores.tolist()
        ([[1, 3]], [[3.0, 2.0]])
    """
    exclude = _checked_request(users, k, exclude, num_items)
    k = min(k, num_items)
    if not len(users) or not k:
        return torch.zeros(len(users), k, dtype=torch.long, device=users.device), users.new_zeros(len(users), k)
    unwanted = [None] * math.ceil(len(users) / _MOST_USERS) if exclude is None else exclude.split(_MOST_USERS)
    parts = [
        _top_of_users(score_range, part, num_items, k, part_unwanted)
        for part, part_unwanted in zip(users.split(_MOST_USERS), unwanted, strict=True)
    ]
    return torch.cat([items for items, _ in parts]), torch.cat([scores for _, scores in parts])


def _checked_request(users: Tensor, k: int, exclude: Tensor | None, num_items: int) -> Tensor | None:
    """Check what is common to all ways of retrieval and return `exclude` on the users' device, its rows sorted."""
    if k < 1:
        raise ALLMRecError(f"top_items needs k >= 1, got {k}")
    if users.ndim != 2:
        raise DataError(f"top_items needs user representations (B, d_cf), got {tuple(users.shape)}")
    if exclude is None:
        return None
    if exclude.ndim != 2 or len(exclude) != len(users):
        raise DataError(f"exclude must be (B, E) with B = {len(users)} as for the users, got {tuple(exclude.shape)}")
    check_padded(exclude, num_items, "exclude")
    return exclude.to(users.device, torch.long).sort(dim=1).values if exclude.shape[1] else None


def _top_of_users(
    score_range: ScoreRange, users: Tensor, num_items: int, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    wanted = _SLICE_SCORES.get(users.device.type, _SLICE_SCORES_ELSEWHERE) // len(users)
    step = math.ceil(max(k, min(wanted, _WIDEST_SLICE)) / _GROUP) * _GROUP
    stop = 1 + (num_items if num_items <= 2 * step else step)  # a short second slice costs more than it saves
    scores = score_range(users, 1, stop)
    best_scores, columns = _best_columns(scores if exclude is None else _without(scores, exclude - 1), k)
    best_items = columns + 1
    items, values, pending = [best_items], [best_scores], 0
    for start in range(stop, num_items + 1, step):
        scores = score_range(users, start, min(start + step, num_items + 1))
        columns, found = _above(scores, best_scores[:, -1:])
        if not found.shape[1]:
            continue
        items.append(columns + start)
        values.append(found if exclude is None else found.masked_fill(_listed(items[-1], exclude), float("-inf")))
        pending += found.shape[1]
        if pending >= k:  # an older threshold only lets more through, so what was found may wait for company
            best_items, best_scores = _merged(items, values, k)
            items, values, pending = [best_items], [best_scores], 0
    if pending:
        best_items, best_scores = _merged(items, values, k)
    return best_items.masked_fill(best_scores == float("-inf"), 0), best_scores


def _merged(items: list[Tensor], values: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the best k of several finds, given in catalogue order, so that equal scores stay in it."""
    best_scores, columns = _best_columns(torch.cat(values, dim=1), k)
    return torch.cat(items, dim=1).gather(1, columns), best_scores


def _best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best k scores of each row of `(B, S)` and their columns; equal scores go by column."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))  # one more shows whether the k-th has equals left out
    if values[:, 0].isnan().any():  # topk takes NaN for the largest
        row = int(values[:, 0].isnan().nonzero()[0])
        raise DataError(
            f"the scores of user {row} of the batch hold NaN; a user representation or an item embedding is not finite"
            " (training that diverged, or a damaged checkpoint)"
        )
    equal = values[:, 1:] == values[:, :-1]
    rows = equal.any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return values[:, :k], columns[:, :k]
    cut = equal[:, -1].nonzero().squeeze(1) if values.shape[1] > k else rows[:0]
    values, columns = values[:, :k].clone(), columns[:, :k].clone()
    if len(cut):
        columns[cut] = _earliest_columns(scores[cut], values[cut, -1:], k)
    in_order = columns[rows].sort(dim=1).values
    values[rows], order = scores[rows].gather(1, in_order).sort(dim=1, descending=True, stable=True)
    columns[rows] = in_order.gather(1, order)
    return values, columns


def _earliest_columns(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Return the columns `(B, k)` above the k-th best score `last (B, 1)`, filled with the first ones equal to it."""
    above = scores > last
    equal = scores == last
    taken = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    return taken.nonzero()[:, 1].view(len(scores), k)


def _above(scores: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns and scores `(B, M)` above a threshold `(B, 1)`, in the order of columns; `-inf` fills a row.

    NaN counts as above, so that it is noticed. Where a good part of the slice is above, all of it is returned.
    """
    size = scores.shape[1]
    if size % _GROUP:
        scores = F.pad(scores, (0, -size % _GROUP), value=float("-inf"))
    groups = scores.unflatten(1, (-1, _GROUP))
    rows, group = (~(groups.amax(dim=2) <= threshold)).nonzero(as_tuple=True)
    if len(rows) * _GROUP > scores.numel() // 4:
        return torch.arange(size, device=scores.device).expand(len(scores), size), scores[:, :size]
    found = groups[rows, group]  # (groups with a hit, _GROUP)
    hit, place = (~(found <= threshold[rows])).nonzero(as_tuple=True)
    rows, columns, found = rows[hit], group[hit] * _GROUP + place, found[hit, place]
    counts = rows.bincount(minlength=len(scores))
    width = int(counts.max())
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    padded_columns = columns.new_zeros(len(scores), width)
    padded_scores = found.new_full((len(scores), width), float("-inf"))
    padded_columns[rows, slots] = columns
    padded_scores[rows, slots] = found
    return padded_columns, padded_scores


def _without(scores: Tensor, columns: Tensor) -> Tensor:
    """Set the given columns `(B, E)` of scores `(B, S)` to `-inf`; columns outside the slice are ignored."""
    size = scores.shape[1]
    columns = columns.where((columns >= 0) & (columns < size), size)
    padded = F.pad(scores, (0, 1))  # one spare column takes what does not belong to this slice
    return padded.scatter(1, columns, float("-inf"))[:, :size]


def _listed(items: Tensor, listed: Tensor) -> Tensor:
    """Say which items `(B, M)` are among the row's `listed (B, E)`, E >= 1, whose rows are sorted."""
    places = torch.searchsorted(listed, items.contiguous()).clamp_(max=listed.shape[1] - 1)
    return listed.gather(1, places) == items


class ItemScorer(Protocol):
    """The interface of a backbone that can be indexed."""

    @property
    def scores_by_dot_product(self) -> bool:
        """Whether a score is the dot product of user representation and item embedding."""
        ...

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings `(N + 1, d_cf)`; row 0 is padding."""
        ...


class FaissIndex:
    """Find the items with the largest dot products by a FAISS index, fast and approximately.

    Items are in clusters (IVF), of which those nearest to the user are searched.

    An index is built from the item table and is never stored: the weights stay the only truth, and a file that C++
    reads unchecked has no place beside them. It copies the table as float32; scores come from that copy.

    Args:
        item_embeddings: `(N + 1, d_cf)` item table; row 0 is padding and is not indexed.
        breadth: Clusters that a search looks at (default: one in 32, at least 16). More finds more of the exact result
            and takes longer.
        seed: Seed of the clusters.

    Raises:
        ALLMRecError: when FAISS is not installed, or the breadth is below 1.
        DataError: when the table holds no item or values that are not finite.

    Example:
        >>> import torch
        >>> table = torch.cat([torch.zeros(1, 2), torch.eye(2)])  # two items after the row of padding
        >>> index = FaissIndex(table)
        >>> items, scores = index.search(torch.tensor([[1.0, 3.0]]), k=2)
        >>> items.tolist(), scores.tolist()
        ([[2, 1]], [[3.0, 1.0]])
    """

    def __init__(self, item_embeddings: Tensor, breadth: int | None = None, seed: int = 0) -> None:
        if breadth is not None and breadth < 1:
            raise ALLMRecError(f"the breadth of an index must be at least 1, got {breadth}")
        faiss = _import_faiss()
        if item_embeddings.ndim != 2 or len(item_embeddings) < 2:
            raise DataError(f"an index needs an item table (N + 1, d_cf), N >= 1, got {tuple(item_embeddings.shape)}")
        self.item_embeddings = item_embeddings.detach()
        self.num_items = len(item_embeddings) - 1
        vectors = _as_float32(self.item_embeddings[1:], "the item table")
        self._sample = self._sampled(self.item_embeddings)
        self._index, self.breadth = _build(faiss, vectors, breadth, seed)

    def check(self, item_embeddings: Tensor) -> None:
        """Check that the index belongs to an item table, by its shape and by a sample of its rows.

        Raises:
            DataError: when it does not; both numbers of items are in the message.
        """
        if item_embeddings.shape != self.item_embeddings.shape:
            raise DataError(
                f"the index holds {self.num_items} items of width {self.item_embeddings.shape[1]}, the item table"
                f" {len(item_embeddings) - 1} of width {item_embeddings.shape[1]}; build the index again"
            )
        allowed = 0.02 * float(self._sample.abs().max())  # the table may have changed its dtype since
        if float((self._sampled(item_embeddings) - self._sample).abs().max()) > allowed:
            raise DataError("the index was built from other item embeddings than the table's; build the index again")

    def search(self, users: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best k items found, best first, by the same rules as `exact_top_items`.

        As many more are fetched as could be excluded. A user for whom the index still finds fewer than k gets the exact
        result. The order of equal scores is FAISS's.

        Args:
            users: `(B, d_cf)` user representations.
            k: Number of items; at most N are returned.
            exclude: `(B, E)` catalogue indices never to return, such as the history; 0 excludes nothing.

        Returns:
            Indices and scores, both `(B, min(k, N))`. Where fewer items are left, index 0 with score `-inf` follows.
        """
        exclude = _checked_request(users, k, exclude, self.num_items)
        k = min(k, self.num_items)
        if users.shape[1] != self.item_embeddings.shape[1]:
            raise DataError(f"the index needs users (B, {self.item_embeddings.shape[1]}), got {tuple(users.shape)}")
        if not len(users):
            return torch.zeros(0, k, dtype=torch.long, device=users.device), users.new_zeros(0, k)
        wanted = min(k + (0 if exclude is None else exclude.shape[1]), self.num_items)
        found_scores, found = self._index.search(
            _as_float32(users, "the user representations"), wanted, params=self._parameters(wanted)
        )
        items = torch.from_numpy(found + 1).to(users.device)  # FAISS marks what it did not find by -1
        scores = torch.from_numpy(found_scores).to(users).masked_fill(items == 0, float("-inf"))
        if exclude is not None:
            scores = scores.masked_fill(_listed(items, exclude), float("-inf"))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        items, scores = items.gather(1, order)[:, :k], scores[:, :k]
        short = (scores[:, -1] == float("-inf")).nonzero().squeeze(1)
        if len(short):
            logger.debug("the index found too little for %d of %d users", len(short), len(users))
            exact = self._exact(users[short], k, None if exclude is None else exclude[short])
            items[short], scores[short] = exact[0], exact[1]
        return items, scores

    def recall_against_exact(self, users: Tensor, k: int, exclude: Tensor | None = None) -> float:
        """Return the mean share of users' exact best k items that the index finds (recall@k).

        Args:
            users: `(B, d_cf)` user representations, B >= 1.
            k: Number of items.
            exclude: `(B, E)` catalogue indices never to return.
        """
        if not len(users):
            raise DataError("recall needs at least one user, got none")
        expected = self._exact(users, k, exclude)[0]
        found = self.search(users, k, exclude)[0].sort(dim=1).values
        wanted = expected > 0
        shares = (_listed(expected, found) & wanted).sum(dim=1) / wanted.sum(dim=1).clamp(min=1)
        return float(shares[wanted.any(dim=1)].mean()) if wanted.any() else 1.0

    def _exact(self, users: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        table = self.item_embeddings
        items, scores = exact_top_items(
            lambda part, start, stop: part @ table[start:stop].T, users.to(table), self.num_items, k, exclude
        )
        return items.to(users.device), scores.to(users)

    def _parameters(self, wanted: int) -> Any:
        faiss = _import_faiss()
        enough = math.ceil(2 * wanted * self._index.nlist / self.num_items)
        return faiss.SearchParametersIVF(nprobe=min(max(self.breadth, enough), self._index.nlist))

    def _sampled(self, item_embeddings: Tensor) -> Tensor:
        rows = torch.linspace(1, self.num_items, min(self.num_items, 64)).long().to(item_embeddings.device)
        return item_embeddings.detach()[rows].float().cpu()


def require_dot_product(cf_encoder: ItemScorer) -> None:
    """Check that a backbone scores by dot product; raise an `ALLMRecError` otherwise."""
    if not cf_encoder.scores_by_dot_product:
        raise ALLMRecError(
            f"{type(cf_encoder).__name__} does not score by dot product, which is all that an index can do;"
            " leave the index out: top_items is exact for every backbone"
        )


def build_index(cf_encoder: ItemScorer, breadth: int | None = None, seed: int = 0) -> FaissIndex:
    """Build a FAISS index of a backbone's item table; the arguments are those of `FaissIndex`.

    Raises:
        ALLMRecError: when the backbone does not score by dot product, which is all that an index can do.
    """
    require_dot_product(cf_encoder)
    return FaissIndex(cf_encoder.item_embeddings, breadth, seed)


def _build(faiss: Any, vectors: np.ndarray, breadth: int | None, seed: int) -> tuple[Any, int]:
    """Return an index of `(N, d_cf)` vectors for the inner product, and the breadth of its searches."""
    count, width = vectors.shape
    clusters = max(1, min(int(4 * math.sqrt(count)), count // 39))  # FAISS wants 39 items per cluster to train on
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = seed, 10, 64
    index.train(vectors)
    index.add(vectors)
    return index, min(breadth or max(16, clusters // 32), clusters)


def _as_float32(vectors: Tensor, name: str) -> np.ndarray:
    array = vectors.detach().to("cpu", torch.float32).contiguous()
    if not array.isfinite().all():
        raise DataError(f"{name} {tuple(vectors.shape)} must be finite for an index, but holds NaN or infinite values")
    return array.numpy()


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ALLMRecError("a FAISS index needs the package faiss: pip install 'allmrec-hf[retrieval]'") from error
    return faiss
