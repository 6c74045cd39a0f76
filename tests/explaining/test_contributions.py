from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

import allmrec_hf
from allmrec_hf import ALLMRecError, ALLMRecProcessor, DataError
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.explaining.contributions import Contribution, Effect, contributions, sign_agreement
from allmrec_hf.explaining.prompt_probe import PromptProbe
from allmrec_hf.prompt import PromptTemplate
from tests.tiny import tiny_model, tiny_processor

HISTORY, CANDIDATES = [3, 9, 14, 21], [5, 8, 30, 31]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def demo():
    model = AutoModel.from_pretrained(allmrec_hf.DEMO_CHECKPOINT).eval()
    return model, allmrec_hf.ALLMRecProcessor.from_pretrained(allmrec_hf.DEMO_CHECKPOINT)


def items_of(found):
    return [one for one in found if one.source == "history"]


def test_the_explained_value_is_the_score_that_recommend_gives(model):
    processor = tiny_processor()
    probe = PromptProbe(model, processor, HISTORY, CANDIDATES)
    scores = model.score(**processor([HISTORY], [CANDIDATES]))[0]
    torch.testing.assert_close(probe.candidate_scores(), scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(probe.values([probe.embeds])[0], scores[0], rtol=0, atol=1e-4)


def test_the_contrast_is_the_score_minus_the_mean_of_the_candidates(model):
    probe = PromptProbe(model, tiny_processor(), HISTORY, CANDIDATES, contrast=True)
    scores = probe.candidate_scores()
    torch.testing.assert_close(probe.values([probe.embeds])[0], scores[0] - scores.mean(), rtol=0, atol=1e-4)


def test_spans_hold_the_title_and_the_vector_of_each_named_item(model):
    processor = tiny_processor(history_in_prompt=3)
    probe = PromptProbe(model, processor, HISTORY, CANDIDATES)
    batch = processor([HISTORY], [CANDIDATES])
    assert [int(batch["slot_ids"][0, span.slot]) for span in probe.spans] == HISTORY[1:]
    for span, item in zip(probe.spans, HISTORY[1:], strict=True):
        text = processor.tokenizer.decode(batch["input_ids"][0, span.start : span.slot])
        assert processor.title(item) in text


def test_spans_of_cut_titles_and_of_prompts_without_candidates_hold_their_titles(model):
    template = PromptTemplate.for_domain("movie", candidates=False).to_dict()
    processor = ALLMRecProcessor(tiny_processor().tokenizer, template, history_in_prompt=3, max_title_tokens=3)
    processor.catalog = tiny_processor().catalog
    probe = PromptProbe(model, processor, HISTORY, CANDIDATES)
    tokens = processor.encode_prompt(HISTORY, CANDIDATES).tokens
    for span, item in zip(probe.spans, HISTORY[-3:], strict=True):
        shown = processor.tokenizer.decode(tokens[span.start : span.slot])
        assert shown.strip(" ,") == f'"{processor.history_title(item)}"'


def test_a_cut_prompt_is_the_prompt_of_the_shorter_history(model):
    processor = tiny_processor()
    probe = PromptProbe(model, processor, HISTORY, CANDIDATES)
    batch = processor([HISTORY], [CANDIDATES])
    order = [slot for slot in batch["slot_ids"][0].tolist() if slot > 0][len(HISTORY) :]
    known = {name: batch[name] for name in ("history_ids", "history_mask")}
    for number in range(len(HISTORY)):
        prompt = processor.encode_prompt(HISTORY[:number] + HISTORY[number + 1 :], order)
        tokens = {"input_ids": torch.tensor([prompt.tokens]), "slot_ids": torch.tensor([prompt.slots])}
        with torch.no_grad():
            expected = model.embed_prompts(**tokens, **known)[0]
        torch.testing.assert_close(probe.without_item(number), expected, rtol=0, atol=1e-6)


def test_leave_one_out_is_scoring_without_the_item(model):
    """The cut prompt and the shorter CF history, scored from scratch with the same candidate order."""
    processor = tiny_processor()
    found = items_of(contributions(model, processor, HISTORY, 5, CANDIDATES, removal="delete"))
    batch = processor([HISTORY], [CANDIDATES])
    order = [slot for slot in batch["slot_ids"][0].tolist() if slot > 0][len(HISTORY) :]
    answer = torch.tensor([[processor.answer_tokens(5)]])

    def score(history):
        prompt = processor.encode_prompt(history, order)
        tensors = {"input_ids": torch.tensor([prompt.tokens]), "slot_ids": torch.tensor([prompt.slots])}
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"], dtype=torch.bool)
        tensors.update(processor.history_tensors([history]), answer_ids=answer)
        return float(model.candidate_log_likelihoods(**tensors, answer_mask=answer > -1).detach().sum())

    for number, one in enumerate(found):
        rest = HISTORY[:number] + HISTORY[number + 1 :]
        assert one.leave_one_out.total == pytest.approx(score(HISTORY) - score(rest), abs=2e-4)


def test_contributions_do_not_depend_on_the_batch_size(model):
    alone = contributions(model, tiny_processor(), HISTORY, 5, CANDIDATES, batch_size=1)
    together = contributions(model, tiny_processor(), HISTORY, 5, CANDIDATES, batch_size=32)
    for one, other in zip(alone, together, strict=True):
        assert one.leave_one_out.total == pytest.approx(other.leave_one_out.total, abs=2e-4)
        assert one.gradient_x_input.total == pytest.approx(other.gradient_x_input.total, abs=2e-4)


def test_an_item_that_the_prompt_does_not_name_counts_through_the_user_vector_alone(model):
    found = items_of(contributions(model, tiny_processor(history_in_prompt=2), HISTORY, 5, CANDIDATES))
    for one in found[:2]:
        assert one.leave_one_out.in_prompt is None
        assert one.gradient_x_input.in_prompt is None
        assert one.leave_one_out.total == pytest.approx(one.leave_one_out.through_user_vector, abs=1e-5)
    assert all(one.leave_one_out.in_prompt is not None for one in found[2:])


def test_a_single_item_and_a_template_without_a_user_vector_are_explained(model):
    processor = tiny_processor()
    template = PromptTemplate.from_dict(processor.prompt)
    blind = allmrec_hf.ALLMRecProcessor(
        processor.tokenizer,
        {**template.to_dict(), "prompt": template.prompt.replace("{user}", "")},
        max_length=1000,
    )
    blind.catalog = processor.catalog
    assert [one.source for one in contributions(model, processor, [3], 5, CANDIDATES)] == ["user", "history"]
    (only,) = contributions(model, blind, [3], 5, CANDIDATES)
    assert only.leave_one_out.through_user_vector is None
    assert only.gradient_x_input.total == only.gradient_x_input.in_prompt


def test_gradients_reach_no_parameter(model):
    contributions(model, tiny_processor(), HISTORY, 5, CANDIDATES)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_path_averaged_gradients_add_up_to_the_change_from_the_baseline(model):
    """Completeness of integrated gradients; 64 midpoints leave a small error of the sum."""
    processor = tiny_processor()
    probe = PromptProbe(model, processor, HISTORY, CANDIDATES)
    baseline = probe.with_user(probe.embeds, probe.baselines.user)
    for number in range(len(HISTORY)):
        baseline = probe.with_neutral_item(number, baseline)
    with torch.no_grad():
        change = float(probe.values([probe.embeds])[0] - probe.values([baseline])[0])
    found = contributions(model, processor, HISTORY, CANDIDATES[0], CANDIDATES, gradient_steps=64)
    total = found[0].gradient_x_input.total + sum(one.gradient_x_input.in_prompt or 0 for one in items_of(found))
    assert total == pytest.approx(change, abs=0.02)


def test_bad_settings_are_refused(model):
    with pytest.raises(ALLMRecError, match="among the candidates"):
        contributions(model, tiny_processor(), HISTORY, 6, CANDIDATES)
    with pytest.raises(ALLMRecError, match="removal must be one of"):
        contributions(model, tiny_processor(), HISTORY, 5, CANDIDATES, removal="forget")  # type: ignore[arg-type]
    with pytest.raises(ALLMRecError, match="at least 1"):
        contributions(model, tiny_processor(), HISTORY, 5, CANDIDATES, gradient_steps=0)
    words = PromptTemplate.from_dict(tiny_processor().prompt).without_vectors().to_dict()
    blind = allmrec_hf.ALLMRecProcessor(tiny_processor().tokenizer, words, max_length=1000)
    blind.catalog = tiny_processor().catalog
    with pytest.raises(DataError, match="no \\{vector\\}"):
        contributions(model, blind, HISTORY, 5, CANDIDATES)


def test_both_methods_agree_in_sign_on_the_synthetic_world(demo):
    """Seeded users and targets of the demo's own world; larger samples gave 0.86, guessing 0.56."""
    model, processor = demo
    world = SyntheticWorld()
    interactions = world.interactions()
    found: list[Contribution] = []
    for user in np.random.default_rng(0).choice(world.num_users, 8, replace=False):
        watched = interactions.filter(interactions["user_id"] == f"U{user + 1:05d}")["item_id"].to_list()
        *history, target = processor.catalog.indices(watched)
        others = np.random.default_rng(int(user)).choice(1000, 9, replace=False) + 1
        candidates = [target, *(int(item) for item in others if item not in watched and item != target)]
        found += contributions(model, processor, history, target, candidates)
    items = sign_agreement(items_of(found))
    users = sign_agreement([one for one in found if one.source == "user"])
    assert items["contributions"] >= 10
    assert items["agreement"] > max(0.65, items["always_one_sign"])
    assert users["agreement"] >= 0.9


def test_sign_agreement_counts_clear_contributions_only():
    def effects(*pairs):
        return [Contribution("history", 1, 0, Effect(left), Effect(right)) for left, right in pairs]

    found = sign_agreement(effects((1, 1), (-1, -2), (0.5, -1), (0.09, -1)))
    assert found == {"contributions": 3, "agreement": pytest.approx(2 / 3), "always_one_sign": pytest.approx(2 / 3)}
    nothing = {"contributions": 0, "agreement": None, "always_one_sign": None}
    assert sign_agreement(effects((0.01, 1))) == nothing
    assert sign_agreement(effects((1, 0), (-1, -1)))["agreement"] == 0.75  # no sign is right half the time
    for pair in ((np.nan, 1), (1, np.nan), (np.inf, 1)):
        with pytest.raises(ALLMRecError, match="1 of 2 contributions are no finite numbers"):
            sign_agreement(effects((1, 1), pair))
