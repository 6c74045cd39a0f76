"""Build the prompt of one request and score the answers with parts of it removed or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..language_model import num_token_rows, token_vectors
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import USER_SLOT, PromptTemplate

MOST_ITEMS_AVERAGED = 1000


class Span(NamedTuple):
    """The places of one history item in the prompt: its first token, its vector's slot, and behind its last token."""

    start: int
    slot: int
    stop: int


@dataclass(frozen=True)
class Baselines:
    """Neutral vectors: the average item, user and token, which replace removed vectors and from which gradients start.

    Attributes:
        item: `(d_llm,)` mean projected vector over the catalogue (evenly spaced, at most 1,000 items).
        user: `(d_llm,)` mean projected vector of users who know one of these items and no other.
        token: `(d_llm,)` mean input embedding over the LLM's vocabulary.
    """

    item: Tensor
    user: Tensor
    token: Tensor


@torch.no_grad()
def baselines(model: ALLMRecModel) -> Baselines:
    """Return the baselines of a model; they depend on nothing else."""
    count = model.cf_encoder.num_items
    items = torch.linspace(1, count, min(count, MOST_ITEMS_AVERAGED), device=model.device).round().long()
    histories = items.unsqueeze(-1)  # (n, 1)
    users = model.cf_encoder.encode_users(histories, torch.ones_like(histories, dtype=torch.bool))
    return Baselines(
        model.item_projector(model.item_vectors(items)).mean(dim=0),
        model.user_projector(users).mean(dim=0),
        _mean_token(model.language_model),
    )


def _mean_token(language_model: Any) -> Tensor:
    sums = [part.sum(dim=0, dtype=torch.float32) for part in token_vectors(language_model)]
    return torch.stack(sums).sum(dim=0) / num_token_rows(language_model)


