"""The interface of rankers: what a checkpoint ranks candidates by, and the two that every checkpoint has.

A ranker gets users whose histories were encoded once, and lists of candidates; it returns one score for each and the
parts that the score is made of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .caches import BoundedCache
from .indices import checked_indices
from .modeling_allmrec import ALLMRecModel
from .outputs import RetrievalOutput
from .processing_allmrec import ALLMRecProcessor
from .prompt import Context
from .retrieval import exact_top_items

CACHED_PRIORS = 2**20  # log-likelihoods of titles without a user, kept where a prompt lists no candidates
PRIORS_AT_ONCE = 100  # titles that are read together for these
CONTEXT_OF: dict[str, Context] = {"calibrated": "no_user", "vector_gain": "no_vectors"}


@dataclass(frozen=True)
class UserBatch:
    """Users as every ranker takes them, each encoded once.

    Attributes:
        histories: B lists of catalogue indices in time order.
        representations: `(B, d_cf)` user representations.
        seen_ids: `(B, S)` every item of the whole histories, 0 at padding.
    """

    histories: list[list[int]]
    representations: Tensor
    seen_ids: Tensor

    @classmethod
    def encode(cls, model: ALLMRecModel, processor: ALLMRecProcessor, histories: Sequence[Any]) -> UserBatch:
        """Return users by their histories.

        Args:
            model: The model whose backbone reads them.
            processor: Its processor.
            histories: B sequences of catalogue indices in time order.

        Raises:
            DataError: when an index is not in 1..N.
        """
        tensors = {name: value.to(model.device) for name, value in processor.history_tensors(histories).items()}
        users = model.encode_users(tensors["history_ids"], tensors["history_mask"])
        return cls([[int(item) for item in history] for history in histories], users, tensors["seen_ids"])

    def __len__(self) -> int:
        """Return B."""
        return len(self.histories)

    def take(self, rows: Sequence[int]) -> UserBatch:
        """Return some of the users, in the order of the rows."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.representations.device)
        return UserBatch([self.histories[row] for row in rows], self.representations[index], self.seen_ids[index])


@dataclass(frozen=True)
class RankerScores:
    """Scores of candidates and what they are made of.

    Attributes:
        scores: `(B, C)`, higher is better, `-inf` at padding.
        parts: By name `(B, C)`: what went into the score, in its own unit.
    """

    scores: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def padded_candidates(candidates: Sequence[Sequence[int]], num_items: int, device: Any = None) -> Tensor:
    """Return candidate lists as `(B, C)` catalogue indices, 0 at padding.

    Raises:
        DataError: when an index is not in 1..N.
    """
    rows = [checked_indices(row, num_items, "a candidate list") for row in candidates]
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


