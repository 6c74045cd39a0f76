"""One checkpoint behind the page: what can be asked of it, one question at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ALLMRecError
from ..explaining.explanation import explain
from ..pipeline_recommendation import RecommendationPipeline
from ..ranker import CatalogueRanker, TitleLikelihood, UserBatch
from .ranked_lists import NUM_CANDIDATES, RankedList, column_rankers, ranked_list, shared_ranks, usable_rankers
from .title_search import TitleSearch
from .trial_items import HistoryKind, KindRanks, TrialPipelines, catalogue_ranks, history_kinds, ranks_by_kind

logger = logging.getLogger(__name__)
EXAMPLES = 3
ITEMS_OF_EXAMPLE = 4
KIND_RANKERS = ("cf", "text")  # they need no LLM, which would have to read every history


@dataclass(frozen=True)
class Place:
    """Where an item ranks for a history: its rank by a ranker, and among how many.

    Attributes:
        ranker: The ranker.
        rank: 1 is the best.
        of: How many items were ranked.
        whole: Whether those are the whole catalogue, without the history.
    """

    ranker: str
    rank: int
    of: int
    whole: bool


@dataclass(frozen=True)
class Placement:
    """Where an item ranks for the present history, and for which kinds of histories it ranks high."""

    item_id: str
    title: str
    places: list[Place]
    kinds: list[KindRanks]
    num_items: int
    best_titles: dict[str, list[str]]


class PageModel:
    """A checkpoint and what the page asks of it; computation happens one question at a time.

    Args:
        name: What the page calls it.
        pipe: Its pipeline.

    Raises:
        ALLMRecError: when it can rank nothing.
    """

    def __init__(self, name: str, pipe: RecommendationPipeline) -> None:
        self.name = name
        self.pipe = pipe
        pipe.model.eval()
        self.rankers = usable_rankers(pipe)
        if not self.rankers:
            raise ALLMRecError(f"{name} has no ranker that can be used")
        own = str(pipe.model.config.ranker)
        self.ranker = own if own in self.rankers else self.rankers[0]
        self.search = TitleSearch(pipe.processor.catalog, pipe.model.item_table.interaction_counts[1:].cpu().numpy())
        self.kinds: list[HistoryKind] = history_kinds(pipe)
        try:
            _ = pipe.model.text_encoder  # loaded now, not while somebody waits
            self.takes_no_items: str | None = None
        except ALLMRecError as error:
            self.takes_no_items = str(error)
        self._trials = TrialPipelines(pipe)
        self._alone = threading.Lock()

    @property
    def explains(self) -> bool:
        """Whether it has an LLM and ranks by its title likelihoods, which are what can be explained."""
        return self.pipe.model.language_model is not None and TitleLikelihood.lacks(self.pipe.model.config) is None

    def examples(self) -> list[dict[str, Any]]:
        """Return histories to start from: a name and the items of each."""
        catalog = self.pipe.processor.catalog
        step = max(1, len(self.kinds) // EXAMPLES)
        return [
            {
                "name": kind.name,
                "items": [
                    {"item_id": catalog.item_id(index), "title": catalog.title(index)}
                    for index in kind.histories[0][:ITEMS_OF_EXAMPLE]
                ],
            }
            for kind in self.kinds[::step][:EXAMPLES]
        ]

    def recommend(self, history: Sequence[str], ranker: str, trials: Sequence[Mapping[str, str]] = ()) -> RankedList:
        """Return the best items for a history; new items of the visitor are among the candidates.

        Raises:
            ALLMRecError: when it cannot be served.
        """
        with self._alone:
            pipe = self._trials.with_items(trials)
            among = [trial["item_id"] for trial in trials]
            return ranked_list(pipe, column_rankers(pipe, self.rankers), history, ranker, among=among)

    def explain(
        self,
        history: Sequence[str],
        item_id: str,
        candidates: Sequence[str],
        trials: Sequence[Mapping[str, str]] = (),
    ) -> dict[str, Any]:
        """Return why the LLM prefers an item to the mean of the candidates, see `explaining.explanation.explain`.

        Raises:
            ALLMRecError: when it cannot be explained.
        """
        with self._alone:
            pipe = self._trials.with_items(trials)
            known = [entry for entry in history if entry in pipe.processor.catalog]
            return explain(pipe.model, pipe.processor, known, item_id, candidates=list(candidates), contrast=True)

    def place(self, history: Sequence[str], trials: Sequence[Mapping[str, str]], item_id: str) -> Placement:
        """Return where a new item ranks for a history, which may be empty, and for which kinds of histories.

        Raises:
            ALLMRecError: when the items cannot be added, or no item of the history is known.
        """
        if self.takes_no_items is not None:
            raise ALLMRecError(self.takes_no_items)
        with self._alone:
            pipe = self._trials.with_items(trials)
            catalog = pipe.processor.catalog
            item = catalog.indices([item_id])[0]
            columns = column_rankers(pipe, self.rankers)
            places = self._places(pipe, history, item) if history else []
            quick: dict[str, CatalogueRanker] = {
                name: ranker
                for name, ranker in columns.items()
                if name in KIND_RANKERS and isinstance(ranker, CatalogueRanker)
            }
            kinds = ranks_by_kind(pipe, quick, self.kinds, item)
            titles = {kind.name: [catalog.title(index) for index in kind.best_history] for kind in kinds}
            return Placement(item_id, catalog.title(item), places, kinds, len(catalog), titles)

    def _places(self, pipe: RecommendationPipeline, history: Sequence[str], item: int) -> list[Place]:
        request = pipe.resolve({"history": list(history)})
        users = UserBatch.encode(pipe.model, pipe.processor, [request.history])
        num_items, places = len(pipe.processor.catalog), []
        for name, ranker in column_rankers(pipe, self.rankers).items():
            if isinstance(ranker, CatalogueRanker) and ranker.ranks_catalogue:
                rank = catalogue_ranks(ranker, users, item, num_items)[0]
                places.append(Place(name, rank, num_items - len(set(request.history) - {item}), True))
                continue
            found = ranker.retrieve(users, NUM_CANDIDATES).item_indices[0].tolist()
            others = [index for index in found if index > 0 and index != item][: NUM_CANDIDATES - 1]
            scores = ranker.score(users, [[*others, item]]).scores[0].float().tolist()
            places.append(Place(name, shared_ranks(scores)[-1], len(scores), False))
        return places
