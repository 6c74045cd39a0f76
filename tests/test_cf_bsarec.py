import math

import pytest
import torch
import torch.nn.functional as F

from allmrec_hf.cf_bsarec import BSARecConfig, BSARecModel, low_pass
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.histories import pad_histories

HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "num_heads": 2, "max_history_length": 10, "initializer_range": 0.3}
    return BSARecModel(BSARecConfig(**{**values, **changes})).eval()


def filtered_by_fft(states, period, width):
    """Return the published low-pass filter of the last `period` positions, zeros in front, at every position."""
    whole = torch.cat([states.new_zeros(period - len(states), states.shape[1]), states])
    spectrum = torch.fft.rfft(whole, dim=0)
    spectrum[width // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, n=period, dim=0)[-len(states) :]


@pytest.mark.parametrize(("period", "width"), [(10, 5), (9, 3), (10, 20), (7, 1), (2, 2)])
def test_the_filter_is_that_of_the_prefix_at_each_position(period, width):
    torch.manual_seed(0)
    states = torch.randn(period, 3)
    found = low_pass(period, period, width, states.device) @ states
    expected = [filtered_by_fft(states[: place + 1], period, width)[-1] for place in range(period)]
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


def test_the_published_filter_would_show_later_items_and_ours_does_not():
    states = torch.zeros(4, 1)
    states[3] = 1.0  # the item that position 2 has to name
    assert filtered_by_fft(states, 4, 2)[2].abs().item() == pytest.approx(0.25, abs=1e-6)  # (1 + 2 cos(pi / 2)) / 4
    assert (low_pass(4, 4, 2, states.device) @ states)[:3].abs().max() == 0


@torch.no_grad()
def test_one_block_at_the_last_position_is_the_paper_s_formula():
    model = tiny(num_layers=1, num_heads=1, filter_weight=0.3, filter_width=4)
    layer, history = model.layers[0], torch.tensor([4, 7, 1])
    norm = F.layer_norm
    start = norm(model.item_embedding.weight[history] + model.position_embedding.weight[-3:], (16,), eps=1e-12)
    low = filtered_by_fft(start, 10, 4)[-1]
    own = start[-1]
    filtered = norm(own + low + layer.filter.high_scale**2 * (own - low), (16,), eps=1e-12)
    attention = layer.attention
    shares = (attention.key(start) @ attention.query(own) / math.sqrt(16)).softmax(0)
    attended = norm(own + attention.output(shares @ attention.value(start)), (16,), eps=1e-12)
    mixed = 0.3 * filtered + 0.7 * attended
    expected = norm(mixed + layer.outer(F.gelu(layer.inner(mixed))), (16,), eps=1e-12)
    torch.testing.assert_close(model.encode_users(history.unsqueeze(0))[0], expected, **CLOSE)


@torch.no_grad()
def test_without_weight_of_the_filter_or_of_attention_that_part_changes_nothing():
    batch = pad_histories(HISTORIES, 10)
    for weight, name in ((1.0, "attention.value.weight"), (0.0, "filter.high_scale")):
        model = tiny(filter_weight=weight)
        expected = model.sequence_states(*batch)
        for layer in model.layers:
            layer.get_parameter(name).add_(1.0)
        torch.testing.assert_close(model.sequence_states(*batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide hidden_size 16 \(d_cf\), got 3"),
        ({"num_layers": 0}, r"num_layers must be at least 1, got 0"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be a share of 0 or more and below 1, got 1\.0"),
        ({"filter_weight": 1.5}, r"filter_weight must be a share from 0 to 1, got 1\.5"),
        ({"filter_weight": float("nan")}, "filter_weight must be a share from 0 to 1, got nan"),
        ({"filter_width": 0}, "filter_width must be at least 1, got 0"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps must be above 0, got 0\.0"),
    ],
)
def test_an_impossible_config_is_refused(changes, message):
    with pytest.raises(ALLMRecError, match=message):
        BSARecConfig(**{"hidden_size": 16, "num_items": 3, **changes})
