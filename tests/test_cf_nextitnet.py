import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

import allmrec_hf.cf_nextitnet as cf_nextitnet
from allmrec_hf.cf_encoder import cf_config_from_dict, cf_encoder_class
from allmrec_hf.cf_nextitnet import NextItNetConfig, NextItNetModel
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.presets import preset

HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]
SHAPES = [{}, {"dilations": [1]}, {"dilations": [2, 1, 1], "kernel_size": 2}]


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 45, "hidden_size": 16, "dilations": [1, 4], "max_history_length": 40}
    model = NextItNetModel(NextItNetConfig(**{**values, "initializer_range": 0.3, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def looped_convolution(states, weight, bias, dilation):
    """Convolve (L, d) states by definition; what stands before the first one is zeros."""
    out = np.zeros((len(states), len(bias)))
    for place in range(len(states)):
        out[place] = bias
        for tap in range(weight.shape[2]):
            source = place - (weight.shape[2] - 1 - tap) * dilation
            if source >= 0:
                out[place] += weight[:, :, tap] @ states[source]
    return out


def normalised(states, weight, bias):
    centred = states - states.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-8) * weight + bias


def looped_states(model, history):
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    states = weights["item_embedding.weight"][history]
    for block, dilation in enumerate(model.config.dilations):
        inner = states
        for name, step in (("first", dilation), ("second", 2 * dilation)):
            convolution, norm = (f"blocks.{block}.{name}_{part}" for part in ("convolution", "norm"))
            inner = looped_convolution(inner, weights[f"{convolution}.weight"], weights[f"{convolution}.bias"], step)
            inner = np.maximum(normalised(inner, weights[f"{norm}.weight"], weights[f"{norm}.bias"]), 0)
        states = states + inner
    return states @ weights["output.weight"].T + weights["output.bias"]


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_states_equal_convolutions_written_as_loops_over_the_unpadded_history(changes):
    model = tiny(**changes)
    item_ids, mask = pad_histories(HISTORIES, 40)
    states, users = model.sequence_states(item_ids, mask), model.encode_users(item_ids, mask)
    for row, history in enumerate(HISTORIES):
        assert not states[row, : 10 - len(history)].any()
        if history:
            expected = looped_states(model, history)
            np.testing.assert_allclose(states[row, 10 - len(history) :].numpy(), expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(users[row].numpy(), expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_batch_equals_one_by_one_whatever_the_padding(changes):
    model = tiny(**changes)
    together = model.sequence_states(*pad_histories(HISTORIES, 40))
    for row, history in enumerate(HISTORIES):
        alone = model.sequence_states(*pad_histories([history], 40))[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_change_a_state():
    model, order = tiny(), [3, 0, 4, 2, 1]
    item_ids, mask = pad_histories(HISTORIES, 40)
    expected = model.sequence_states(item_ids, mask)[order]
    torch.testing.assert_close(model.sequence_states(item_ids[order], mask[order]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_stands_behind_the_mask_does_not_change_a_state():
    model = tiny()
    item_ids, mask = pad_histories(HISTORIES, 40)
    dirty = item_ids.masked_fill(~mask, 11)
    torch.testing.assert_close(model.sequence_states(dirty, mask), model.sequence_states(item_ids), rtol=0, atol=0)
    torch.testing.assert_close(model.encode_users(dirty, mask), model.encode_users(item_ids), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"dilations": [1, 2]}])
def test_a_state_depends_on_the_items_of_its_receptive_field_and_on_no_other(changes):
    model = tiny(**changes)
    field = model.config.receptive_field
    assert field == {2: {5: 31, 3: 19}}[len(model.config.dilations)][sum(model.config.dilations)]
    item_ids = torch.arange(1, 41).unsqueeze(0)
    for place in (0, 7, 35, 39):
        for states in (model.sequence_states(item_ids)[0, place], model.encode_users(item_ids[:, : place + 1])[0]):
            model.zero_grad()
            states.pow(3).sum().backward()
            moved = model.item_embedding.weight.grad.abs().sum(-1)[1:41]
            first = max(0, place + 1 - field)
            assert (moved[first : place + 1] > 0).all()
            assert not moved[:first].any()
            assert not moved[place + 1 :].any()


@pytest.mark.parametrize("changes", [*SHAPES, {"max_history_length": 3}, {"dilations": [1, 4, 1, 4]}])
@torch.no_grad()
def test_user_representation_is_the_last_state(changes):
    model = tiny(**changes)
    for histories in (HISTORIES, [list(range(1, 41)), list(range(30, 45))]):
        batch = pad_histories(histories, 40)
        expected = model.sequence_states(*batch)[:, -1]
        torch.testing.assert_close(model.encode_users(*batch), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_user_representation_computes_only_what_the_last_state_depends_on():
    model, computed = tiny(), []
    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            module.register_forward_hook(lambda module, inputs, output: computed.append(output.shape[2]))
    model.encode_users(torch.arange(1, 41).unsqueeze(0))
    assert computed == [29, 25, 17, 1]  # of 40 positions each


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
    monkeypatch.setattr(cf_nextitnet.logger, "warning_once", warnings.append)
    states = model.sequence_states(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 8]]))
    assert states.shape == (2, 6, 16)
    assert not states[:, :2].any()
    assert warnings == ["histories of up to 6 items are cut to the 4 most recent ones (max_history_length)"]
    expected = model.sequence_states(torch.tensor([[3, 4, 5, 6], [0, 0, 0, 8]]))
    torch.testing.assert_close(states[:, 2:], expected, rtol=1e-5, atol=1e-5)


def test_training_lowers_the_loss_and_moves_every_parameter():
    model = tiny(dropout=0.1).train()
    item_ids, mask = pad_histories([[1, 2, 3, 4], [5, 6], []], 10)
    targets = torch.tensor([[2, 3, 4, 7], [0, 0, 6, 8], [0, 0, 0, 0]])
    batch = {"item_ids": item_ids, "attention_mask": mask, "targets": targets}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = model.training_loss(batch)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert step or all(parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not model.item_embeddings[0].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_saved_model_loads_by_auto_model_with_equal_states(tmp_path, dtype, tolerance):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert type(again) is NextItNetModel
    for name in ("dilations", "kernel_size", "dropout", "layer_norm_eps"):
        assert getattr(again.config, name) == getattr(model.config, name)
    batch = pad_histories(HISTORIES, 40)
    states, expected = again.sequence_states(*batch), model.sequence_states(*batch)
    assert states.dtype == again.encode_users(*batch).dtype == dtype
    torch.testing.assert_close(states.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_nextitnet_is_found_by_its_short_and_its_full_name():
    assert cf_encoder_class("nextitnet") is cf_encoder_class("allmrec-nextitnet") is NextItNetModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilations": []}, r"dilations must be one or more whole numbers of at least 1, got \[\]"),
        ({"dilations": [1, 0]}, r"dilations must be one or more whole numbers of at least 1, got \[1, 0\]"),
        ({"kernel_size": 1}, "kernel_size must be at least 2"),
        ({"dropout": 1}, "dropout must be a share of 0 or more and below 1, got 1"),
        ({"dropout": -0.5}, r"dropout must be a share of 0 or more and below 1, got -0\.5"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        NextItNetConfig(num_items=5, **changes)


@pytest.mark.parametrize("values", [{"dilations": [1.5]}, {"dilations": 4}, {"kernel_size": "3"}, {"dropout": "much"}])
def test_a_config_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(CheckpointError, match=next(iter(values))):
        cf_config_from_dict({"model_type": "nextitnet", "num_items": 5, **values})


def test_the_training_recipe_fits_the_presets():
    assert preset("default", "backbone", "nextitnet").per_device_train_batch_size == 32
