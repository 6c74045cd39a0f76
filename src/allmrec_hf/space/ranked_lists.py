"""What the page shows of one history: the best items of a ranker, and the ranks that the other rankers give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError, DataError
from ..modeling_allmrec import ALLMRecModel
from ..pipeline_recommendation import RecommendationPipeline
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import ModelRanker, TextSimilarity, UserBatch
from ..ranker_built_in import compared_rankers

NUM_CANDIDATES = 20
TEXT_RECENCY = 0.85  # where the checkpoint has no ranker `text` of its own
CONTROLS = ("fusion_sum", "fusion_ranks")  # comparisons with `fusion`, which are no column of their own


class TextFit(TextSimilarity):
    """The ranker `text`, also of checkpoints that keep no text embeddings: those are compared in the joint space."""

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        if "text" not in (model.config.rankers or {}):
            self.recency = TEXT_RECENCY

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return None: every checkpoint has what it needs."""
        return None

    @property
    def _table(self) -> Tensor:
        table = self.model.item_table.text_directions
        return F.normalize(self.model.item_table.text_joint_embeddings.float(), dim=-1) if table is None else table


@dataclass(frozen=True)
class ListedItem:
    """One item of a list.

    Attributes:
        item_id: Its id.
        title: Its title, as the catalogue holds it.
        rank: Its place in the list, 1 the best.
        score: The score of the list's ranker.
        parts: What the score is made of.
        values: By column the score of that ranker.
        ranks: By column its rank among the candidates; equal scores share a rank.
    """

    item_id: str
    title: str
    rank: int
    score: float
    parts: dict[str, float]
    values: dict[str, float]
    ranks: dict[str, int]


@dataclass(frozen=True)
class RankedList:
    """The best items of one ranker for one history.

    Attributes:
        ranker: What ranked.
        columns: The rankers whose ranks stand beside each other.
        items: The best items.
        candidates: The ids of all candidates, best first.
        unknown_history: Ids of the history that the catalogue does not know.
        notes: What else a person should know.
    """

    ranker: str
    columns: list[str]
    items: list[ListedItem]
    candidates: list[str]
    unknown_history: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def usable_rankers(pipe: RecommendationPipeline) -> list[str]:
    """Return the rankers of a checkpoint that can be built here."""
    found = []
    for name in compared_rankers(pipe.model.config):
        try:
            pipe.ranker(name)
        except CheckpointError:  # such as letters that the LLM's tokenizer does not write as one token each
            continue
        found.append(name)
    return found


def column_rankers(pipe: RecommendationPipeline, names: Sequence[str]) -> dict[str, ModelRanker]:
    """Return the rankers whose ranks are shown beside each other; `text` is always among them.

    Args:
        pipe: The pipeline.
        names: The rankers of the checkpoint, see `usable_rankers`.
    """
    found = {name: pipe.ranker(name) for name in names if name not in CONTROLS}
    found.setdefault("text", TextFit(pipe.model, pipe.processor))
    return found


def shared_ranks(scores: Sequence[float]) -> list[int]:
    """Return the rank of each score, 1 the best; equal scores share the best of their ranks."""
    return [1 + sum(other > score for other in scores) for score in scores]


@torch.no_grad()
def ranked_list(
    pipe: RecommendationPipeline,
    columns: dict[str, ModelRanker],
    history: Sequence[str],
    ranker: str,
    top_k: int = 10,
    among: Sequence[str] = (),
) -> RankedList:
    """Return the best items for a history.

    Args:
        pipe: The pipeline.
        columns: The rankers whose ranks are shown beside each other.
        history: Item ids, oldest first.
        ranker: What ranks.
        top_k: Items to list.
        among: Ids that are candidates whatever is retrieved; they are listed where they are among the best.

    Raises:
        ALLMRecError: when the request cannot be served.
    """
    request = pipe.resolve({"history": list(history)})
    catalog = pipe.processor.catalog
    users = UserBatch.encode(pipe.model, pipe.processor, [request.history])
    ranking = pipe.ranker(ranker)
    retrieved = ranking.retrieve(users, max(NUM_CANDIDATES, top_k)).item_indices[0].tolist()
    wanted = [index for index in catalog.indices(list(among)) if index not in request.history]
    found = [index for index in retrieved if index > 0 and index not in wanted]
    candidates = [*found[: max(NUM_CANDIDATES, top_k) - len(wanted)], *wanted]
    if not candidates:
        raise DataError("the history holds every item of the catalogue; there is nothing left to recommend")
    own = ranking.score(users, [candidates])
    score = own.scores[0].float().tolist()
    parts = {name: values[0].float().tolist() for name, values in own.parts.items()}
    values = {
        name: score if name == ranker else other.score(users, [candidates]).scores[0].float().tolist()
        for name, other in columns.items()
    }
    ranks = {name: shared_ranks(column) for name, column in values.items()}
    order = sorted(range(len(candidates)), key=lambda place: -score[place])
    items = [
        ListedItem(
            catalog.item_id(candidates[place]),
            catalog.title(candidates[place]),
            rank,
            score[place],
            {name: column[place] for name, column in parts.items()},
            {name: column[place] for name, column in values.items()},
            {name: column[place] for name, column in ranks.items()},
        )
        for rank, place in enumerate(order[:top_k], start=1)
    ]
    ids = [catalog.item_id(candidates[place]) for place in order]
    return RankedList(ranker, list(columns), items, ids, request.unknown_history, request.notes)
