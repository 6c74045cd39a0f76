"""LightGCN: vectors smoothed over the graph of users and items (He et al., SIGIR 2020, arXiv 2002.02126)."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.utils import logging

from .cf_encoder import register_cf_encoder
from .cf_user_vectors import MIN_L2, ContrastingUserConfig, ContrastingUserEncoder
from .errors import ALLMRecError
from .growing_table import appended_embedding

logger = logging.get_logger(__name__)


@strict
class LightGCNConfig(ContrastingUserConfig):
    """Describe a LightGCN backbone, `model_type` "allmrec-lightgcn".

    Other arguments are those of `ContrastingUserConfig`.

    Args:
        num_layers: K, how many steps a vector travels over the graph.
        own_vector: What stands for the vector before propagation of a user who is folded in: `solved` from the history
            as in training, or `zeros`, which is a hundred times cheaper and ranks somewhat worse.
        loss: `bpr`, as in the paper.
        l2: Weight of the penalty, of the vectors before propagation.

    Example:
        >>> LightGCNConfig(num_items=100, hidden_size=32).num_layers
        3
    """

    model_type: ClassVar[str] = "allmrec-lightgcn"

    num_layers: int = 3
    own_vector: Literal["solved", "zeros"] = "solved"
    loss: Literal["bpr"] = "bpr"
    l2: float | int = 1e-3
    initializer_range: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.num_layers, int) and self.num_layers < 1:
            raise ALLMRecError(f"num_layers must be at least 1, got {self.num_layers}; without one it is bprmf")
        super().__post_init__(**kwargs)


class LightGCNModel(ContrastingUserEncoder):
    """Score an item by the dot product of two vectors, each the mean of what 0 to K steps over the graph make of it.

    While training, `initial_item_embedding` and `user_embedding` hold the vectors before propagation; `update_tables`
    writes what is served: `item_embedding`, the propagated items, and `history_embedding`, what each item adds to the
    users that have seen it. A history is folded in by the last step of propagation (`neighbour_part`), which for a user
    of the graph is the trained vector without the user's own before propagation. That one is unknown for anybody else
    and solved from the history: it minimises what training minimises for the user, with all items fixed (see
    `ContrastingUserEncoder.solved`). An empty history gives zeros, which score every item 0.

    Example:
        >>> model = LightGCNModel(LightGCNConfig(num_items=100, hidden_size=32)).eval()
        >>> model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]])).shape
        torch.Size([2, 32])
    """

    config_class = LightGCNConfig
    config: LightGCNConfig
    training_recipe: ClassVar[Mapping[str, Any]] = {
        "per_device_train_batch_size": 4096,
        "learning_rate": 1e-2, "num_train_epochs": 300, "eval_epochs": 5, "early_stopping_patience": 5,
    }  # fmt: skip
    _keys_to_ignore_on_save = {"user_embedding.weight", "initial_item_embedding.weight"}
    initial_item_embedding: nn.Embedding | None  # (N + 1, d_cf), only while training

    def __init__(self, config: LightGCNConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.history_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.history_embedding.weight.requires_grad_(False)  # written by update_tables
        self.initial_item_embedding = None
        self._graph: _Graph | None = None
        self._scale: tuple[Any, Any] = (None, None)  # of new items' rows, and the state of the tables that it is of
        self._init_contrast()
        self.post_init()

    def start_training(self, users: Tensor, items: Tensor, num_users: int) -> None:
        """Make user vectors, the items' vectors before propagation, and the graph of all interactions."""
        super().start_training(users, items, num_users)
        self._graph = _Graph(users, items, num_users, self.num_items)
        table = self.item_embedding.weight
        self.initial_item_embedding = _table(table.detach().clone())
        table.requires_grad_(False)

    def end_training(self) -> None:
        """Drop the user vectors, the items' vectors before propagation, and the graph."""
        super().end_training()
        self.initial_item_embedding = self._graph = None
        self.item_embedding.weight.requires_grad_(True)

    def propagate(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the users `(U, d_cf)` and items `(N + 1, d_cf)` after 0 to K steps, in float32.

        Raises:
            ALLMRecError: when the model is not in training.
        """
        users = super().user_vectors()
        initial, graph = cast(nn.Embedding, self.initial_item_embedding), cast(_Graph, self._graph)
        with torch.autocast(users.device.type, enabled=False):
            layers = [torch.cat([users, initial.weight]).float()]
            matrix = graph.matrix(users.device)
            for _ in range(self.config.num_layers):
                layers.append(_SymmetricProduct.apply(matrix, layers[-1]))
        parts = [layer.split([len(users), len(layer) - len(users)]) for layer in layers]
        return [user for user, _ in parts], [item for _, item in parts]

    def user_vectors(self) -> Tensor:
        """Return the propagated vectors `(U, d_cf)` of the training users, which exist only while training."""
        users, _ = self.propagate()
        return torch.stack(users).mean(0)

    def training_vectors(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return users, targets and negatives after propagation, which is scored, and before, which is penalised."""
        users, items = self.propagate()
        wanted = (batch["users"], batch["targets"], batch["negatives"].view(len(batch["targets"]), -1))

        def look_up(user_table: Tensor, item_table: Tensor) -> tuple[Tensor, ...]:
            return tuple(map(F.embedding, wanted, (user_table, item_table, item_table)))

        mean_users, mean_items = torch.stack(users).mean(0), torch.stack(items).mean(0)
        return look_up(mean_users, mean_items), look_up(users[0], items[0])

    @torch.no_grad()
    def update_tables(self) -> None:
        """Propagate, and write the two served tables; outside training there is nothing to do."""
        if self._graph is None:
            return
        _, items = self.propagate()
        self.item_embedding.weight.copy_(torch.stack(items).mean(0))
        scale = self._graph.item_scales.to(items[0].device) / (self.config.num_layers + 1)
        self.history_embedding.weight.copy_(torch.stack(items[:-1]).sum(0) * scale.unsqueeze(1))

    def fold_in(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Return user vectors `(B, d_cf)` of histories `(B, H)`, in float32."""
        neighbours = self.neighbour_part(item_ids, real)
        if self.config.own_vector == "zeros":
            return neighbours
        # The penalty is of the vector before propagation, whose share in the user is one of K + 1.
        l2 = float(self.config.l2) * (self.config.num_layers + 1) ** 2
        return self.solved(item_ids, real, neighbours, max(l2, MIN_L2))

    def neighbour_part(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Return what their items add to users, `(B, d_cf)` for histories `(B, H)`, in float32.

        It is the sum of the items' rows of `history_embedding` over the square root of their number. An item
        seen twice counts once, as in the graph.
        """
        item_ids = (item_ids * real).sort(dim=1).values
        first = item_ids != F.pad(item_ids, (1, 0))[:, :-1]  # of equal items the first one; padding is never one
        total = (self.history_embedding(item_ids).float() * first.unsqueeze(-1)).sum(1)
        return total / first.sum(1, keepdim=True).clamp(min=1).sqrt()

    @torch.no_grad()
    def replace_items(self, items: Tensor, vectors: Tensor) -> None:
        """Overwrite rows `(k,)` of both served tables by vectors `(k, d_cf)`, see `_history_rows`."""
        rows = self._history_rows(vectors)
        super().replace_items(items, vectors)
        self.history_embedding.weight[items] = rows

    @torch.no_grad()
    def append_items(self, vectors: Tensor) -> None:
        """Grow both served tables by vectors `(k, d_cf)`, see `CFEncoder.append_items` and `_history_rows`."""
        rows = self._history_rows(vectors)
        super().append_items(vectors)
        self.history_embedding = appended_embedding(self.history_embedding, rows)
        self._scale = (self._tables(), self._scale[1])  # rows of that scale do not change it

    def _history_rows(self, vectors: Tensor) -> Tensor:
        """Return what items `(k, d_cf)` without neighbours add to a history: their vectors, scaled as trained ones are.

        The scale is the least squares one between the two tables over the items that were trained.
        """
        if self._scale[0] != self._tables():
            served, history = self.item_embedding.weight.float(), self.history_embedding.weight.float()
            served = served * history.any(dim=1, keepdim=True)
            self._scale = (self._tables(), (served * history).sum() / served.square().sum().clamp(min=1e-12))
        weight = self.history_embedding.weight
        return (vectors.to(weight.device, torch.float32) * self._scale[1]).to(weight)

    def _tables(self) -> tuple[int, ...]:
        """Return what tells whether the two served tables are as they were."""
        weights = (self.item_embedding.weight, self.history_embedding.weight)
        states = [(len(weight), weight.data_ptr(), weight._version) for weight in weights if not weight.is_inference()]
        return tuple(number for state in states for number in state)


def _table(vectors: Tensor) -> nn.Embedding:
    return nn.Embedding(len(vectors), vectors.shape[1], padding_idx=0, _weight=vectors)


class _Graph:
    """The graph of U users and N + 1 items (row 0 is padding) as a symmetrically normalised matrix.

    Args:
        users: `(E,)` user numbers.
        items: `(E,)` catalogue indices; a pair that comes twice is one edge.
        num_users: U.
        num_items: N.
    """

    def __init__(self, users: Tensor, items: Tensor, num_users: int, num_items: int) -> None:
        size = num_users + num_items + 1
        edges = (users.cpu().long() * size + num_users + items.cpu().long()).unique()  # sorted by user, then item
        starts, ends = edges.div(size, rounding_mode="floor"), edges % size
        rows, columns = torch.cat([starts, ends]), torch.cat([ends, starts])
        order = (rows * size + columns).argsort()
        rows, columns = rows[order], columns[order]
        degrees = rows.bincount(minlength=size)
        scales = degrees.clamp(min=1).rsqrt() * (degrees > 0)
        self.item_scales = scales[num_users:]  # (N + 1,)
        pointers = F.pad(degrees.cumsum(0), (1, 0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self._matrix = torch.sparse_csr_tensor(
                pointers, columns, scales[rows] * scales[columns], (size, size), check_invariants=True
            )
        lonely_users, lonely_items = int((degrees[:num_users] == 0).sum()), int((self.item_scales[1:] == 0).sum())
        if lonely_users or lonely_items:
            logger.warning(
                f"{lonely_users} of {num_users} users and {lonely_items} of {num_items} items have no training "
                "interaction; nothing reaches their vectors over the graph"
            )

    def matrix(self, device: torch.device) -> Tensor:
        """Return the matrix `(U + N + 1, U + N + 1)` in CSR form on a device, where it stays."""
        if self._matrix.device != device:
            self._matrix = self._matrix.to(device)
        return self._matrix


class _SymmetricProduct(torch.autograd.Function):
    """A symmetric sparse matrix times a dense one; the gradient needs no transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        with torch.autocast(gradients[0].device.type, enabled=False):  # a backward pass may run within the caller's
            return None, ctx.matrix @ gradients[0]


register_cf_encoder(LightGCNConfig, LightGCNModel)
