import math

import pytest
import torch

from allmrec_hf.cf_ligr import LiGRConfig, LiGRModel
from allmrec_hf.histories import pad_histories

HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "num_heads": 2, "max_history_length": 10, "initializer_range": 0.3}
    model = LiGRModel(LiGRConfig(**{**values, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3)
    return model


def layer_norm(vector, weight, bias):
    centred = [value - sum(vector) / len(vector) for value in vector]
    scale = math.sqrt(sum(value * value for value in centred) / len(vector) + 1e-5)
    return [value / scale * w + b for value, w, b in zip(centred, weight, bias, strict=True)]


def linear(vector, weight, bias=None):
    sums = [sum(w * value for w, value in zip(row, vector, strict=True)) for row in weight]
    return sums if bias is None else [value + b for value, b in zip(sums, bias, strict=True)]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def gated_sum(state, branch, weights, gate):
    gates = linear(state, weights[f"{gate}.weight"], weights[f"{gate}.bias"])
    return [own + added * sigmoid(value) for own, added, value in zip(state, branch, gates, strict=True)]


def attended(place, normalised, weights, heads):
    """Return what a position gathers from those up to it, head by head and key by key."""
    query, *others = (
        [linear(state, weights[f"attention.{name}.weight"], weights.get(f"attention.{name}.bias")) for state in states]
        for name, states in (
            ("query", [normalised[place]]),
            ("key", normalised[: place + 1]),
            ("value", normalised[: place + 1]),
        )
    )
    keys, values = others
    size, gathered = len(query[0]) // heads, []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        logits = [sum(q * k for q, k in zip(query[0][own], key[own], strict=True)) / math.sqrt(size) for key in keys]
        shares = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        gathered += [
            sum(share * value[own][i] for share, value in zip(shares, values, strict=True)) for i in range(size)
        ]
    return linear(gathered, weights["attention.output.weight"], weights["attention.output.bias"])


def state_by_loops(model, history):
    """Return the last state of one history from the layer's formula, number by number."""
    config = model.config
    all_weights = {name: value.tolist() for name, value in model.double().state_dict().items()}
    positions = all_weights["position_embedding.weight"][config.max_history_length - len(history) :]
    states = [
        [value * math.sqrt(config.hidden_size) + p for value, p in zip(vector, position, strict=True)]
        for vector, position in zip((all_weights["item_embedding.weight"][i] for i in history), positions, strict=True)
    ]
    for number in range(config.num_layers):
        start = f"layers.{number}."
        weights = {name.removeprefix(start): value for name, value in all_weights.items() if name.startswith(start)}
        norms = [
            (weights[f"{name}_norm.weight"], weights[f"{name}_norm.bias"]) for name in ("attention", "feed_forward")
        ]
        normalised = [layer_norm(state, *norms[0]) for state in states]
        states = [
            gated_sum(state, attended(place, normalised, weights, config.num_heads), weights, "attention_gate")
            for place, state in enumerate(states)
        ]
        for place, state in enumerate(states):
            read = layer_norm(state, *norms[1])
            gates = linear(read, weights["feed_forward.gate.weight"])
            inner = linear(read, weights["feed_forward.inner.weight"])
            inside = [gate * sigmoid(gate) * value for gate, value in zip(gates, inner, strict=True)]
            fed = linear(inside, weights["feed_forward.outer.weight"])
            states[place] = gated_sum(state, fed, weights, "feed_forward_gate")
    return layer_norm(states[-1], all_weights["final_norm.weight"], all_weights["final_norm.bias"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_user_representation_equals_the_formula_written_out_in_loops(attention):
    model = tiny(attn_implementation=attention, feed_forward_multiplier=3).double()
    users = model.encode_users(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        if history:
            expected = torch.tensor(state_by_loops(model, history), dtype=torch.float64)
            torch.testing.assert_close(users[row], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_closed_gates_leave_the_normalised_embedding_of_the_last_item():
    model = tiny()
    for name, parameter in model.named_parameters():
        if "_gate." in name:
            parameter.data.fill_(-100.0 if name.endswith("bias") else 0.0)
    read = model.item_embedding.weight[[7]] * 4 + model.position_embedding.weight[-1]  # 4 is the root of d_cf
    torch.testing.assert_close(model.encode_users(torch.tensor([[5, 9, 7]])), model.final_norm(read), **CLOSE)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    model, batch = tiny(dropout=0.5), pad_histories(HISTORIES, 10)
    expected = model.sequence_states(*batch)
    torch.testing.assert_close(model.sequence_states(*batch), expected, rtol=0, atol=0)
    torch.testing.assert_close(tiny(dropout=0.0).train().sequence_states(*batch), expected, **CLOSE)
    assert not torch.allclose(model.train().sequence_states(*batch), expected, atol=1e-2)
