"""Stage 2's networks: projections of the user representation and of joint embeddings into the LLM's token space."""

from __future__ import annotations

import torch
from torch import nn

ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "gelu": nn.GELU}


class Projector(nn.Module):
    """Linear, LayerNorm, activation, Linear, into the width of the LLM's input embeddings (paper, section 4.2).

    Args:
        input_dim: d_cf for the user representation, d_joint for items.
        llm_dim: d_llm.
        activation: `"leaky_relu"` for users, `"gelu"` for items, as in the authors' program.
    """

    def __init__(self, input_dim: int, llm_dim: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, llm_dim), nn.LayerNorm(llm_dim), ACTIVATIONS[activation](), nn.Linear(llm_dim, llm_dim)
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(..., input_dim)` to `(..., d_llm)`."""
        return self.layers(vectors)
