"""The contract every collaborative-filtering backbone keeps, and the registry that finds one by its `model_type`.

A history is a list of catalogue indices in time order. In a batch it is LEFT-padded with 0, so the last column holds
every user's most recent item; `attention_mask` is True at real items.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .errors import ALLMRecError, CheckpointError, DataError

MODEL_TYPE_PREFIX = "allmrec-"
_BUILT_IN_MODULES = {"allmrec-sasrec": ".cf_sasrec"}  # imported when first asked for
_REGISTRY: "dict[str, type[CFEncoder]]" = {}
_MAX_LOGITS = 2**26  # scores held at once by the losses and by retrieval: 256 MB in float32
_CACHED_LOGITS = 2**20  # scores that stay in a CPU's cache


@strict
class CFEncoderConfig(PreTrainedConfig):
    """Hold what every CF backbone needs to know; each backbone adds its own fields.

    Args:
        num_items: N, the number of items in the catalogue; index 0 is padding and not counted.
        hidden_size: d_cf, the width of item embeddings and user representations.
        max_history_length: The most recent items that are read; earlier ones are cut off.
        loss: The name of the training loss; the backbone says which ones it knows.
        initializer_range: Standard deviation of fresh weights.
    """

    model_type: ClassVar[str] = ""

    num_items: int = 1
    hidden_size: int = 64
    max_history_length: int = 50
    loss: str = "cross_entropy"
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("num_items", "hidden_size", "max_history_length"):
            if isinstance(getattr(self, name), int) and getattr(self, name) < 1:
                raise ALLMRecError(f"{type(self).__name__}.{name} must be at least 1, got {getattr(self, name)}")
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: a saved backbone names this package in its files, so its source is not copied beside it."""


@dataclass
class CFEncoderOutput(ModelOutput):
    """Hold what a CF backbone computes.

    Args:
        loss: Scalar training loss, only where targets were given.
        user_representation: `(B, d_cf)`, the state after the last item of each history.
        states: `(B, L, d_cf)`, the state after each item, zeros at padding.
    """

    loss: Tensor | None = None
    user_representation: Tensor | None = None
    states: Tensor | None = None


