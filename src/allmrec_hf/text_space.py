"""The space in which item texts are compared: unit vectors, centred and partly whitened.

All texts of a catalogue are alike in a mean and in a few directions, such as what kind of catalogue it is, so that the
cosines of their embeddings hardly tell items apart. Less the mean, and with each direction of the rest divided by a
power of its variance, they do (whitening; partly, because the whole of it makes noise as loud as anything else: Zhang
et al., ICDE 2024, arXiv 2402.10602).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_VARIANCE = 0.1  # of the mean variance of a direction: what texts hardly differ in is not made larger


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
    def fit(self, text_embeddings: Tensor, power: float) -> None:
        """Take mean and variances from items.

        Args:
            text_embeddings: `(K, d_text)` of the items that count; one without a text, zeros, does not.
            power: 0 to 0.5: of its variance, by which each direction is divided; 0 centres alone, 0.5 whitens.
        """
        vectors = text_embeddings[text_embeddings.any(dim=1)]
        vectors = F.normalize(vectors.cpu().double(), dim=1)  # not every device has float64
        mean = vectors.mean(dim=0) if len(vectors) else torch.zeros(self.mean.shape, dtype=torch.float64)
        centred = vectors - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(vectors), 1))
        variances = variances.clamp(min=0) + SMALLEST_VARIANCE * variances.mean().clamp(min=1e-12)
        device = self.mean.device
        self.mean = mean.float().to(device)
        self.whitening = ((directions * variances.pow(-power)) @ directions.T).float().to(device)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        """Return directions of length 1 for `(K, d_text)` embeddings; zeros, an item without a text, stay zeros."""
        vectors = F.normalize(text_embeddings.float(), dim=-1)
        there = vectors.any(dim=-1, keepdim=True)
        return F.normalize((vectors - self.mean.float()) @ self.whitening.float(), dim=-1) * there
