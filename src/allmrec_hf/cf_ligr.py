"""LiGR: a transformer whose residual branches have learned gates (Borisyuk et al., arXiv 2502.03417).

As a sequential recommender: eSASRec (Tikhonovich et al., RecSys 2025, arXiv 2508.06450).
"""

import math
from typing import Any, ClassVar

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import CausalAttention, SequentialEncoder, causal_bias


@strict
class LiGRConfig(CFEncoderConfig):
    """Describe a LiGR backbone, `model_type` "allmrec-ligr".

    Nearest to eSASRec as published are `loss="sampled_softmax"`, `num_negatives=256` and `feed_forward_multiplier=4`.

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        feed_forward_multiplier: Width of the feed-forward layers' inside, in multiples of `hidden_size`.
        dropout: Dropout of embeddings, attention weights, the feed-forward layers' inside and both residual branches.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> LiGRConfig(num_items=100, hidden_size=32).num_layers
        2
    """

    model_type: ClassVar[str] = "allmrec-ligr"

    # Differs from arXiv 2508.06450: the default loss is the cross entropy over the whole catalogue, which the paper's
    # sampled softmax stands in for; and the feed-forward layers are half as wide as in most of its settings.
    num_layers: int = 2
    num_heads: int = 2
    feed_forward_multiplier: int = 2
    dropout: float | int = 0.2
    layer_norm_eps: float | int = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_layers", "feed_forward_multiplier")
        self.check_shares("dropout")
        self.check_layers("layer_norm_eps", heads="num_heads")
        super().__post_init__(**kwargs)


class LiGRFeedForward(nn.Module):
    """Apply a SwiGLU feed-forward layer without biases, dropout inside (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: LiGRConfig) -> None:
        super().__init__()
        inside = config.hidden_size * config.feed_forward_multiplier
        self.gate = nn.Linear(config.hidden_size, inside, bias=False)
        self.inner = nn.Linear(config.hidden_size, inside, bias=False)
        self.outer = nn.Linear(inside, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, states: Tensor) -> Tensor:
        """Return `(..., d_cf)` for states `(..., d_cf)`."""
        return self.outer(self.dropout(F.silu(self.gate(states)) * self.inner(states)))


class LiGRLayer(nn.Module):
    """Add attention and a feed-forward layer to the states, each gated: `X + F(LayerNorm(X)) * sigmoid(X W + b)`."""

    def __init__(self, config: LiGRConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, float(config.layer_norm_eps)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = CausalAttention(config, float(config.dropout))
        self.attention_gate = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = LiGRFeedForward(config)
        self.feed_forward_gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, states: Tensor, mask: Tensor, count: int) -> Tensor:
        """Return the next states of the last `count` positions, `(B, count, d_cf)`.

        Args:
            states: `(B, L, d_cf)` the states of all positions.
            mask: `(B, 1, L, L)` what is added to attention logits.
            count: K, the positions wanted.
        """
        own = states[:, -count:]
        normalised = self.attention_norm(states)
        attended = self.attention(normalised[:, -count:], normalised, mask[:, :, -count:])
        own = own + self.dropout(attended) * self.attention_gate(own).sigmoid()
        fed = self.feed_forward(self.feed_forward_norm(own))
        return own + self.dropout(fed) * self.feed_forward_gate(own).sigmoid()


class LiGRModel(SequentialEncoder):
    """Read a history with gated causal self-attention; the state after its last item is the user representation.

    A history longer than `config.max_history_length` is cut to its most recent items, which a warning says once.
    An empty history has the user representation zeros, which scores every item 0.

    Example:
        >>> import torch
        >>> model = LiGRModel(LiGRConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    config_class = LiGRConfig
    config: LiGRConfig
    _supports_sdpa = True
    _no_split_modules = ["LiGRLayer"]

    def __init__(self, config: LiGRConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history_length, config.hidden_size)
        self.dropout = nn.Dropout(float(config.dropout))
        self.layers = nn.ModuleList([LiGRLayer(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_eps))
        self.post_init()

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`; the last block works on them alone."""
        mask = causal_bias(real, self.item_embedding.weight.dtype)
        states = self._embedded(item_ids)
        for layer in self.layers[:-1]:
            states = layer(states, mask, states.shape[1])
        states = self.final_norm(self.layers[-1](states, mask, count))
        return states * real[:, -count:].unsqueeze(-1).to(states.dtype)

    def _embedded(self, item_ids: Tensor) -> Tensor:
        """Return what the first block reads, `(B, L, d_cf)`; the last item has the last position whatever L."""
        positions = self.position_embedding.weight[self.config.max_history_length - item_ids.shape[1] :]
        return self.dropout(self.item_embedding(item_ids) * math.sqrt(self.config.hidden_size) + positions)


register_cf_encoder(LiGRConfig, LiGRModel)
