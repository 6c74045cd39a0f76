import numpy as np
import pytest
import torch
from transformers import AutoModel

import allmrec_hf.cf_gru4rec as cf_gru4rec
from allmrec_hf.cf_encoder import cf_config_from_dict, cf_encoder_class
from allmrec_hf.cf_gru4rec import GRU4RecConfig, GRU4RecModel
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.presets import preset

HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]
SHAPES = [{}, {"gru_hidden_size": 16}, {"num_layers": 2}]  # with a map to d_cf, without, and deep


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "gru_hidden_size": 10, "max_history_length": 10}
    model = GRU4RecModel(GRU4RecConfig(**{**values, "initializer_range": 0.3, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_(std=0.3)
    return model


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_states_equal_torch_on_the_unpadded_history(changes):
    model = tiny(**changes)
    states = model.sequence_states(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        padding = 10 - len(history)
        assert not states[row, :padding].any()
        if history:
            hidden, _ = model.gru(model.item_embedding(torch.tensor([history])))
            torch.testing.assert_close(states[row, padding:], model.output(hidden)[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_states_equal_the_equations_of_a_gru_written_out():
    model = tiny()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    hidden = np.zeros(10)
    for item in HISTORIES[0]:
        read = weights["gru.weight_ih_l0"] @ weights["item_embedding.weight"][item] + weights["gru.bias_ih_l0"]
        kept = weights["gru.weight_hh_l0"] @ hidden + weights["gru.bias_hh_l0"]
        reset, update = sigmoid(read[:10] + kept[:10]), sigmoid(read[10:20] + kept[10:20])
        candidate = np.tanh(read[20:] + reset * kept[20:])
        hidden = (1 - update) * candidate + update * hidden
    expected = weights["output.weight"] @ hidden + weights["output.bias"]
    users = model.encode_users(torch.tensor([[0, 0, *HISTORIES[0]]]))
    np.testing.assert_allclose(users[0].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_batch_equals_one_by_one_whatever_the_padding(changes):
    model = tiny(**changes)
    together = model.sequence_states(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        alone = model.sequence_states(*pad_histories([history], 10))[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_change_a_state():
    model, order = tiny(), [3, 0, 4, 2, 1]
    item_ids, mask = pad_histories(HISTORIES, 10)
    expected = model.sequence_states(item_ids, mask)[order]
    torch.testing.assert_close(model.sequence_states(item_ids[order], mask[order]), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_stands_behind_the_mask_does_not_change_a_state():
    model = tiny()
    item_ids, mask = pad_histories(HISTORIES, 10)
    dirty = item_ids.masked_fill(~mask, 11)
    torch.testing.assert_close(model.sequence_states(dirty, mask), model.sequence_states(item_ids), rtol=0, atol=0)
    torch.testing.assert_close(model.encode_users(dirty, mask), model.encode_users(item_ids), rtol=0, atol=0)


def test_a_state_depends_on_all_earlier_items_and_on_no_later_one():
    model = tiny()
    item_ids = torch.tensor([[0, 1, 2, 3, 4, 5]])
    for place in range(1, 6):
        model.zero_grad()
        model.sequence_states(item_ids)[0, place].pow(3).sum().backward()
        moved = model.item_embedding.weight.grad.abs().sum(-1)
        assert (moved[1 : place + 1] > 0).all()
        assert not moved[place + 1 :].any()
        assert not moved[0]


@pytest.mark.parametrize("changes", [*SHAPES, {"max_history_length": 3}])
@torch.no_grad()
def test_user_representation_is_the_last_state(changes):
    model = tiny(**changes)
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(model.encode_users(*batch), model.sequence_states(*batch)[:, -1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_an_empty_history_gives_a_zero_user():
    model = tiny()
    users = model.encode_users(torch.zeros(2, 4, dtype=torch.long))
    assert users.shape == (2, 16)
    assert not users.any()
    assert not model.sequence_states(torch.zeros(2, 4, dtype=torch.long)).any()


@torch.no_grad()
def test_a_history_longer_than_the_model_is_cut_to_its_most_recent_items(monkeypatch):
    model, warnings = tiny(max_history_length=4), []
    monkeypatch.setattr(cf_gru4rec.logger, "warning_once", warnings.append)
    states = model.sequence_states(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 8]]))
    assert states.shape == (2, 6, 16)
    assert not states[:, :2].any()
    assert warnings == ["histories of up to 6 items are cut to the 4 most recent ones (max_history_length)"]
    expected = model.sequence_states(torch.tensor([[3, 4, 5, 6], [0, 0, 0, 8]]))
    torch.testing.assert_close(states[:, 2:], expected, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss_and_moves_every_parameter():
    model = tiny(num_layers=2, hidden_dropout=0.1, embedding_dropout=0.1).train()
    item_ids, mask = pad_histories([[1, 2, 3, 4], [5, 6], []], 10)
    targets = torch.tensor([[2, 3, 4, 7], [0, 0, 6, 8], [0, 0, 0, 0]])
    batch = {"item_ids": item_ids, "attention_mask": mask, "targets": targets}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.training_loss(batch)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert all(parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not model.item_embeddings[0].any()


def test_fresh_weights_of_each_gate_are_spread_as_in_the_authors_program():
    model = GRU4RecModel(GRU4RecConfig(num_items=12, hidden_size=64, gru_hidden_size=100))
    bound = (6 / (64 + 100)) ** 0.5
    weights = model.gru.weight_ih_l0
    assert weights.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not model.gru.bias_hh_l0.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_saved_model_loads_by_auto_model_with_equal_states(tmp_path, changes, dtype, tolerance):
    model = tiny(**changes)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert type(again) is GRU4RecModel
    for name in ("gru_hidden_size", "num_layers", "hidden_dropout", "embedding_dropout"):
        assert getattr(again.config, name) == getattr(model.config, name)
    batch = pad_histories(HISTORIES, 10)
    states = again.sequence_states(*batch)
    assert states.dtype == again.encode_users(*batch).dtype == dtype
    torch.testing.assert_close(states.float(), model.sequence_states(*batch), rtol=tolerance, atol=tolerance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_gru4rec_is_found_by_its_short_and_its_full_name():
    assert cf_encoder_class("gru4rec") is cf_encoder_class("allmrec-gru4rec") is GRU4RecModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"gru_hidden_size": 0}, "gru_hidden_size must be at least 1, got 0"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must be a share of 0 or more and below 1, got 1\.0"),
        ({"hidden_dropout": -0.5}, r"hidden_dropout must be a share of 0 or more and below 1, got -0\.5"),
        ({"hidden_dropout": float("nan")}, "hidden_dropout must be a share .* got nan"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        GRU4RecConfig(num_items=5, **changes)


@pytest.mark.parametrize("values", [{"num_layers": "two"}, {"gru_hidden_size": 1.5}, {"hidden_dropout": "much"}])
def test_a_config_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(CheckpointError, match=next(iter(values))):
        cf_config_from_dict({"model_type": "gru4rec", "num_items": 5, **values})


def test_the_training_recipe_fits_the_presets():
    assert preset("default", "backbone", "gru4rec").per_device_train_batch_size == 32
