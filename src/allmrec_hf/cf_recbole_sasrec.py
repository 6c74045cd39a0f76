"""SASRec as RecBole computes it, so that weights trained there serve here unchanged.

RecBole's SASRec differs from the published one (`cf_sasrec`): LayerNorm follows each residual sum, the embeddings are
normalised and not scaled, the feed-forward layer is wider and uses GELU, positions count from the oldest item, and
nothing normalises the final states. Neither can hold the other's weights. `allmrec import-backbone` makes this backbone
from a RecBole checkpoint; it can be trained as well.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.utils import logging

from .cf_encoder import CFEncoder, CFEncoderConfig, register_cf_encoder
from .errors import ALLMRecError

logger = logging.get_logger(__name__)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@strict
class RecBoleSASRecConfig(CFEncoderConfig):
    """Describe a SASRec backbone of RecBole, `model_type` "allmrec-recbole-sasrec"; the defaults are RecBole's.

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        inner_size: Width inside the feed-forward layers.
        hidden_act: Activation of the feed-forward layers.
        dropout: Dropout of embeddings and of the output of attention and feed-forward layers.
        attention_dropout: Dropout of attention weights.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> RecBoleSASRecConfig(num_items=100).inner_size
        256
    """

    model_type: ClassVar[str] = "allmrec-recbole-sasrec"

    num_layers: int = 2
    num_heads: int = 2
    inner_size: int = 256
    hidden_act: Literal["gelu", "relu", "swish", "tanh", "sigmoid"] = "gelu"
    dropout: float | int = 0.5
    attention_dropout: float | int = 0.5
    layer_norm_eps: float | int = 1e-12

    def __post_init__(self, **kwargs: Any) -> None:
        heads = self.num_heads
        if isinstance(heads, int) and isinstance(self.hidden_size, int) and (heads < 1 or self.hidden_size % heads):
            raise ALLMRecError(f"num_heads must divide hidden_size {self.hidden_size} (d_cf), got {heads}")
        for name in ("num_layers", "inner_size"):
            if isinstance(getattr(self, name), int) and getattr(self, name) < 1:
                raise ALLMRecError(f"{name} must be at least 1, got {getattr(self, name)}")
        super().__post_init__(**kwargs)


class RecBoleSASRecLayer(nn.Module):
    """Apply attention and a feed-forward layer; LayerNorm follows each residual sum, as in BERT."""

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, float(config.layer_norm_eps)
        self.config = config
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward_inner = nn.Linear(width, config.inner_size)
        self.feed_forward_outer = nn.Linear(config.inner_size, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(float(config.dropout))
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """Return the next states `(B, L, d_cf)`; `seen` `(B, 1, L, L)` is True where a key may be attended to."""
        states = self.attention_norm(states + self.dropout(self._attended(states, seen)))
        inner = self.activation(self.feed_forward_inner(states))
        return self.feed_forward_norm(states + self.dropout(self.feed_forward_outer(inner)))

    def _attended(self, states: Tensor, seen: Tensor) -> Tensor:
        batch, length, width = states.shape
        heads = self.config.num_heads
        query, key, value = (
            projection(states).view(batch, length, heads, width // heads).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )  # (B, heads, L, d_head)
        dropout = float(self.config.attention_dropout) if self.training else 0.0
        if self.config._attn_implementation == "eager":
            logits = (query @ key.transpose(2, 3) / math.sqrt(width // heads)).masked_fill(~seen, float("-inf"))
            attended = F.dropout(logits.softmax(dim=-1), dropout, self.training) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).reshape(batch, length, width))


class RecBoleSASRecModel(CFEncoder):
    """Read a history as RecBole's SASRec does; the state after its last item is the user representation.

    Example:
        >>> model = RecBoleSASRecModel(RecBoleSASRecConfig(num_items=100, hidden_size=32)).eval()
        >>> model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]])).shape
        torch.Size([2, 32])
    """

    config_class = RecBoleSASRecConfig
    config: RecBoleSASRecConfig
    _supports_sdpa = True
    _no_split_modules = ["RecBoleSASRecLayer"]

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history_length, config.hidden_size)
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_eps))
        self.dropout = nn.Dropout(float(config.dropout))
        self.layers = nn.ModuleList([RecBoleSASRecLayer(config) for _ in range(config.num_layers)])
        self.post_init()

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, L, d_cf)`, the state after each item; the contract is `CFEncoder.sequence_states`."""
        real = self.real_items(item_ids, attention_mask)
        cut = max(0, item_ids.shape[1] - self.config.max_history_length)
        if cut:
            logger.warning_once(
                f"histories of up to {item_ids.shape[1]} items are cut to the {self.config.max_history_length} most "
                "recent ones (max_history_length)"
            )
            item_ids, real = item_ids[:, cut:], real[:, cut:]
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # the oldest item has position 0, wherever padding ends
        states = self.dropout(self.input_norm(self.item_embedding(item_ids) + self.position_embedding(positions)))
        length = item_ids.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=real.device)  # padding sees itself: no row is empty
        seen = (earlier & (real.unsqueeze(1) | itself)).unsqueeze(1)  # (B, 1, L, L)
        for layer in self.layers:
            states = layer(states, seen)
        return F.pad(states * real.unsqueeze(-1).to(states.dtype), (0, 0, cut, 0))


register_cf_encoder(RecBoleSASRecConfig, RecBoleSASRecModel)
