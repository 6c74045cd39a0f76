"""The three scoring methods are equal, and the fast ones are refused where they would not be."""

import math

import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.language_model import input_width
from allmrec_hf.scoring import (
    METHODS,
    check_method,
    deviation_from_naive,
    fits_packed,
    packed_answers,
    score_naive,
    verified_method,
)
from tests.tiny import VOCABULARY, tiny_llm

ATTENTION_FAMILIES = ["opt", "llama", "qwen2", "qwen3", "gpt2"]


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["tree", "prefix_cache"])
def test_fast_scoring_equals_scoring_one_by_one(family, attn_implementation, method):
    llm = tiny_llm(family, attn_implementation)
    assert deviation_from_naive(llm, method, seed=3) <= 1e-4
    assert check_method(llm, method) is None


def test_fastest_equal_method_is_chosen():
    assert verified_method(tiny_llm("llama")) == "tree"


def test_an_llm_with_convolutions_is_refused_the_packed_pass(caplog):
    llm = tiny_llm("lfm2")
    assert deviation_from_naive(llm, "tree") > 1e-3
    assert verified_method(llm) == "naive"
    assert "tree is off for this LLM" in caplog.text
    with pytest.raises(
        ALLMRecError,
        match=r"'tree' cannot be used with this LLM: its layers are of other kinds than full attention \(conv\)",
    ):
        verified_method(llm, "tree")


def test_naive_is_right_even_for_an_llm_that_ignores_the_mask():
    assert deviation_from_naive(tiny_llm("lfm2"), "naive") <= 1e-4


def test_a_sliding_window_is_kept_in_the_packed_pass():
    llm = tiny_llm("mistral")
    assert check_method(llm, "tree") is None
    assert verified_method(llm) == "tree"


def test_unknown_method_is_named():
    with pytest.raises(ALLMRecError, match="unknown scoring method 'guess'; known are auto, tree"):
        verified_method(tiny_llm("llama"), "guess")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_log_likelihood_of_a_uniform_lm_is_minus_log_v_per_token(method):
    llm = tiny_llm("gpt2")
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.zero_()  # all logits equal
    embeds = torch.randn(1, 5, 32)
    answers = torch.randint(VOCABULARY, (1, 3, 4))
    mask = torch.tensor([[[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]]).bool()
    scores = METHODS[method](llm, embeds, torch.ones(1, 5).bool(), answers, mask).sum(-1)
    expected = -math.log(VOCABULARY) * torch.tensor([[4.0, 2.0, 1.0]])
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_order_of_packed_candidates_does_not_change_a_score():
    llm = tiny_llm("qwen2")
    embeds, prefix_mask = torch.randn(2, 6, 32), torch.ones(2, 6).bool()
    answers = torch.randint(VOCABULARY, (2, 5, 3))
    mask = torch.ones(2, 5, 3).bool()
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        straight = METHODS["tree"](llm, embeds, prefix_mask, answers, mask)
        shuffled = METHODS["tree"](llm, embeds, prefix_mask, answers[:, order], mask)
    torch.testing.assert_close(shuffled, straight[:, order], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["tree", "prefix_cache"])
def test_gradients_reach_the_prompt_alike(method):
    llm = tiny_llm("llama").requires_grad_(False)
    prompt = torch.randn(1, 6, 32, requires_grad=True)
    answers, mask = torch.randint(VOCABULARY, (1, 2, 3)), torch.ones(1, 2, 3).bool()
    gradients = []
    for score in (METHODS[method], score_naive):
        prompt.grad = None
        score(llm, prompt, torch.ones(1, 6).bool(), answers, mask).sum().backward()
        gradients.append(prompt.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# -- what answers begin with alike

SHARED = torch.tensor([[[5, 6, 7, 0], [5, 6, 8, 9], [5, 9, 0, 0], [5, 6, 7, 0]], [[3, 4, 5, 6], [8, 4, 5, 0]] * 2])
SHARED_MASK = torch.tensor(
    [
        [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]],
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
    ]
).bool()


def test_a_beginning_that_candidates_share_is_read_once():
    """The first user's 5, 6, 8; the second's 3, 4, 5 and 8, 4: the last token of an answer is not read."""
    llm, widths = tiny_llm("llama"), []
    llm.register_forward_pre_hook(
        lambda module, args, inputs: widths.append(inputs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = (torch.randn(2, 6, 32), torch.ones(2, 6).bool(), SHARED, SHARED_MASK)
    assert (packed_answers(SHARED, SHARED_MASK), packed_answers(SHARED[:1], SHARED_MASK[:1])) == (5, 3)
    METHODS["tree"](llm, *inputs)
    METHODS["tree"](llm, *(tensor[:1] for tensor in inputs))
    assert widths == [6 + 5, 6 + 3]


@pytest.mark.parametrize("family", [*ATTENTION_FAMILIES, "mistral"])
def test_shared_beginnings_change_neither_scores_nor_gradients(family):
    llm = tiny_llm(family).requires_grad_(False)
    prompt = torch.randn(2, 6, input_width(llm), requires_grad=True)
    prefix_mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6]).bool()
    weights, found = torch.randn(SHARED.shape), []
    for method in ("tree", "naive"):
        prompt.grad = None
        scores = METHODS[method](llm, prompt, prefix_mask, SHARED, SHARED_MASK)
        (scores * weights).sum().backward()
        found.append((scores.detach(), prompt.grad.clone()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_what_fits_packed_counts_shared_beginnings_once():
    prefix = torch.ones(2, 6).bool()
    fits = [most for most in range(8, 20) if fits_packed(prefix, SHARED, SHARED_MASK, most)]
    assert fits[0] == 6 + 5
    alone = (prefix[:1], SHARED[:1, 1:2], SHARED_MASK[:1, 1:2])
    assert (fits_packed(*alone, 9), fits_packed(*alone, 8)) == (True, False)
