"""The ranker `zero_shot`: its score by hand, what is read once, runs and checkpoints that have no other LLM ranker."""

import shutil

import pytest
import torch
from transformers import AutoModel, pipeline

from allmrec_hf import ALLMRecProcessor, CheckpointError, DataError
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.ranker import UserBatch
from allmrec_hf.ranker_built_in import build_ranker, rankers_of
from allmrec_hf.ranker_zero_shot import ZeroShot, add_zero_shot, zero_shot_prompt
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests import small_run
from tests.tiny import FAMILIES, tiny_model, tiny_processor

HISTORIES = [[3, 1, 7], [5], [9, 2]]
CANDIDATES = [[4, 11, 30], [6, 12, 30, 31], [8]]


def ranker_of(model, **settings):
    add_zero_shot(model, "movie", **settings)
    return build_ranker("zero_shot", model, tiny_processor())


def scores_of(ranker, histories=HISTORIES, candidates=CANDIDATES):
    return ranker.score(UserBatch.encode(ranker.model, ranker.processor, histories), candidates)


@torch.no_grad()
def likelihood(model, prompt, answer):
    """Return log p(answer | prompt) by one plain pass of the LLM."""
    tokens = torch.tensor([[*prompt, *answer]])
    logits = model.language_model(input_ids=tokens).logits[0].float().log_softmax(dim=-1)
    places = torch.arange(len(prompt) - 1, tokens.shape[1] - 1)
    return logits[places, tokens[0, len(prompt) :]].sum().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_what_the_history_adds_to_the_likelihood_of_a_title(family):
    model = tiny_model(family)
    ranker = ranker_of(model)
    words = ranker.processor
    found = scores_of(ranker)
    for row, (history, items) in enumerate(zip(HISTORIES, CANDIDATES, strict=True)):
        behind, alone = (words.encode_prompt(history, items, context).tokens for context in ("whole", "no_user"))
        for column, item in enumerate(items):
            answer = words.answer_tokens(item)
            by_hand = likelihood(model, behind, answer), likelihood(model, alone, answer)
            assert found.parts["likelihood"][row, column] == pytest.approx(by_hand[0], abs=1e-3)
            assert found.scores[row, column] == pytest.approx(by_hand[0] - by_hand[1], abs=2e-3)
    assert found.scores[2, 1:].isneginf().all()  # padding


def test_a_title_that_the_history_says_nothing_of_scores_zero():
    """An LLM whose states are zeros finds every token alike, whatever stands before it."""
    model = tiny_model("llama")
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if name.endswith("norm.weight"):
                weight.zero_()
    torch.testing.assert_close(scores_of(ranker_of(model)).scores[1], torch.zeros(4), atol=1e-4, rtol=0)


def test_no_vector_of_user_or_item_has_a_part_in_it():
    model = tiny_model("llama")
    expected = scores_of(ranker_of(model)).scores
    with torch.no_grad():
        for weight in (*model.cf_encoder.parameters(), *model.user_projector.parameters()):
            weight.normal_()
    torch.testing.assert_close(scores_of(ranker_of(model)).scores, expected)


def test_a_title_without_a_history_is_read_once_whoever_asks(monkeypatch):
    ranker = ranker_of(tiny_model("llama"))
    contexts = []
    read = ranker._log_likelihoods
    monkeypatch.setattr(ranker, "_log_likelihoods", lambda *given: contexts.append(given[3:]) or read(*given))
    first = scores_of(ranker).scores
    assert contexts == [(), ("no_user",)]
    torch.testing.assert_close(scores_of(ranker).scores, first)
    assert contexts == [(), ("no_user",), ()]


def test_the_prompt_names_the_latest_items_of_the_history():
    ranker = ranker_of(tiny_model("llama"), history_in_prompt=2)
    whole = scores_of(ranker, [[3, 1, 7]], [[4, 11]]).scores
    torch.testing.assert_close(scores_of(ranker, [[1, 7]], [[4, 11]]).scores, whole)
    assert not torch.allclose(scores_of(ranker, [[7]], [[4, 11]]).scores, whole)


