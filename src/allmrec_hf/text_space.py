"""The space in which item texts are compared: unit vectors, centred and partly whitened.

All texts of a catalogue are alike in a mean and in a few directions, such as what kind of catalogue it is, so that the
cosines of their embeddings hardly tell items apart. Less the mean, and with each direction of the rest divided by a
power of its variance, they do (whitening; partly, because the whole of it makes noise as loud as anything else: Zhang
et al., ICDE 2024, arXiv 2402.10602).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_AT_ONCE = 8192
SMALLEST_VARIANCE = 0.1  # of the mean variance of a direction: what texts hardly differ in is not made larger


def text_vectors(text_encoder: Any, texts: Sequence[str], **options: Any) -> Tensor:
    """Return what a text encoder makes of texts, `(K, d_text)`; zeros for an empty text, which is like no other.

    Args:
        text_encoder: A `SentenceTransformer`.
        texts: K texts.
        **options: Of its `encode`.
    """
    found: Tensor = text_encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False, **options)
    empty = [row for row, text in enumerate(texts) if not text]
    return found.index_fill(0, torch.tensor(empty, device=found.device), 0.0) if empty else found


class TextSpace(nn.Module):
    """Bring text embeddings into the space in which they are compared; the identity until it is fitted.

    Buffers: `mean (d_text,)`, which is taken off unit vectors, and `whitening (d_text, d_text)`, which they are then
    multiplied by.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(text_dim))
        self.register_buffer("whitening", torch.eye(text_dim))

    @torch.no_grad()
    def fit(self, text_embeddings: Tensor, power: float, counted: Tensor | None = None) -> None:
        """Take mean and variances from items.

        Args:
            text_embeddings: `(K, d_text)`; one without a text, zeros, does not count.
            power: 0 to 0.5: of its variance, by which each direction is divided; 0 centres alone, 0.5 whitens.
            counted: `(K,)` True for items that count; None for all.
        """
        text_dim = len(self.mean)
        total, count = torch.zeros(text_dim, dtype=torch.float64), 0
        for vectors in _unit_vectors(text_embeddings, counted):
            total, count = total + vectors.sum(dim=0), count + len(vectors)
        mean = total / max(count, 1)
        products = torch.zeros(text_dim, text_dim, dtype=torch.float64)
        for vectors in _unit_vectors(text_embeddings, counted):
            products += (vectors - mean).T @ (vectors - mean)
        variances, directions = torch.linalg.eigh(products / max(count, 1))
        variances = variances.clamp(min=0) + SMALLEST_VARIANCE * variances.mean().clamp(min=1e-12)
        device = self.mean.device
        self.mean = mean.float().to(device)
        self.whitening = ((directions * variances.pow(-power)) @ directions.T).float().to(device)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        """Return directions of length 1 for `(K, d_text)` embeddings; zeros, an item without a text, stay zeros."""
        vectors = F.normalize(text_embeddings.float(), dim=-1)
        there = vectors.any(dim=-1, keepdim=True)
        return F.normalize((vectors - self.mean.float()) @ self.whitening.float(), dim=-1) * there


def _unit_vectors(text_embeddings: Tensor, counted: Tensor | None) -> Iterator[Tensor]:
    """Yield the texts that count as float64 unit vectors, some at once, on the CPU: not every device has float64."""
    for start in range(0, len(text_embeddings), ROWS_AT_ONCE):
        rows = text_embeddings[start : start + ROWS_AT_ONCE]
        there = rows.any(dim=1)
        if counted is not None:
            there = there & counted[start : start + ROWS_AT_ONCE].to(rows.device)
        yield F.normalize(rows[there].cpu().double(), dim=1)
