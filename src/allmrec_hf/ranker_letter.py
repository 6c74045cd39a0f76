"""The ranker `letter`: candidates carry letters in the prompt, and the LLM's next token says which one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, DataError
from .language_model_passes import last_logits, padded_pass
from .modeling_allmrec import ALLMRecModel
from .processing_allmrec import ALLMRecProcessor, prompt_order
from .prompt import LETTERS, LetterTemplate
from .ranker import ModelRanker, RankerScores, TitleLikelihood, UserBatch, padded_candidates


def letter_order(history: Sequence[int], items: Sequence[int], number: int, count: int) -> list[int]:
    """Return one of `count` orders of candidates, over which each stands in as many different places as there can be.

    An order is drawn from the history; those that follow are its rotations, spread evenly. As many orders as there are
    candidates put each into every place once.

    Args:
        history: Catalogue indices; the order that the candidates are given in has no part in it.
        items: Different catalogue indices.
        number: Which of the orders, from 0.
        count: How many there are.
    """
    cycle, step = divmod(number, len(items))
    shift = step * len(items) // min(len(items), count - cycle * len(items))
    order = prompt_order(history, items, cycle)
    return order[shift:] + order[:shift]


class LetterRanker(ModelRanker):
    """Rank by the log-probability of each candidate's letter, among the letters that a prompt holds.

    One pass of the LLM reads all candidates of a user: the prompt of stage 2 with its vectors, each candidate behind a
    letter, and in place of a title the question for a letter. LLMs prefer some letters whatever they stand for, so
    several orders of the candidates make it better: the mean over as many as there are candidates cancels a preference
    that adds to a letter's logit. Nothing is trained for it beyond stage 2.

    Raises:
        CheckpointError: when the letters are no single tokens of the LLM's tokenizer, each its own.
    """

    kind = "letter"
    max_candidates = len(LETTERS)

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        super().__init__(model, processor)
        settings = (model.config.rankers or {}).get(self.kind, {})
        words = LetterTemplate(**settings.get("prompt", {}))
        found = processor.single_tokens(words.answer, LETTERS)
        if found is None:
            raise CheckpointError(
                f"the ranker letter reads each of the letters {LETTERS[0]} to {LETTERS[-1]} as one token of its own, "
                f"and the tokenizer of this LLM ({type(processor.tokenizer).__name__}) does not write all of them so "
                f"behind {words.answer!r}; take another ranker, such as likelihood"
            )
        self.template = replace(words, answer=found[0])
        self.letter_ids = torch.tensor(found[1], device=model.device)

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        return TitleLikelihood.lacks(config)

    @torch.no_grad()
    def score(self, users: UserBatch, candidates: Sequence[Sequence[int]], num_permutations: int = 1) -> RankerScores:
        """Return the log-probabilities of the letters, averaged over orders; the order given changes nothing.

        Raises:
            DataError: when a user has more candidates than there are letters, or a catalogue index is out of range.
        """
        items = padded_candidates(candidates, self.model.cf_encoder.num_items, self.model.device)
        given = items.tolist()
        distinct = [sorted({item for item in row if item}) for row in given]
        most = max((len(row) for row in distinct), default=0)
        if most > self.max_candidates:
            raise DataError(
                f"the ranker letter marks candidates by the {self.max_candidates} letters {LETTERS[0]} to {LETTERS[-1]}"
                f", and a user has {most} candidates; give at most {self.max_candidates} of them (num_candidates and "
                "top_k, or data prepared with fewer), or take another ranker"
            )
        total = torch.zeros(items.shape, device=items.device)
        for number in range(num_permutations):
            orders = [
                letter_order(history, row, number, num_permutations) if row else []
                for history, row in zip(users.histories, distinct, strict=True)
            ]
            found = self._log_probabilities(users, orders)
            places = [{item: place for place, item in enumerate(order)} for order in orders]
            columns = [[of.get(item, 0) for item in row] for of, row in zip(places, given, strict=True)]
            total += found.gather(1, torch.tensor(columns, device=found.device))
        scores = (total / num_permutations).masked_fill(items == 0, float("-inf"))
        return RankerScores(scores, {self.kind: scores})

    def tokens_read(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]] | None = None
    ) -> list[int]:
        """Return the tokens of prompts; none are read to retrieve."""
        if candidates is None:
            return super().tokens_read(histories)
        prompts = (
            self.processor.encode_prompt(history, sorted(set(row)), letters=self.template)
            for history, row in zip(histories, candidates, strict=True)
        )
        return [len(prompt.tokens) for prompt in prompts]

    def _log_probabilities(self, users: UserBatch, orders: Sequence[Sequence[int]]) -> Tensor:
        """Return `(B, letters)` log-probabilities of letters, of each user's among those that the prompt holds."""
        batch = self.processor.letter_batch(users.histories, orders, self.template).to(self.model.device)
        embeds = self.model.embed_prompts(
            batch["input_ids"], batch["slot_ids"], user_representations=users.representations
        )
        logits = padded_pass(self._run, embeds, batch["attention_mask"], 1, self.model.pads_left)[:, -1]
        letters = logits[:, self.letter_ids.to(logits.device)].float()  # (B, letters)
        held = torch.tensor([len(order) for order in orders], device=letters.device)
        places = torch.arange(letters.shape[1], device=letters.device)
        found = letters.masked_fill(places >= held[:, None], float("-inf")).log_softmax(dim=-1)
        return found.to(self.model.device)

    def _run(self, keep: int, **inputs: Tensor) -> Tensor:
        return last_logits(self.model.require_language_model(), keep, **inputs)
