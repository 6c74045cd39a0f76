import numpy as np
import pytest
import torch

from allmrec_hf.cf_gru4rec import GRU4RecConfig, GRU4RecModel
from allmrec_hf.histories import pad_histories

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


def test_fresh_weights_of_each_gate_are_spread_as_in_the_authors_program():
    model = GRU4RecModel(GRU4RecConfig(num_items=12, hidden_size=64, gru_hidden_size=100))
    bound = (6 / (64 + 100)) ** 0.5
    weights = model.gru.weight_ih_l0
    assert weights.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not model.gru.bias_hh_l0.any()
