"""Fit weights of scores so that the softmax over a user's candidates gives the target, and tell how well they do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FOLDS = 5
PENALTY = 1e-3


def fitted_weights(features: Tensor, columns: Tensor, user_weights: Tensor | None = None) -> Tensor:
    """Return the weights `(F,)` of the best softmax over candidates, by L-BFGS on a convex loss.

    Args:
        features: `(B, C, F)`.
        columns: `(B,)` places of the targets.
        user_weights: `(B,)` how much each user counts; all alike where not given.
    """
    weights = torch.zeros(features.shape[-1], dtype=torch.float64, requires_grad=True)
    rows = features.double()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _mean_loss(rows @ weights, columns, user_weights) + PENALTY * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weights.detach()


def held_out_logits(
    features: Tensor, columns: Tensor, seed: int, shown: Tensor | None = None, user_weights: Tensor | None = None
) -> Tensor:
    """Return `(B, C')` logits of each fold of users under the weights of the others.

    Args:
        features: `(B, C, F)`, on which the weights are fitted.
        columns: `(B,)` places of the targets.
        seed: Of the folds.
        shown: `(B, C', F)` what is weighed; the features themselves where not given.
        user_weights: See `fitted_weights`.
    """
    shown = features if shown is None else shown
    folds = np.random.default_rng(seed).permutation(len(columns)) % FOLDS
    logits = torch.zeros(shown.shape[:2], dtype=torch.float64)
    for fold in range(min(FOLDS, len(columns))):
        inside = torch.from_numpy(folds != fold)
        if inside.any() and not inside.all():
            own = None if user_weights is None else user_weights[inside]
            logits[~inside] = shown[~inside].double() @ fitted_weights(features[inside], columns[inside], own)
    return logits


def held_out_loss(features: Tensor, columns: Tensor, seed: int, user_weights: Tensor | None = None) -> float:
    """Return the mean loss of users whose weights the others have given."""
    logits = held_out_logits(features, columns, seed, user_weights=user_weights)
    return _mean_loss(logits, columns, user_weights).item()


def _mean_loss(logits: Tensor, columns: Tensor, user_weights: Tensor | None) -> Tensor:
    if user_weights is None:
        return F.cross_entropy(logits, columns)
    return (F.cross_entropy(logits, columns, reduction="none") * user_weights).sum() / user_weights.sum()
