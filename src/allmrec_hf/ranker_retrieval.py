"""The ranker `retrieval`: the LLM turns a user into one vector and an item into another, and cosines rank."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from .errors import CheckpointError
from .language_model import first_layers, token_vectors
from .language_model_passes import last_states, padded_pass
from .modeling_allmrec import ALLMRecModel
from .processing_allmrec import ALLMRecProcessor, EncodedPrompt, left_padded
from .prompt import HistoryTemplate
from .ranker import CatalogueRanker, UserBatch
from .retrieval_head import RetrievalHead

ITEMS_AT_ONCE = 64  # whose vectors one pass of the LLM makes


@torch.no_grad()
def add_retrieval_head(model: ALLMRecModel, settings: dict[str, Any]) -> RetrievalHead:
    """Give a model with its LLM attached a fresh head; an earlier one is dropped.

    Args:
        model: The model.
        settings: What `config.rankers["retrieval"]` is to hold: `dim`, `num_llm_layers` (None: all), `prompt` (fields
            of `HistoryTemplate`) and `history_in_prompt`; the width of the LLM's states is added.

    Raises:
        CheckpointError: when the LLM has fewer layers.
    """
    language_model = model.require_language_model()
    decoder = first_layers(language_model, settings["num_llm_layers"])
    table = next(token_vectors(language_model))
    width = last_states(decoder, 1, inputs_embeds=table[:8].unsqueeze(0)).shape[-1]
    model.config.rankers = {**(model.config.rankers or {}), "retrieval": {**settings, "state_dim": width}}
    head = model.retrieval_head = model.new_retrieval_head()
    for projector in (head.user_projector, head.item_projector):
        projector.apply(model._init_weights)
    for token in (head.user_token, head.item_token):  # of the scale of the LLM's own
        token.copy_(table.float().mean(dim=0) + torch.randn(table.shape[1]) * table.float().std())
    return head.to(model.device)


class RetrievalRanker(CatalogueRanker):
    """Rank by the cosine of the user's vector with the item's, both read from the LLM's state at a learned token.

    One pass of the LLM serves a user, whatever the number of candidates; the items' vectors are made once and stored.
    The LLM may be cut to its first layers, see `config.rankers["retrieval"]["num_llm_layers"]`.
    """

    kind = "retrieval"

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        if model.retrieval_head is None:
            raise CheckpointError("this model has no head of the ranker retrieval")
        settings = (model.config.rankers or {})["retrieval"]
        self.head = model.retrieval_head
        self.decoder = first_layers(model.require_language_model(), settings["num_llm_layers"])
        self.template = HistoryTemplate(**settings["prompt"])
        self.history_in_prompt = int(settings["history_in_prompt"])

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = "its head is not trained: allmrec train --stage retrieve"
        return super().lacks(config) or (missing if "retrieval" not in (config.rankers or {}) else None)

    # -- vectors

    def user_prompt(self, history: Sequence[int]) -> EncodedPrompt:
        """Return the prompt of a user by the last items of a history; its learned token is not among the tokens."""
        return self.processor.encode_history(self.template, history[-self.history_in_prompt :])

    def item_prompt(self, item: int) -> EncodedPrompt:
        """Return the prompt of an item: its title and the slot of its joint embedding."""
        return self.processor.encode_item(self.template, item)

    def states(self, rows: Mapping[str, Tensor], token: Tensor, representations: Tensor | None = None) -> Tensor:
        """Return the LLM's states `(B, d)` at a learned token behind each prompt.

        Args:
            rows: `input_ids`, `attention_mask` and `slot_ids` `(B, T)`, left-padded.
            token: `(d_llm,)` the learned token.
            representations: `(B, d_cf)` of the users, where the prompts have a slot for them.
        """
        own = (self.head.user_projector, self.head.item_projector)
        embeds = self.model.embed_prompts(
            rows["input_ids"], rows["slot_ids"], user_representations=representations, projectors=own
        )
        embeds = torch.cat([embeds, token.to(embeds.dtype).expand(len(embeds), 1, -1)], dim=1)
        mask = torch.cat([rows["attention_mask"], rows["attention_mask"].new_ones(len(embeds), 1)], dim=1)
        return padded_pass(self._run, embeds, mask, 1, self.model.pads_left)[:, -1]

    def _rows(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        rows = left_padded([(prompt.tokens, prompt.slots) for prompt in prompts])
        return {name: value.to(self.model.device) for name, value in rows.items()}

    def _run(self, keep: int, **inputs: Tensor) -> Tensor:
        return last_states(self.decoder, keep, **inputs)

    def tokens_read(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """Return the tokens of users' prompts, the learned one included, whatever the candidates."""
        return [len(self.user_prompt(history).tokens) + 1 for history in histories]

    @property
    def width(self) -> int:
        """The width of the space in which users and items are compared."""
        return int(self.head.item_vectors.shape[1])

    @torch.no_grad()
    def vectors(self, users: UserBatch) -> Tensor:
        """Return unit vectors `(B, dim)` of users; the LLM reads those whose histories it has not read yet."""
        known, state = self.head.users, self.head.state(next(self.model.require_language_model().parameters()))
        keys = [(state, *history) for history in users.histories]
        found = {key: known.get(key) for key in keys}
        wanted = [row for row, key in enumerate(keys) if found[key] is None]
        if wanted:
            rows = self._rows([self.user_prompt(users.histories[row]) for row in wanted])
            made = self.head.user_vectors(self.states(rows, self.head.user_token, users.representations[wanted]))
            for row, vector in zip(wanted, made, strict=True):
                found[keys[row]] = known.put(keys[row], vector)
        return torch.stack([found[key] for key in keys])

    @torch.no_grad()
    def vectors_of_items(self, items: Sequence[int]) -> Tensor:
        """Return unit vectors `(k, dim)` of items, made anew."""
        order = sorted(range(len(items)), key=lambda row: len(self.processor.title(items[row])))  # little padding
        found = torch.empty(len(items), self.head.item_vectors.shape[1], device=self.model.device)
        pause = 0.5 if sys.stderr.isatty() else 30.0  # seconds between two signs of progress
        starts = range(0, len(order), ITEMS_AT_ONCE)
        for start in tqdm(starts, "reading items", unit="batch", delay=10, mininterval=pause, leave=False):
            part = order[start : start + ITEMS_AT_ONCE]
            rows = self._rows([self.item_prompt(items[row]) for row in part])
            found[part] = self.head.item_vectors_of(self.states(rows, self.head.item_token))
        return found

    @torch.no_grad()
    def item_table(self) -> Tensor:
        """Return the vectors `(N + 1, dim)` of all items; those that are not stored yet are made and stored."""
        missing = list(self.head.missing_items())
        if missing:
            self.head.store_items(missing, self.vectors_of_items(missing))
        return self.head.item_vectors

    # -- ranking

    def score_range(self, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Score a part of the catalogue by cosine."""
        return vectors @ self.item_table()[start:stop].T

    def score_items(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score items by cosine."""
        return torch.einsum("bd,bcd->bc", vectors, self.item_table()[items])

    def score_shared(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Score the same items for all users."""
        return vectors @ self.item_table()[items].T
