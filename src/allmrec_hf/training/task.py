"""What a stage tells the loop about itself, and what the loop tells back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

logger = logging.getLogger(__name__)
Batch = dict[str, Any]


class StageTask(ABC):
    """Describe one stage: what is trained, on which batches, and how it is validated.

    Attributes:
        name: The stage's name, in logs and files.
        module: `module(batch)` returns a mapping with the scalar `"loss"`, a mean over `loss_weight(batch)` terms, and
            any further scalars to log. Only its parameters with `requires_grad` are trained and checkpointed; parts
            whose parameters are all frozen stay in eval mode.
        metric: The validation metric that picks the best weights; one with "loss" in its name is better when lower.
        varied_lengths: Whether its batches differ much in length, as prompts do, so that a CPU's heap must be trimmed.
        of_batch: Names of what a batch holds once for all of its rows, such as negatives that they share.
        rows_add_up: Whether the loss of a batch is the mean of those of its rows, given what is `of_batch`. Where it is
            not, as with a contrast between rows, every process computes whole batches, and none is cut.
        may_be_cut: Whether the share of a process may go through the module in parts where memory is short.
        learning_rates: Learning rates of parameters by how their names begin, where another than that of the settings;
            warm-up and schedule are the same.
        content: Digests of what the stage is trained on, by name, such as `PreparedData.digests`: a checkpoint keeps
            them, and is not gone on with where one of them differs.
    """

    name: str
    module: nn.Module
    metric: str = "loss"
    varied_lengths: bool = False
    of_batch: Collection[str] = ()
    rows_add_up: bool = True
    may_be_cut: bool = True
    learning_rates: Mapping[str, float] = MappingProxyType({})
    content: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the example numbers of each batch of an epoch; the same for the same epoch whenever it is asked."""

    @abstractmethod
    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return the batch of some examples as CPU tensors; all randomness comes from `generator`."""

    def share(self, examples: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return what one of several processes computes of a batch.

        Every process draws for the whole batch with the same generator, so their number changes nothing that is drawn.

        Args:
            examples: Example numbers of the batch.
            rows: Which of them, by place.
            generator: All randomness comes from it.
        """
        batch = self.collate(examples, generator)
        if not self.rows_add_up or len(rows) == len(examples):
            return batch
        return self.some_rows(batch, rows, len(examples))

    def some_rows(self, batch: Batch, rows: np.ndarray, count: int) -> Batch:
        """Return some rows of a batch of `count`, with all that is `of_batch`."""
        places = torch.from_numpy(rows)
        return {
            name: value if name in self.of_batch or not _has_rows(value, count) else value[places]
            for name, value in batch.items()
        }

    def smaller(self, batch: Batch, most: int) -> list[Batch]:
        """Return a batch in parts of at most `most` rows, for a device whose memory does not hold more."""
        count = rows_of(batch, self.of_batch)
        if not (self.rows_add_up and self.may_be_cut) or count <= most:
            return [batch]
        return [
            self.some_rows(batch, np.arange(start, min(start + most, count)), count) for start in range(0, count, most)
        ]

    def loss_weight(self, batch: Batch) -> float:
        """Return the number of terms the loss of a batch is the mean of; by default its rows.

        Batches of one optimizer step are averaged with this weight, so neither the number of processes nor gradient
        accumulation changes what is trained.
        """
        return float(len(next(value for value in batch.values() if isinstance(value, torch.Tensor))))

    def parts(self, batch: Batch) -> list[Batch]:
        """Return a batch in the parts that go through the module one after the other; by default it is one.

        Their losses are averaged by `loss_weight`, so the gradient is that of the whole batch.
        """
        return [batch]

    @property
    def num_validation_examples(self) -> int:
        """The number of validation examples; 0 where the stage has no validation."""
        return 0

    def progressed(self, done: int) -> None:
        """Hear from `validate` how many examples are done; the loop puts its own in place, which tells it the user."""
        logger.debug("%s: %d examples validated", self.name, done)

    def validate(self, examples: np.ndarray, device: torch.device) -> Mapping[str, np.ndarray]:
        """Return metrics of some validation examples, one value per example; the loop gathers and averages them."""
        raise NotImplementedError(f"{type(self).__name__} has validation examples, so it must implement validate")


def rows_of(batch: Batch, of_batch: Collection[str] = ()) -> int:
    """Return the number of rows of a batch."""
    own = (value for name, value in batch.items() if name not in of_batch and isinstance(value, torch.Tensor))
    return len(next(own))


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count


@dataclass
class StageResult:
    """Hold how a stage went.

    Attributes:
        stage: The stage's name.
        steps: Optimizer steps taken.
        epochs: Epochs begun.
        stopped_by: `epochs`, `max_steps`, `early_stopping` or `time_limit`.
        seconds: Wall-clock time, over all attempts of a resumed run.
        metric: Name of the metric that picked the best weights; None without validation.
        best: Its best value; None without validation.
        best_epoch: The epoch, from 1, whose weights the module now has.
        history: One mapping per epoch: `epoch`, `step`, `train/...` means and `validation/...` metrics.
    """

    stage: str
    steps: int
    epochs: int
    stopped_by: str
    seconds: float
    metric: str | None
    best: float | None
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values that JSON can hold."""
        return asdict(self)


def set_training_mode(module: nn.Module) -> None:
    """Put a module in train mode, except the parts whose parameters are all frozen, which go to eval mode.

    A frozen part with activation checkpointing keeps the mode its own `train` gives it; its owner sets dropout to 0.
    """
    module.train()
    _freeze_modes(module)


def _freeze_modes(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        if not getattr(module, "is_gradient_checkpointing", False):  # which transformers ignores in eval mode
            module.eval()
        return
    for child in module.children():
        _freeze_modes(child)
