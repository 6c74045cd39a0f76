"""SASRec: self-attention over the history (Kang and McAuley, ICDM 2018), the default backbone."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import SequentialEncoder, attended, causal_bias


@strict
class SASRecConfig(CFEncoderConfig):
    """Describe a SASRec backbone, `model_type` "allmrec-sasrec".

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        dropout: Dropout of embeddings, attention weights and feed-forward layers.
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
    attend_padding: bool = False
    layer_norm_eps: float | int = 1e-8

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_layers")
        self.check_shares("dropout")
        self.check_layers("layer_norm_eps", heads="num_heads")
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
        """Return `(B, K, d_cf)` for queries `(B, K, d_cf)`, states `(B, L, d_cf)`, additive mask `(B, 1, K, keys)`."""
        if self.config.attend_padding:
            states = F.pad(states, (0, 0, 1, 0))  # the one padding key, (B, 1 + L, d_cf)
        projected = self.query(queries), self.key(states), self.value(states)
        dropout = float(self.config.dropout) if self.training else 0.0
        how = self.config._attn_implementation
        return self.output(attended(*projected, self.config.num_heads, mask, dropout, how))


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

    def forward(self, own: Tensor, states: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        """Return the next states of some positions, zeros where `real` is 0.

        Args:
            own: `(B, K, d_cf)` the states of these positions.
            states: `(B, L, d_cf)` the states of all positions.
            mask: `(B, 1, K, keys)` what is added to attention logits.
            real: `(B, K, 1)` 1 at real items.
        """
        queries = self.attention_norm(own)
        states = self.feed_forward_norm(queries + self.attention(queries, states, mask))
        inner = F.relu(self.dropout(self.feed_forward_inner(states)))
        return (states + self.dropout(self.feed_forward_outer(inner))) * real


class SASRecModel(SequentialEncoder):
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

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`; the last block works on them alone."""
        first = self.config.max_history_length - item_ids.shape[1]  # the last item has the last position
        positions = self.position_embedding.weight[first:]
        states = self.item_embedding(item_ids) * math.sqrt(self.config.hidden_size) + positions
        keep = real.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        states = self.dropout(states) * keep
        mask = self._attention_bias(real, states.dtype)
        for layer in self.layers[:-1]:
            states = layer(states, states, mask, keep)
        keep = keep[:, -count:]
        return self.final_norm(self.layers[-1](states[:, -count:], states, mask[:, :, -count:], keep)) * keep

    def _attention_bias(self, real: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what is added to attention logits, `(B, 1, L, keys)`; the padding's key, if any, is the first."""
        bias = causal_bias(real, dtype)
        if not self.config.attend_padding:
            return bias
        padding = (self.config.max_history_length - real.sum(dim=1)).to(torch.float32).log()  # log 0 is -inf
        return torch.cat([padding.to(dtype)[:, None, None, None].expand(-1, 1, real.shape[1], 1), bias], dim=3)


register_cf_encoder(SASRecConfig, SASRecModel)