class PromptProbe:
    """One request as the LLM reads it: the very prompt of `recommend`, whose candidate list stays as it is.

    Args:
        model: The model with its LLM.
        processor: Its processor; its template must have vectors behind titles.
        history: Catalogue indices in time order.
        candidates: Catalogue indices, the explained item first.
        permutation: Which order of the candidate list, as for the processor.
        contrast: Whether `values` are the first candidate's score minus the mean over all candidates.
        batch_size: Variants that the LLM reads at once.
    """

    def __init__(
        self,
        model: ALLMRecModel,
        processor: ALLMRecProcessor,
        history: Sequence[int],
        candidates: Sequence[int],
        permutation: int = 0,
        contrast: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.model = model
        self.history = list(history)
        self.contrast = contrast
        self.batch_size = batch_size
        batch = processor([self.history], [list(candidates)], permutation=permutation).to(model.device)
        names = ("input_ids", "slot_ids", "history_ids", "history_mask")
        with torch.no_grad():
            self.embeds = model.embed_prompts(**{name: batch[name] for name in names})[0]  # (T, d_llm)
        self.answer_ids, self.answer_mask = batch["answer_ids"], batch["answer_mask"]  # (1, C, A)
        slots = batch["slot_ids"][0].tolist()
        self.user_place = slots.index(USER_SLOT) if USER_SLOT in slots else None
        self.spans = _history_spans(processor, slots, self.history, len(candidates))
        self.baselines = baselines(model)
        self._processor = processor

    @property
    def first_named(self) -> int:
        """Return the place in the history of the first item that the prompt names."""
        return len(self.history) - len(self.spans)

    @torch.no_grad()
    def user_vectors(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Return projected user vectors `(n, d_llm)`; the average user's for an empty history."""
        known = [list(history) for history in histories if len(history)]
        vectors = self.baselines.user.repeat(len(histories), 1)
        if known:
            tensors = self._processor.history_tensors(known)
            users = self.model.cf_encoder.encode_users(
                *(tensors[name].to(self.model.device) for name in ("history_ids", "history_mask"))
            )
            rows = [row for row, history in enumerate(histories) if len(history)]
            vectors[rows] = self.model.user_projector(users)
        return vectors

    def without_item(self, number: int) -> Tensor:
        """Return what the LLM reads `(T', d_llm)` when a named item and one separator are cut out of the prompt.

        The user vector stands in front of the history or behind it, so the cut never meets it; its row may move.
        """
        span = self.spans[number]
        if number + 1 < len(self.spans):
            start, stop = span.start, self.spans[number + 1].start
        else:
            start, stop = (self.spans[number - 1].stop if number else span.start), span.stop
        return torch.cat([self.embeds[:start], self.embeds[stop:]])

    def with_neutral_item(self, number: int, embeds: Tensor | None = None) -> Tensor:
        """Return what the LLM reads `(T, d_llm)` with the baselines in the places of a named item."""
        changed = (self.embeds if embeds is None else embeds).clone()
        span = self.spans[number]
        changed[span.start : span.stop] = self.baselines.token.to(changed.dtype)
        changed[span.slot] = self.baselines.item.to(changed.dtype)
        return changed

    def with_user(self, embeds: Tensor, user: Tensor) -> Tensor:
        """Return `embeds` `(T', d_llm)`, maybe without an item, with another vector `(d_llm,)` in the user's slot."""
        if self.user_place is None:
            return embeds
        behind_history = bool(self.spans) and self.user_place > self.spans[0].start
        place = self.user_place - (len(self.embeds) - len(embeds) if behind_history else 0)
        changed = embeds.clone()
        changed[place] = user.to(changed.dtype)
        return changed

    @torch.no_grad()
    def candidate_scores(self) -> Tensor:
        """Return the scores of all candidates `(C,)` as the request stands."""
        return self._scores([self.embeds], self.answer_mask.shape[1])[0]

    def _scores(self, variants: Sequence[Tensor], whole: int) -> Tensor:
        """Return the scores of the first candidates `(n, whole)` for variants; takes gradients where enabled."""
        longest = max(len(variant) for variant in variants)
        count, device = len(variants), self.embeds.device
        fill = torch.tensor([longest - len(variant) for variant in variants], device=device)
        embeds = torch.stack(
            [torch.nn.functional.pad(variant, (0, 0, longest - len(variant), 0)) for variant in variants]
        )
        mask = torch.arange(longest, device=device) >= fill[:, None]
        ids, answers = self.answer_ids[:, :whole], self.answer_mask[:, :whole]
        tokens = self.model.answer_log_likelihoods(
            embeds, mask, ids.expand(count, -1, -1), answers.expand(count, -1, -1)
        )
        scores = tokens.sum(dim=-1)
        return scores / answers.sum(dim=-1) if self.model.config.score_normalization == "mean" else scores

    def values(self, variants: Sequence[Tensor]) -> Tensor:
        """Return what is explained `(n,)`: the first candidate's score, with `contrast` minus the candidates' mean.

        Takes gradients to the variants where they are enabled.
        """
        parts = []
        whole = self.answer_mask.shape[1] if self.contrast else 1
        for start in range(0, len(variants), self.batch_size):
            scores = self._scores(variants[start : start + self.batch_size], whole)
            parts.append(scores[:, 0] - scores.mean(dim=1) if self.contrast else scores[:, 0])
        return torch.cat(parts)


def _history_spans(
    processor: ALLMRecProcessor, slots: Sequence[int], history: Sequence[int], num_candidates: int
) -> list[Span]:
    template = PromptTemplate.from_dict(processor.prompt)
    places = [place for place, slot in enumerate(slots) if slot > 0]
    num_candidates = num_candidates if template.lists_candidates else 0
    count = len(places) - num_candidates
    if "{vector}" not in template.item:
        raise DataError(
            "the prompt template has no {vector} behind its titles, so no vector of an item can be explained; give a "
            "checkpoint whose template has one"
        )
    first = template.prompt.index("{history}") < template.prompt.find("{candidates}")
    named = places[:count] if first else places[num_candidates:]  # all of them where there are no candidates
    items = history[len(history) - count :]
    if [slots[place] for place in named] != list(items):
        raise DataError("the prompt does not name the most recent items of the history in their order")
    before, _, after = template.item.partition("{vector}")
    spans: list[Span] = []
    for place, item in zip(named, items, strict=True):
        title = processor.history_title(item)
        lengths = [len(processor._tokenize(part.replace("{title}", title))) for part in (before, after)]
        earliest = spans[-1].stop if spans else 0  # a cut title is shorter in the prompt
        spans.append(Span(max(place - lengths[0], earliest), place, place + 1 + lengths[1]))
    return spans
