"""What a user may choose about the training of one stage, and the presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from ..errors import ALLMRecError

STAGES = ("cf", "align", "project")
PRESETS = ("default", "paper", "quick", "demo")
LARGEST_SEED = 2**32 - 1  # the largest that NumPy, PyTorch and every library of the stages take
CHOICES = {
    "mixed_precision": ("no", "fp16", "bf16"),
    "schedule": ("constant", "linear", "cosine"),
    "report_to": ("none", "tensorboard", "wandb"),
}
# Settings that do not change what a run ends with; a resumed run may differ in them.
_FREE_ON_RESUME = {
    *("keep_checkpoints", "save_every_steps", "save_every_minutes", "log_every_steps", "report_to", "num_workers"),
    "time_limit_s",
}
_AT_LEAST_ONE = (
    *("epochs", "min_steps", "max_steps", "batch_size", "gradient_accumulation_steps", "early_stopping_patience"),
    *("eval_every", "max_validation_users", "save_every_steps", "keep_checkpoints", "log_every_steps"),
)
_POSITIVE = ("learning_rate", "epsilon", "max_grad_norm", "save_every_minutes", "time_limit_s")
_NOT_NEGATIVE = ("weight_decay", "warmup", "num_workers", "seed")


@dataclass(frozen=True)
class StageArguments:
    """Hold the settings of one stage; an impossible value is refused when the object is made.

    Args:
        epochs: Passes over the training data at most.
        min_steps: Optimizer steps that these passes should come to: with data so small that they do not, `epochs` and
            `eval_every` are multiplied by the same whole number until they do. Early stopping, `max_steps` and
            `time_limit_s` end a stage all the same. None for the passes alone.
        max_steps: Optimizer steps at most; None for no limit.
        batch_size: Examples in one batch, shared out among the processes where there are several.
        gradient_accumulation_steps: Batches in one optimizer step.
        learning_rate: Adam's step size after the warm-up.
        betas: Adam's two decay rates.
        epsilon: Adam's epsilon.
        weight_decay: Decoupled weight decay, on matrices only.
        schedule: What the learning rate does after the warm-up: `constant`, `linear` or `cosine` down to 0.
        warmup: Optimizer steps of linear warm-up; a value below 1 is a share of all steps.
        mixed_precision: `no`, `fp16` (needs a GPU) or `bf16`.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        seed: Seed of the order of the data, of negatives and of dropout.
        eval_every: Epochs between two validations, and between two checkpoints at an epoch's end.
        early_stopping_patience: Validations without improvement after which training ends; None for never.
        max_validation_users: Users of a validation at most, drawn once with `seed`; None for all.
        save_every_steps: Optimizer steps between checkpoints within an epoch; None for those at the end of epochs only.
        save_every_minutes: Minutes of training after which a checkpoint is written whatever the steps; None for never.
        keep_checkpoints: Checkpoints that stay on disk.
        log_every_steps: Optimizer steps between two entries of the tracker.
        report_to: The tracker: `none`, `tensorboard` or `wandb`.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        time_limit_s: Seconds after which the stage ends with what it has; None for no limit.

    Raises:
        ALLMRecError: when a value is impossible.

    Example:
        >>> StageArguments(epochs=3, learning_rate=1e-4).betas
        (0.9, 0.98)
    """

    epochs: int = 10
    min_steps: int | None = None
    max_steps: int | None = None
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    mixed_precision: str = "no"
    max_grad_norm: float | None = None
    seed: int = 42
    eval_every: int = 1
    early_stopping_patience: int | None = None
    max_validation_users: int | None = 10_000
    save_every_steps: int | None = None
    save_every_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    log_every_steps: int = 20
    report_to: str = "none"
    num_workers: int = 0
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _converted(name, getattr(self, name), hint))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ALLMRecError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for names, fits, wanted in (
            (_AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
            (_POSITIVE, lambda value: value > 0, "above 0"),
            (_NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ALLMRecError(f"{name} must be {wanted}, got {value}")
        if self.seed > LARGEST_SEED:
            raise ALLMRecError(f"seed must be at most {LARGEST_SEED}, got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ALLMRecError(f"betas must be two numbers of 0 or more and below 1, got {self.betas}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageArguments:
        """Build arguments from a mapping, such as a section of a YAML file; unknown names are refused."""
        return cls().replaced(**values)

    def replaced(self, **changes: Any) -> StageArguments:
        """Return a copy with some values changed; who changes `epochs` alone gets these, whatever `min_steps` was.

        Raises:
            ALLMRecError: when a name is unknown; the message lists the known ones.
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ALLMRecError(f"unknown training settings {unknown}; known ones: {', '.join(known)}")
        return dataclasses.replace(self, **({"min_steps": None} if "epochs" in changes else {}) | changes)

    def stretched(self, num_batches: int) -> StageArguments:
        """Return the settings with as many epochs as `min_steps` asks of data with so many batches in an epoch.

        Example:
            >>> few = StageArguments(epochs=10, eval_every=2, min_steps=100).stretched(4)
            >>> few.epochs, few.eval_every
            (30, 6)
        """
        factor = math.ceil((self.min_steps or 0) / (self._steps(num_batches) * self.epochs))
        if factor <= 1:
            return self
        return dataclasses.replace(self, epochs=self.epochs * factor, eval_every=self.eval_every * factor)

    def total_steps(self, num_batches: int) -> int:
        """Return the optimizer steps of all epochs with so many batches in one, `max_steps` at most.

        Example:
            >>> StageArguments(epochs=3, gradient_accumulation_steps=2, max_steps=100).total_steps(7)
            12
        """
        steps = self._steps(num_batches) * self.epochs
        return steps if self.max_steps is None else min(self.max_steps, steps)

    def _steps(self, num_batches: int) -> int:
        return math.ceil(num_batches / self.gradient_accumulation_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    def changes_since(self, saved: Mapping[str, Any]) -> list[str]:
        """Return what differs from the settings of an earlier part of the run and would change its outcome."""
        own = {name: value for name, value in self.to_dict().items() if name not in _FREE_ON_RESUME}
        return [f"{name} {saved.get(name)} -> {value}" for name, value in own.items() if saved.get(name) != value]

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0) out of `total_steps`."""
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total_steps
        if step < warmup:
            return self.learning_rate * min(1.0, (step + 1) / warmup)
        share = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
        if self.schedule == "linear":
            return self.learning_rate * (1.0 - share)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
        return self.learning_rate


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its field's type, or raise; YAML reads 1e-4 as text, which is accepted for a number."""
    if name == "betas":
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ALLMRecError(f"betas must be two numbers, got {value!r}")
        return tuple(_converted("each of betas", beta, float) for beta in value)
    options = get_args(hint) or (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if isinstance(value, bool) or value is None:
        raise ALLMRecError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if kind is str:
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ALLMRecError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ALLMRecError(f"{name} must be a {'whole' if kind is int else 'finite'} number, got {value!r}")
    return int(value) if kind is int else number


_PRESETS: dict[str, dict[str, StageArguments]] = {
    "default": {
        "cf": StageArguments(
            epochs=200, min_steps=1_000, batch_size=128, learning_rate=1e-3, early_stopping_patience=10
        ),
        "align": StageArguments(
            epochs=10, min_steps=2_000, batch_size=32, learning_rate=1e-4, early_stopping_patience=3
        ),
        "project": StageArguments(
            epochs=5,
            min_steps=1_000,
            batch_size=8,
            learning_rate=1e-4,
            warmup=0.03,
            max_grad_norm=1.0,
            early_stopping_patience=2,
        ),
    },
    # The values of arXiv 2404.11343 and of the program published with it.
    "paper": {
        "cf": StageArguments(epochs=200, batch_size=128, learning_rate=1e-3),
        "align": StageArguments(epochs=10, batch_size=32, learning_rate=1e-4),
        "project": StageArguments(epochs=5, batch_size=4, learning_rate=1e-4),
    },
    # Ends within minutes on two CPU cores whatever the data: the time limits see to that.
    "quick": {
        "cf": StageArguments(
            epochs=40,
            min_steps=300,
            early_stopping_patience=3,
            max_validation_users=1_000,
            time_limit_s=60,
            save_every_steps=500,
        ),
        "align": StageArguments(
            epochs=10,
            min_steps=1_000,
            batch_size=128,
            learning_rate=1e-3,
            early_stopping_patience=2,
            max_validation_users=1_000,
            time_limit_s=40,
            save_every_steps=200,
        ),
        "project": StageArguments(
            epochs=3,
            min_steps=300,
            batch_size=16,
            learning_rate=1e-3,
            warmup=0.03,
            max_grad_norm=1.0,
            early_stopping_patience=1,
            max_validation_users=500,
            time_limit_s=90,
            save_every_steps=100,
        ),
    },
    # For the invented world: three minutes of training on one core. With fewer users, as many steps as with all 3,000.
    "demo": {
        "cf": StageArguments(
            epochs=20,
            min_steps=480,
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="linear",
            eval_every=5,
            max_validation_users=1_000,
        ),
        "align": StageArguments(epochs=20, min_steps=480, learning_rate=1e-3, max_validation_users=1_000),
        "project": StageArguments(
            epochs=3,
            min_steps=339,
            batch_size=24,
            learning_rate=1e-3,
            weight_decay=0.01,
            schedule="linear",
            warmup=10,
            max_grad_norm=1.0,
            max_validation_users=300,
        ),
    },
}


def preset(name: str, stage: str, recipe: Mapping[str, Any] | None = None) -> StageArguments:
    """Return the settings of a preset (`default`, `paper`, `quick` or `demo`) for a stage (`cf`, `align` or `project`).

    Args:
        name: The preset.
        stage: The stage.
        recipe: Settings that suit the CF backbone (`CFEncoder.training_recipe`); `default` and `quick` take them over.

    Raises:
        ALLMRecError: when the preset or the stage is unknown.

    Example:
        >>> preset("paper", "project").batch_size
        4
    """
    if name not in PRESETS or stage not in STAGES:
        raise ALLMRecError(
            f"no preset {name!r} of stage {stage!r}; presets: {', '.join(PRESETS)}; stages: {', '.join(STAGES)}"
        )
    arguments = _PRESETS[name][stage]
    if not recipe or name not in ("default", "quick"):
        return arguments
    return arguments.replaced(**{"min_steps": arguments.min_steps, **recipe})
