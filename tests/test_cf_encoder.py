import math

import numpy as np
import pytest
import torch
from torch import nn

from allmrec_hf.cf_encoder import (
    CFEncoder,
    CFEncoderConfig,
    build_cf_encoder,
    cf_config_from_dict,
    cf_encoder_class,
    register_cf_encoder,
)
from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.histories import pad_histories


class MeanConfig(CFEncoderConfig):
    model_type = "test-mean"


class MeanModel(CFEncoder):
    config_class = MeanConfig

    def __init__(self, config):
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.post_init()

    def sequence_states(self, item_ids, attention_mask=None):
        real = (item_ids != 0).unsqueeze(-1).to(self.dtype)
        return (self.item_embedding(item_ids) * real).cumsum(1) / real.cumsum(1).clamp(min=1) * real


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MeanModel(MeanConfig(num_items=50, hidden_size=8)).eval()


def test_pad_histories_pads_on_the_left_and_keeps_the_most_recent_items():
    item_ids, mask = pad_histories([[1, 2, 3, 4], np.array([5]), []], max_length=3)
    assert item_ids.tolist() == [[2, 3, 4], [0, 0, 5], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, False, False]]


def test_pad_histories_of_only_empty_histories_has_one_column():
    item_ids, mask = pad_histories([[], []], max_length=3)
    assert item_ids.tolist() == [[0], [0]]
    assert not mask.any()


def test_bce_of_three_items_equals_the_value_by_hand():
    model = MeanModel(MeanConfig(num_items=3, hidden_size=1, loss="bce"))
    model.item_embedding.weight.data = torch.tensor([[0.0], [1.0], [2.0], [-1.0]])
    batch = {
        "item_ids": torch.tensor([[0, 1]]),
        "attention_mask": torch.tensor([[False, True]]),
        "targets": torch.tensor([[0, 2]]),
        "negatives": torch.tensor([[3, 3]]),
    }
    expected = -math.log(1 / (1 + math.exp(-2))) - math.log(1 - 1 / (1 + math.exp(1)))
    assert model.training_loss(batch).item() == pytest.approx(expected, rel=1e-6)
    assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match=r"the loss bce needs the batch to hold .*missing \['negatives'\]"):
        model.training_loss({key: value for key, value in batch.items() if key != "negatives"})


def test_top_items_end_in_index_zero_where_nothing_is_left(model):
    everything = torch.arange(1, 50).unsqueeze(0)
    items, scores = model.top_items(torch.randn(1, 8), 99, everything)
    assert items.shape == (1, 50)
    assert items[0, 0] == 50
    assert (items[0, 1:] == 0).all()
    assert torch.isinf(scores[0, 1:]).all()
    with pytest.raises(ALLMRecError, match="k >= 1"):
        model.top_items(torch.randn(1, 8), 0)


def test_an_index_answers_the_same_call_until_the_items_change(model, caplog):
    pytest.importorskip("faiss")
    users, exclude = torch.randn(3, 8), torch.tensor([[1, 2, 0], [50, 49, 48], [0, 0, 0]])
    items, scores = model.top_items(users, 6, exclude)
    index = model.build_index()
    assert index.recall_against_exact(users, k=6, exclude=exclude) == 1.0
    found, found_scores = model.top_items(users, 6, exclude)
    assert found.equal(items)
    torch.testing.assert_close(found_scores, scores)
    model.append_items(100 * users[:1])
    assert "retrieval is exact until build_index is called again" in caplog.text
    assert model.top_items(users[:1], 1)[0].item() == 51
    with pytest.raises(ALLMRecError, match="50"):
        model.use_index(index)  # of the old table


def test_replaced_items_may_be_rows_of_the_table_itself(model):
    rows = model.item_embeddings[[3, 4]].detach().clone()
    model.replace_items(torch.tensor([4, 5]), model.item_embeddings[3:5])
    torch.testing.assert_close(model.item_embeddings[[4, 5]], rows)


def test_a_registered_backbone_is_found_by_its_model_type():
    register_cf_encoder(MeanConfig, MeanModel)
    assert cf_encoder_class("test-mean") is MeanModel
    assert build_cf_encoder({"model_type": "test-mean", "num_items": 4}).num_items == 4


def test_an_unknown_backbone_is_refused_with_the_known_ones_listed():
    with pytest.raises(ALLMRecError, match=r"unknown backbone 'sasrex'; known ones: .*sasrec"):
        cf_encoder_class("sasrex")
    with pytest.raises(ALLMRecError, match="names it in model_type"):
        cf_config_from_dict({"num_items": 5})


def test_rows_of_similar_length_are_read_without_the_padding_of_longer_ones(model, monkeypatch):
    item_ids, mask = pad_histories([[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [5, 4, 3, 2, 1]], 8)
    read = []
    whole = model.sequence_states
    monkeypatch.setattr(model, "sequence_states", lambda ids, real: read.append(tuple(ids.shape)) or whole(ids, real))
    states = model.states_at(item_ids, mask, mask)
    assert read == [(2, 1), (1, 2), (2, 4), (1, 5)]
    torch.testing.assert_close(states, whole(item_ids, mask)[mask])
