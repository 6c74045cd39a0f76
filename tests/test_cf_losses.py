import json
import math
import subprocess
import sys

import pytest
import torch

import allmrec_hf.cf_losses as cf_losses
from allmrec_hf.cf_losses import (
    binary_cross_entropy,
    bpr_loss,
    full_cross_entropy,
    gbce_exponent,
    sampled_cross_entropy,
)

MEMORY = """
import json, resource, torch
from allmrec_hf.cf_losses import full_cross_entropy
torch.manual_seed(0)
table = torch.randn(60_001, 64, requires_grad=True)
states = torch.randn(128 * 50, 64, requires_grad=True)
full_cross_entropy(states, table, torch.randint(1, 60_001, (128 * 50,))).backward()
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, bool(table.grad.isfinite().all())]))
"""


def logistic(score):
    return 1 / (1 + math.exp(-score))


def test_cross_entropy_of_three_items_equals_the_value_by_hand():
    table = torch.tensor([[0.0], [0.0], [math.log(2)], [math.log(5)]])  # row 0 is padding and takes no part
    loss = full_cross_entropy(torch.ones(2, 1), table, torch.tensor([3, 1]))
    assert loss.item() == pytest.approx((math.log(8 / 5) + math.log(8)) / 2, rel=1e-6)


def test_cross_entropy_of_equal_logits_is_log_n():
    assert full_cross_entropy(torch.zeros(4, 3), torch.randn(8, 3), torch.tensor([1, 2, 3, 7])).item() == pytest.approx(
        math.log(7), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # worked out in the forward pass, and by autograd
def test_cross_entropy_in_slices_equals_cross_entropy_at_once(monkeypatch, dtype):
    torch.manual_seed(0)
    states, table = torch.randn(600, 6, dtype=dtype), torch.randn(31, 6, dtype=dtype) * 3
    targets = torch.randint(1, 31, (600,))
    leaf, weight = states.clone().requires_grad_(), table.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf @ weight[1:].T, targets - 1)
    (2 * expected).backward()
    for limit in (2**26, 31 * 7):
        monkeypatch.setattr(cf_losses, "MAX_VALUES", limit)
        monkeypatch.setattr(cf_losses, "CACHED_VALUES", limit)
        sliced, rows = states.clone().requires_grad_(), table.clone().requires_grad_()
        loss = full_cross_entropy(sliced, rows, targets)
        (2 * loss).backward()
        torch.testing.assert_close(loss, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sliced.grad, leaf.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(rows.grad, weight.grad, rtol=1e-4, atol=1e-7)
        assert not rows.grad[0].any()


def test_cross_entropy_of_logits_in_the_thousands_is_finite():
    states, table = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[0.0], [1.0], [2.0]])
    loss = full_cross_entropy(states, table, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 1000.0
    assert states.grad.item() == 1.0  # the table's second row minus its first


def test_cross_entropy_without_targets_is_zero_and_differentiable():
    states = torch.zeros(0, 4, requires_grad=True)
    loss = full_cross_entropy(states, torch.randn(5, 4), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0


def test_cross_entropy_of_60_000_items_and_a_batch_of_128_stays_under_3_gib():
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    gib, finite = json.loads(result.stdout)
    assert finite
    assert gib < 3


def test_sampled_softmax_of_three_items_equals_the_value_by_hand():
    table = torch.tensor([[0.0], [math.log(2)], [math.log(3)], [math.log(5)]])
    weights = torch.tensor([math.log(4), math.log(0.5)])
    loss = sampled_cross_entropy(torch.ones(1, 1), table, torch.tensor([1]), torch.tensor([2, 3]), weights)
    assert loss.item() == pytest.approx(math.log((2 + 4 * 3 + 0.5 * 5) / 2), rel=1e-6)


def test_sampled_softmax_over_every_item_once_is_the_cross_entropy_of_the_catalogue():
    torch.manual_seed(0)
    states, table, targets = torch.randn(9, 6), torch.randn(31, 6), torch.randint(1, 31, (9,))
    everything = torch.arange(1, 31)
    sampled = sampled_cross_entropy(states, table, targets, everything, torch.zeros(30))
    torch.testing.assert_close(sampled, full_cross_entropy(states, table, targets))


def test_the_log_q_correction_makes_the_sampled_denominator_unbiased():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 4, generator=generator)
    state, target = torch.randn(1, 4, generator=generator), torch.tensor([2])
    shares = torch.tensor([0.0, 0.4, 0.1, 0.2, 0.1, 0.1, 0.06, 0.04])  # popular items are drawn more often
    denominators = []
    for _ in range(4000):
        counts = torch.bincount(torch.multinomial(shares, 5, replacement=True, generator=generator), minlength=8)
        items = counts.nonzero().flatten()
        weights = (counts[items] / (5 * shares[items])).log()
        loss = sampled_cross_entropy(state, table, target, items, weights)
        denominators.append((loss + state[0] @ table[2]).exp())
    whole = (state @ table[1:].T).exp().sum().item()
    estimate = torch.stack(denominators)
    error = estimate.std().item() / math.sqrt(len(estimate))
    assert abs(estimate.mean().item() - whole) < 4 * error
    assert error < 0.05 * whole  # the test could see a bias


def test_sampled_softmax_in_slices_equals_sampled_softmax_at_once(monkeypatch):
    torch.manual_seed(0)
    states, table, targets = torch.randn(600, 6), torch.randn(31, 6), torch.randint(1, 31, (600,))
    negatives, weights = torch.tensor([3, 7, 9, 30]), torch.randn(4)
    results = []
    for limit in (2**26, 31 * 7):
        monkeypatch.setattr(cf_losses, "MAX_VALUES", limit)
        weight = table.clone().requires_grad_()
        loss = sampled_cross_entropy(states, weight, targets, negatives, weights)
        loss.backward()
        results.append((loss.detach(), weight.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_bce_with_two_negatives_equals_the_value_by_hand():
    loss = binary_cross_entropy(torch.tensor([2.0]), torch.tensor([[-1.0, 0.5]]))
    expected = -math.log(logistic(2)) - math.log(1 - logistic(-1)) - math.log(1 - logistic(0.5))
    assert loss.tolist() == pytest.approx([expected], rel=1e-6)


def test_gbce_equals_the_value_by_hand():
    exponent = gbce_exponent(2, 11, 0.75)  # a fifth of the other items are sampled: 0.2 (0.75 (1 - 5) + 5) = 0.4
    assert exponent == pytest.approx(0.4)
    loss = binary_cross_entropy(torch.tensor([2.0]), torch.tensor([[-1.0, 0.5]]), exponent)
    expected = -0.4 * math.log(logistic(2)) - math.log(1 - logistic(-1)) - math.log(1 - logistic(0.5))
    assert loss.tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize(("calibration", "exponent"), [(0.0, 1.0), (1.0, 0.2)])
def test_gbce_goes_from_plain_bce_to_the_sampling_rate(calibration, exponent):
    assert gbce_exponent(2, 11, calibration) == pytest.approx(exponent)


def test_bpr_of_equal_scores_is_log_two():
    losses = bpr_loss(torch.zeros(3), torch.zeros(3, 4))
    torch.testing.assert_close(losses, torch.full((3,), math.log(2)))


def test_bpr_equals_the_value_by_hand():
    loss = bpr_loss(torch.tensor([2.0]), torch.tensor([[1.0, 2.5]]))
    assert loss.tolist() == pytest.approx([-(math.log(logistic(1)) + math.log(logistic(-0.5))) / 2], rel=1e-6)


def test_bpr_gradient_pushes_target_and_negative_apart():
    positive, negative = torch.zeros(1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    bpr_loss(positive, negative).sum().backward()
    assert (positive.grad.item(), negative.grad.item()) == (-0.5, 0.5)
