import math

import pytest
import torch
import torch.nn.functional as F

from allmrec_hf.cf_hstu import HSTUConfig, HSTUModel
from allmrec_hf.errors import ALLMRecError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "num_heads": 2, "max_history_length": 10, "initializer_range": 0.3}
    return HSTUModel(HSTUConfig(**{**values, **changes})).eval()


@torch.no_grad()
def test_one_block_at_the_last_position_is_the_paper_s_formula():
    model = tiny(num_layers=1, max_history_length=5)
    layer, history, norm = model.layers[0], torch.tensor([4, 7, 1]), F.layer_norm
    states = model.item_embedding.weight[history] * 4 + model.position_embedding.weight[-3:]
    normalised = norm(states, (16,), eps=1e-6)
    gate, query = (F.silu(part(normalised[-1])) for part in (layer.gate, layer.query))
    keys, values = (F.silu(part(normalised)) for part in (layer.key, layer.value))
    gathered = []
    for head in range(2):
        own = slice(head * 8, head * 8 + 8)
        bias = torch.stack([layer.distance_bias.weight[2 - place, head] for place in range(3)])
        gathered.append(F.silu(keys[:, own] @ query[own] + bias) @ values[:, own] / 3)
    added = layer.output(norm(torch.cat(gathered), (16,), eps=1e-6) * gate)
    expected = norm(states[-1] + added, (16,), eps=1e-6)
    torch.testing.assert_close(model.encode_users(history.unsqueeze(0))[0], expected, **CLOSE)


@torch.no_grad()
def test_the_intensity_of_a_history_counts_as_no_softmax_takes_it_away():
    model = tiny(num_layers=1)
    layer, states = model.layers[0], torch.randn(1, 3, 16)
    shares, distances = torch.full((1, 1, 1, 3), 1 / 3), torch.tensor([[2, 1, 0]])
    layer.attended_norm = torch.nn.Identity()
    layer.distance_bias.weight.fill_(5.0)
    strong = layer(states, shares, distances) - states[:, -1:]
    layer.distance_bias.weight.fill_(-20.0)  # SiLU of it is next to 0: nothing is gathered
    weak = layer(states, shares, distances) - states[:, -1:] - layer.output.bias
    assert weak.abs().max() < 1e-3 * strong.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide hidden_size 16 \(d_cf\), got 3"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"dropout": math.nan}, "dropout must be a share of 0 or more and below 1, got nan"),
        ({"layer_norm_eps": -1.0}, r"layer_norm_eps must be above 0, got -1\.0"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        HSTUConfig(**{"hidden_size": 16, "num_items": 3, **changes})
