"""SASRec: self-attention over the history (Kang and McAuley, ICDM 2018), the default CF backbone."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.utils import logging

from .cf_encoder import CFEncoder, CFEncoderConfig, register_cf_encoder
from .errors import ALLMRecError

logger = logging.get_logger(__name__)


@strict
class SASRecConfig(CFEncoderConfig):
    """Describe a SASRec backbone, `model_type` "allmrec-sasrec".

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        dropout: Dropout of embeddings, attention weights and feed-forward layers.
        loss: `cross_entropy` over the whole catalogue, or `bce` with one negative (the paper's).
        attend_padding: Whether real positions also attend to the padding in front of them, as in the program
            published with arXiv 2404.11343. A history then counts as padded to `max_history_length`, whatever the
            width of its batch.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> SASRecConfig(num_items=100, hidden_size=32).num_layers
        2
    """

    model_type: ClassVar[str] = "allmrec-sasrec"

    num_layers: int = 2
    num_heads: int = 1
    dropout: float | int = 0.2
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    attend_padding: bool = False
    layer_norm_eps: float | int = 1e-8

    def __post_init__(self, **kwargs: Any) -> None:
        heads = self.num_heads
        if isinstance(heads, int) and isinstance(self.hidden_size, int) and (heads < 1 or self.hidden_size % heads):
            raise ALLMRecError(f"num_heads must divide hidden_size {self.hidden_size} (d_cf), got {heads}")
        super().__post_init__(**kwargs)


class SASRecAttention(nn.Module):
    """Attend from normalised states to the raw states before them.

    With `attend_padding` all padding in front of a history is one key: the padded states are zeros, so their keys and
    values are equal, and n equal keys weigh what one key with the logit bias log n weighs.
    """

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Return `(B, L, d_cf)` for queries and states `(B, L, d_cf)` and an additive mask `(B, 1, L, keys)`."""
        batch, length, width = queries.shape
        if self.config.attend_padding:
            states = F.pad(states, (0, 0, 1, 0))  # the one padding key, (B, 1 + L, d_cf)
        query, key, value = (
            projected.view(batch, -1, self.config.num_heads, width // self.config.num_heads).transpose(1, 2)
            for projected in (self.query(queries), self.key(states), self.value(states))
        )  # (B, heads, L or keys, d_head)
        dropout = float(self.config.dropout) if self.training else 0.0
        if self.config._attn_implementation == "eager":
            weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask).softmax(dim=-1)
            attended = F.dropout(weights, dropout, self.training) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).reshape(batch, length, width))


class SASRecLayer(nn.Module):
    """Apply attention and a ReLU feed-forward layer, each added to its normalised input."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, float(config.layer_norm_eps)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = SASRecAttention(config)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward_inner = nn.Linear(width, width)
        self.feed_forward_outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, states: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        """Return the next states `(B, L, d_cf)`, zeros where `real (B, L, 1)` is 0."""
        queries = self.attention_norm(states)
        states = self.feed_forward_norm(queries + self.attention(queries, states, mask))
        inner = F.relu(self.dropout(self.feed_forward_inner(states)))
        return (states + self.dropout(self.feed_forward_outer(inner))) * real


class SASRecModel(CFEncoder):
    """Read a history with causal self-attention; the state after its last item is the user representation.

    A history longer than `config.max_history_length` is cut to its most recent items, which a warning says once.
    An empty history has the user representation zeros, which scores every item 0.

    Example:
        >>> model = SASRecModel(SASRecConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    config_class = SASRecConfig
    config: SASRecConfig
    _supports_sdpa = True
    _no_split_modules = ["SASRecLayer"]

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history_length, config.hidden_size)
        self.dropout = nn.Dropout(float(config.dropout))
        self.layers = nn.ModuleList([SASRecLayer(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_eps))
        self.post_init()

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, L, d_cf)`, the state after each item; the contract is `CFEncoder.sequence_states`."""
        real = item_ids != 0 if attention_mask is None else attention_mask.bool()
        length, limit = item_ids.shape[1], self.config.max_history_length
        if length > limit:
            logger.warning_once(
                f"histories of up to {length} items are cut to the {limit} most recent ones (max_history_length)"
            )
            states = self._states(item_ids[:, -limit:], real[:, -limit:])
            return F.pad(states, (0, 0, length - limit, 0))
        return self._states(item_ids, real)

    def _states(self, item_ids: Tensor, real: Tensor) -> Tensor:
        limit = self.config.max_history_length
        positions = self.position_embedding.weight[limit - item_ids.shape[1] :]  # the last item has the last position
        states = self.item_embedding(item_ids) * math.sqrt(self.config.hidden_size) + positions
        keep = real.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        states = self.dropout(states) * keep
        mask = self._attention_bias(real, states.dtype)
        for layer in self.layers:
            states = layer(states, mask, keep)
        return self.final_norm(states) * keep

    def _attention_bias(self, real: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is added to attention logits, `(B, 1, L, keys)`: 0 where a key may be seen, else `-inf`.

        Padding positions see themselves, so that no row is empty; their states are zeroed afterwards.
        """
        length = real.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        seen = causal & (real.unsqueeze(1) | torch.eye(length, dtype=torch.bool, device=real.device))  # (B, L, L)
        bias = torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, float("-inf"))
        if self.config.attend_padding:
            padding = (self.config.max_history_length - real.sum(dim=1)).to(torch.float32).log()  # log 0 is -inf
            bias = torch.cat([padding.to(dtype)[:, None, None].expand(-1, length, 1), bias], dim=2)
        return bias.unsqueeze(1)


register_cf_encoder(SASRecConfig, SASRecModel)