class CFEncoder(PreTrainedModel):
    """Turn a history into a user representation that scores items by dot product.

    A backbone sets `config_class`, owns `self.item_embedding` (`nn.Embedding` of N + 1 rows, row 0 zeros) and
    implements `sequence_states`; it may override `score_range` and `score` where it does not score by dot product.
    """

    config_class: type[CFEncoderConfig] = CFEncoderConfig  # type: ignore[assignment]
    base_model_prefix = ""
    main_input_name = "item_ids"
    item_embedding: nn.Embedding

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing, for the reason given at the config."""

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings `(N + 1, d_cf)`; row 0 is padding and holds zeros."""
        return self.item_embedding.weight

    @property
    def num_items(self) -> int:
        """N, the number of items the table holds."""
        return self.item_embeddings.shape[0] - 1

    def get_input_embeddings(self) -> nn.Module:
        """Return the item table."""
        return self.item_embedding

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the state after each item of left-padded histories.

        Args:
            item_ids: `(B, L)` catalogue indices, 0 at padding.
            attention_mask: `(B, L)` True at real items; taken from `item_ids` where not given.

        Returns:
            `(B, L, d_cf)`, zeros at padding and at items cut off because the history is longer than the model's.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sequence_states")

    def encode_users(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return user representations `(B, d_cf)` of histories `(B, L)`; an empty history gives zeros."""
        return self.sequence_states(item_ids, attention_mask)[:, -1]

    def score_range(self, users: Tensor, start: int, stop: int) -> Tensor:
        """Score the items `start..stop - 1` of the table for users `(B, d_cf)`, giving `(B, stop - start)`."""
        return users @ self.item_embeddings[start:stop].T

    def score(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        """Score items for users; higher is better, `-inf` at padding.

        Args:
            users: `(B, d_cf)` user representations.
            items: `(B, C)` catalogue indices; the whole table where not given.

        Returns:
            `(B, C)`, or `(B, N + 1)` for the whole table.
        """
        if items is None:
            scores = self.score_range(users, 0, self.num_items + 1)
            return torch.cat([scores.new_full((len(scores), 1), float("-inf")), scores[:, 1:]], dim=1)
        scores = torch.einsum("bd,bcd->bc", users, self.item_embeddings[items])
        return scores.masked_fill(items == 0, float("-inf"))

    @torch.no_grad()
    def top_items(self, users: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best k items of the whole catalogue, best first, holding only a slice of the scores at a time.

        Args:
            users: `(B, d_cf)` user representations.
            k: Number of items; at most N are returned.
            exclude: `(B, E)` catalogue indices never to return, such as the history; 0 excludes nothing.

        Returns:
            Indices and scores, both `(B, min(k, N))`. Where fewer items are left, index 0 with score `-inf` follows.
        """
        if k < 1:
            raise ALLMRecError(f"top_items needs k >= 1, got {k}")
        k = min(k, self.num_items)
        best_items = torch.zeros(len(users), 0, dtype=torch.long, device=users.device)
        best_scores = users.new_zeros(len(users), 0)
        step = max(k, _MAX_LOGITS // max(len(users), 1))
        for start in range(1, self.num_items + 1, step):
            stop = min(start + step, self.num_items + 1)
            scores = self.score_range(users, start, stop)
            if exclude is not None:
                scores = _without(scores, exclude.to(users.device) - start)
            scores, positions = scores.topk(min(k, stop - start))
            best_items = torch.cat([best_items, positions + start], dim=1)
            best_scores = torch.cat([best_scores, scores], dim=1)
            best_scores, order = best_scores.topk(min(k, best_scores.shape[1]))
            best_items = best_items.gather(1, order)
        return best_items.masked_fill(best_scores == float("-inf"), 0), best_scores

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over all positions that have a target.

        Args:
            batch: `item_ids (B, L)`, `attention_mask (B, L)`, `targets (B, L)` with 0 for none, and for the loss
                `bce` also `negatives (B, L)`, one item per position that the user never touched.

        Returns:
            A scalar: for `cross_entropy` over the whole catalogue, for `bce` the binary cross entropy of the target
            plus that of the negative (the paper's backbone).
        """
        states = self.sequence_states(batch["item_ids"], batch["attention_mask"])
        wanted = batch["targets"] > 0
        return self._loss_of_states(states[wanted], batch["targets"][wanted], batch, wanted)

    def _loss_of_states(self, states: Tensor, targets: Tensor, batch: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        if self.config.loss == "cross_entropy":
            return full_cross_entropy(states, self.item_embeddings, targets)
        if self.config.loss == "bce":
            if "negatives" not in batch:
                raise DataError("the loss bce needs batch['negatives'] (B, L), one untouched item for each target")
            table = self.item_embeddings
            positive = (states * table[targets]).sum(-1).float()
            negative = (states * table[batch["negatives"][wanted]]).sum(-1).float()
            return F.softplus(-positive).mean() + F.softplus(negative).mean()
        raise ALLMRecError(f"{type(self).__name__} knows the losses cross_entropy and bce, not {self.config.loss!r}")

    def forward(
        self,
        item_ids: Tensor,
        attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
        negatives: Tensor | None = None,
        **kwargs: Any,
    ) -> CFEncoderOutput:
        """Return states, user representations and, where `targets (B, L)` are given, the training loss."""
        states = self.sequence_states(item_ids, attention_mask)
        loss = None
        if targets is not None:
            wanted = targets > 0
            batch = {} if negatives is None else {"negatives": negatives}
            loss = self._loss_of_states(states[wanted], targets[wanted], batch, wanted)
        return CFEncoderOutput(loss=loss, user_representation=states[:, -1], states=states)

    @torch.no_grad()
    def append_items(self, vectors: Tensor) -> None:
        """Grow the item table by new rows, which get the indices N + 1 onwards; `config.num_items` follows.

        Args:
            vectors: `(k, d_cf)` embeddings of the new items.
        """
        width = self.item_embeddings.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise DataError(f"new item vectors must be (k, d_cf) with d_cf = {width}, got {tuple(vectors.shape)}")
        old = self.item_embedding.weight
        grown = nn.Embedding(len(old) + len(vectors), width, padding_idx=0, _weight=torch.cat([old, vectors.to(old)]))
        grown.weight.requires_grad_(old.requires_grad)
        self.item_embedding = grown.train(self.training)
        self.config.num_items = self.num_items


def _without(scores: Tensor, columns: Tensor) -> Tensor:
    """Set the given columns `(B, E)` of scores `(B, S)` to `-inf`; columns outside the slice are ignored."""
    size = scores.shape[1]
    columns = columns.where((columns >= 0) & (columns < size), size)
    padded = F.pad(scores, (0, 1))  # one spare column takes what does not belong to this slice
    return padded.scatter(1, columns, float("-inf"))[:, :size]


def full_cross_entropy(states: Tensor, item_embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of targets `(P,)` among all N items, given states `(P, d_cf)`.

    The positions are worked off in slices: on a CPU small enough for its cache, which more than halves the time. Where
    all scores together would not fit `_MAX_LOGITS`, those of a slice are computed again in the backward pass, so memory
    stays bounded; the value is the same. No position at all gives 0.
    """
    if not len(targets):
        return states.sum() * 0.0
    table = item_embeddings[1:]  # (N, d_cf), without padding
    on_cpu = states.device.type == "cpu"
    slice_size = max(256, _CACHED_LOGITS // len(table)) if on_cpu else max(1, _MAX_LOGITS // len(table))
    keep = len(targets) * len(table) <= _MAX_LOGITS
    total = states.new_zeros((), dtype=torch.float32)
    for part, part_targets in zip(states.split(slice_size), targets.split(slice_size), strict=True):
        inputs = (part, table, part_targets)
        loss = (
            _summed_cross_entropy(*inputs) if keep else checkpoint(_summed_cross_entropy, *inputs, use_reentrant=False)
        )
        total = total + loss
    return total / len(targets)


def _summed_cross_entropy(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    logits = states @ table.T  # (P, N)
    return F.cross_entropy(logits.float(), targets - 1, reduction="sum")


def pad_histories(histories: Sequence[Sequence[int] | np.ndarray], max_length: int) -> tuple[Tensor, Tensor]:
    """Left-pad histories to one batch, keeping the most recent `max_length` items of each.

    Args:
        histories: B lists or arrays of catalogue indices in time order; one may be empty.
        max_length: The most columns the batch may have.

    Returns:
        `item_ids (B, L)` integers with 0 at padding, and `attention_mask (B, L)` booleans, True at real items. L is
        the longest kept history, at least 1.

    Example:
        >>> item_ids, attention_mask = pad_histories([[4, 7, 9], [3]], max_length=2)
        >>> item_ids.tolist(), attention_mask.tolist()
        ([[7, 9], [0, 3]], [[True, True], [False, True]])
    """
    kept = [np.asarray(history, dtype=np.int64)[-max_length:] for history in histories]
    lengths = np.fromiter((len(history) for history in kept), dtype=np.int64, count=len(kept))
    width = max(1, int(lengths.max(initial=0)))
    mask = np.arange(width) >= width - lengths[:, None]
    item_ids = np.zeros((len(kept), width), dtype=np.int64)
    if kept:
        item_ids[mask] = np.concatenate(kept)
    return torch.from_numpy(item_ids), torch.from_numpy(mask)


def register_cf_encoder(config_class: type[CFEncoderConfig], model_class: type[CFEncoder]) -> None:
    """Make a CF backbone known by its `config_class.model_type`, here and to `AutoConfig` and `AutoModel`.

    Args:
        config_class: The backbone's config; its `model_type` must not be empty.
        model_class: The backbone; its `config_class` must be the given one.
    """
    if not config_class.model_type:
        raise ALLMRecError(f"{config_class.__name__}.model_type is empty; name the backbone there")
    _REGISTRY[config_class.model_type] = model_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)


def cf_encoder_types() -> list[str]:
    """Return the `model_type` of every known backbone, built in or registered."""
    return sorted({*_BUILT_IN_MODULES, *_REGISTRY})


def cf_encoder_class(model_type: str) -> type[CFEncoder]:
    """Return the backbone of a `model_type`; the prefix `allmrec-` may be left out, as in `"sasrec"`.

    Raises:
        ALLMRecError: when it is unknown; the message lists the known ones.
    """
    for name in (model_type, MODEL_TYPE_PREFIX + model_type):
        if name not in _REGISTRY and name in _BUILT_IN_MODULES:
            importlib.import_module(_BUILT_IN_MODULES[name], __package__)
        if name in _REGISTRY:
            return _REGISTRY[name]
    known = ", ".join(name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types())
    raise ALLMRecError(f"unknown CF backbone {model_type!r}; known ones: {known}; register_cf_encoder adds your own")


def cf_config_from_dict(config: "Mapping[str, Any] | PreTrainedConfig") -> CFEncoderConfig:
    """Build the config of a CF backbone from a mapping with `model_type`; a config of that backbone is returned as is.

    Raises:
        ALLMRecError: when `model_type` is missing or unknown.
        CheckpointError: when a value is of the wrong type.
    """
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config)
    model_type = values.pop("model_type", "")
    if not model_type:
        raise ALLMRecError(f"the config of a CF backbone names it in model_type; the fields given are {sorted(values)}")
    config_class = cf_encoder_class(model_type).config_class
    if isinstance(config, config_class):
        return config
    try:
        return config_class.from_dict(values)
    except ALLMRecError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"the config of the CF backbone {model_type!r} is not valid: {error}") from error


def build_cf_encoder(config: "Mapping[str, Any] | PreTrainedConfig") -> CFEncoder:
    """Build a CF backbone with fresh weights from its config or from a mapping with `model_type`."""
    config = cf_config_from_dict(config)
    return cf_encoder_class(config.model_type)(config)
