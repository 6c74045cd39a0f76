"""What sequential backbones share: states of the last positions alone, and causal attention over a history."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cf_encoder import CFEncoder


class SequentialEncoder(CFEncoder):
    """Read a history in its order; the state after its last item is the user representation.

    A subclass implements `last_states`. Histories longer than `config.max_history_length` are cut before it is called.
    """

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`, zeros at padding.

        Args:
            item_ids: `(B, L)` left-padded histories, L at most `config.max_history_length`.
            real: `(B, L)` True at real items.
            count: 1 to L.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement last_states")

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, L, d_cf)`, the state after each item; the contract is `CFEncoder.sequence_states`."""
        recent, real = self.recent_items(item_ids, attention_mask)
        states = self.last_states(recent, real, recent.shape[1])
        return F.pad(states, (0, 0, item_ids.shape[1] - recent.shape[1], 0))

    def encode_users(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, d_cf)`, as `CFEncoder.encode_users`; only what the last state depends on is computed."""
        return self.last_states(*self.recent_items(item_ids, attention_mask), 1)[:, 0]


def seen_positions(real: Tensor) -> Tensor:
    """Return which positions each position sees, `(B, L, L)`: itself, and the real ones before it.

    Padding positions see themselves, so that no row is empty; no real position sees them.

    Args:
        real: `(B, L)` True at real items.
    """
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    return causal & (real.unsqueeze(1) | torch.eye(length, dtype=torch.bool, device=real.device))


def causal_bias(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention logits, `(B, 1, L, L)`: 0 where a key may be seen, else `-inf`.

    Args:
        real: `(B, L)` True at real items.
        dtype: Of the logits.
    """
    seen = seen_positions(real)
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, float("-inf")).unsqueeze(1)


def attended(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Tensor, dropout: float, implementation: str | None
) -> Tensor:
    """Return multi-head attention, the heads side by side, `(B, K, d)`.

    Args:
        query: `(B, K, d)` projected queries; d is a multiple of `num_heads`.
        key: `(B, L, d)` projected keys.
        value: `(B, L, d)` projected values.
        num_heads: Number of heads.
        bias: `(B, 1, K, L)` what is added to the logits.
        dropout: Of the attention weights, 0 outside training.
        implementation: `"eager"`, else PyTorch's fused attention.
    """
    query, key, value = (
        projected.unflatten(-1, (num_heads, -1)).transpose(1, 2) for projected in (query, key, value)
    )  # (B, heads, K or L, d_head)
    if implementation == "eager":
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + bias).softmax(dim=-1)
        mixed = F.dropout(weights, dropout) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


class CausalAttention(nn.Module):
    """Attend from some positions to all positions before them, several heads side by side.

    Args:
        config: Its `hidden_size` and `num_heads`.
        dropout: Of the attention weights, in training.
    """

    def __init__(self, config: Any, dropout: float) -> None:
        super().__init__()
        self.config, self.attention_dropout = config, dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        # A bias of the keys would add the same to all logits of a query, which the softmax takes away again.
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Return `(B, K, d_cf)` for queries `(B, K, d_cf)`, states `(B, L, d_cf)`, additive mask `(B, 1, K, L)`."""
        projected = self.query(queries), self.key(states), self.value(states)
        dropout = self.attention_dropout if self.training else 0.0
        how = self.config._attn_implementation
        return self.output(attended(*projected, self.config.num_heads, mask, dropout, how))
