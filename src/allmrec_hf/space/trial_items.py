"""Items that a visitor of the page tries out, in a copy of the model, and for whom they are."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from ..catalog import ItemCatalog
from ..errors import DataError
from ..modeling_allmrec import ALLMRecModel
from ..pipeline_recommendation import RecommendationPipeline
from ..ranker import CatalogueRanker, UserBatch

MOST_TRIALS = 20
LONGEST_TITLE = 300
LONGEST_DESCRIPTION = 3000
CATEGORY_COLUMNS = ("genre", "genres", "category", "categories")
MOST_KINDS = 24
HISTORIES_OF_KIND = 12
ITEMS_OF_HISTORY = 5
POPULAR_ITEMS = 60  # of a kind, of which its histories are drawn
CLUSTERS = 10
RANGE = 65536  # items that are scored at once


def new_trial(
    catalog: ItemCatalog, trials: Sequence[Mapping[str, str]], title: Any, description: Any
) -> dict[str, str]:
    """Return an item of a form's fields, under an id that the catalogue does not have.

    Raises:
        DataError: when the title is missing, a text is too long, or there are too many items already.
    """
    title, description = str(title or "").strip(), str(description or "").strip()
    if not title:
        raise DataError("the new item has no title; type one")
    if len(title) > LONGEST_TITLE or len(description) > LONGEST_DESCRIPTION:
        raise DataError(
            f"the title may have {LONGEST_TITLE} characters and the description {LONGEST_DESCRIPTION}; these have "
            f"{len(title)} and {len(description)}: shorten them"
        )
    if len(trials) >= MOST_TRIALS:
        raise DataError(f"there are {MOST_TRIALS} new items already, the most that a visit may have; remove one first")
    taken = {trial["item_id"] for trial in trials}
    number = 1
    while f"new-{number}" in taken or f"new-{number}" in catalog:
        number += 1
    return {"item_id": f"new-{number}", "title": title, "description": description}


def sharing_copy(model: ALLMRecModel) -> ALLMRecModel:
    """Return a copy of a model that shares every tensor, the LLM and the text encoder with it.

    `add_items` puts grown tables in the place of the old ones, so that items added to the copy are in the copy alone.
    """
    kept: list[Any] = [*model.parameters(), *model.buffers(), model.text_encoder]
    kept += [part for part in (model.language_model, model.cf_encoder._index) if part is not None]
    copied: ALLMRecModel = copy.deepcopy(model, {id(part): part for part in kept})
    return copied


class TrialPipelines:
    """Pipelines of a checkpoint with new items beside its own; the few that were used last are kept.

    Args:
        base: The pipeline of the checkpoint, which stays as it is.
        most_kept: How many are kept.
    """

    def __init__(self, base: RecommendationPipeline, most_kept: int = 4) -> None:
        self.base = base
        self.most_kept = most_kept
        self._kept: OrderedDict[tuple[tuple[str, ...], ...], RecommendationPipeline] = OrderedDict()

    def __len__(self) -> int:
        """Return how many pipelines are kept."""
        return len(self._kept)

    def with_items(self, trials: Sequence[Mapping[str, str]]) -> RecommendationPipeline:
        """Return a pipeline that knows the checkpoint's items and these."""
        if not trials:
            return self.base
        key = tuple((trial["item_id"], trial["title"], trial["description"]) for trial in trials)
        pipe = self._kept.get(key)
        if pipe is None:
            processor = copy.copy(self.base.processor)
            processor.catalog = self.base.processor.catalog
            pipe = RecommendationPipeline(model=sharing_copy(self.base.model), processor=processor)
            pipe.add_items([dict(trial) for trial in trials])
            self._kept[key] = pipe
        self._kept.move_to_end(key)
        while len(self._kept) > self.most_kept:
            self._kept.popitem(last=False)
        return pipe


# -- for whom


@dataclass(frozen=True)
class HistoryKind:
    """A kind of history: its name, and histories of it in catalogue indices."""

    name: str
    histories: list[list[int]]


@dataclass(frozen=True)
class KindRanks:
    """How an item ranks for a kind of history, among all items that a history does not hold.

    Attributes:
        name: The kind.
        medians: By ranker the median rank over its histories.
        best: By ranker the rank for the one of its histories for which the item is best.
        best_history: The catalogue indices of that history.
    """

    name: str
    medians: dict[str, float]
    best: dict[str, int]
    best_history: list[int]