def test_the_words_follow_the_domain():
    prompt = zero_shot_prompt("book", ("read", "read"))
    assert prompt.prompt == "A person read these books, one after the other:\n{history}\n-"
    assert not prompt.has_user_slot
    assert not prompt.has_item_slots
    assert not prompt.lists_candidates


# -- runs


@pytest.fixture(scope="module")
def run(finished_run, small_parts, small_data, tmp_path_factory):
    """Return a run whose only LLM ranker is this one, made from the stages 0 and 1 of a finished run."""
    folder = tmp_path_factory.mktemp("zero-shot") / "run"
    flat = small_run.settings(small_parts)
    args = small_run.run_arguments(folder, flat).replaced(
        rank={"rankers": "zero_shot,fusion", "fusion_parts": "cf,text,zero_shot", "max_validation_users": 40}
    )
    assert args.rank.steps() == ("backbone", "align", "rank")
    ALLMRecTrainer(args=args, data=small_data).train()
    return folder


def test_a_run_needs_no_stage_that_trains_around_the_llm(run):
    model = AutoModel.from_pretrained(run)
    assert {"zero_shot", "fusion", "text", "cf"} <= set(rankers_of(model.config))
    assert "likelihood" not in rankers_of(model.config)
    assert model.config.rankers["fusion"]["parts"] == ["cf", "text", "zero_shot"]
    with pytest.raises(CheckpointError, match="stage 2 is not trained"):
        build_ranker("likelihood", model, ALLMRecProcessor.from_pretrained(run))


def test_stage_rank_can_be_run_again_and_reads_each_user_once(run, small_parts, small_data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    args = small_run.run_arguments(folder, small_run.settings(small_parts)).replaced(
        rank={"rankers": "zero_shot,fusion", "fusion_parts": "text,zero_shot", "max_validation_users": 30}
    )
    read, scored = [], ZeroShot.score
    monkeypatch.setattr(
        ZeroShot, "score", lambda self, users, *rest: read.append(len(users)) or scored(self, users, *rest)
    )
    ALLMRecTrainer(args=args, data=small_data).train("rank")
    assert AutoModel.from_pretrained(folder).config.rankers["fusion"]["parts"] == ["text", "zero_shot"]
    assert sum(read) == 30  # once for the fit, and for the comparison of the part and of the fusion nothing more


def test_the_pipeline_says_what_the_llm_adds_and_ranks_added_items(run):
    recommend = pipeline("recommendation", model=str(run))
    history = recommend.processor.catalog.item_ids[:3]
    asked = {"history": history, "candidates": recommend.processor.catalog.item_ids[5:9]}
    found = recommend(asked, ranker="fusion")
    assert all({"cf", "text", "zero_shot", "popularity"} <= set(item["parts"]) for item in found)
    recommend.add_items([{"item_id": "new", "title": "A Film of Tomorrow"}])
    alone = recommend({"history": history, "candidates": ["new", asked["candidates"][0]]}, ranker="zero_shot")
    assert {item["item_id"] for item in alone} == {"new", asked["candidates"][0]}


def test_an_llm_is_needed_and_named(small_parts, small_data, tmp_path):
    flat = {**small_run.settings(small_parts), "llm_name": None}
    args = small_run.run_arguments(tmp_path / "run", flat).replaced(rank={"rankers": "zero_shot,fusion"})
    with pytest.raises(ALLMRecError, match="stage rank needs an LLM: --llm"):
        ALLMRecTrainer(args=args, data=small_data).train()


def test_a_checkpoint_without_it_says_so(finished_run):
    model, processor = AutoModel.from_pretrained(finished_run), ALLMRecProcessor.from_pretrained(finished_run)
    with pytest.raises(CheckpointError, match=r"has no ranker 'zero_shot'.*was not asked for"):
        build_ranker("zero_shot", model, processor)


def test_an_empty_history_is_refused():
    ranker = ranker_of(tiny_model("llama"))
    with pytest.raises(DataError, match="history is empty"):
        scores_of(ranker, [[]], [[4, 11]])
