"""The training losses of backbones, as functions of tensors: over the whole catalogue, sampled, and pairwise."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

MAX_VALUES = 2**26  # numbers that a loss keeps for its backward pass: 256 MB in float32
CACHED_VALUES = 2**20  # numbers that stay in a CPU's cache


def full_cross_entropy(states: Tensor, item_embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of targets among all N items.

    Args:
        states: `(P, d_cf)` one state for each position.
        item_embeddings: `(N + 1, d_cf)`; row 0 is padding and no candidate.
        targets: `(P,)` catalogue indices.

    Returns:
        A scalar; 0 where there is no position. Memory is bounded, see `summed_over_positions`: 6,400 positions and
        60,000 items stay under 3 GiB.
    """
    table = item_embeddings[1:]  # (N, d_cf), without padding
    plain = states.device.type == "cpu" and states.dtype == table.dtype == torch.float32
    if plain and torch.is_grad_enabled() and len(targets) and not torch.is_autocast_enabled("cpu"):
        return _CrossEntropyOnCPU.apply(states, table, targets - 1) / len(targets)
    total = summed_over_positions(
        lambda part, part_targets: F.cross_entropy((part @ table.T).float(), part_targets - 1, reduction="sum"),
        (states, targets),
        values_per_position=len(table),
    )
    return total / max(len(targets), 1)


class _CrossEntropyOnCPU(torch.autograd.Function):
    """The sum of the cross entropy of targets among all items, with the gradients worked out in the forward pass.

    The softmax of a slice of positions is used for loss and gradients while it is in the cache: nothing of `(P, N)`
    is kept, and no exponential is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar for states `(P, d_cf)`, table `(N, d_cf)` and targets `(P,)`, rows of the table."""
        total = states.new_zeros(())
        of_states = torch.empty_like(states)
        of_table = torch.zeros_like(table)
        size = max(32, CACHED_VALUES // len(table))
        for start in range(0, len(states), size):
            part, rows = states[start : start + size], targets[start : start + size].unsqueeze(1)
            logits = part @ table.T  # (p, N)
            highest = logits.amax(dim=1, keepdim=True)
            own = logits.gather(1, rows) - highest
            shares = logits.sub_(highest).exp_()
            sums = shares.sum(dim=1, keepdim=True)
            total += (sums.log() - own).sum()
            of_states[start : start + size] = (shares @ table) / sums
            of_table.addmm_(shares.T, part / sums)
        ctx.save_for_backward(of_states - table[targets], of_table.index_add_(0, targets, states, alpha=-1))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of states and table."""
        of_states, of_table = ctx.saved_tensors
        return of_states * gradients[0], of_table * gradients[0], None


def sampled_cross_entropy(
    states: Tensor, item_embeddings: Tensor, targets: Tensor, negatives: Tensor, log_weights: Tensor
) -> Tensor:
    """Return the mean cross entropy of targets against negatives that all positions share (sampled softmax).

    The denominator is the target's own term plus `exp(score + log_weight)` of every other negative. With
    `log_weight = log c - log E[c]` of an item that was drawn c times it is an unbiased estimate of the denominator
    over the whole catalogue (Bengio and Senecal 2008; logQ correction: Yi et al., RecSys 2019).

    Args:
        states: `(P, d_cf)` one state for each position.
        item_embeddings: `(N + 1, d_cf)`.
        targets: `(P,)` catalogue indices.
        negatives: `(S,)` different catalogue indices; one that is a position's target does not count there twice.
        log_weights: `(S,)` the correction of each negative.

    Returns:
        A scalar; 0 where there is no position.
    """
    table = item_embeddings[negatives]  # (S, d_cf)
    own = (states * item_embeddings[targets]).sum(-1, keepdim=True)  # (P, 1)

    def summed(part: Tensor, part_own: Tensor, part_targets: Tensor) -> Tensor:
        others = part @ table.T + log_weights  # (P, S)
        others = others.masked_fill(negatives == part_targets.unsqueeze(1), float("-inf"))
        logits = torch.cat([part_own, others], dim=1).float()
        return (logits.logsumexp(dim=1) - logits[:, 0]).sum()

    return summed_over_positions(summed, (states, own, targets), len(table)) / max(len(targets), 1)


def binary_cross_entropy(positive: Tensor, negative: Tensor, exponent: float = 1.0) -> Tensor:
    """Return `-log sigmoid(positive)^exponent - sum_k log(1 - sigmoid(negative_k))` of each position, `(P,)`.

    With exponent 1 and one negative this is the loss of SASRec (Kang and McAuley, ICDM 2018); another exponent makes
    it gBCE (Petrov and Macdonald, RecSys 2023), without their constant factor 1 / (K + 1).

    Args:
        positive: `(P,)` scores of the targets.
        negative: `(P, K)` scores of K sampled items of each position.
        exponent: See `gbce_exponent`.
    """
    return exponent * F.softplus(-positive.float()) + F.softplus(negative.float()).sum(-1)


def gbce_exponent(num_negatives: int, num_items: int, calibration: float) -> float:
    """Return gBCE's exponent beta (Petrov and Macdonald, RecSys 2023, eq. 20).

    Args:
        num_negatives: K.
        num_items: N.
        calibration: Their t: 0 is plain BCE, 1 removes the overconfidence that sampling brings.

    Example:
        >>> gbce_exponent(1, 101, 0.0), gbce_exponent(1, 101, 1.0)
        (1.0, 0.01)
    """
    rate = num_negatives / max(num_items - 1, num_negatives)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean over k of `-log sigmoid(positive - negative_k)` of each position, `(P,)` (Rendle et al., 2009).

    Args:
        positive: `(P,)` scores of the targets.
        negative: `(P, K)` scores of K sampled items of each position.
    """
    return F.softplus(negative.float() - positive.float().unsqueeze(-1)).mean(-1)


def summed_over_positions(
    summed: Callable[..., Tensor], inputs: tuple[Tensor, ...], values_per_position: int
) -> Tensor:
    """Return the sum of `summed(*slice of inputs)` over slices of positions, in bounded memory.

    On a CPU a slice's values fit the cache, which more than halves the time. Where all values together would not fit
    `MAX_VALUES`, those of a slice are computed again in the backward pass; the result is the same.

    Args:
        summed: Returns a scalar sum over the positions it is given.
        inputs: Tensors `(P, ...)`, cut alike.
        values_per_position: How many numbers `summed` makes of one position.
    """
    positions, values = len(inputs[0]), max(values_per_position, 1)
    if not positions:
        return inputs[0].sum() * 0.0
    on_cpu = inputs[0].device.type == "cpu"
    size = max(256, CACHED_VALUES // values) if on_cpu else max(1, MAX_VALUES // values)
    keep = positions * values <= MAX_VALUES
    total = torch.zeros((), dtype=torch.float32, device=inputs[0].device)
    for part in zip(*(tensor.split(size) for tensor in inputs), strict=True):
        total = total + (summed(*part) if keep else checkpoint(summed, *part, use_reentrant=False))
    return total
