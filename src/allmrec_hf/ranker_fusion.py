"""The rankers that put several scores together: by weights that follow an item's popularity, by a sum, by ranks.

A collaborative score is best where an item is popular, text, words and the LLM where it is not. So each part counts
with a weight of its own on cold and on warm items, between which the gate `g = count / (count + pivot)` slides:
`score = sum over parts of ((1 - g) * cold + g * warm) * z + popularity * g`, where z is the part's score in standard
deviations around its mean over the catalogue for this user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .modeling_allmrec import ALLMRecModel
from .outputs import RetrievalOutput
from .processing_allmrec import ALLMRecProcessor
from .ranker import (
    CatalogueRanker,
    CFScore,
    ModelRanker,
    RankerScores,
    TextSimilarity,
    TitleLikelihood,
    UserBatch,
    padded_candidates,
)
from .ranker_letter import LetterRanker
from .ranker_likelihood import LIKELIHOOD_FORMS
from .ranker_retrieval import RetrievalRanker
from .ranker_words import SharedWords
from .ranker_zero_shot import ZeroShot

REFERENCE_ITEMS = 1024  # of the catalogue, evenly spread, over which a score's mean and deviation are taken
SMALLEST_DEVIATION = 1e-6
RANK_OFFSET = 60.0  # of reciprocal ranks (Cormack et al., SIGIR 2009)
CATALOGUE_PARTS: dict[str, type[CatalogueRanker]] = {
    kind.kind: kind for kind in (CFScore, TextSimilarity, SharedWords, RetrievalRanker)
}
WITHOUT_LLM = (CFScore.kind, TextSimilarity.kind, SharedWords.kind)  # the parts that no LLM scores
LIST_PARTS: dict[str, type[ModelRanker]] = {
    TitleLikelihood.kind: TitleLikelihood,
    **LIKELIHOOD_FORMS,
    LetterRanker.kind: LetterRanker,
    ZeroShot.kind: ZeroShot,
}


def gates(counts: Tensor, pivot: float) -> Tensor:
    """Return how warm items are, from 0 to 1, of how often each was a target: `count / (count + pivot)`."""
    return counts / (counts + pivot)


def standardized(scores: Tensor, real: Tensor) -> Tensor:
    """Return scores `(B, C)` in standard deviations around the mean of each row's real entries; 0 elsewhere."""
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    clean = scores.masked_fill(~real, 0.0)
    mean = clean.sum(dim=1, keepdim=True) / count
    deviation = ((clean - mean).masked_fill(~real, 0.0).pow(2).sum(dim=1, keepdim=True) / count).sqrt()
    return ((clean - mean) / deviation.clamp(min=SMALLEST_DEVIATION)).masked_fill(~real, 0.0)


class FusionParts:
    """The standardized scores that a fusion is made of.

    Args:
        model: The model.
        processor: Its processor.
        names: Of `CATALOGUE_PARTS` and `LIST_PARTS`.
    """

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor, names: Sequence[str]) -> None:
        self.model = model
        self.whole = [CATALOGUE_PARTS[name](model, processor) for name in names if name in CATALOGUE_PARTS]
        self.listed = [LIST_PARTS[name](model, processor) for name in names if name in LIST_PARTS]

    @property
    def names(self) -> list[str]:
        """The names of the parts, in the order in which they are returned."""
        return [part.kind for part in (*self.whole, *self.listed)]

    def vectors(self, users: UserBatch) -> Tensor:
        """Return everything that the parts know of users, side by side, with each part's mean and deviation."""
        reference = self._reference(users.representations.device)  # the same items for all
        packed = []
        for part in self.whole:
            vectors = part.vectors(users)
            scores = part.score_shared(vectors, reference).float()
            deviation = scores.std(dim=1, correction=0).clamp(min=SMALLEST_DEVIATION)
            packed += [vectors.float(), scores.mean(dim=1, keepdim=True), deviation.unsqueeze(1)]
        return torch.cat(packed, dim=1)

    def _reference(self, device: Any) -> Tensor:
        num_items = self.model.cf_encoder.num_items
        places = torch.linspace(1, num_items, min(num_items, REFERENCE_ITEMS), dtype=torch.float64)
        return places.round().long().to(device)

    def standardized(self, vectors: Tensor, items: Tensor | tuple[int, int]) -> Tensor:
        """Return the parts' scores `(P, B, C)` around their means, of listed items or of a range of the catalogue."""
        rows, start = [], 0
        for part in self.whole:
            raw = vectors[:, start : start + part.width]
            mean, deviation = vectors[:, start + part.width : (start := start + part.width + 2)].split(1, dim=1)
            scores = part.score_items(raw, items) if isinstance(items, Tensor) else part.score_range(raw, *items)
            rows.append((scores.float() - mean) / deviation)
        return torch.stack(rows)

    def of_lists(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int) -> Tensor:
        """Return all parts' scores `(P, B, C)` of candidates; of parts that ask the LLM for each, over the list."""
        items = padded_candidates(candidates, self.model.cf_encoder.num_items, users.representations.device)
        found = [self.standardized(self.vectors(users), items)] if self.whole else []
        real = items > 0
        for part in self.listed:
            scores = part.score(users, candidates, num_permutations).scores.to(items.device)
            found.append(standardized(scores, real).unsqueeze(0))
        return torch.cat(found)