def _by_category(catalog: ItemCatalog) -> dict[str, list[int]]:
    """Return the items of each category, most frequent first; nothing where the catalogue has no such column."""
    frame = catalog.frame
    column = next((name for name in CATEGORY_COLUMNS if name in frame.columns), None)
    found: dict[str, list[int]] = {}
    for index, value in enumerate([] if column is None else frame[column].to_list(), start=1):
        names = value if isinstance(value, (list, tuple)) else str(value or "").split("|")
        for name in {str(name).strip() for name in names if name is not None}:
            if name:
                found.setdefault(name, []).append(index)
    order = sorted(found, key=lambda name: (-len(found[name]), name))
    return {name: found[name] for name in order[:MOST_KINDS]}


def _by_neighbourhood(model: ALLMRecModel, catalog: ItemCatalog, counts: Tensor) -> dict[str, list[int]]:
    """Return groups of items whose vectors of the backbone are near each other, named by their most popular titles."""
    vectors = F.normalize(model.cf_encoder.item_embeddings[1:].detach().float(), dim=-1).cpu().double().numpy()
    groups = min(CLUSTERS, max(1, len(vectors) // ITEMS_OF_HISTORY))
    _, labels = kmeans2(vectors, groups, minit="++", seed=np.random.default_rng(0))
    found: dict[str, list[int]] = {}
    for label in range(groups):
        members = (np.flatnonzero(labels == label) + 1).tolist()
        members.sort(key=lambda index: (-int(counts[index]), index))
        if members:
            found["Like " + ", ".join(catalog.title(index) for index in members[:2])] = members
    return found


def history_kinds(pipe: RecommendationPipeline) -> list[HistoryKind]:
    """Return kinds of histories: of one category each, or where the catalogue has none, of items that are alike.

    A checkpoint holds no users, so the histories are made: of a kind's most popular items, with a fixed seed.
    """
    catalog, counts = pipe.processor.catalog, pipe.model.item_table.interaction_counts.cpu()
    groups = _by_category(catalog)
    if len(groups) < 2:
        groups = _by_neighbourhood(pipe.model, catalog, counts)
    draw = np.random.default_rng(0)
    kinds = []
    for name, members in groups.items():
        popular = sorted(members, key=lambda index: (-int(counts[index]), index))[:POPULAR_ITEMS]
        length = min(ITEMS_OF_HISTORY, len(popular))
        histories = [popular[:length]]
        while len(histories) < min(HISTORIES_OF_KIND, len(popular)):
            histories.append(draw.choice(popular, length, replace=False).tolist())
        kinds.append(HistoryKind(name, histories))
    return kinds


@torch.no_grad()
def catalogue_ranks(ranker: CatalogueRanker, users: UserBatch, item: int, num_items: int) -> list[int]:
    """Return the rank of an item for each user among all items of the catalogue that the user does not have.

    Args:
        ranker: A ranker of the whole catalogue.
        users: B users.
        item: The item's index; it may be in a history.
        num_items: N.
    """
    vectors = ranker.vectors(users)
    own = ranker.score_items(vectors, torch.full((len(users), 1), item, device=vectors.device)).float()
    better = torch.zeros(len(users), dtype=torch.long, device=vectors.device)
    for start in range(1, num_items + 1, RANGE):
        stop = min(start + RANGE, num_items + 1)
        ahead = ranker.score_range(vectors, start, stop).float() > own
        if start <= item < stop:
            ahead[:, item - start] = False
        for row, history in enumerate(users.histories):
            inside = [index - start for index in set(history) if start <= index < stop]
            ahead[row, inside] = False
        better += ahead.sum(dim=1)
    return [1 + int(count) for count in better]


def ranks_by_kind(
    pipe: RecommendationPipeline, rankers: Mapping[str, CatalogueRanker], kinds: Sequence[HistoryKind], item: int
) -> list[KindRanks]:
    """Return how an item ranks for each kind of history, best first by the product of the rankers' medians.

    Args:
        pipe: The pipeline that knows the item.
        rankers: Rankers of the whole catalogue by name.
        kinds: See `history_kinds`.
        item: The item's catalogue index.
    """
    histories = [history for kind in kinds for history in kind.histories]
    users = UserBatch.encode(pipe.model, pipe.processor, histories)
    num_items = len(pipe.processor.catalog)
    ranks = {name: catalogue_ranks(ranker, users, item, num_items) for name, ranker in rankers.items()}
    found, start = [], 0
    for kind in kinds:
        places = range(start, start := start + len(kind.histories))
        best = min(places, key=lambda place: math.prod(rows[place] for rows in ranks.values()))
        medians = {name: float(np.median([rows[place] for place in places])) for name, rows in ranks.items()}
        found.append(KindRanks(kind.name, medians, {name: rows[best] for name, rows in ranks.items()}, histories[best]))
    return sorted(found, key=lambda kind: (math.prod(kind.medians.values()), kind.name))
