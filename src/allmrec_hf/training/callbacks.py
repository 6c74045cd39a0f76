"""How `transformers.TrainerCallback`s hear of a stage, and what they can decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState
from transformers.trainer_utils import IntervalStrategy

from ..errors import ALLMRecError
from .stage_arguments import StageArguments
from .task import StageTask


class _NoFlow(DefaultFlowCallback):
    """Stand for the callback without which transformers warns; the loop itself decides what it would."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> TrainerControl:
        """Decide nothing."""
        return control

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> TrainerControl:
        """Decide nothing."""
        return control


class StageCallbacks:
    """The callbacks of one stage: each hears of every event with `args`, `state`, `control` and `model`.

    `args` holds the stage's settings under the names of `TrainingArguments`, `stage` and `output_dir`; `model` is the
    module that is trained. What a callback sets in `control` is done: `should_training_stop`, `should_epoch_stop`,
    `should_evaluate`, `should_save`.

    Args:
        callbacks: Objects or classes, as `transformers.Trainer` takes them.
        task: The stage.
        arguments: Its settings.
        output_dir: Its folder.
        is_main: Whether this is the main process.

    Raises:
        ALLMRecError: when one is no `TrainerCallback`, or raises; the last checkpoint stays and can be resumed.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        task: StageTask,
        arguments: StageArguments,
        output_dir: Path,
        is_main: bool,
    ) -> None:
        made = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        wrong = [callback for callback in made if not isinstance(callback, TrainerCallback)]
        if wrong:
            raise ALLMRecError(f"callbacks must be transformers.TrainerCallback objects; got {wrong!r}")
        self.callbacks, self.stage, self.metric = made, task.name, task.metric
        self.args = _view(task, arguments, output_dir)
        self.state = TrainerState(
            is_world_process_zero=is_main, is_local_process_zero=is_main, num_train_epochs=arguments.num_train_epochs
        )
        self.control = TrainerControl()
        self._handler = CallbackHandler([_NoFlow(), *made], task.module, None, None, None)  # type: ignore[arg-type]

    def __call__(self, event: str, **more: Any) -> TrainerControl:
        """Tell every callback of an event, such as `on_step_end`, and return what they decided."""
        if not self.callbacks:
            return self.control
        try:
            self.control = getattr(self._handler, event)(self.args, self.state, self.control, **more)
        except Exception as error:
            raise ALLMRecError(
                f"a callback raised in {event} of stage {self.stage} at step {self.state.global_step}: {error!r}; the "
                "checkpoints are as they were, so the run can go on with resume_from_checkpoint=True (--resume)"
            ) from error
        return self.control

    def at(self, step: int, epoch: float, total_steps: int) -> None:
        """Note where the stage stands."""
        self.state.global_step, self.state.epoch, self.state.max_steps = step, epoch, total_steps

    def log(self, entry: Mapping[str, float]) -> None:
        """Tell of an entry of the log."""
        values = {**entry, "epoch": self.state.epoch}
        self.state.log_history.append({**values, "step": self.state.global_step})  # type: ignore[dict-item]
        self("on_log", logs=values)

    def evaluated(self, metrics: Mapping[str, float], best: float | None) -> None:
        """Tell of a validation, and note the best value so far, this one included."""
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self("on_evaluate", metrics=named)
        self.state.best_metric = best

    def export(self) -> list[dict[str, Any]]:
        """Return the states of the callbacks that have one, in their order."""
        return [callback.state() for callback in self._exportable()]

    def restore(self, states: Sequence[Mapping[str, Any]], best: float | None) -> None:
        """Give callbacks the states of an earlier part of the run; one that is not among them starts anew."""
        self.state.best_metric = best
        for callback, saved in zip(self._exportable(), states, strict=False):
            for name, value in saved.get("attributes", {}).items():
                setattr(callback, name, value)

    def _exportable(self) -> Iterator[Any]:
        return (callback for callback in self.callbacks if isinstance(callback, ExportableState))


def _view(task: StageTask, arguments: StageArguments, output_dir: Path) -> SimpleNamespace:
    values = {**arguments.to_dict(), "stage": task.name, "output_dir": str(output_dir)}
    view = SimpleNamespace(**values)
    view.eval_strategy = IntervalStrategy(arguments.eval_strategy)
    view.logging_strategy = view.save_strategy = IntervalStrategy.STEPS
    view.load_best_model_at_end, view.metric_for_best_model = True, f"eval_{task.metric}"
    view.greater_is_better = "loss" not in task.metric
    view.logging_dir, view.run_name, view.disable_tqdm = str(output_dir / "logs"), task.name, False
    view.max_steps = arguments.max_steps or -1
    view.eval_delay, view.logging_first_step = 0, False
    view.to_dict = view.to_sanitized_dict = lambda: dict(values)
    view.to_json_string = lambda: str(values)
    return view
