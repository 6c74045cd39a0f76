"""The one training loop of all stages, on Accelerate."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl

from ..data.memory import HeapTrimmer
from ..errors import ALLMRecError, CheckpointError
from . import checkpoint as ckpt
from .batch_limit import BatchLimit
from .batches import BatchShares, Share, step_groups
from .callbacks import StageCallbacks
from .devices import Entry, is_plain, make_accelerator, place
from .finite import FiniteWatch, gradient_norm, not_finite
from .optimizer import adamw, trained_parameters
from .processes import Processes
from .progress import ProgressLines, Standing, memory_text, shows_bar
from .provenance import write_record
from .sharded_llm import is_sharded, leave_sharded_alone, sharded_names
from .stage_arguments import StageArguments
from .task import StageResult, StageTask, set_training_mode
from .validation import is_better, validation_means

logger = logging.getLogger(__name__)

CHECKPOINTS_FOLDER = "checkpoints"
RECORD_FILE = "training.json"
QUICK_LOSS_S = 30.0  # of training that nobody minds to lose: no checkpoint for a first validation before that


def run_stage(
    task: StageTask,
    arguments: StageArguments,
    output_dir: str | Path,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
) -> StageResult:
    """Train one stage and leave the best weights (of the last epoch, without validation) in `task.module`.

    The run is a function of the data, the module's weights and the arguments: killed at any moment and resumed, a
    single process ends with bit for bit the weights of a run that was not interrupted.

    Args:
        task: The stage.
        arguments: Its settings.
        output_dir: Gets `training.json` and the folder `checkpoints`.
        resume: Go on from the latest checkpoint, or start where there is none.
        progress: Show a progress bar on standard error, or nothing; by default a bar on a terminal and in a notebook,
            elsewhere a line every half minute.
        callbacks: Hear of every step, validation and checkpoint, and may end the stage; see `StageCallbacks`.

    Returns:
        How the stage went. Resuming a finished stage trains nothing and returns its result again.

    Raises:
        ALLMRecError: when nothing can be trained, a loss, a gradient, a weight or every validation is not finite, the
            disk is full, or the folder holds checkpoints and `resume` is not given.
        CheckpointError: when the checkpoint is damaged or belongs to other arguments, data or another model.
    """
    device_ids = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=device_ids):
        return _StageRun(task, arguments, Path(output_dir), progress, callbacks).run(resume)


class _StageRun:
    def __init__(
        self,
        task: StageTask,
        arguments: StageArguments,
        output_dir: Path,
        progress: bool | None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
    ) -> None:
        self.task, self.arguments, self.output_dir = task, arguments, output_dir
        self.folder = output_dir / CHECKPOINTS_FOLDER
        self.show = progress
        self.state = ckpt.StageProgress()
        self.started = self.saved_at = monotonic()
        self.accelerator = make_accelerator(arguments, output_dir)
        self.device = self.accelerator.device
        self.processes = Processes(self.accelerator, in_step=is_sharded(task.module))
        self.rank, self.world = self.processes.rank, self.processes.world
        if not trained_parameters(task.module):
            raise ALLMRecError(f"stage {task.name} has nothing to train: every parameter of its module is frozen")
        place(task.module, self.device)
        parameters = trained_parameters(task.module)
        self.names, self.parameters = list(parameters), list(parameters.values())
        entry = Entry(task.module)
        leave_sharded_alone(entry)
        self.module = self.accelerator.prepare(entry)
        optimizer = adamw(parameters, arguments, task.learning_rates)
        self.plain = is_plain(self.accelerator)
        self.optimizer = optimizer if self.plain else self.accelerator.prepare(optimizer)
        self.sums: dict[str, Tensor] = {}  # kept on the device, so that no step waits for it
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.total_steps = 0
        self.watch = FiniteWatch(self.device)
        self.batch_limit = BatchLimit()
        self.lines: ProgressLines | None = None
        self.last_loss: Any = math.nan
        self.save_is_due = False  # as the main process finds, and tells the others
        self.validation_seconds: float | None = None  # of the last one
        self.callbacks = StageCallbacks(callbacks, task, arguments, output_dir, self.processes.is_main)
        self.trimmer = HeapTrimmer(self.device.type == "cpu" and task.varied_lengths)

    def run(self, resume: bool) -> StageResult:
        torch.manual_seed(self.arguments.seed + self.rank)
        num_batches = len(self._batches_of(0))
        self.arguments = self.arguments.stretched(num_batches)
        latest = ckpt.latest(self.folder)
        if latest is not None and not resume:
            raise ALLMRecError(
                f"{self.output_dir} holds checkpoints of an earlier run of stage {self.task.name}; resume it, or "
                "choose another output folder"
            )
        if latest is not None:
            self._restore(latest)
        self._write_record(None)
        self.total_steps = self.arguments.total_steps(num_batches)
        if self.processes.is_main and self.show is None and not shows_bar():
            self.lines = ProgressLines(self.task.name, monotonic(), self.state.step)
        try:
            self._tell("on_train_begin")
            while not self.state.finished:
                self._run_epoch()
            self._tell("on_train_end")
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        return self._finish()

    def _run_epoch(self) -> None:
        batches = self._batches_of(self.state.epoch)
        if self.state.batch and len(batches) != self.state.num_batches:
            raise CheckpointError(
                f"the checkpoint was written with {self.state.num_batches} batches in epoch {self.state.epoch + 1}, "
                f"now there are {len(batches)}: the data have changed; start the stage anew"
            )
        self.state.num_batches = len(batches)
        set_training_mode(self.task.module)
        with self._bar(batches) as bar:
            seed = (self.arguments.seed, self.state.epoch)
            shares = BatchShares(self.task, batches, seed, self.state.batch, (self.rank, self.world))
            groups = step_groups(shares, self.arguments, pin_memory=self.device.type == "cuda")
            if self.state.stopped_by:  # of a run that died while it validated for the last time
                groups = iter(())
            self._tell("on_epoch_begin")
            for group, num_batches in groups:
                self._tell("on_step_begin")
                self._step(group, num_batches, bar)
                self.state.batch += num_batches
                self.state.stopped_by = self._limit_reached()
                self._after_step()
                control = self._tell("on_step_end")
                if self._wished(control.should_training_stop):
                    self.state.stopped_by = self.state.stopped_by or "callback"
                if self.state.stopped_by or self._wished(control.should_epoch_stop):
                    break
                if self.state.batch < len(batches):
                    self._within_epoch(control)
                    if self.state.stopped_by:
                        break
            bar.refresh()
        self._end_epoch()

    def _within_epoch(self, control: TrainerControl) -> None:
        """Validate and write a checkpoint where the settings or a callback ask for it between two steps."""
        step, arguments = self.state.step, self.arguments
        validates = arguments.eval_strategy == "steps" and step % (arguments.eval_steps or 1) == 0
        validates = (validates or self._wished(control.should_evaluate)) and bool(self.task.num_validation_examples)
        if validates:
            self._save_before_validation()
            metrics = self._compared()
            self._record({"epoch": self.state.epoch, "step": step, **_named("validation", metrics)})
            set_training_mode(self.task.module)
        saves = arguments.save_steps is not None and step % arguments.save_steps == 0
        saves = saves or self._is_time_to_save() or self._wished(control.should_save)
        if (saves or validates) and not self.state.stopped_by:
            self._save()

    def _tell(self, event: str) -> TrainerControl:
        self._at()
        return self.callbacks(event)

    def _at(self, batches: int = 0) -> None:
        """Let callbacks know where the stage stands, with so many batches not counted yet."""
        state = self.state
        epoch = state.epoch + (state.batch + batches) / max(1, state.num_batches)
        self.callbacks.at(state.step, epoch, self.total_steps)

    def _wished(self, wish: bool) -> bool:
        """Return what the main process's callbacks wish, on every process."""
        return self.processes.main_decides(wish) if self.callbacks.callbacks else wish

    def _after_step(self) -> None:
        """Stop at what is not finite, tell how it goes, and let go of memory."""
        if self.world == 1 and (self.device.type == "cpu" or self.state.step % self.arguments.logging_steps == 0):
            self._check_finite(self.watch.first())
        now = monotonic()
        if self.lines is not None and self.lines.due(now):
            self.lines.tell(now, self._standing())
        self.trimmer.tick()

    def _validated(self, done: int) -> None:
        """Hear from a validation how many examples this process has behind it."""
        now, every = monotonic(), self.task.num_validation_examples
        if self.lines is not None and self.lines.due(now):
            self.lines.tell(now, self._standing((min(done * self.world, every), every)))
        self.trimmer.tick()

    def _standing(self, validated: tuple[int, int] | None = None) -> Standing:
        limit = self.arguments.max_seconds
        left = None if limit is None else limit - self.state.seconds - (monotonic() - self.started)
        step, total, loss = self.state.step, self.total_steps, float(self.last_loss)
        return Standing(step, total, loss, memory_text(self.device), left, validated)

    def _is_time_to_save(self) -> bool:
        """Tell whether the last checkpoint is `save_minutes` old, for all processes alike."""
        return self._minutes_are_over() if self.world == 1 else self.save_is_due

    def _minutes_are_over(self, more: float = 0.0) -> bool:
        minutes = self.arguments.save_minutes
        return minutes is not None and monotonic() - self.saved_at + more >= 60 * minutes

    def _save_before_validation(self) -> None:
        """Write a checkpoint where that at the validation's end may come too late; the main process decides."""
        unsaved = monotonic() - self.saved_at
        due = self._minutes_are_over(self.validation_seconds or 0.0)
        if self.validation_seconds is None and unsaved > QUICK_LOSS_S:  # nobody knows how long it takes
            due = self.arguments.save_minutes is not None
        if self.processes.main_decides(due):
            self._save()

    def _check_finite(self, step: int) -> None:
        """Raise where a loss or a gradient was not finite at a step; 0 stands for none."""
        if not step:
            return
        latest = ckpt.latest(self.folder)
        kept = f"its last checkpoint, {latest}, is as it was" if latest else "there is no checkpoint yet"
        raise ALLMRecError(
            f"stage {self.task.name}: the loss or its gradient is no longer finite in epoch {self.state.epoch + 1} "
            f"(step {step}); lower learning_rate, set max_grad_norm, or use bf16 or full precision; {kept}"
        )

    def _check_weights(self) -> None:
        """Raise rather than save weights or an optimizer's state that are not finite; all processes have the same."""
        trained = zip(self.names, self.parameters, strict=True)
        bad = not_finite([*trained, *ckpt.optimizer_tensors(self.optimizer, self.names).items()])
        if bad:
            logger.warning("%s: not finite: %s", self.task.name, ", ".join(bad[:5]))
            self._check_finite(self.state.step)

    def _step(self, group: list[Share], num_batches: int, bar: tqdm) -> None:
        """Take one optimizer step on the weighted mean of the losses of all batches and processes."""
        rate = self.arguments.learning_rate_at(self.state.step, self.total_steps)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["scale"]
        total = self._agreed(sum(weight for _, weight, _ in group))
        examples = self.world * sum(examples for _, _, examples in group)
        if self.world == 1:
            group = [share for share in group if share[1]]  # a mean over no terms is not a number
        if self.processes.in_step:  # as many passes as the process with the most parts
            group = group + [(group[-1][0], 0.0, 0)] * (int(self.processes.most(len(group))) - len(group))
        loss, counted = self._passes(group, total)
        for outputs, weight in counted:
            self._count(outputs, weight)
        seen = [loss]
        if self.arguments.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.arguments.max_grad_norm)
            seen += [] if norm is None else [torch.as_tensor(norm)]
        elif self.accelerator.scaler is None and group:
            seen.append(gradient_norm(self.parameters))
        if self.accelerator.scaler is not None:
            seen = [loss]  # the scaler skips a step whose gradient overflows
        self.watch.see(self.state.step + 1, seen)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.last_loss = loss
        bar.update(examples)
        if self.lines is not None:
            self.lines.items += examples
        if self.state.step % self.arguments.logging_steps == 0:
            bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
            self.accelerator.log({"train/loss": float(loss), "learning_rate": rate}, step=self.state.step)
            self._at(num_batches)
            self.callbacks.log({"loss": float(loss), "learning_rate": rate})

    def _passes(self, group: list[Share], total: float) -> tuple[Tensor, list[tuple[Mapping[str, Any], float]]]:
        """Return the loss of a step, its gradients summed, and what is counted of each part and with which weight.

        Where the device's memory does not hold a batch, the step is taken anew in parts of half its rows.
        """
        while True:
            try:
                return self._passed(self.batch_limit.applied(self.task, group), total)
            except (RuntimeError, MemoryError) as error:
                self.batch_limit.lower(self.task, error)
            self.optimizer.zero_grad()  # here the failed pass is forgotten, and with it what it held
            clear_device_cache(garbage_collection=True)

    def _passed(self, group: list[Share], total: float) -> tuple[Tensor, list[tuple[Mapping[str, Any], float]]]:
        loss: Any = torch.zeros((), device=self.device)
        counted: list[tuple[Mapping[str, Any], float]] = []
        for index, (batch, weight, rows) in enumerate(group):
            last = index == len(group) - 1
            self.batch_limit.tried, self.batch_limit.binding = rows, self.processes.in_step
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                outputs = self.module(send_to_device(batch, self.device, non_blocking=True))
                share = weight * self.world / total if total else 0.0  # gradients are averaged over the processes
                self.batch_limit.binding = self.processes.in_step or (last and self.world > 1)
                self._backward(outputs["loss"] * share)
            loss = loss + outputs["loss"].detach() * share
            counted.append(({name: value for name, value in outputs.items() if _is_scalar(value)}, weight))
        return loss, counted

    def _backward(self, loss: Tensor) -> None:
        loss.backward() if self.plain else self.accelerator.backward(loss)

    def _count(self, outputs: Mapping[str, Any], weight: float) -> None:
        values = {"weight": 1.0, **outputs}
        for name, value in values.items():
            amount = torch.as_tensor(value, dtype=self.sum_dtype, device=self.device).detach() * weight
            self.sums[name] = self.sums[name] + amount if name in self.sums else amount

    def _end_epoch(self) -> None:
        """Validate, decide whether training ends, and write the checkpoint that says so."""
        state, arguments = self.state, self.arguments
        self._check_finite(int(self.processes.most(self.watch.first())))
        last = state.stopped_by is not None or state.epoch + 1 >= arguments.num_train_epochs
        due = arguments.eval_strategy == "epoch" and (state.epoch + 1) % arguments.eval_epochs == 0
        due = due or (arguments.eval_strategy == "steps" and state.step % (arguments.eval_steps or 1) == 0)
        control = self._tell("on_epoch_end")
        if self._wished(control.should_training_stop):
            state.stopped_by, last = state.stopped_by or "callback", True
        asked, saves = self._wished(control.should_evaluate), self._wished(control.should_save)
        due = due or asked
        validates = asked or ((last or due) and arguments.eval_strategy != "no")
        validates = validates and bool(self.task.num_validation_examples)
        if validates:
            self._save_before_validation()
        sums = self.processes.summed(self.sums)
        weight = sums.pop("weight", 0.0)
        means = {f"train/{name}": value / weight for name, value in sums.items()} if weight else {}
        state.epoch, state.batch, state.sums, self.sums = state.epoch + 1, 0, {}, {}
        entry: dict[str, float] = {"epoch": state.epoch, "step": state.step, **means}
        if validates:
            metrics = self._compared(last)
            entry |= _named("validation", metrics)
            last = last or state.stopped_by is not None
            if last and state.best is None:
                raise ALLMRecError(
                    f"stage {self.task.name}: no validation of its weights was finite ({self.task.metric} is "
                    f"{metrics[self.task.metric]}), so none can be called the best; lower learning_rate, or use "
                    "bf16 or full precision"
                )
        self._record(entry)
        state.finished = last
        if last and state.stopped_by is None:
            state.stopped_by = "epochs"
        if last or due or saves or self._is_time_to_save():  # not each epoch, which may have a few steps only
            self._save()

    def _record(self, entry: dict[str, float]) -> None:
        self.state.history.append(entry)
        self.accelerator.log({name: value for name, value in entry.items() if "/" in name}, step=self.state.step)
        logger.info("%s: %s", self.task.name, ", ".join(f"{name} {value:.4g}" for name, value in entry.items()))

    def _compared(self, last: bool = False) -> dict[str, float]:
        """Validate, keep the weights where they are the best, and stop where patience is over or a callback says so."""
        state, patience = self.state, self.arguments.early_stopping_patience
        metrics = self._validate()
        self._compare(metrics)
        self._at()
        self.callbacks.evaluated(metrics, state.best)
        if patience is not None and state.bad_validations >= patience and not last:
            state.stopped_by = "early_stopping"
        if self._wished(self.callbacks.control.should_training_stop) and state.stopped_by is None:
            state.stopped_by = "callback"
        return metrics

    def _compare(self, metrics: Mapping[str, float]) -> None:
        """Keep the weights where the validation is the best so far; one that is not finite never is."""
        state, name = self.state, self.task.metric
        if name not in metrics:
            raise ALLMRecError(
                f"stage {self.task.name} is judged by {name!r}, but its validation gave {sorted(metrics)}"
            )
        value = metrics[name]
        before = state.best if state.best is not None and math.isfinite(state.best) else None
        better = is_better(name, value, before)
        if not math.isfinite(value):
            logger.warning("%s: validation of epoch %d gave %s %s", self.task.name, state.epoch, name, value)
            state.best = before  # of an earlier version, which took such a one for the best
        state.bad_validations = 0 if better else state.bad_validations + 1
        if better:
            state.best, state.best_epoch = value, state.epoch
            state.best_file = f"best-{state.step:08d}.safetensors"
            if self.processes.is_main:
                ckpt.save_best(self.folder, state.step, ckpt.module_state(self.task.module))

    def _validate(self) -> dict[str, float]:
        self.task.module.eval()
        began = monotonic()
        self._validated(0)
        self.task.progressed = self._validated  # type: ignore[method-assign]
        metrics = validation_means(self.task, self.accelerator, self.processes)
        self.validation_seconds = monotonic() - began
        return metrics

    def _save(self) -> None:
        self._check_finite(int(self.processes.most(self.watch.first())))
        self._check_weights()
        self.state.sums = self.processes.summed(self.sums)
        self.state.seconds += monotonic() - self.started
        self.started = self.saved_at = monotonic()
        self.save_is_due = False
        tensors, values = ckpt.random_state(self.device)
        mine = (ckpt.with_prefix(f"random{self.rank}|", tensors), values)
        random = self.processes.gathered(mine)
        if self.processes.is_main:
            self._write_checkpoint(random)
        self._tell("on_save")

    def _write_checkpoint(self, random: list[Any]) -> None:
        everything = {
            **ckpt.with_prefix("module|", ckpt.module_state(self.task.module)),
            **ckpt.with_prefix("optimizer|", ckpt.optimizer_tensors(self.optimizer, self.names)),
        }
        for part, _ in random:
            everything |= part
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        progress = {
            **asdict(self.state), "stage": self.task.name, "processes": self.world, "scaler": scaler,
            "random": [values for _, values in random], "arguments": self.arguments.to_dict(),
            "content": dict(self.task.content), "callbacks": self.callbacks.export(),
        }  # fmt: skip
        ckpt.save_checkpoint(self.folder, everything, progress, self.arguments.save_total_limit)

    def _restore(self, path: Path) -> None:
        tensors, progress = ckpt.load_checkpoint(path)
        ckpt.check_same_stage(path, progress, self.task, self.arguments, self.world)
        ckpt.load_module_state(self.task.module, ckpt.without_prefix("module|", tensors), f"checkpoint {path}")
        ckpt.load_optimizer_tensors(self.optimizer, self.names, ckpt.without_prefix("optimizer|", tensors))
        self.state = ckpt.StageProgress(**{name: progress[name] for name in ckpt.StageProgress.__dataclass_fields__})
        if self.rank < len(progress["random"]):
            random = ckpt.without_prefix(f"random{self.rank}|", tensors)
            ckpt.restore_random_state(random, progress["random"][self.rank], self.device)
        if progress["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        self.callbacks.restore(progress.get("callbacks", []), self.state.best)
        if self.rank == 0:  # the saved sums are those of all processes
            for name, value in self.state.sums.items():
                self.sums[name] = torch.tensor(value, dtype=self.sum_dtype, device=self.device)
        logger.info("%s: resumed at step %d from %s", self.task.name, self.state.step, path)

    def _finish(self) -> StageResult:
        state = self.state
        if state.best_file is not None:
            self.accelerator.wait_for_everyone()
            weights = ckpt.load_tensors(self.folder / state.best_file)
            ckpt.load_module_state(self.task.module, weights, f"{self.folder / state.best_file}")
        self.task.module.eval()
        metric = self.task.metric if state.best is not None else None
        best_epoch = state.best_epoch if state.best is not None else state.epoch
        result = StageResult(
            stage=self.task.name,
            steps=state.step,
            epochs=state.epoch,
            stopped_by=str(state.stopped_by),
            seconds=state.seconds,
            metric=metric,
            best=state.best,
            best_epoch=best_epoch,
            history=state.history,
        )
        self._write_record(result)
        self.accelerator.wait_for_everyone()
        return result

    def _write_record(self, result: StageResult | None) -> None:
        """Write `training.json`: what was run, with what, and, at the end, how it went."""
        if not self.processes.is_main:
            return
        facts = {
            "stage": self.task.name,
            "arguments": self.arguments.to_dict(),
            "trained_parameters": sum(parameter.numel() for parameter in self.parameters),
            "processes": self.world,
            "device": self.device.type,
            "result": None if result is None else result.to_dict(),
        }
        if self.processes.in_step:
            facts["sharded_parameters"] = len(sharded_names(self.task.module))
        write_record(self.output_dir / RECORD_FILE, facts)

    def _batches_of(self, epoch: int) -> Sequence[np.ndarray]:
        batches = self.task.batches(epoch)
        if not len(batches):
            raise ALLMRecError(f"stage {self.task.name} has no training examples in epoch {epoch + 1}")
        return batches

    def _bar(self, batches: Sequence[np.ndarray]) -> tqdm:
        hidden = not self.processes.is_main or (None if self.show is None else not self.show)
        return tqdm(
            total=sum(map(len, batches)),
            initial=sum(map(len, batches[: self.state.batch])),
            desc=f"{self.task.name} {self.state.epoch + 1}/{self.arguments.num_train_epochs}",
            unit="example",
            leave=False,
            disable=hidden,
        )

    def _limit_reached(self) -> str | None:
        if self.arguments.max_steps is not None and self.state.step >= self.arguments.max_steps:
            return "max_steps"
        if self.arguments.max_seconds is None:
            return None
        late = self.state.seconds + monotonic() - self.started > self.arguments.max_seconds
        return "time_limit" if self.processes.totals([float(late)])[0] else None

    def _agreed(self, weight: float) -> float:
        """Return the weight of a step over all processes; on the way they hear what else they must decide alike."""
        if self.world == 1:
            return weight
        due = self.processes.is_main and self._minutes_are_over()
        total, broken, save = self.processes.totals([weight, float(self.watch.first() > 0), float(due)])
        self.save_is_due = bool(save)
        self._check_finite(self.state.step if broken else 0)
        return total


def _named(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
