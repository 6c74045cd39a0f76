import math

import pytest
import torch
from transformers import AutoModel

import allmrec_hf.cf_ligr as cf_ligr
from allmrec_hf.cf_ligr import LiGRConfig, LiGRModel
from allmrec_hf.errors import ALLMRecError
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_batch_equals_one_by_one_whatever_the_padding(attention):
    model = tiny(attn_implementation=attention)
    together = model.sequence_states(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        alone = model.sequence_states(*pad_histories([history], 10))[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, **CLOSE)
        assert not together[row, : 10 - len(history)].any()


@torch.no_grad()
def test_the_order_of_a_batch_does_not_change_a_state():
    model, order = tiny(), [3, 0, 4, 2, 1]
    item_ids, mask = pad_histories(HISTORIES, 10)
    expected = model.sequence_states(item_ids, mask)[order]
    torch.testing.assert_close(model.sequence_states(item_ids[order], mask[order]), expected, **CLOSE)


@torch.no_grad()
def test_what_stands_behind_the_mask_does_not_change_a_state():
    model = tiny()
    item_ids, mask = pad_histories(HISTORIES, 10)
    dirty = item_ids.masked_fill(~mask, 11)
    torch.testing.assert_close(model.sequence_states(dirty, mask), model.sequence_states(item_ids), **CLOSE)
    torch.testing.assert_close(model.encode_users(dirty, mask), model.encode_users(item_ids), **CLOSE)


@torch.no_grad()
def test_eager_attention_equals_sdpa():
    models = [tiny(attn_implementation=name) for name in ("sdpa", "eager")]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(*(model.sequence_states(*batch) for model in models), **CLOSE)


def test_a_state_depends_on_all_earlier_items_and_on_no_later_one():
    model = tiny()
    item_ids = torch.tensor([[0, 1, 2, 3, 4, 5]])
    for place in range(1, 6):
        model.zero_grad()
        model.sequence_states(item_ids)[0, place].pow(3).sum().backward()  # a normalised state's plain sum is constant
        moved = model.item_embedding.weight.grad.abs().sum(-1)
        assert (moved[1 : place + 1] > 0).all()
        assert not moved[place + 1 :].any()
        assert not moved[0]


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"max_history_length": 3}])
@torch.no_grad()
def test_user_representation_is_the_last_state(changes):
    model = tiny(**changes)
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(model.encode_users(*batch), model.sequence_states(*batch)[:, -1], **CLOSE)


@torch.no_grad()
def test_an_empty_history_gives_a_zero_user_and_finite_scores():
    model = tiny()
    users = model.encode_users(torch.zeros(2, 4, dtype=torch.long))
    assert users.shape == (2, 16)
    assert not users.any()
    assert not model.score(users)[:, 1:].any()


@torch.no_grad()
def test_a_history_longer_than_the_model_is_cut_to_its_most_recent_items(monkeypatch):
    model, warnings = tiny(max_history_length=4), []
    monkeypatch.setattr(cf_ligr.logger, "warning_once", warnings.append)
    states = model.sequence_states(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 8]]))
    assert states.shape == (2, 6, 16)
    assert not states[:, :2].any()
    assert warnings == ["histories of up to 6 items are cut to the 4 most recent ones (max_history_length)"]
    expected = model.sequence_states(torch.tensor([[3, 4, 5, 6], [0, 0, 0, 8]]))
    torch.testing.assert_close(states[:, 2:], expected, **CLOSE)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    model, batch = tiny(dropout=0.5), pad_histories(HISTORIES, 10)
    expected = model.sequence_states(*batch)
    torch.testing.assert_close(model.sequence_states(*batch), expected, rtol=0, atol=0)
    torch.testing.assert_close(tiny(dropout=0.0).train().sequence_states(*batch), expected, **CLOSE)
    assert not torch.allclose(model.train().sequence_states(*batch), expected, atol=1e-2)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_training_lowers_the_loss_and_moves_every_parameter(loss):
    model = tiny(dropout=0.1, initializer_range=0.1, loss=loss).train()
    item_ids, mask = pad_histories([[1, 2, 3, 4], [5, 6], []], 10)
    targets = torch.tensor([[2, 3, 4, 7], [0, 0, 6, 8], [0, 0, 0, 0]])
    batch = {"item_ids": item_ids, "attention_mask": mask, "targets": targets, "negatives": targets + (targets > 0) * 4}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = model.training_loss(batch)
        value.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not model.item_embeddings[0].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_saved_model_loads_by_auto_model_with_equal_states(tmp_path, dtype, tolerance):
    model = tiny(feed_forward_multiplier=3, dropout=0.3)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert type(again) is LiGRModel
    for name in ("num_layers", "num_heads", "feed_forward_multiplier", "dropout", "layer_norm_eps"):
        assert getattr(again.config, name) == getattr(model.config, name)
    batch = pad_histories(HISTORIES, 10)
    states = again.sequence_states(*batch)
    assert states.dtype == again.encode_users(*batch).dtype == dtype
    torch.testing.assert_close(states.float(), model.sequence_states(*batch), rtol=tolerance, atol=tolerance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide hidden_size 16 \(d_cf\), got 3"),
        ({"num_heads": 0}, r"num_heads must divide hidden_size 16 \(d_cf\), got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"feed_forward_multiplier": 0}, "feed_forward_multiplier must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a share of 0 or more and below 1, got 1\.0"),
        ({"dropout": float("nan")}, "dropout must be a share .* got nan"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps must be above 0, got 0\.0"),
        ({"num_items": 0}, "num_items must be at least 1, got 0"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        LiGRConfig(**{"hidden_size": 16, "num_items": 3, **changes})


@pytest.mark.parametrize("name", ["num_heads", "dropout", "feed_forward_multiplier"])
def test_a_config_value_of_the_wrong_type_is_refused(name):
    with pytest.raises(Exception, match=name):
        LiGRConfig(**{"num_items": 3, name: "two"})
