"""BSARec: self-attention beside a filter of the history's frequencies (Shin et al., AAAI 2024, arXiv 2312.10325).

The published filter keeps the lowest frequencies of the whole sequence, so every position sees later items, and the
published training takes each prefix of a history as a sample of its own, of which the last position alone has a target.
Here every position has a target in one pass, with which that filter would show each position the item it has to name.
The filter is therefore causal: at every position it is the published filter of the prefix that ends there, as the last
position of that prefix sees it. At the last position of a history, the one that serves the user, the first layer's
filter is the published one; later layers read states that know nothing of later items. Padding is zeros and the filter
has the length `max_history_length`, so a user representation does not depend on the width of its batch.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import CausalAttention, SequentialEncoder, causal_bias
from .errors import ALLMRecError


@strict
class BSARecConfig(CFEncoderConfig):
    """Describe a BSARec backbone, `model_type` "allmrec-bsarec".

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        filter_weight: The paper's alpha: the share of the filter in each block, attention has the rest.
        filter_width: The paper's c: `c // 2 + 1` frequencies are low, the constant among them, out of those of
            `max_history_length` positions.
        feed_forward_multiplier: Width of the feed-forward layers' inside, in multiples of `hidden_size`.
        dropout: Dropout of embeddings and of what attention, filter and feed-forward layers add.
        attention_dropout: Dropout of attention weights.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> BSARecConfig(num_items=100, hidden_size=32).filter_weight
        0.7
    """

    model_type: ClassVar[str] = "allmrec-bsarec"

    num_layers: int = 2
    num_heads: int = 1
    filter_weight: float | int = 0.7
    filter_width: int = 5
    feed_forward_multiplier: int = 4
    dropout: float | int = 0.5
    attention_dropout: float | int = 0.5
    layer_norm_eps: float | int = 1e-12

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_layers", "filter_width", "feed_forward_multiplier")
        self.check_shares("dropout", "attention_dropout")
        self.check_layers("layer_norm_eps", heads="num_heads")
        if isinstance(self.filter_weight, (int, float)) and not 0 <= self.filter_weight <= 1:
            raise ALLMRecError(f"filter_weight must be a share from 0 to 1, got {self.filter_weight}")
        super().__post_init__(**kwargs)


class BSARecFilter(nn.Module):
    """Scale what changes fast in a sequence against what changes slowly: `low + b^2 * (X - low)`, b by channel."""

    def __init__(self, config: BSARecConfig) -> None:
        super().__init__()
        self.high_scale = nn.Parameter(torch.empty(config.hidden_size))  # the root of the paper's beta

    def forward(self, states: Tensor, kernel: Tensor) -> Tensor:
        """Return `(B, K, d_cf)` for states `(B, L, d_cf)` and the kernel's last rows `(K, L)`."""
        low = kernel @ states
        return low + self.high_scale.square() * (states[:, -len(kernel) :] - low)


class BSARecLayer(nn.Module):
    """Mix filter and attention, each added to the states and normalised, and apply a GELU feed-forward layer."""

    def __init__(self, config: BSARecConfig) -> None:
        super().__init__()
        width, eps, inside = config.hidden_size, float(config.layer_norm_eps), config.feed_forward_multiplier
        self.filter_weight = float(config.filter_weight)
        self.filter = BSARecFilter(config)
        self.filter_norm = nn.LayerNorm(width, eps=eps)
        self.attention = CausalAttention(config, float(config.attention_dropout))
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.inner = nn.Linear(width, width * inside)
        self.outer = nn.Linear(width * inside, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, states: Tensor, mask: Tensor, kernel: Tensor, keep: Tensor) -> Tensor:
        """Return the next states of the last positions, `(B, K, d_cf)`, zeros where `keep` is 0.

        Args:
            states: `(B, L, d_cf)` the states of all positions, zeros at padding.
            mask: `(B, 1, K, L)` what is added to attention logits.
            kernel: `(K, L)` the filter's weights.
            keep: `(B, K, 1)` 1 at real items.
        """
        own = states[:, -len(kernel) :]
        filtered = self.filter_norm(own + self.dropout(self.filter(states, kernel)))
        attended = self.attention_norm(own + self.dropout(self.attention(own, states, mask)))
        mixed = self.filter_weight * filtered + (1 - self.filter_weight) * attended
        fed = self.outer(F.gelu(self.inner(mixed)))
        return self.feed_forward_norm(mixed + self.dropout(fed)) * keep


class BSARecModel(SequentialEncoder):
    """Read a history with filters and causal self-attention; the state after its last item is the user representation.

    A history longer than `config.max_history_length` is cut to its most recent items, which a warning says once.
    An empty history has the user representation zeros, which scores every item 0.

    Example:
        >>> model = BSARecModel(BSARecConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    config_class = BSARecConfig
    config: BSARecConfig
    _supports_sdpa = True
    _no_split_modules = ["BSARecLayer"]

    def __init__(self, config: BSARecConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history_length, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_eps))
        self.dropout = nn.Dropout(float(config.dropout))
        self.layers = nn.ModuleList([BSARecLayer(config) for _ in range(config.num_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BSARecFilter):
            init.normal_(module.high_scale, mean=0.0, std=1.0)

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`; the last block works on them alone."""
        limit = self.config.max_history_length
        length = item_ids.shape[1]
        positions = self.position_embedding.weight[limit - length :]  # the last item has the last position
        states = self.dropout(self.embedding_norm(self.item_embedding(item_ids) + positions))
        keep = real.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        states = states * keep
        mask = causal_bias(real, states.dtype)
        kernel = low_pass(length, limit, self.config.filter_width, states.device).to(states.dtype)
        for layer in self.layers[:-1]:
            states = layer(states, mask, kernel, keep)
        return self.layers[-1](states, mask[:, :, -count:], kernel[-count:], keep[:, -count:])


def low_pass(length: int, period: int, width: int, device: torch.device) -> Tensor:
    """Return the causal low-pass filter `(L, L)`: row t holds the weights of the positions up to t.

    The lowest `width // 2 + 1` frequencies of a sequence of `period` positions weigh a position d steps back by
    `(1 + 2 sum_f cos(2 pi f d / period)) / period`, f from 1; the highest frequency of an even period counts once.

    Args:
        length: L, at most the period.
        period: Positions of the sequence whose frequencies are meant; what lies before the history is zeros.
        width: The paper's c.
        device: Where the filter is used.
    """
    back = torch.arange(length, device=device).unsqueeze(1) - torch.arange(length, device=device)  # (L, L), t - s
    weights = torch.ones(length, length, device=device)
    for frequency in range(1, min(width // 2, period // 2) + 1):
        weights += (1 if 2 * frequency == period else 2) * torch.cos(2 * math.pi * frequency / period * back)
    return (weights / period).tril()


register_cf_encoder(BSARecConfig, BSARecModel)
