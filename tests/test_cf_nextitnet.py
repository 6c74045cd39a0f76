import numpy as np
import pytest
import torch
from torch import nn

from allmrec_hf.cf_encoder import cf_config_from_dict
from allmrec_hf.cf_nextitnet import NextItNetConfig, NextItNetModel
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.histories import pad_histories

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


@torch.no_grad()
def test_user_representation_computes_only_what_the_last_state_depends_on():
    model, computed = tiny(), []
    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            module.register_forward_hook(lambda module, inputs, output: computed.append(output.shape[2]))
    model.encode_users(torch.arange(1, 41).unsqueeze(0))
    assert computed == [29, 25, 17, 1]  # of 40 positions each


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilations": []}, r"dilations must be one or more whole numbers of at least 1, got \[\]"),
        ({"dilations": [1, 0]}, r"dilations must be one or more whole numbers of at least 1, got \[1, 0\]"),
        ({"kernel_size": 1}, "kernel_size must be at least 2"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        NextItNetConfig(num_items=5, **changes)


@pytest.mark.parametrize("values", [{"dilations": [1.5]}, {"dilations": 4}, {"kernel_size": "3"}])
def test_a_config_value_of_the_wrong_type_is_refused(values):
    with pytest.raises(CheckpointError, match=next(iter(values))):
        cf_config_from_dict({"model_type": "nextitnet", "num_items": 5, **values})
