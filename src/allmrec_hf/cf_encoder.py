"""Define the contract of every collaborative-filtering backbone, and find a backbone by its `model_type`.

A history is a list of catalogue indices in time order. In a batch it is LEFT-padded with 0, so the last column holds
every user's most recent item; `attention_mask` is True at real items.
"""

import copy
import importlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .cf_built_in import BUILT_IN, MODEL_TYPE_PREFIX
from .cf_losses import (
    binary_cross_entropy,
    bpr_loss,
    full_cross_entropy,
    gbce_exponent,
    sampled_cross_entropy,
    summed_over_positions,
)
from .cf_texts import TEXT_DEVIATION, text_layer
from .checkpoint_code import check_weights_match_config
from .errors import ALLMRecError, CheckpointError, DataError
from .files import finish_interrupted_write
from .growing_table import appended_embedding
from .indices import check_padded
from .outputs import CFEncoderOutput
from .retrieval import FaissIndex, build_index, exact_top_items, require_dot_product

_REGISTRY: "dict[str, type[CFEncoder]]" = {}
logger = logging.get_logger(__name__)

Loss = Literal["cross_entropy", "sampled_softmax", "gbce", "bce", "bpr"]


@strict
class CFEncoderConfig(PreTrainedConfig):
    """Hold what every backbone needs to know; each backbone adds its own fields.

    Args:
        num_items: N, the number of items in the catalogue; index 0 is padding and not counted.
        hidden_size: d_cf, the width of item embeddings and user representations.
        max_history_length: The most recent items that are read; earlier ones are cut off.
        loss: `cross_entropy` over the whole catalogue; `sampled_softmax` over the batch's targets and `num_negatives`
            uniform items that all positions share, logQ-corrected; `bce`, `gbce` or `bpr` with `num_negatives` items
            of each position's own. See `cf_losses`.
        num_negatives: K, items sampled for the losses that sample.
        gbce_calibration: The t of `gbce`: 0 is plain `bce`, 1 removes the overconfidence of sampling altogether.
        initializer_range: Standard deviation of fresh weights.
        text_components: How many of an item embedding's components, the first ones, are its text's and stay so while
            the others are trained (AlphaFuse, arXiv 2504.19218); 0: none. A new item has these alone. For backbones
            that train on sequences.
        text_dim: d_text of the texts they come from; training fills it in.
    """

    model_type: ClassVar[str] = ""

    num_items: int = 1
    hidden_size: int = 64
    max_history_length: int = 50
    loss: Loss = "cross_entropy"
    num_negatives: int = 1
    gbce_calibration: float | int = 0.75
    initializer_range: float | int = 0.02
    text_components: int = 0
    text_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_items", "hidden_size", "max_history_length", "num_negatives")
        counts = (self.text_components, self.hidden_size)
        if all(isinstance(count, int) for count in counts) and not 0 <= self.text_components < self.hidden_size:
            raise ALLMRecError(
                f"text_components must be 0 or more and below hidden_size ({self.hidden_size}), so that something is "
                f"left to train; got {self.text_components}"
            )
        if self.loss not in get_args(Loss):
            raise ALLMRecError(f"unknown loss {self.loss!r} of a backbone; known ones: {', '.join(get_args(Loss))}")
        if isinstance(self.gbce_calibration, (int, float)) and not 0 <= self.gbce_calibration <= 1:
            raise ALLMRecError(f"gbce_calibration must be between 0 and 1, got {self.gbce_calibration}")
        super().__post_init__(**kwargs)

    def check_at_least_one(self, *names: str) -> None:
        """Check fields that count something; one of a wrong type is left to the check of types.

        Raises:
            ALLMRecError: when one is below 1.
        """
        for name in names:
            if isinstance(getattr(self, name), int) and getattr(self, name) < 1:
                raise ALLMRecError(f"{type(self).__name__}.{name} must be at least 1, got {getattr(self, name)}")

    def check_shares(self, *names: str) -> None:
        """Check fields that are a share of values dropped.

        Raises:
            ALLMRecError: when one is not 0 or more and below 1.
        """
        for name in names:
            if isinstance(getattr(self, name), (int, float)) and not 0 <= getattr(self, name) < 1:
                raise ALLMRecError(f"{name} must be a share of 0 or more and below 1, got {getattr(self, name)}")

    def check_layers(self, epsilon: str, heads: str | None = None) -> None:
        """Check the epsilon of LayerNorm and the number of attention heads.

        Raises:
            ALLMRecError: when the epsilon is not above 0, or the heads do not divide `hidden_size`.
        """
        if isinstance(getattr(self, epsilon), (int, float)) and not getattr(self, epsilon) > 0:
            raise ALLMRecError(f"{epsilon} must be above 0, got {getattr(self, epsilon)}")
        count = 1 if heads is None else getattr(self, heads)
        if isinstance(count, int) and isinstance(self.hidden_size, int) and (count < 1 or self.hidden_size % count):
            raise ALLMRecError(f"{heads} must divide hidden_size {self.hidden_size} (d_cf), got {count}")

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: a saved backbone names this package in its files, so its source is not copied beside it."""


class CFEncoder(PreTrainedModel):
    """Turn a history into a user representation that scores items by dot product.

    A backbone sets `config_class`, owns `self.item_embedding` (`nn.Embedding` of N + 1 rows, row 0 zeros) and
    implements `sequence_states`. One that does not score by dot product says so and overrides `score_vectors` and
    `score_range`. One with per-user vectors trains on interactions and prepares itself in `start_training`; it too
    serves every user from the history alone.

    Attributes:
        trains_on: `"sequences"`: a batch is histories and the item after each position. `"interactions"`: a batch is
            pairs of a user number and an item.
        scores_by_dot_product: Whether a score is the dot product of user representation and item embedding.
        reads_texts: Whether it is made from the texts of the items.
        training_recipe: Fields of `StageArguments` that suit this backbone, in the presets `default` and `quick`.
    """

    trains_on: ClassVar[Literal["sequences", "interactions"]] = "sequences"
    scores_by_dot_product: ClassVar[bool] = True
    reads_texts: ClassVar[bool] = False
    training_recipe: ClassVar[Mapping[str, Any]] = {}

    config_class: type[CFEncoderConfig] = CFEncoderConfig  # type: ignore[assignment]
    base_model_prefix = ""
    main_input_name = "item_ids"
    item_embedding: nn.Embedding
    target_counts: Tensor | None = None  # (N + 1,) targets of one epoch where it was trained here; None: unknown
    _index: FaissIndex | None = None  # of the item table as it stands; dropped where items change

    def __init__(self, config: CFEncoderConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.text_layer: nn.Linear | None = None  # what makes text embeddings components of an item embedding
        if config.text_components and config.text_dim is not None:
            self.text_layer = nn.Linear(config.text_dim, config.text_components).requires_grad_(False)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing, as the config."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a backbone; weights that are not those of its config are refused, not left at random values."""
        kwargs["ignore_mismatched_sizes"] = True  # refused below, with the others
        name = str(args[0] if args else kwargs.get("pretrained_model_name_or_path"))
        finish_interrupted_write(Path(name) / (kwargs.get("subfolder") or ""))
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_weights_match_config(name, loaded[1])
        return loaded if output_loading_info else loaded[0]

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

    def real_items(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return where a history has an item, `(B, L)`, after a check that every one is of this catalogue.

        While training, values on an accelerator are not looked at: that would wait for it in every step.

        Raises:
            DataError: when a catalogue index is out of range, or no whole number.
        """
        check_padded(item_ids, self.num_items, "a history", look=not self.training)
        return item_ids != 0 if attention_mask is None else attention_mask.bool()

    def recent_items(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the `max_history_length` most recent positions `(B, L)`, and where they have an item, as `real_items`.

        A warning says once that longer histories are cut.
        """
        real = self.real_items(item_ids, attention_mask)
        length, limit = item_ids.shape[1], self.config.max_history_length
        if length > limit:
            logger.warning_once(
                f"histories of up to {length} items are cut to the {limit} most recent ones (max_history_length)"
            )
        return item_ids[:, -limit:], real[:, -limit:]

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the state after each item of left-padded histories.

        A backbone asks `real_items` or `recent_items` for the places of items, which checks the indices.

        Args:
            item_ids: `(B, L)` catalogue indices, 0 at padding.
            attention_mask: `(B, L)` True at real items; taken from `item_ids` where not given.

        Returns:
            `(B, L, d_cf)`, zeros at padding and at items cut off because the history is longer than the model's.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sequence_states")

    def encode_users(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return user representations `(B, d_cf)` of histories `(B, L)`.

        An empty history gives zeros where a score is a dot product, else the backbone's neutral user.
        """
        return self.sequence_states(item_ids, attention_mask)[:, -1]

    def states_at(self, item_ids: Tensor, attention_mask: Tensor | None, wanted: Tensor) -> Tensor:
        """Return the states `(P, d_cf)` after the positions where `wanted` `(B, L)` is True.

        On a CPU, where a padded position costs what an item costs, neighbouring rows of similar length are read
        together.
        """
        if item_ids.device.type != "cpu":
            return self.sequence_states(item_ids, attention_mask)[wanted]
        real = self.real_items(item_ids, attention_mask)
        return torch.cat(
            [
                self.sequence_states(item_ids[rows, first:], real[rows, first:])[wanted[rows, first:]]
                for rows, first in _similar_rows(real | wanted)
            ]
        )

    def score_vectors(self, users: Tensor, items: Tensor) -> Tensor:
        """Score item vectors `(..., d_cf)` for users `(..., d_cf)`, which broadcast, giving `(...)`."""
        return (users * items).sum(-1)

    def score_range(self, users: Tensor, start: int, stop: int) -> Tensor:
        """Score the items `start..stop - 1` of the table for users `(B, d_cf)`, giving `(B, stop - start)`."""
        return users @ self.item_embeddings[start:stop].T

    def score(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        """Score items for users; higher is better, `-inf` at padding.

        Args:
            users: `(B, d_cf)` user representations.
            items: `(B, C)` catalogue indices, 0 at padding; the whole table where not given.

        Returns:
            `(B, C)`, or `(B, N + 1)` for the whole table.

        Raises:
            DataError: when a catalogue index is out of range.
        """
        if items is None:
            scores = self.score_range(users, 0, self.num_items + 1)
            return torch.cat([scores.new_full((len(scores), 1), float("-inf")), scores[:, 1:]], dim=1)
        check_padded(items, self.num_items, "items to score", look=not self.training)
        return self.score_vectors(users.unsqueeze(1), self.item_embeddings[items]).masked_fill(
            items == 0, float("-inf")
        )

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
        if self._index is not None:
            self._index.check(self.item_embeddings)
            return self._index.search(users, k, exclude)
        return exact_top_items(self.score_range, users, self.num_items, k, exclude)

    def build_index(self, breadth: int | None = None, seed: int = 0) -> FaissIndex:
        """Build a FAISS index of the item table and let `top_items` use it; see `FaissIndex` for the arguments."""
        index = build_index(self, breadth, seed)
        self.use_index(index)
        return index

    def use_index(self, index: FaissIndex | None) -> None:
        """Let `top_items` use an index built from this item table; None makes it exact again."""
        if index is not None:
            require_dot_product(self)
            index.check(self.item_embeddings)
        self._index = index

    def start_training(self, users: Tensor, items: Tensor, num_users: int) -> None:
        """Make what only training needs, such as user vectors or a graph, from all training interactions.

        Called once, before the optimizer sees the parameters.

        Args:
            users: `(E,)` user numbers, below `num_users`.
            items: `(E,)` catalogue indices.
            num_users: U.
        """

    @torch.no_grad()
    def start_from_texts(self, texts: Tensor) -> None:
        """Make the first `text_components` of every item embedding its text's, before training; see `text_layer`.

        Args:
            texts: `(N + 1, d_text)`, row 0 zeros.

        Raises:
            ALLMRecError: when texts differ in fewer directions, or the backbone trains on no sequences.
        """
        count = self.config.text_components
        if self.trains_on != "sequences":
            raise ALLMRecError(
                f"{type(self).__name__} has no text_components: they are for those that train on sequences"
            )
        self.config.text_dim, self.text_layer = texts.shape[1], text_layer(texts, count, TEXT_DEVIATION)
        self.item_embedding.weight[1:, :count] = self.text_layer(texts[1:])

    @torch.no_grad()
    def start_from_texts_of(self, other: "CFEncoder") -> None:
        """Take the text's components over from a backbone of the same items."""
        count = self.config.text_components
        self.config.text_dim, self.text_layer = other.config.text_dim, copy.deepcopy(other.text_layer)
        self.item_embedding.weight[:, :count] = other.item_embeddings[:, :count]

    def new_items(self, texts: Tensor, decoded: Tensor) -> Tensor:
        """Return the embeddings `(k, d_cf)` of items known by their texts alone.

        Args:
            texts: `(k, d_text)`.
            decoded: `(k, d_cf)` by the aligner; taken where the backbone has no text components.
        """
        if self.text_layer is None:
            return decoded
        return F.pad(self.text_layer(texts), (0, self.config.hidden_size - self.config.text_components))

    def update_tables(self) -> None:
        """Bring what is served up to date with what is trained; called before every validation and at the end."""

    def end_training(self) -> None:
        """Drop what only training needs; what is left serves every user from the history alone."""

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over all positions that have a target.

        Args:
            batch: `item_ids (B, L)`, `attention_mask (B, L)`, `targets (B, L)` with 0 for none. For `bce`, `gbce` and
                `bpr` also `negatives (B, L, K)`, items the user has never seen, or `(B, L)` for one; for
                `sampled_softmax` `negatives (S,)` and their `log_weights (S,)`, see `sampled_cross_entropy`.

        Returns:
            A scalar.
        """
        wanted = batch["targets"] > 0
        states = self.states_at(batch["item_ids"], batch["attention_mask"], wanted)
        return self._loss_of_states(states, batch["targets"][wanted], batch, wanted)

    def _loss_of_states(self, states: Tensor, targets: Tensor, batch: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        loss, table = self.config.loss, self.item_embeddings
        check_padded(targets, self.num_items, "targets", look=not self.training)
        if "negatives" in batch:
            check_padded(batch["negatives"], self.num_items, "negatives", look=not self.training)
        if loss == "cross_entropy":
            return full_cross_entropy(states, table, targets)
        needed = {"negatives", "log_weights"} if loss == "sampled_softmax" else {"negatives"}
        if needed - set(batch):
            raise DataError(
                f"the loss {loss} needs the batch to hold {sorted(needed)}; missing {sorted(needed - set(batch))}"
            )
        if loss == "sampled_softmax":
            return sampled_cross_entropy(states, table, targets, batch["negatives"], batch["log_weights"])
        negatives = batch["negatives"][wanted].view(len(targets), -1)  # (P, K)

        def summed(part: Tensor, part_targets: Tensor, part_negatives: Tensor) -> Tensor:
            positive = self.score_vectors(part, table[part_targets])
            negative = self.score_vectors(part.unsqueeze(1), table[part_negatives])  # (P, K)
            return self.sampled_loss(positive, negative).sum()

        values = negatives.shape[1] * states.shape[1]
        return summed_over_positions(summed, (states, targets, negatives), values) / max(len(targets), 1)

    def sampled_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses `(P,)` of `bce`, `gbce` or `bpr` from scores of targets `(P,)` and negatives `(P, K)`."""
        if self.config.loss == "bpr":
            return bpr_loss(positive, negative)
        if self.config.loss not in ("bce", "gbce"):
            raise ALLMRecError(f"{type(self).__name__} knows the losses bce, gbce and bpr, not {self.config.loss}")
        exponent = 1.0
        if self.config.loss == "gbce":
            exponent = gbce_exponent(negative.shape[1], self.num_items, float(self.config.gbce_calibration))
        return binary_cross_entropy(positive, negative, exponent)

    def forward(
        self,
        item_ids: Tensor,
        attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
        **kwargs: Any,
    ) -> CFEncoderOutput:
        """Return states, user representations and, where `targets (B, L)` are given, the training loss.

        What the loss reads beside targets, such as `negatives`, is given by name; see `training_loss`.
        """
        states = self.sequence_states(item_ids, attention_mask)
        loss = None
        if targets is not None:
            wanted = targets > 0
            loss = self._loss_of_states(states[wanted], targets[wanted], kwargs, wanted)
        return CFEncoderOutput(loss=loss, user_representation=states[:, -1], states=states)

    @torch.no_grad()
    def replace_items(self, items: Tensor, vectors: Tensor) -> None:
        """Overwrite the served embeddings of items `(k,)` by `(k, d_cf)`: cold items get theirs decoded from text."""
        check_padded(items, self.num_items, "items to replace")
        self.item_embedding.weight[items] = vectors.to(self.item_embedding.weight).clone()  # it may be a view of it
        self._drop_index()

    @torch.no_grad()
    def append_items(self, vectors: Tensor) -> None:
        """Grow the item table by new rows, which get the indices N + 1 onwards; `config.num_items` follows.

        Args:
            vectors: `(k, d_cf)` embeddings of the new items.
        """
        width = self.item_embeddings.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise DataError(f"new item vectors must be (k, d_cf) with d_cf = {width}, got {tuple(vectors.shape)}")
        self.item_embedding = appended_embedding(self.item_embedding, vectors)
        self.config.num_items = self.num_items
        self._drop_index()

    @torch.no_grad()
    def renumber_items(self, rows: Tensor) -> None:
        """Rewrite catalogue indices that a buffer holds, after the tables took another order.

        Args:
            rows: `(N,)` the old index of each item 1..N, 0 where it is new.
        """

    def _drop_index(self) -> None:
        if self._index is not None:
            logger.warning("the items have changed: retrieval is exact until build_index is called again")
            self._index = None


def _similar_rows(used: Tensor) -> Iterator[tuple[slice, int]]:
    """Yield slices of rows that follow each other, none twice as long as another, and the first column they use.

    Args:
        used: `(B, L)` True where a row has something; the last column of each row counts.
    """
    length = used.shape[1]
    lengths = (length - used.long().argmax(dim=1)).where(used.any(dim=1), 1).tolist()
    start = 0
    for _, group in groupby(lengths, key=lambda count: (count - 1).bit_length()):
        rows = list(group)
        yield slice(start, start + len(rows)), length - max(rows)
        start += len(rows)


def register_cf_encoder(config_class: type[CFEncoderConfig], model_class: type[CFEncoder]) -> None:
    """Make a backbone known by its `config_class.model_type`, here and to `AutoConfig` and `AutoModel`.

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
    return sorted({*BUILT_IN, *_REGISTRY})


def cf_encoder_class(model_type: str) -> type[CFEncoder]:
    """Return the backbone of a `model_type`; the prefix `allmrec-` may be left out, as in `"sasrec"`.

    Raises:
        ALLMRecError: when it is unknown; the message lists the known ones.
    """
    for name in (model_type, MODEL_TYPE_PREFIX + model_type):
        if name not in _REGISTRY and name in BUILT_IN:
            importlib.import_module(f".{BUILT_IN[name][0]}", __package__)
        if name in _REGISTRY:
            return _REGISTRY[name]
    known = ", ".join(name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types())
    raise ALLMRecError(
        f"unknown backbone {model_type!r}; known ones: {known}; register_cf_encoder adds your own, on "
        "the command line --backbone-module imports the module that does"
    )


def cf_config_from_dict(config: "Mapping[str, Any] | PreTrainedConfig") -> CFEncoderConfig:
    """Build the config of a backbone from a mapping with `model_type`; a config of that backbone is returned as is.

    Raises:
        ALLMRecError: when `model_type` is missing or unknown.
        CheckpointError: when a value is of the wrong type.
    """
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config)
    model_type = values.pop("model_type", "")
    if not model_type:
        raise ALLMRecError(f"the config of a backbone names it in model_type; the fields given are {sorted(values)}")
    config_class = cf_encoder_class(model_type).config_class
    if isinstance(config, config_class):
        return config
    try:
        return config_class.from_dict(values)
    except ALLMRecError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"the config of the backbone {model_type!r} is not valid: {error}") from error


def build_cf_encoder(config: "Mapping[str, Any] | PreTrainedConfig") -> CFEncoder:
    """Build a backbone with fresh weights from its config or from a mapping with `model_type`."""
    config = cf_config_from_dict(config)
    return cf_encoder_class(config.model_type)(config)