class Fusion(CatalogueRanker):
    """Rank by weights that follow the popularity of each item, fitted on validation users."""

    kind = "fusion"
    needs_llm = False
    weights = "gated"

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        settings = (model.config.rankers or {})["fusion"]
        self.parts = FusionParts(model, processor, settings["parts"])
        self.ranks_catalogue = type(self).ranks_catalogue and not self.parts.listed
        limits = [part.max_candidates for part in self.parts.listed if part.max_candidates is not None]
        self.max_candidates = min(limits, default=None)
        self.pivot = float(settings["pivot"])
        fitted = settings[self.weights]
        if sorted(fitted["parts"]) != sorted(self.parts.names):
            raise CheckpointError(
                f"the fusion's weights are for {sorted(fitted['parts'])} and its parts are {sorted(self.parts.names)}; "
                "fit it again: allmrec train --stage rank"
            )
        pairs = [fitted["parts"][name] for name in self.parts.names]
        self.cold, self.warm = (torch.tensor([float(pair[side]) for pair in pairs]) for side in (0, 1))
        self.popularity = float(fitted["popularity"])

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = "its weights are not fitted: allmrec train --stage rank"
        return None if "fusion" in (config.rankers or {}) else missing

    def tokens_read(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """Return the most tokens that a part reads of each user."""
        parts = [*self.parts.whole, *([] if candidates is None else self.parts.listed)]
        counts = [super().tokens_read(histories), *(part.tokens_read(histories, candidates) for part in parts)]
        return [max(of_user) for of_user in zip(*counts, strict=True)]

    def _gates(self) -> Tensor:
        return gates(self.model.item_table.interaction_counts.float(), self.pivot)

    def _parts_of_score(self, scores: Tensor, gate: Tensor) -> Tensor:
        """Return what each part adds `(P + 1, B, C)`, popularity last, of scores `(P, B, C)` and gates `(B, C)`."""
        cold, warm = (weights.to(scores)[: len(scores), None, None] for weights in (self.cold, self.warm))
        return torch.cat(
            [scores * (cold * (1 - gate) + warm * gate), (self.popularity * gate).expand(1, *scores.shape[1:])]
        )

    @property
    def width(self) -> int:
        """The widths of the parts' vectors, with two numbers more for each part."""
        return sum(part.width + 2 for part in self.parts.whole)

    def vectors(self, users: UserBatch) -> Tensor:
        """Return what the parts know of users."""
        return self.parts.vectors(users)

    @torch.no_grad()
    def retrieve(self, users: UserBatch, top_k: int, exclude: Tensor | None = None) -> RetrievalOutput:
        """Return the best items by the parts that rank the whole catalogue; by the backbone where there are none."""
        if not self.parts.whole:
            return ModelRanker.retrieve(self, users, top_k, exclude)
        return super().retrieve(users, top_k, exclude)

    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score a part of the catalogue, by the parts that rank all of it."""
        return self._parts_of_score(self.parts.standardized(vectors, (start, stop)), self._gates()[start:stop]).sum(0)

    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items, by the parts that rank the whole catalogue."""
        return self._parts_of_score(self.parts.standardized(vectors, items), self._gates()[items]).sum(0)

    @torch.no_grad()
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Return the scores of candidates and what each part adds to them."""
        items = padded_candidates(candidates, self.model.cf_encoder.num_items, users.representations.device)
        added = self._parts_of_score(
            self.parts.of_lists(users, candidates, num_permutations), self._gates().to(items.device)[items]
        )
        scores = added.sum(dim=0).masked_fill(items == 0, float("-inf"))
        return RankerScores(scores, dict(zip([*self.parts.names, "popularity"], added, strict=True)))


class WeightedSum(Fusion):
    """Rank by one weight for each part, whatever the item's popularity, fitted as those of `fusion`: a comparison."""

    kind = "fusion_sum"
    weights = "sum"


class ReciprocalRanks(Fusion):
    """Rank by the sum of reciprocal ranks of the parts among the candidates (nothing is fitted): a comparison."""

    kind = "fusion_ranks"
    ranks_catalogue = False

    @torch.no_grad()
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Return `sum of 1 / (60 + rank)`; equal scores share their mean rank."""
        items = padded_candidates(candidates, self.model.cf_encoder.num_items, users.representations.device)
        scores = self.parts.of_lists(users, candidates, num_permutations)
        scores = scores.masked_fill((items == 0).unsqueeze(0), float("-inf"))
        other, own = scores.unsqueeze(-2), scores.unsqueeze(-1)  # (P, B, 1, C) against (P, B, C, 1)
        ranks = 1 + (other > own).sum(-1) + ((other == own).sum(-1) - 1) / 2
        added = 1 / (RANK_OFFSET + ranks)
        total = added.sum(dim=0).masked_fill(items == 0, float("-inf"))
        return RankerScores(total, dict(zip(self.parts.names, added, strict=True)))


FUSIONS = tuple(kind.kind for kind in (Fusion, WeightedSum, ReciprocalRanks))
