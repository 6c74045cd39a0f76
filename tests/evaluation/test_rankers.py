"""The methods that need no LLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from allmrec_hf.cf_encoder import CFEncoder, CFEncoderConfig
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.protocol import Ranker
from allmrec_hf.evaluation.rankers import (
    BackboneRanker,
    PopularityRanker,
    TextCosineRanker,
    best_unseen,
    reranked_scores,
)


class LastItemEncoder(CFEncoder):
    """A user is the embedding of the last item, so scores are dot products of items."""

    def __init__(self, config: CFEncoderConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.item_embedding.weight[1:] = torch.randn(
                config.num_items, config.hidden_size, generator=torch.Generator().manual_seed(0)
            )

    def sequence_states(self, item_ids, attention_mask=None):
        return self.dropout(self.item_embedding(item_ids))


@pytest.fixture
def cf_encoder() -> LastItemEncoder:
    return LastItemEncoder(CFEncoderConfig(num_items=12, hidden_size=4, max_history_length=3)).train()


HISTORIES = [np.array([1, 2, 3, 4]), np.array([5]), np.array([2, 12])]
CANDIDATES = np.array([[6, 7, 8], [9, 1, 2], [3, 4, 11]])


def rankers(cf_encoder):
    text = np.random.default_rng(0).normal(size=(13, 5))
    return [PopularityRanker(np.arange(13)), BackboneRanker(cf_encoder, name="last"), TextCosineRanker(text)]


def test_reranked_items_keep_the_ties_of_both_scores():
    items = np.array([[4, 2, 7, 5, 1], [3, 6, 0, 0, 0]])
    scores = np.array([[9.0, 8, 5, 5, 1], [2.0, 2, -np.inf, -np.inf, -np.inf]])
    found, places = reranked_scores(items, scores, np.array([[0.0, 1.0], [0.5, 0.5]]), "any")
    assert found.tolist() == [[2, 4, 7, 5, 1], [3, 6, 0, 0, 0]]
    assert places.tolist() == [[-1, -2, -3, -3, -5], [-1, -1, -np.inf, -np.inf, -np.inf]]


def test_reranking_does_not_hide_scores_that_are_no_numbers():
    with pytest.raises(ALLMRecError, match="'any' has NaN scores for 1 of 1"):
        reranked_scores(np.array([[4, 2]]), np.array([[9.0, 8]]), np.array([[0.0, np.nan]]), "any")


def test_every_method_keeps_the_protocol(cf_encoder):
    for ranker in rankers(cf_encoder):
        assert isinstance(ranker, Ranker)
        assert ranker.score(HISTORIES, CANDIDATES).shape == (3, 3)
        items, scores = ranker.retrieve(HISTORIES, 4)
        assert items.shape == scores.shape == (3, 4)


def test_retrieval_leaves_out_the_history_and_padding_and_is_sorted(cf_encoder):
    for ranker in rankers(cf_encoder):
        found, scores = ranker.retrieve(HISTORIES, 100)
        for items, values, history in zip(found, scores, HISTORIES, strict=True):
            real = items[items > 0]
            assert sorted(real) == sorted(set(range(1, 13)) - set(history.tolist()))
            assert (np.diff(values[: len(real)]) <= 0).all()
            assert np.isneginf(values[len(real) :]).all()


def test_retrieval_and_scoring_agree(cf_encoder):
    for ranker in rankers(cf_encoder):
        items, values = ranker.retrieve(HISTORIES, 5)
        np.testing.assert_allclose(ranker.score(HISTORIES, items), values, rtol=1e-5, atol=1e-6)


def test_a_batch_scores_as_one_user_at_a_time(cf_encoder):
    for ranker in rankers(cf_encoder):
        alone = [ranker.score([history], CANDIDATES[[row]])[0] for row, history in enumerate(HISTORIES)]
        np.testing.assert_allclose(ranker.score(HISTORIES, CANDIDATES), alone, rtol=1e-6)


def test_the_batch_size_changes_nothing(cf_encoder):
    one, many = BackboneRanker(cf_encoder, batch_size=1), BackboneRanker(cf_encoder, batch_size=256)
    np.testing.assert_allclose(one.score(HISTORIES, CANDIDATES), many.score(HISTORIES, CANDIDATES), rtol=1e-6)
    np.testing.assert_array_equal(one.retrieve(HISTORIES, 3)[0], many.retrieve(HISTORIES, 3)[0])


def test_the_backbone_is_put_into_evaluation_mode_and_named_by_its_type(cf_encoder):
    ranker = BackboneRanker(cf_encoder)
    assert not cf_encoder.training
    assert ranker.name == cf_encoder.config.model_type.removeprefix("allmrec-")
    np.testing.assert_array_equal(ranker.score(HISTORIES, CANDIDATES), ranker.score(HISTORIES, CANDIDATES))


def test_the_whole_history_is_left_out_even_where_the_backbone_reads_less(cf_encoder):
    found, _ = BackboneRanker(cf_encoder).retrieve([np.array([1, 2, 3, 4, 5, 6])], 100)  # max_history_length is 3
    assert not set(found[0].tolist()) & {1, 2, 3, 4, 5, 6}


def test_popularity_ignores_the_history_and_prefers_the_earlier_of_equals():
    ranker = PopularityRanker([0, 3, 5, 5, 1])
    assert ranker.score([np.array([2])], np.array([[1, 3, 4]])).tolist() == [[3, 5, 1]]
    assert ranker.retrieve([np.array([1]), np.array([2])], 3)[0].tolist() == [[2, 3, 4], [3, 1, 4]]


def test_text_score_is_the_mean_cosine_with_the_last_items():
    vectors = [[9, 9], [2, 0], [0, 3], [1, 1], [0, 0]]  # row 0 is padding, item 4 has no text
    history = [np.array([2, 1, 3])]
    cosine = np.sqrt(0.5)
    last_two = TextCosineRanker(vectors, last_items=2).score(history, np.array([[1, 2, 4]]))
    np.testing.assert_allclose(last_two, [[(1 + cosine) / 2, (0 + cosine) / 2, 0]], rtol=1e-6)
    last_one = TextCosineRanker(vectors, last_items=1).score(history, np.array([[1, 2, 4]]))
    np.testing.assert_allclose(last_one, [[cosine, cosine, 0]], rtol=1e-6)


def test_an_empty_history_gets_a_constant_text_score():
    assert TextCosineRanker(np.ones((4, 2))).score([np.array([], dtype=int)], np.array([[1, 2]])).tolist() == [[0, 0]]


def test_equal_scores_are_retrieved_in_catalogue_order():
    items, _ = best_unseen(np.zeros((1, 6)), [np.array([2])], 3)
    assert items.tolist() == [[1, 3, 4]]


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ALLMRecError, match="finite"):
        PopularityRanker([0, np.nan])
    with pytest.raises(ALLMRecError, match="finite"):
        TextCosineRanker([[0.0], [np.inf]])
    with pytest.raises(ALLMRecError, match="1 of 1 rows hold NaN"):
        best_unseen(np.array([[0, np.nan]]), [np.array([], dtype=int)], 1)
