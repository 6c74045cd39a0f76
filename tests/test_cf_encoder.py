import math

import numpy as np
import pytest
import torch
from torch import nn

import allmrec_hf.cf_encoder as cf_encoder
from allmrec_hf.cf_encoder import (
    CFEncoder,
    CFEncoderConfig,
    build_cf_encoder,
    cf_config_from_dict,
    cf_encoder_class,
    full_cross_entropy,
    pad_histories,
    register_cf_encoder,
)
from allmrec_hf.errors import ALLMRecError, CheckpointError, DataError


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


def test_cross_entropy_of_three_items_equals_the_value_by_hand():
    table = torch.tensor([[0.0], [0.0], [math.log(2)], [math.log(5)]])  # row 0 is padding and takes no part
    loss = full_cross_entropy(torch.ones(2, 1), table, torch.tensor([3, 1]))
    assert loss.item() == pytest.approx((math.log(8 / 5) + math.log(8)) / 2, rel=1e-6)


def test_cross_entropy_of_equal_logits_is_log_n():
    assert full_cross_entropy(torch.zeros(4, 3), torch.randn(8, 3), torch.tensor([1, 2, 3, 7])).item() == pytest.approx(
        math.log(7), rel=1e-6
    )


def test_cross_entropy_in_slices_equals_cross_entropy_at_once(monkeypatch):
    torch.manual_seed(0)
    states, table, targets = torch.randn(600, 6), torch.randn(31, 6), torch.randint(1, 31, (600,))
    gradients = []
    for limit in (2**26, 31 * 7):
        monkeypatch.setattr(cf_encoder, "_MAX_LOGITS", limit)
        leaf, weight = states.clone().requires_grad_(), table.clone().requires_grad_()
        loss = full_cross_entropy(leaf, weight, targets)
        loss.backward()
        gradients.append((loss.detach(), leaf.grad, weight.grad))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_cross_entropy_without_targets_is_zero_and_differentiable():
    states = torch.zeros(0, 4, requires_grad=True)
    loss = full_cross_entropy(states, torch.randn(5, 4), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0


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
    with pytest.raises(DataError, match="negatives"):
        model.training_loss({key: value for key, value in batch.items() if key != "negatives"})


def test_whole_catalogue_scores_equal_candidate_scores_and_hide_padding(model):
    users = torch.randn(3, 8)
    scores = model.score(users)
    items = torch.tensor([[1, 50, 0], [7, 7, 2], [0, 0, 9]])
    torch.testing.assert_close(model.score(users, items), scores.gather(1, items))
    assert torch.isinf(scores[:, 0]).all()


@pytest.mark.parametrize("limit", [2**26, 3 * 7])
def test_top_items_are_the_best_of_the_whole_catalogue(model, monkeypatch, limit):
    monkeypatch.setattr(cf_encoder, "_MAX_LOGITS", limit)
    users = torch.randn(3, 8)
    exclude = torch.tensor([[1, 2, 0], [50, 49, 48], [0, 0, 0]])
    items, scores = model.top_items(users, 6, exclude)
    expected = model.score(users).scatter(1, exclude, float("-inf"))
    torch.testing.assert_close(scores, expected.topk(6)[0])
    torch.testing.assert_close(expected.gather(1, items), scores)


def test_top_items_end_in_index_zero_where_nothing_is_left(model):
    everything = torch.arange(1, 50).unsqueeze(0)
    items, scores = model.top_items(torch.randn(1, 8), 99, everything)
    assert items.shape == (1, 50)
    assert items[0, 0] == 50
    assert (items[0, 1:] == 0).all()
    assert torch.isinf(scores[0, 1:]).all()
    with pytest.raises(ALLMRecError, match="k >= 1"):
        model.top_items(torch.randn(1, 8), 0)


def test_appended_items_are_scored_and_survive_saving(model, tmp_path):
    vectors = torch.randn(2, 8)
    users, before = torch.randn(3, 8), model.score(torch.ones(1, 8))
    model.append_items(vectors)
    assert model.config.num_items == model.num_items == 52
    torch.testing.assert_close(model.score(users)[:, 51:], users @ vectors.T)
    torch.testing.assert_close(model.score(torch.ones(1, 8))[:, :51], before)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(MeanModel.from_pretrained(tmp_path).item_embeddings, model.item_embeddings)
    with pytest.raises(DataError, match=r"d_cf = 8, got \(2, 5\)"):
        model.append_items(torch.randn(2, 5))


def test_a_registered_backbone_is_found_by_its_model_type():
    register_cf_encoder(MeanConfig, MeanModel)
    assert cf_encoder_class("test-mean") is MeanModel
    assert build_cf_encoder({"model_type": "test-mean", "num_items": 4}).num_items == 4


def test_sasrec_is_found_by_its_short_and_its_full_name():
    assert cf_encoder_class("sasrec") is cf_encoder_class("allmrec-sasrec")
    config = cf_config_from_dict({"model_type": "sasrec", "num_items": 5})
    assert config.model_type == "allmrec-sasrec"
    assert cf_config_from_dict(config) is config
    assert cf_config_from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_an_unknown_backbone_is_refused_with_the_known_ones_listed():
    with pytest.raises(ALLMRecError, match=r"unknown CF backbone 'sasrex'; known ones: .*sasrec"):
        cf_encoder_class("sasrex")
    with pytest.raises(ALLMRecError, match="names it in model_type"):
        cf_config_from_dict({"num_items": 5})


@pytest.mark.parametrize("values", [{"num_items": "five"}, {"dropout": "much"}, {"loss": "hinge"}])
def test_a_config_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(CheckpointError, match=next(iter(values))):
        cf_config_from_dict({"model_type": "sasrec", **values})


def test_a_config_without_items_or_with_uneven_heads_is_refused():
    with pytest.raises(ALLMRecError, match="num_items must be at least 1, got 0"):
        cf_config_from_dict({"model_type": "sasrec", "num_items": 0})
    with pytest.raises(ALLMRecError, match="num_heads must divide hidden_size 8"):
        cf_config_from_dict({"model_type": "sasrec", "hidden_size": 8, "num_heads": 3})


def test_padding_row_stays_zero_in_training(model):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    item_ids, mask = pad_histories([[1, 2], [3]], 5)
    model.training_loss({"item_ids": item_ids, "attention_mask": mask, "targets": item_ids}).backward()
    optimizer.step()
    assert not model.item_embeddings[0].any()
