"""The training losses of stages 1 and 2, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .outputs import AlignerOutput


def matching_loss(item_joint: torch.Tensor, text_joint: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of `e_i` and `q_i`, both `(B, d_joint)` (eq. 2, arXiv 2404.11343)."""
    return F.mse_loss(item_joint, text_joint)


class Contrast(NamedTuple):
    """The inputs of InfoNCE besides the vectors.

    Attributes:
        positive_items: `(B,)` catalogue indices of the targets.
        negative_items: `(B,)` the same of the negatives.
        temperature: Of the softmax over the batch; a tensor where it is trained.
    """

    positive_items: torch.Tensor
    negative_items: torch.Tensor
    temperature: float | torch.Tensor


def symmetric_info_nce(
    left: torch.Tensor, right: torch.Tensor, temperature: float | torch.Tensor, same: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean InfoNCE of two views of a batch, both `(B, d)`, in both directions: each row finds its partner.

    Args:
        left: One view of each of B things.
        right: The other, in the same order.
        temperature: Divides the cosines.
        same: `(B, B)` True where two rows are the same thing, so that neither is a negative of the other.

    Example:
        >>> vectors = torch.eye(2)
        >>> round(float(symmetric_info_nce(vectors, vectors, temperature=1.0)), 4)  # log(1 + 1 / e)
        0.3133
    """
    logits = F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T / temperature  # (B, B)
    if same is not None:
        logits = logits.masked_fill(same, float("-inf"))
    partners = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def contrastive_loss(
    item_joint: torch.Tensor, text_joint: torch.Tensor, items: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """Return the symmetric InfoNCE of `e_i` and `q_i`, both `(B, d_joint)`: each is to find the other in its batch.

    Not in the paper. Components of joint embeddings are sigmoids, so cosines are taken around their centre, 1/2. An
    item that occurs twice in a batch is no negative of itself.

    Args:
        item_joint: `e_i`.
        text_joint: `q_i`.
        items: `(B,)` catalogue indices.
        temperature: Of the softmax.
    """
    same = (items.unsqueeze(0) == items.unsqueeze(1)).fill_diagonal_(False)
    return symmetric_info_nce(item_joint - 0.5, text_joint - 0.5, temperature, same)


def reconstruction_loss(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return the mean squared reconstruction error (eq. 3 and 4); the original is a constant, not a thing to train."""
    return F.mse_loss(reconstruction, original.detach())


Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def dot_product(user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Return the dot product of users and items, both `(B, d_cf)`."""
    return (user * item).sum(dim=-1)


def recommendation_loss(
    user: torch.Tensor, item: torch.Tensor, is_target: bool, score: Score = dot_product
) -> torch.Tensor:
    """Return the binary cross entropy of users `(B, d_cf)` with decoded items `(B, d_cf)` (eq. 5).

    The logit is the backbone's score divided by d_cf, as in the authors' program, which takes the MEAN of the
    elementwise product; the score itself would be d_cf times steeper.
    """
    logits = score(user, item) / user.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_target)))


def alignment_losses(
    user: torch.Tensor,
    positive: AlignerOutput,
    negative: AlignerOutput,
    positive_embeddings: tuple[torch.Tensor, torch.Tensor],
    negative_embeddings: tuple[torch.Tensor, torch.Tensor],
    alpha: float,
    beta: float,
    score: Score = dot_product,
    matching: float = 1.0,
    recommendation: float = 1.0,
    contrast: Contrast | None = None,
) -> dict[str, torch.Tensor]:
    """Return every term of the stage 1 loss and their weighted sum `loss` (eq. 6, arXiv 2404.11343).

    Args:
        user: `(B, d_cf)` user representations.
        positive: The aligner's output for each user's target item.
        negative: The aligner's output for one sampled item of each user.
        positive_embeddings: What the targets' reconstructions aim at: CF `(B, d_cf)` and text `(B, d_text)` embeddings.
        negative_embeddings: The same for the negatives.
        alpha: Weight of the item reconstruction.
        beta: Weight of the text reconstruction.
        score: How the backbone scores item vectors for users; by dot product for most.
        matching: Weight of the matching; 1 in the paper, as the next.
        recommendation: Weight of the recommendation loss.
        contrast: Match by InfoNCE; by the mean squared distance (the paper) where not given.
    """
    terms: dict[str, torch.Tensor] = {}
    total = user.new_zeros(())
    for name, output, (cf, text) in (
        ("positive", positive, positive_embeddings),
        ("negative", negative, negative_embeddings),
    ):
        if contrast is None:
            terms[f"matching_{name}"] = matching_loss(output.item_joint, output.text_joint)
        else:
            items = contrast.positive_items if name == "positive" else contrast.negative_items
            terms[f"matching_{name}"] = contrastive_loss(
                output.item_joint, output.text_joint, items, contrast.temperature
            )
        terms[f"item_reconstruction_{name}"] = reconstruction_loss(output.item_reconstruction, cf)
        terms[f"text_reconstruction_{name}"] = reconstruction_loss(output.text_reconstruction, text)
        terms[f"recommendation_{name}"] = recommendation_loss(
            user, output.item_reconstruction, name == "positive", score
        )
        total = total + matching * terms[f"matching_{name}"] + recommendation * terms[f"recommendation_{name}"]
        total = total + alpha * terms[f"item_reconstruction_{name}"] + beta * terms[f"text_reconstruction_{name}"]
    terms["loss"] = total
    return terms


def listwise_loss(scores: torch.Tensor, target_positions: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the softmax cross entropy of the target among its candidates; `scores` `(B, C)`, positions `(B,)`.

    Not in the paper. Scores should be length-normalised log-likelihoods: raw sums spread so widely that the softmax
    starts far above log C.
    """
    return F.cross_entropy(scores / temperature, target_positions)


def catalogue_contrast(
    users: torch.Tensor,
    items: torch.Tensor,
    target_columns: torch.Tensor,
    log_rates: torch.Tensor,
    seen: torch.Tensor,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return the softmax cross entropy of each user's target among the items of a batch.

    What was drawn more often than others would count as a negative more often: the logarithm of its expected times in
    a batch is taken off its logit (logQ correction, Yi et al., RecSys 2019), so that the softmax is that of the whole
    catalogue.

    Args:
        users: `(B, d)`, with the temperature in their length.
        items: `(M, d)`, targets and drawn negatives, each once.
        target_columns: `(B,)` places of the targets among the items.
        log_rates: `(M,)` logarithms of the expected times in a batch; zeros where all items of the catalogue stand.
        seen: `(B, M)` True where an item is no negative of the user.
        chunk: Items whose logits are held at once; all where not given.
    """
    own = torch.arange(len(users), device=users.device)
    target = (users * items[target_columns]).sum(dim=-1) - log_rates[target_columns]
    steps = range(0, len(items), chunk or len(items))
    sums = []
    for start in steps:
        stop = start + (chunk or len(items))
        logits = users @ items[start:stop].T - log_rates[start:stop]
        blocked = seen[:, start:stop].clone()
        inside = (target_columns >= start) & (target_columns < stop)
        blocked[own[inside], target_columns[inside] - start] = False
        sums.append(logits.masked_fill(blocked, float("-inf")).logsumexp(dim=-1))
    return (torch.stack(sums).logsumexp(dim=0) - target).mean()


def uniformity_loss(vectors: torch.Tensor) -> torch.Tensor:
    """Return how far unit vectors `(B, d)` are from spread out evenly (Wang and Isola, ICML 2020); 0 at worst."""
    if len(vectors) < 2:
        return vectors.sum() * 0
    return torch.pdist(vectors).pow(2).mul(-2).exp().mean().log()
