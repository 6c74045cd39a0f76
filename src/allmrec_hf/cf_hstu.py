"""HSTU: attention without a softmax, with gates (Zhai et al., ICML 2024, arXiv 2402.17152).

As a sequential recommender of items alone: no actions, and of the relative biases that of positions only, because a
history has no times here. The paper's attention weights are divided by the length of the sequence; here each position
divides by the number of items it sees, so that neither padding nor the width of a batch counts.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import SequentialEncoder, seen_positions


@strict
class HSTUConfig(CFEncoderConfig):
    """Describe an HSTU backbone, `model_type` "allmrec-hstu".

    Args:
        num_layers: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        dropout: Dropout of embeddings and of what each block adds.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> HSTUConfig(num_items=100, hidden_size=32).num_layers
        2
    """

    model_type: ClassVar[str] = "allmrec-hstu"

    num_layers: int = 2
    num_heads: int = 2
    dropout: float | int = 0.5
    layer_norm_eps: float | int = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_layers")
        self.check_shares("dropout")
        self.check_layers("layer_norm_eps", heads="num_heads")
        super().__post_init__(**kwargs)


class HSTULayer(nn.Module):
    """Add `W (LayerNorm(A V) * U)` to the states X; U, V, Q and K are SiLU of projections of LayerNorm(X).

    `A = SiLU(Q K^T + bias) / n`, n the number of items that a position sees; the bias is learned for each head and
    distance.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, float(config.layer_norm_eps)
        self.num_heads = config.num_heads
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.distance_bias = nn.Embedding(config.max_history_length, config.num_heads)
        self.attended_norm = nn.LayerNorm(width, eps=eps)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(float(config.dropout))

    def forward(self, states: Tensor, shares: Tensor, distances: Tensor) -> Tensor:
        """Return the next states of the last positions, `(B, K, d_cf)`.

        Args:
            states: `(B, L, d_cf)` the states of all positions.
            shares: `(B, 1, K, L)` one over n where a position is seen, else 0.
            distances: `(K, L)` steps back from position to position, 0 where it is not before.
        """
        own, normalised = states[:, -len(distances) :], self.input_norm(states)
        current = normalised[:, -len(distances) :]
        query, key, value = (
            F.silu(projected).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.query(current), self.key(normalised), self.value(normalised))
        )  # (B, heads, K or L, d_head)
        bias = self.distance_bias(distances).permute(2, 0, 1)  # (heads, K, L)
        weights = F.silu(query @ key.transpose(2, 3) + bias) * shares
        attended = self.attended_norm((weights @ value).transpose(1, 2).flatten(2))
        return own + self.dropout(self.output(attended * F.silu(self.gate(current))))


class HSTUModel(SequentialEncoder):
    """Read a history with gated pointwise attention; the state after its last item is the user representation.

    A history longer than `config.max_history_length` is cut to its most recent items, which a warning says once.
    An empty history has the user representation zeros, which scores every item 0.

    Example:
        >>> model = HSTUModel(HSTUConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    config_class = HSTUConfig
    config: HSTUConfig
    _no_split_modules = ["HSTULayer"]

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history_length, config.hidden_size)
        self.dropout = nn.Dropout(float(config.dropout))
        self.layers = nn.ModuleList([HSTULayer(config) for _ in range(config.num_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=float(config.layer_norm_eps))
        self.post_init()

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`; the last block works on them alone."""
        limit = self.config.max_history_length
        length = item_ids.shape[1]
        positions = self.position_embedding.weight[limit - length :]  # the last item has the last position
        states = self.dropout(self.item_embedding(item_ids) * math.sqrt(self.config.hidden_size) + positions)
        seen = seen_positions(real).to(states.dtype)  # (B, L, L)
        shares = (seen / seen.sum(dim=2, keepdim=True)).unsqueeze(1)
        steps = torch.arange(length, device=states.device)
        distances = (steps.unsqueeze(1) - steps).clamp(min=0)  # (L, L)
        for layer in self.layers[:-1]:
            states = layer(states, shares, distances)
        states = self.final_norm(self.layers[-1](states, shares[:, :, -count:], distances[-count:]))
        return states * real[:, -count:].unsqueeze(-1).to(states.dtype)


register_cf_encoder(HSTUConfig, HSTUModel)
