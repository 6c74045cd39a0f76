"""The networks of stage 2: project user representations and joint embeddings into the LLM's token space."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from .errors import ALLMRecError

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

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the input vector."""
        return cast(nn.Linear, self.layers[0])

    @property
    def last(self) -> nn.Linear:
        """The layer that writes the LLM's vector."""
        return cast(nn.Linear, self.layers[3])

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(..., input_dim)` to `(..., d_llm)`."""
        return self.layers(vectors)


class LinearProjector(nn.Module):
    """One linear layer: an ablation of the paper's two with what is between them.

    Args:
        input_dim: As for `Projector`.
        llm_dim: d_llm.
    """

    def __init__(self, input_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_dim, llm_dim)

    @property
    def first(self) -> nn.Linear:
        """The only layer."""
        return self.layer

    @property
    def last(self) -> nn.Linear:
        """The only layer."""
        return self.layer

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(..., input_dim)` to `(..., d_llm)`."""
        return self.layer(vectors)


class Resampler(nn.Module):
    """Learned queries that attend to one vector, pooled into one token of the LLM: a small attention resampler.

    A prompt has one slot for each vector, and attention over a single key would be constant. So the vector is spread
    into K tokens, K learned queries attend to them with one head, and the mean of what they found, after a feed-forward
    layer, is projected.

    Args:
        input_dim: As for `Projector`.
        llm_dim: d_llm.
        num_tokens: K, both learned queries and tokens that they attend to.
    """

    MAX_WIDTH = 512  # of queries and tokens; square layers as wide as a large LLM would dwarf the paper's projector

    def __init__(self, input_dim: int, llm_dim: int, num_tokens: int) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ALLMRecError(f"the resampler needs at least one learned query (projector_tokens), got {num_tokens}")
        width = min(llm_dim, self.MAX_WIDTH)
        self.spread = nn.Linear(input_dim, num_tokens * width)
        self.token_norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(num_tokens, width))
        self.keys_and_values = nn.Linear(width, 2 * width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.pooled_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, llm_dim)

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the input vector."""
        return self.spread

    @property
    def last(self) -> nn.Linear:
        """The layer that writes the LLM's vector."""
        return self.output

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(..., input_dim)` to `(..., d_llm)`."""
        tokens = self.token_norm(self.spread(vectors).unflatten(-1, self.queries.shape))  # (..., K, width)
        keys, values = self.keys_and_values(tokens).chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(self.queries.expand_as(keys), keys, values)  # (..., K, width)
        found = found + self.feed_forward(found)
        return self.output(self.pooled_norm(found.mean(dim=-2)))


AnyProjector = Projector | LinearProjector | Resampler


def build_projector(kind: str, input_dim: int, llm_dim: int, activation: str, num_tokens: int) -> AnyProjector:
    """Return a fresh projector.

    Args:
        kind: `"mlp"`, `"linear"` or `"resampler"`, see `ALLMRecConfig.projector`.
        input_dim: d_cf or d_joint.
        llm_dim: d_llm.
        activation: Of the MLP, see `Projector`.
        num_tokens: Of the resampler, see `Resampler`.

    Raises:
        ALLMRecError: when the kind is unknown.
    """
    if kind == "mlp":
        return Projector(input_dim, llm_dim, activation)
    if kind == "linear":
        return LinearProjector(input_dim, llm_dim)
    if kind == "resampler":
        return Resampler(input_dim, llm_dim, num_tokens)
    raise ALLMRecError(f"unknown projector {kind!r}; known are mlp, linear, resampler")
