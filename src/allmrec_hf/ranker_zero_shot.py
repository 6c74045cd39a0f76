"""The ranker `zero_shot`: what the frozen LLM makes of titles alone. Nothing is trained for it, and it reads no vector.

The log-likelihood of a title says above all how usual its words are. What a history adds to it does not: the score is
`log p(title | titles of the history) - log p(title | no history)`, the second computed once for each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from .modeling_allmrec import ALLMRecModel
from .processing_allmrec import ALLMRecProcessor
from .prompt import Context, PromptTemplate, domain_words
from .ranker import TitleLikelihood, UserBatch


def zero_shot_prompt(domain: str, verbs: tuple[str, str] | None = None) -> PromptTemplate:
    """Return the words around a history whose next title the LLM is to find likely or not.

    Args:
        domain: What an item is called.
        verbs: What a user does with an item, and has done; see `prompt.domain_words`.

    Example:
        >>> print(zero_shot_prompt("movie").prompt.format(history="- Heat"))
        A person watched these movies, one after the other:
        - Heat
        -
    """
    noun, _, verb_past = domain_words(domain, verbs)
    opening = f"A person {verb_past} these {noun}s, one after the other:\n"
    return PromptTemplate(opening + "{history}\n-", item="- {title}", separator="\n", answer=" {title}\n")


class ZeroShot(TitleLikelihood):
    """Rank by how much likelier the titles of the history make a candidate's title to the LLM as it is.

    `config.rankers["zero_shot"]` holds the `prompt` and how many items of the `history_in_prompt` it names.
    """

    kind = "zero_shot"
    normalization: ClassVar[str | None] = "calibrated"

    def __init__(self, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
        settings = (model.config.rankers or {})[self.kind]
        limits = ("max_history_length", "max_length", "max_title_characters", "max_title_tokens")
        words = ALLMRecProcessor(processor.tokenizer, **settings, **{name: getattr(processor, name) for name in limits})
        words.catalog = processor.catalog
        super().__init__(model, words)

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        """Return what a checkpoint lacks."""
        missing = "it was not asked for: allmrec train --stage rank --rankers zero_shot,..."
        return None if cls.kind in (config.rankers or {}) else missing

    def _log_likelihoods(
        self, users: UserBatch, candidates: Sequence[Sequence[int]], permutation: int, context: Context = "whole"
    ) -> Tensor:
        batch = self.processor(users.histories, candidates, permutation, context).to(self.model.device)
        padding = batch.pop("candidate_ids") == 0
        found = self.model.candidate_log_likelihoods(**batch, user_representations=users.representations)
        return found.float().sum(dim=-1).masked_fill(padding, float("-inf"))


def add_zero_shot(
    model: ALLMRecModel, domain: str, verbs: tuple[str, str] | None = None, history_in_prompt: int = 10
) -> None:
    """Give a model the ranker `zero_shot`.

    Args:
        model: The model; its config is changed.
        domain: What an item is called.
        verbs: What a user does with an item, and has done.
        history_in_prompt: The most recent history items that the prompt names.
    """
    settings = {"prompt": zero_shot_prompt(domain, verbs).to_dict(), "history_in_prompt": history_in_prompt}
    model.config.rankers = {**(model.config.rankers or {}), ZeroShot.kind: settings}
