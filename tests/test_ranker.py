"""Rankers: the interface, the paper's likelihood and its calibration, the backbone's scores."""

import pytest
import torch

from allmrec_hf import CheckpointError, DataError, PromptTemplate
from allmrec_hf.ranker import UserBatch, padded_candidates
from allmrec_hf.ranker_built_in import build_ranker, rankers_of
from tests.tiny import tiny_model, tiny_processor

HISTORIES = [[3, 1, 7], [5], [9, 2]]
CANDIDATES = [[4, 11], [6, 12, 30, 31], [8]]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def users_of(model, processor, histories=HISTORIES):
    return UserBatch.encode(model, processor, histories)


def test_the_likelihood_is_that_of_the_model_averaged_over_orders(processor):
    model = tiny_model()
    found = build_ranker(None, model, processor).score(users_of(model, processor), CANDIDATES, num_permutations=3)
    orders = [model.score(**processor(HISTORIES, CANDIDATES, permutation=order)) for order in range(3)]
    assert torch.allclose(found.scores, torch.stack(orders).mean(dim=0), atol=1e-4)
    assert found.scores.isneginf().tolist() == [[False] * len(row) + [True] * (4 - len(row)) for row in CANDIDATES]


def test_the_order_of_candidates_changes_no_score(processor):
    model = tiny_model()
    ranker, users = build_ranker("likelihood", model, processor), users_of(model, processor, HISTORIES[:1])
    forth, back = (ranker.score(users, [row]).scores[0] for row in ([4, 11, 6], [6, 11, 4]))
    assert torch.allclose(forth, back.flip(0), atol=1e-4)


def test_the_backbone_scores_by_its_vectors_and_needs_no_llm(processor):
    model = tiny_model(family=None)
    users = users_of(model, processor)
    found = build_ranker("cf", model, processor).score(users, CANDIDATES).scores
    by_hand = users.representations[1] @ model.cf_encoder.item_embeddings[30]
    assert torch.allclose(found[1, 2], by_hand)
    assert found[2, 1].isneginf()


@pytest.mark.parametrize(("normalization", "context"), [("calibrated", "no_user"), ("vector_gain", "no_vectors")])
def test_a_calibrated_score_is_the_gain_over_the_prompt_without(processor, normalization, context):
    plain, model = tiny_model(), tiny_model(score_normalization=normalization)
    found = build_ranker(None, model, processor).score(users_of(model, processor), CANDIDATES)
    whole = plain.score(**processor(HISTORIES, CANDIDATES))
    without = plain.score(**processor(HISTORIES, CANDIDATES, context=context))
    real = ~whole.isneginf()
    assert torch.allclose(found.scores[real], (whole - without)[real], atol=1e-4)
    assert torch.allclose(found.parts["likelihood"], whole, atol=1e-4)


FORMS = ("sum", "mean", "calibrated", "vector_gain")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("configured", ["sum", "mean", "calibrated"])
def test_a_form_scores_as_a_checkpoint_of_that_normalization_does(processor, form, configured):
    model = tiny_model(score_normalization=configured, rankers={f"likelihood_{form}": {}})
    expected = tiny_model(score_normalization=form)
    found, by_hand = (
        build_ranker(name, own, processor).score(users_of(own, processor), CANDIDATES).scores
        for name, own in ((f"likelihood_{form}", model), ("likelihood", expected))
    )
    torch.testing.assert_close(found, by_hand)


def test_a_form_that_training_was_not_asked_for_is_refused_with_the_command(processor):
    with pytest.raises(CheckpointError, match="--rankers likelihood,likelihood_mean"):
        build_ranker("likelihood_mean", tiny_model(), processor)


def test_what_a_prompt_says_without_vectors_and_without_the_user(processor):
    whole, vectors, user = (
        processor([[3, 1]], [[4, 11]], context=context)["slot_ids"][0].tolist()
        for context in ("whole", "no_vectors", "no_user")
    )
    assert [slot for slot in whole if slot][:3] == [-1, 3, 1]
    assert sorted(slot for slot in vectors if slot) == sorted(slot for slot in user if slot) == [4, 11]
    text = processor.tokenizer.decode(processor([[3, 1]], [[4, 11]], context="no_user")["input_ids"][0])
    assert processor.title(4) in text
    assert processor.title(3) not in text


def test_a_title_that_does_not_depend_on_the_user_has_the_calibrated_score_0(processor, monkeypatch):
    model = tiny_model(score_normalization="calibrated")
    ranker = build_ranker(None, model, processor)
    monkeypatch.setattr(type(model), "score", lambda self, candidate_ids, **rest: -candidate_ids.float())
    assert ranker.score(users_of(model, processor, HISTORIES[:1]), [[4, 11]]).scores.tolist() == [[0.0, 0.0]]


def test_a_user_is_encoded_once_for_retrieval_and_every_order(processor, monkeypatch):
    from allmrec_hf import RecommendationPipeline

    model = tiny_model(tokenizer_fingerprint=processor.fingerprint)
    encoded = []
    encode = model.cf_encoder.encode_users
    monkeypatch.setattr(
        model.cf_encoder, "encode_users", lambda ids, mask: encoded.append(len(ids)) or encode(ids, mask)
    )
    recommend = RecommendationPipeline(model=model, processor=processor)
    recommend({"history": ["I1", "I2"]}, num_permutations=3)
    assert encoded == [1]


def test_users_can_be_taken_by_row(processor):
    users = users_of(tiny_model(), processor)
    some = users.take([2, 0])
    assert some.histories == [[9, 2], [3, 1, 7]]
    assert torch.equal(some.representations, users.representations[[2, 0]])


def test_every_result_carries_the_parts_of_its_score(processor):
    from allmrec_hf import RecommendationPipeline

    recommend = RecommendationPipeline(
        model=tiny_model(tokenizer_fingerprint=processor.fingerprint), processor=processor, ranker="cf"
    )
    first = recommend({"history": ["I1", "I2"]}, top_k=1)[0]
    assert first["parts"] == {"cf": first["score"]}
    assert list(recommend({"history": ["I1"]}, top_k=1, ranker="likelihood")[0]["parts"]) == ["likelihood"]


def test_a_ranker_that_the_checkpoint_lacks_is_refused_with_those_it_has(processor):
    with pytest.raises(CheckpointError, match=r"'likelihood' \(no stage 2.*it has cf"):
        build_ranker("likelihood", tiny_model(family=None), processor)
    with pytest.raises(CheckpointError, match=r"unknown ranker 'luck'; this checkpoint has likelihood"):
        build_ranker("luck", tiny_model(), processor)


def test_rankers_of_a_checkpoint():
    assert rankers_of(tiny_model(family=None).config) == ["cf"]
    assert set(rankers_of(tiny_model().config)) >= {"likelihood", "cf"}


def test_candidate_lists_are_padded_by_0():
    assert padded_candidates([[1, 2], [3]], 40).tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("wrong", [-1, 0, 41])
def test_a_candidate_that_is_no_item_is_refused_by_every_ranker(processor, wrong):
    model = tiny_model()
    for name in ("likelihood", "cf"):
        with pytest.raises(DataError, match="candidate"):
            build_ranker(name, model, processor).score(users_of(model, processor, HISTORIES[:1]), [[4, wrong]])


def test_the_prompt_template_says_whether_it_lists_candidates():
    assert PromptTemplate.for_domain("movie").lists_candidates
