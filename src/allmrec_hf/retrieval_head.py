"""The trained part of the ranker `retrieval`: what puts vectors into the LLM, and what reads its last state.

The recipe is that of LLM-SRec (arXiv 2502.13909), shortened: one learned token after the history gives the user's
vector, one after an item's title and joint embedding gives the item's, and both are compared by cosine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .caches import BoundedCache
from .growing_table import appended
from .projector import build_projector

FIRST_TEMPERATURE = 0.1
LARGEST_SCALE = 100.0
CACHED_USERS = 4096  # whose vectors are kept, so that rankers of one checkpoint read a user once


class RetrievalHead(nn.Module):
    """Two projectors of its own, two learned tokens, two output layers, and the vector of every item.

    Args:
        num_items: N.
        user_dim: d_cf.
        joint_dim: d_joint.
        llm_dim: d_llm, width of the LLM's input embeddings.
        state_dim: Width of the LLM's states.
        dim: Width of the space in which users and items are compared.

    Buffers: `item_vectors (N + 1, dim)`, unit length; NaN where not computed yet, row 0 zeros.
    """

    item_vectors: Tensor

    def __init__(self, num_items: int, user_dim: int, joint_dim: int, llm_dim: int, state_dim: int, dim: int) -> None:
        super().__init__()
        self.user_projector = build_projector("mlp", user_dim, llm_dim, "leaky_relu", 1)
        self.item_projector = build_projector("mlp", joint_dim, llm_dim, "gelu", 1)
        self.user_token = nn.Parameter(torch.zeros(llm_dim))
        self.item_token = nn.Parameter(torch.zeros(llm_dim))
        self.user_output = nn.Linear(state_dim, dim)
        self.item_output = nn.Linear(state_dim, dim)
        self.user_norm, self.item_norm = nn.LayerNorm(state_dim), nn.LayerNorm(state_dim)
        self.to_backbone = nn.Linear(dim, user_dim)  # read by the distillation only
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / FIRST_TEMPERATURE)))
        self.register_buffer("item_vectors", torch.full((num_items + 1, dim), float("nan")))
        self.item_vectors[0] = 0
        self.users = BoundedCache(CACHED_USERS)  # vectors by state and history
        self._missing: tuple[tuple[int, int, int] | None, list[int]] = (None, [])  # items, and of which state

    def state(self, llm_weight: Tensor) -> tuple[tuple[int, int], ...]:
        """Return what tells these weights from others, for the keys of `users`.

        Args:
            llm_weight: A parameter of the LLM, by which another LLM is told.
        """
        weights = (*self.parameters(), llm_weight)
        return tuple((part.data_ptr(), 0 if part.is_inference() else part._version) for part in weights)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with before a softmax: one over the learned temperature."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def user_vectors(self, states: Tensor) -> Tensor:
        """Return unit vectors `(B, dim)` of the LLM's states `(B, state_dim)` at the user token."""
        return F.normalize(self.user_output(self.user_norm(states.float())), dim=-1)

    def item_vectors_of(self, states: Tensor) -> Tensor:
        """Return unit vectors `(B, dim)` of the LLM's states `(B, state_dim)` at the item token."""
        return F.normalize(self.item_output(self.item_norm(states.float())), dim=-1)

    def append_items(self, count: int) -> None:
        """Make room for new items, whose vectors are computed when they are first asked for."""
        missing, first = self.missing_items(), len(self.item_vectors)
        room = self.item_vectors.new_full((count, self.item_vectors.shape[1]), float("nan"))
        self.item_vectors = appended(self.item_vectors, room)
        self._missing = (self._table_state(), [*missing, *range(first, first + count)])

    def missing_items(self) -> list[int]:
        """Return the items whose vectors are not computed yet; the table is looked through where it has changed."""
        if self._missing[0] is None or self._missing[0] != self._table_state():
            self._missing = (self._table_state(), self.item_vectors.isnan().any(dim=1).nonzero().flatten().tolist())
        return self._missing[1]

    def store_items(self, items: list[int], vectors: Tensor) -> None:
        """Store the vectors `(k, dim)` of items that were missing."""
        missing = set(self.missing_items()) - set(items)
        self.item_vectors[items] = vectors.to(self.item_vectors)
        self._missing = (self._table_state(), sorted(missing))

    def _table_state(self) -> tuple[int, int, int] | None:
        table = self.item_vectors
        return None if table.is_inference() else (len(table), table.data_ptr(), table._version)