class ModelRanker(ABC):
    """Rank candidates by a trained model.

    Args:
        model: The model.
        processor: Its processor.

    Attributes:
        kind: Its name.
        needs_llm: Whether it asks the LLM.
        ranks_catalogue: Whether `retrieve` ranks the whole catalogue as `score` would; else what it finds is scored.
        max_candidates: How many candidates of a user it scores at most; None where any number.
    """

    kind: ClassVar[str]
    needs_llm: ClassVar[bool] = True
    ranks_catalogue: bool = False
    max_candidates: int | None = None

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint with this configuration lacks to be ranked so; None where nothing."""
        return "no stage 2: its projectors are not trained" if cls.needs_llm and config.llm_dim is None else None

    @abstractmethod
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Score candidates.

        Args:
            users: B users.
            candidates: B lists of catalogue indices; they may differ in length, and their order changes no score.
            num_permutations: Orders of the candidates in a prompt whose scores are averaged, where a prompt lists them.

        Raises:
            DataError: when a catalogue index is out of range.
        """

    def tokens_read(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """Return how many tokens the LLM reads of each user in one pass: prompt, and titles where it scores them.

        Args:
            histories: B lists of catalogue indices in time order.
            candidates: B lists of candidates; None to tell what `retrieve` reads.
        """
        return [0] * len(histories)

    @torch.no_grad()
    def retrieve(self, users: UserBatch, top_k: int, exclude: Tensor | None = None) -> RetrievalOutput:
        """Return the candidates that are worth scoring: the backbone's best, without what the user has seen.

        Args:
            users: B users.
            top_k: Items for each.
            exclude: `(B, E)` catalogue indices never to return, in place of what was seen; 0 excludes nothing.
        """
        out = users.seen_ids if exclude is None else exclude
        items, scores = self.model.cf_encoder.top_items(users.representations, top_k, exclude=out)
        return RetrievalOutput(item_indices=items, scores=scores)


class CatalogueRanker(ModelRanker):
    """Rank by vectors: what is known of a user goes into one vector, so that the whole catalogue can be scored."""

    ranks_catalogue = True

    @property
    @abstractmethod
    def width(self) -> int:
        """The length d of a user's vector."""

    @abstractmethod
    def vectors(self, users: UserBatch) -> Tensor:
        """Return what is known of users as `(B, d)`."""

    @abstractmethod
    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score the items `start..stop - 1` for users' vectors `(B, d)`, giving `(B, stop - start)`."""

    @abstractmethod
    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items `(B, C)`, catalogue indices or 0, for users' vectors `(B, d)`."""

    def score_shared(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score the same items `(C,)` for all users' vectors `(B, d)`, giving `(B, C)`."""
        return self.score_items(vectors, items.expand(len(vectors), -1))

    @torch.no_grad()
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Return the scores of candidates; no prompt lists them, so there are no orders to average over."""
        vectors = self.vectors(users)
        items = padded_candidates(candidates, self.model.cf_encoder.num_items, vectors.device)
        scores = self.score_items(vectors, items).float().masked_fill(items == 0, float("-inf"))
        return RankerScores(scores, {self.kind: scores})

    @torch.no_grad()
    def retrieve(self, users: UserBatch, top_k: int, exclude: Tensor | None = None) -> RetrievalOutput:
        """Return the best items of the whole catalogue, without what the user has seen, or `exclude`."""
        out = users.seen_ids if exclude is None else exclude
        items, scores = exact_top_items(
            self.score_range, self.vectors(users), self.model.cf_encoder.num_items, top_k, out
        )
        return RetrievalOutput(item_indices=items, scores=scores)


class CFScore(CatalogueRanker):
    """Rank by the backbone, whose cold items have vectors decoded from their texts: the LLM is not asked."""

    kind = "cf"
    needs_llm = False
    retrieve = ModelRanker.retrieve  # by the backbone's own search, which may have an index

    @property
    def width(self) -> int:
        """The width of user representations."""
        return int(self.model.cf_encoder.config.hidden_size)

    def vectors(self, users: UserBatch) -> Tensor:
        """Return the user representations."""
        return users.representations

    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score a part of the catalogue."""
        return self.model.cf_encoder.score_range(vectors, start, stop)

    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items."""
        return self.model.cf_encoder.score(vectors, items)


def recency_shares(count: int, recency: float, device: Any = None) -> Tensor:
    """Return `(count,)` shares of 1, each `recency` times the next later one."""
    ages = torch.arange(count - 1, -1, -1, device=device)
    return recency**ages / (recency**ages).sum()


class TextSimilarity(CatalogueRanker):
    """Rank by text alone: the mean cosine of an item's text with those of the history, later items counting more.

    `config.rankers["text"]` holds `recency`, the weight of a history item in parts of the next later one's, and
    `whitening`, in which space texts are compared (`TextSpace`); both are chosen on validation users. Checkpoints of
    before have `last_items`: that many items count, all alike.
    """

    kind = "text"
    needs_llm = False

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        stored = (model.config.rankers or {}).get("text", {})
        self.last_items = stored.get("last_items")
        self.recency = float(stored.get("recency", 1.0))

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = "it keeps no text embeddings: allmrec train --stage rank"
        return None if "text" in (config.rankers or {}) else missing

    @property
    def _table(self) -> Any:
        return self.model.item_table.text_directions

    @property
    def width(self) -> int:
        """The width of text embeddings."""
        return int(self._table.shape[1])

    def vectors(self, users: UserBatch) -> Tensor:
        """Return the mean directions `(B, d_text)` of the texts of a history, weighted by how recent they are."""
        return torch.stack([self._mean_direction(history) for history in users.histories])

    def _mean_direction(self, history: Sequence[int]) -> Tensor:
        rows = self._table[list(history if self.last_items is None else history[-self.last_items :])].float()
        return recency_shares(len(rows), self.recency, rows.device) @ rows

    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score a part of the catalogue."""
        return vectors @ self._table[start:stop].float().T

    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items."""
        return torch.einsum("bd,bcd->bc", vectors, self._table[items].float())

    def score_shared(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score the same items for all users."""
        return vectors @ self._table[items].float().T


class TitleLikelihood(ModelRanker):
    """Rank by the LLM's log-likelihood of the titles (the paper), see `ALLMRecConfig.score_normalization`."""

    kind = "likelihood"
    normalization: ClassVar[str | None] = None  # the configuration's

    @property
    def context(self) -> Context | None:
        """The prompt whose likelihood is taken off, where the form is calibrated."""
        return CONTEXT_OF.get(self.normalization or self.model.config.score_normalization)

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        trained = (config.rankers or {}).get("likelihood", {}).get("trained", True)
        return super().lacks(config) or (
            None if trained else "its stage 2 is not trained: allmrec train --stage project"
        )

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        self._priors = BoundedCache(CACHED_PRIORS)

    @torch.no_grad()
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Return the log-likelihoods, averaged over orders of the candidate list; the order given changes nothing."""
        totals = []
        for permutation in range(num_permutations if self.processor.lists_candidates else 1):
            totals.append(self._log_likelihoods(users, candidates, permutation))
        scores = torch.stack(totals).mean(dim=0)
        context = self.context
        if context is None:
            return RankerScores(scores, {"likelihood": scores})
        prior = self._without(context, users, candidates, len(totals)).to(scores)
        calibrated = torch.where(scores.isneginf(), scores, scores - prior)
        return RankerScores(calibrated, {"likelihood": scores, "likelihood_without": prior})

    def tokens_read(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """Return the tokens of prompts and of the titles that are scored after them; none are read to retrieve."""
        if candidates is None:
            return super().tokens_read(histories)
        counts = []
        for history, row in zip(histories, candidates, strict=True):
            prompt = self.processor.encode_prompt(history, row)
            answers = (self.processor.answer_tokens(index, prompt.title_limit) for index in row)
            counts.append(len(prompt.tokens) + sum(map(len, answers)))
        return counts

    def _without(
        self, context: Context, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int
    ) -> Tensor:
        """Return `(B, C)` log-likelihoods of the titles after the prompt without the user or its vectors."""
        if context == "no_user" and not self.processor.lists_candidates:
            return self._priors_of_items(users, candidates)
        totals = [self._log_likelihoods(users, candidates, number, context) for number in range(num_permutations)]
        return torch.stack(totals).mean(dim=0)

    def _log_likelihoods(
        self, users: UserBatch, candidates: Sequence[Sequence[int]], permutation: int, context: Context = "whole"
    ) -> Tensor:
        """Return the log-likelihoods `(B, C)` of the titles behind one prompt for each user."""
        batch = self.processor(users.histories, candidates, permutation, context).to(self.model.device)
        users_of = users.representations
        return self.model.score(**batch, user_representations=users_of, normalization=self.normalization).float()

    def _priors_of_items(self, users: UserBatch, candidates: Sequence[Sequence[int]]) -> Tensor:
        """Return the same where nothing but the item decides it; each item is read once."""
        known = {item: self._priors.get(item) for row in candidates for item in row}
        wanted = sorted(item for item, value in known.items() if value is None)
        if wanted:  # behind the shortest history, so that no title is cut for the length of another user's
            alone = users.take([0])
            behind = UserBatch([alone.histories[0][-1:]], alone.representations, alone.seen_ids)
            for start in range(0, len(wanted), PRIORS_AT_ONCE):
                some = wanted[start : start + PRIORS_AT_ONCE]
                found = self._log_likelihoods(behind, [some], 0, "no_user")[0].tolist()
                for item, value in zip(some, found, strict=True):
                    known[item] = self._priors.put(item, value)
        width = max(len(row) for row in candidates)
        return torch.tensor([[*(known[item] for item in row), *[0.0] * (width - len(row))] for row in candidates])
