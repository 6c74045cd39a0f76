"""The baseline `decision`: the LLM alone picks a candidate by its letter, as the pipeline of transformers has it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.prepared import PreparedData
from ..errors import ALLMRecError, DataError
from ..evaluation.protocol import History, Ranker
from ..indices import check_histories, check_padded
from ..language_model import context_length
from ..prompt import LETTERS, domain_words
from ..ranker_letter import letter_order
from .llm_only import WordsRanker, words_ranker
from .llm_parts import LLM_OPTIONS, Scores, required_llm
from .method import Method, Setting

QUESTION = "next"
LEAST_PROBABILITY = 1e-30
PLAIN_END = '{{- "\\nAnswer:\\n" -}}'  # where a tokenizer has no chat template, and so no turn of the assistant


def decision_pipeline(language_model: Any, tokenizer: Any) -> Any:
    """Return the pipeline `decision` of transformers around a loaded LLM.

    Without a chat template the question is asked as plain text.

    Args:
        language_model: A causal LM.
        tokenizer: Its tokenizer; a copy of it gets the marks of the pipeline.

    Raises:
        ALLMRecError: when transformers has no such pipeline, or the letters are no single tokens of the tokenizer.
    """
    try:
        from transformers.decision import DecisionConfig
        from transformers.decision.template_utils import DECISION_PROMPT
        from transformers.pipelines.decision import DecisionPipeline
    except ImportError as error:
        raise ALLMRecError(
            "the method decision needs the pipeline of that name, which transformers has from 5.23 on: "
            "pip install -U transformers"
        ) from error
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    start = f"{{{{- {json.dumps(tokenizer.bos_token)} -}}}}" if begins else ""
    plain = None if tokenizer.chat_template else start + DECISION_PROMPT + PLAIN_END
    pipe = DecisionPipeline(
        model=language_model, tokenizer=copy.deepcopy(tokenizer), decision_config=DecisionConfig(chat_template=plain)
    )
    try:
        pipe.label_token_ids(tuple(LETTERS))
    except ValueError as error:
        raise ALLMRecError(
            "the method decision reads each of the letters A to Z as one token of its own, and the tokenizer of this "
            f"LLM ({type(tokenizer).__name__}) does not write all of them so; take llm-only"
        ) from error
    return pipe


class DecisionRanker(WordsRanker):
    """Rank by the probability of each candidate's letter in the pipeline `decision`, averaged over orders.

    Args:
        data: Its training part gives the popularity, its domain the words.
        **values: Arguments of `ALLMRecRanker`.
    """

    def __init__(self, data: PreparedData, **values: Any) -> None:
        super().__init__(data, **values)
        self.words = domain_words(data.domain, data.verbs)
        self.pipe = decision_pipeline(self.model.language_model, self.processor.tokenizer)
        self.context = context_length(self.model.language_model)

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return the `(B, C)` mean log-probabilities; candidates of the same title have the same, padding `-inf`."""
        num_items = self.model.cf_encoder.num_items
        check_histories(histories, num_items)
        check_padded(candidates, num_items, "candidates")
        scores = np.full(candidates.shape, -np.inf)
        for row, history in enumerate(histories):
            real = candidates[row] > 0
            titles = [self.processor.candidate_title(int(item)) for item in candidates[row, real]]
            found = self._log_probabilities([int(item) for item in history], candidates[row, real].tolist(), titles)
            scores[row, real] = [found[title] for title in titles]
        return scores

    def _log_probabilities(self, history: list[int], items: list[int], titles: list[str]) -> dict[str, float]:
        """Return the mean log-probability of each title."""
        first = {title: item for item, title in sorted(zip(items, titles, strict=True), reverse=True)}
        if len(first) > len(LETTERS):
            raise DataError(
                f"the method decision marks candidates by the {len(LETTERS)} letters A to Z, and a user has "
                f"{len(first)} of different titles; prepare the data with fewer (--num-candidates)"
            )
        by_item = {item: title for title, item in first.items()}
        total = dict.fromkeys(first, 0.0)
        for number in range(self.num_permutations):
            order = letter_order(history, sorted(by_item), number, self.num_permutations)
            for title, value in self.decide(history, [by_item[item] for item in order]).items():
                total[title] += float(np.log(max(value, LEAST_PROBABILITY))) / self.num_permutations
        return total

    @torch.no_grad()
    def decide(self, history: Sequence[int], titles: Sequence[str]) -> Mapping[str, float]:
        """Return the probability of each title; a history too long for the LLM's context loses its oldest items.

        Raises:
            DataError: when the last item and the candidates alone are too long.
        """
        noun, verb, past = self.words
        named = [self.processor.history_title(item) for item in history[-self.processor.history_in_prompt :]]
        question = {
            "type": "choice",
            "instructions": f"Which {noun} will this user {verb} next?",
            "criteria": dict.fromkeys(titles),
        }
        while True:
            listed = ", ".join(f'"{title}"' for title in named)
            state = f"This user has {past} {listed} in the previous."
            inputs = self.pipe.preprocess({"state": state, "questions": {QUESTION: question}})
            length = inputs["prompts"][0][0]["input_ids"].shape[1]
            if length <= self.context:
                break
            if len(named) == 1:
                raise DataError(
                    f"the prompt of the method decision needs {length} tokens with one history item, and the LLM reads "
                    f"{self.context}; set max_title_tokens, or prepare the data with fewer candidates"
                )
            named = named[1:]
        answer = self.pipe.postprocess(self.pipe.forward(inputs))[QUESTION]
        found: Mapping[str, float] = answer["probabilities"]
        return found


class Decision(Method):
    """The LLM alone as a multiple choice: history and candidates in words, one pass, the letters' next-token logits.

    What `pipeline("decision")` of transformers makes of any chat model. `num_permutations` averages over as many orders
    of the candidates, whose letters LLMs are not blind to.
    """

    name = "decision"
    reads_llm = True
    seeded: ClassVar[bool] = False
    paper = 'transformers 5.23, pipeline("decision")'
    simplified = "Over the whole catalogue it reorders the most popular items; 26 candidates at most."
    options: ClassVar[tuple[str, ...]] = (
        *LLM_OPTIONS,
        *("history_in_prompt", "num_permutations", "max_title_tokens"),
    )

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Return the ranker; nothing is trained."""
        return words_ranker(data, required_llm(self, setting), self.name, setting, DecisionRanker)
