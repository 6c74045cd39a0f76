"""A budget of tokens in the evaluation: the same scores, and never more tokens at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from tests.tiny import tiny_model, tiny_processor

HISTORIES = [np.arange(1, 2 + length) for length in (1, 9, 3, 7, 2, 8, 5, 6)]
CANDIDATES = np.stack([np.roll(np.arange(20, 26), shift) for shift in range(8)])


@pytest.fixture
def parts():
    model, processor = tiny_model(), tiny_processor()
    read: list[int] = []

    def count(module, args, inputs):
        given = inputs.get("inputs_embeds")
        read.append(given.shape[:2].numel() if given is not None else 0)

    model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    return model, processor, read


@pytest.mark.parametrize("ranker", ["likelihood", "letter"])
def test_scores_and_retrieval_are_the_same_within_a_budget(parts, ranker):
    model, processor, read = parts
    free = ALLMRecRanker(model, processor, ranker=ranker, batch_size=8, num_ranked=6)
    expected, retrieved = free.score(HISTORIES, CANDIDATES), free.retrieve(HISTORIES, 6)
    most = max(read)
    budget = most // 3
    read.clear()
    bound = ALLMRecRanker(model, processor, ranker=ranker, batch_size=8, num_ranked=6, max_tokens_per_batch=budget)
    np.testing.assert_allclose(bound.score(HISTORIES, CANDIDATES), expected, atol=1e-3)
    again = bound.retrieve(HISTORIES, 6)
    assert (again[0] == retrieved[0]).all()
    np.testing.assert_allclose(again[1], retrieved[1], atol=1e-3)
    assert max(read) <= budget


def test_written_titles_are_the_same_within_a_budget(parts):
    model, processor, read = parts
    free = ALLMRecRanker(model, processor, batch_size=8)
    expected, most = free.generate_titles(HISTORIES, CANDIDATES), max(read)
    read.clear()
    bound = ALLMRecRanker(model, processor, batch_size=8, max_tokens_per_batch=most // 2)
    assert bound.generate_titles(HISTORIES, CANDIDATES) == expected
    assert max(read) <= most // 2


def test_a_budget_below_one_prompt_and_below_one_is_refused(parts):
    model, processor, _ = parts
    with pytest.raises(ALLMRecError, match="give at least"):
        ALLMRecRanker(model, processor, max_tokens_per_batch=30).score(HISTORIES, CANDIDATES)
    with pytest.raises(ALLMRecError, match="max_tokens_per_batch must be at least 1"):
        ALLMRecRanker(model, processor, max_tokens_per_batch=0)


def test_a_batch_that_the_memory_does_not_hold_is_halved(parts, monkeypatch, caplog):
    model, processor, _ = parts
    bound = ALLMRecRanker(model, processor, batch_size=8)
    expected = bound.score(HISTORIES, CANDIDATES)
    score = bound.ranker.score

    def short_of_memory(users, candidates, num_permutations=1):
        if len(users) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return score(users, candidates, num_permutations)

    monkeypatch.setattr(bound.ranker, "score", short_of_memory)
    np.testing.assert_allclose(bound.score(HISTORIES, CANDIDATES), expected, atol=1e-3)
    assert caplog.text.count("does not hold 8 users at once") == 1
