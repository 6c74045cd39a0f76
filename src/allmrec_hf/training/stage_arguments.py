"""The options of a stage's training loop, declared once for all stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import ALLMRecError
from .option_fields import Checked, option

STAGES = ("backbone", "align", "project")  # the paper's
LOOPS = (*STAGES, "retrieve")  # stages that train in the loop
STEPS = (*LOOPS, "rank")  # everything that a run can do, in order
PRESETS = ("default", "paper", "quick", "demo")
LARGEST_SEED = 2**32 - 1  # the largest that NumPy, PyTorch and every library of the stages take
RUN_WIDE = ("seed", "report_to")  # options of the loop that a run gives once for all its stages
Self = TypeVar("Self", bound="StageArguments")


@dataclass(frozen=True)
class StageArguments(Checked):
    """Hold the settings of one stage's loop; an impossible value is refused when the object is made.

    The names are those of `transformers.TrainingArguments` where the meaning is the same.

    Raises:
        ALLMRecError: when a value is impossible.

    Example:
        >>> StageArguments(num_train_epochs=3, learning_rate=1e-4).adam_beta2
        0.98
    """

    num_train_epochs: int = option(10, "Passes over the training data at most.", at_least=1, loop=True)
    min_steps: int | None = option(
        None,
        "Optimizer steps that these passes should come to: where the data are too few, epochs and eval_epochs are "
        "multiplied by the same whole number. Early stopping, max_steps and max_seconds end a stage all the same.",
        at_least=1,
        loop=True,
    )
    max_steps: int | None = option(None, "Optimizer steps at most.", at_least=1, loop=True)
    max_seconds: float | None = option(
        None, "Seconds after which the stage ends with what it has.", above=0, free_on_resume=True, loop=True
    )
    per_device_train_batch_size: int = option(128, "Examples of a batch in each process.", at_least=1, loop=True)
    gradient_accumulation_steps: int = option(1, "Batches in one optimizer step.", at_least=1, loop=True)
    learning_rate: float = option(1e-3, "AdamW's step size after the warm-up.", above=0, loop=True)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "constant", "What the learning rate does after the warm-up; linear and cosine go down to 0.", loop=True
    )
    warmup_steps: float = option(
        0.0, "Optimizer steps of linear warm-up; a value below 1 is a share of all steps.", at_least=0, loop=True
    )
    weight_decay: float = option(0.0, "Decoupled weight decay, on matrices only.", at_least=0, loop=True)
    adam_beta1: float = option(0.9, "AdamW's decay rate of the mean.", at_least=0, below=1, loop=True)
    adam_beta2: float = option(0.98, "AdamW's decay rate of the square.", at_least=0, below=1, loop=True)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.", above=0, loop=True)
    max_grad_norm: float | None = option(
        None, "Gradients are clipped to this norm; no clipping where not given.", above=0, loop=True
    )
    bf16: bool = option(False, "Mixed precision with bfloat16.", loop=True)
    fp16: bool = option(False, "Mixed precision with float16; needs a GPU.", loop=True)
    eval_strategy: Literal["epoch", "steps", "no"] = option(
        "epoch", "When the stage is validated: every eval_epochs epochs, every eval_steps steps, or never.", loop=True
    )
    eval_steps: int | None = option(
        None, "Optimizer steps between validations, with eval_strategy steps.", at_least=1, loop=True
    )
    eval_epochs: int = option(1, "Epochs between validations, with eval_strategy epoch.", at_least=1, loop=True)
    early_stopping_patience: int | None = option(
        None, "Validations without improvement after which training ends.", at_least=1, loop=True
    )
    max_validation_users: int | None = option(
        10_000, "Users of a validation at most, drawn once with the seed.", at_least=1, loop=True
    )
    save_steps: int | None = option(
        None, "Optimizer steps between checkpoints within an epoch.", at_least=1, free_on_resume=True, loop=True
    )
    save_minutes: float | None = option(
        10.0,
        "Minutes of training after which a checkpoint is written whatever the steps.",
        above=0,
        free_on_resume=True,
        loop=True,
    )
    save_total_limit: int = option(2, "Checkpoints that stay on disk.", at_least=1, free_on_resume=True, loop=True)
    logging_steps: int = option(
        20, "Optimizer steps between two entries of the log.", at_least=1, free_on_resume=True, loop=True
    )
    dataloader_num_workers: int = option(
        0, "Processes that prepare batches; 0: the training process.", at_least=0, free_on_resume=True, loop=True
    )
    report_to: Literal["none", "tensorboard", "wandb"] = option(
        "none", "The experiment tracker.", flag="--report-to", free_on_resume=True, loop=True
    )
    seed: int = option(0, "Seed of all that is drawn.", at_least=0, at_most=LARGEST_SEED, flag="--seed", loop=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bf16 and self.fp16:
            raise ALLMRecError("bf16 and fp16 are both given; give one")
        if (self.eval_strategy == "steps") != (self.eval_steps is not None):
            raise ALLMRecError("eval_steps and eval_strategy steps go together; give both or neither")
        if self.eval_strategy == "no" and self.early_stopping_patience is not None:
            raise ALLMRecError("early_stopping_patience counts validations, but eval_strategy is no")

    @classmethod
    def from_dict(cls: type[Self], values: Mapping[str, Any]) -> Self:
        """Build arguments from a mapping, such as a section of a YAML file; unknown names are refused."""
        return cls().replaced(**values)

    def replaced(self: Self, **changes: Any) -> Self:
        """Return a copy with some values changed.

        Who changes `num_train_epochs` alone gets these epochs, whatever `min_steps` was.

        Raises:
            ALLMRecError: when a name is unknown; the message offers the nearest ones.
        """
        self.check_names(changes, "the training of a stage")
        return dataclasses.replace(self, **({"min_steps": None} if "num_train_epochs" in changes else {}) | changes)

    def loop(self) -> StageArguments:
        """Return the settings of the loop alone."""
        return StageArguments(**{name: getattr(self, name) for name in StageArguments.names()})

    @property
    def mixed_precision(self) -> Literal["no", "fp16", "bf16"]:
        """The precision in Accelerate's words."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    def stretched(self: Self, num_batches: int) -> Self:
        """Return the settings with as many epochs as `min_steps` asks of data with so many batches in an epoch.

        Example:
            >>> few = StageArguments(num_train_epochs=10, eval_epochs=2, min_steps=100).stretched(4)
            >>> few.num_train_epochs, few.eval_epochs
            (30, 6)
        """
        factor = math.ceil((self.min_steps or 0) / (self._steps(num_batches) * self.num_train_epochs))
        if factor <= 1:
            return self
        changes: dict[str, Any] = {
            "num_train_epochs": self.num_train_epochs * factor,
            "eval_epochs": self.eval_epochs * factor,
        }
        return dataclasses.replace(self, **changes)

    def total_steps(self, num_batches: int) -> int:
        """Return the optimizer steps of all epochs with so many batches in one, `max_steps` at most.

        Example:
            >>> StageArguments(num_train_epochs=3, gradient_accumulation_steps=2, max_steps=100).total_steps(7)
            12
        """
        steps = self._steps(num_batches) * self.num_train_epochs
        return steps if self.max_steps is None else min(self.max_steps, steps)

    def _steps(self, num_batches: int) -> int:
        return math.ceil(num_batches / self.gradient_accumulation_steps)

    def changes_since(self, saved: Mapping[str, Any], processes: int = 1, saved_processes: int = 1) -> list[str]:
        """Return what differs from the settings of an earlier part of the run and would change its outcome.

        Args:
            saved: What `to_dict` gave then.
            processes: Processes now; what counts of the batch size is its product with them.
            saved_processes: Processes then.
        """
        free = {field.name for field in dataclasses.fields(self) if field.metadata["free_on_resume"]}
        own = {name: value for name, value in self.to_dict().items() if name not in free}
        changed = {name: (saved.get(name), value) for name, value in own.items() if saved.get(name) != value}
        size = "per_device_train_batch_size"
        before, now = int(saved.get(size) or 0) * saved_processes, int(own[size]) * processes
        if before == now:
            changed.pop(size, None)
        elif saved_processes != processes:
            changed[size] = (f"{saved.get(size)} x {saved_processes} processes", f"{own[size]} x {processes} processes")
        return [f"{name} {old} -> {new}" for name, (old, new) in changed.items()]

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0) out of `total_steps`."""
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * total_steps
        if step < warmup:
            return self.learning_rate * min(1.0, (step + 1) / warmup)
        share = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
        if self.lr_scheduler_type == "linear":
            return self.learning_rate * (1.0 - share)
        if self.lr_scheduler_type == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
        return self.learning_rate
