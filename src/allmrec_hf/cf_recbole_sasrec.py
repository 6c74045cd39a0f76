"""SASRec as RecBole computes it, so that weights trained there serve here unchanged.

RecBole's SASRec differs from the published one (`cf_sasrec`): LayerNorm follows each residual sum, the embeddings are
normalised and not scaled, the feed-forward layer is wider and uses GELU, positions count from the oldest item, and
nothing normalises the final states. Neither can hold the other's weights. `allmrec import-backbone` makes this backbone
from a RecBole checkpoint; it can be trained as well.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import SequentialEncoder, attended, causal_bias

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
        self.check_at_least_one("num_layers", "inner_size")
        self.check_shares("dropout", "attention_dropout")
        self.check_layers("layer_norm_eps", heads="num_heads")
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

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the next states `(B, L, d_cf)`; the mask `(B, 1, L, L)` is added to attention logits."""
        projected = self.query(states), self.key(states), self.value(states)
        dropout = float(self.config.attention_dropout) if self.training else 0.0
        mixed = attended(*projected, self.config.num_heads, mask, dropout, self.config._attn_implementation)
        states = self.attention_norm(states + self.dropout(self.output(mixed)))
        inner = self.activation(self.feed_forward_inner(states))
        return self.feed_forward_norm(states + self.dropout(self.feed_forward_outer(inner)))


class RecBoleSASRecModel(SequentialEncoder):
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

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`."""
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # the oldest item has position 0, wherever padding ends
        states = self.dropout(self.input_norm(self.item_embedding(item_ids) + self.position_embedding(positions)))
        mask = causal_bias(real, states.dtype)
        for layer in self.layers:
            states = layer(states, mask)
        return (states * real.unsqueeze(-1).to(states.dtype))[:, -count:]


register_cf_encoder(RecBoleSASRecConfig, RecBoleSASRecModel)
