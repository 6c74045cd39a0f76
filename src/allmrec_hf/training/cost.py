"""Measure what stage 2 will cost before it starts: prompts, tokens, speed and time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from ..durations import duration
from ..rows_at_once import is_out_of_memory
from .devices import global_batch_size
from .projection import ProjectionTask
from .stage_arguments import StageArguments
from .task import set_training_mode

logger = logging.getLogger(__name__)

ENOUGH_STEPS = 300  # of the preset `quick`; what fewer steps cost: docs/results, few training users
SAMPLED_BATCHES = 4
LONGEST_PROBE_S = 30.0


@dataclass(frozen=True)
class ProjectionCost:
    """What stage 2 takes.

    Attributes:
        steps: Optimizer steps, all epochs together.
        prompts: Prompts that these steps read.
        tokens: Mean tokens of a prompt with what is scored after it, over a few batches.
        longest: The most tokens of one of them.
        tokens_per_second: Measured on a training step, forward and backward.
        validations: How often the model is validated.
        validation_users: Users of one validation.
        validation_users_per_second: Measured, or reckoned from the training step.
        device: Where the LLM is.
    """

    steps: int
    prompts: int
    tokens: float
    longest: int
    tokens_per_second: float
    validations: int
    validation_users: int
    validation_users_per_second: float
    device: str

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimizer step."""
        return self.prompts / self.steps * self.tokens / self.tokens_per_second

    @property
    def validation_seconds(self) -> float:
        """Seconds of all validations."""
        return self.validations * self.validation_users / self.validation_users_per_second

    @property
    def seconds(self) -> float:
        """Seconds of all steps and validations."""
        return self.steps * self.step_seconds + self.validation_seconds

    def steps_within(self, max_seconds: float | None) -> int:
        """Return the steps that a time limit leaves room for."""
        return self.steps if max_seconds is None else min(self.steps, math.ceil(max_seconds / self.step_seconds))


def projection_cost(task: ProjectionTask, arguments: StageArguments, device: torch.device) -> ProjectionCost:
    """Measure a training step and a validation of stage 2; neither weights nor random states change.

    Args:
        task: Stage 2, its module on the device already.
        arguments: Its settings.
        device: Where batches go.
    """
    batches = task.batches(0)
    per_step = arguments.gradient_accumulation_steps
    planned = arguments.stretched(len(batches))
    steps = planned.total_steps(len(batches))
    chosen = [batches[number] for number in np.linspace(0, len(batches) - 1, SAMPLED_BATCHES).astype(int)]
    sampled = [
        task.collate(rows, np.random.default_rng([arguments.seed, number])) for number, rows in enumerate(chosen)
    ]
    lengths = np.concatenate([_tokens(batch) for batch in sampled])
    epochs = math.ceil(steps * per_step / len(batches))
    users = task.num_validation_examples
    strategy, rate = planned.eval_strategy, math.inf
    validations = math.ceil(steps / (planned.eval_steps or 1) if strategy == "steps" else epochs / planned.eval_epochs)
    validations *= bool(users) and strategy != "no"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        speed = _training_speed(task, sampled[len(sampled) // 2], chosen[len(sampled) // 2], arguments, device)
        task.module.eval()
        if validations:
            rate = _validation_rate(task, speed, min(users, global_batch_size(arguments)), device)
    return ProjectionCost(
        steps=steps,
        prompts=min(steps * per_step * global_batch_size(arguments), epochs * len(task.samples)),
        tokens=float(lengths.mean()),
        longest=int(lengths.max()),
        tokens_per_second=speed,
        validations=validations,
        validation_users=users,
        validation_users_per_second=rate,
        device=device.type,
    )


def _tokens(batch: dict[str, Any]) -> np.ndarray:
    """Return `(B,)` the tokens that the LLM reads for each prompt of a batch."""
    read = batch["attention_mask"].sum(dim=-1)
    if "answer_mask" in batch:  # the listwise loss scores every candidate's title
        read = read + batch["answer_mask"].sum(dim=(-2, -1))
    return read.numpy()


def _training_speed(
    task: ProjectionTask, batch: dict[str, Any], rows: np.ndarray, arguments: StageArguments, device: torch.device
) -> float:
    """Return tokens per second of a forward and backward pass, of one prompt where a batch would take long."""
    set_training_mode(task.module)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arguments.mixed_precision)

    def step(part: dict[str, Any]) -> None:
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = task.module(send_to_device(part, device))["loss"]
        loss.backward()

    one = task.collate(rows[:1], np.random.default_rng([arguments.seed]))
    tokens, seconds = int(_tokens(one).sum()), _seconds(lambda: step(one), device)
    if seconds * len(rows) < LONGEST_PROBE_S:  # then again, since the first pass of a process takes longer
        part = task.parts(batch)[-1]
        try:
            tokens, seconds = int(_tokens(part).sum()), _seconds(lambda: step(part), device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):  # the loop takes fewer rows at once, and says so
                raise
    task.module.zero_grad(set_to_none=True)
    return tokens / seconds


def _validation_rate(task: ProjectionTask, training_speed: float, count: int, device: torch.device) -> float:
    """Return the users a second that a validation ranks; reckoned from the training step where measuring takes long.

    With frozen weights a backward pass costs what a forward pass does, so a forward pass is twice as fast as a step.
    """
    rows = task.validation_candidates.take(np.arange(1))
    batch = task.processor([task.validation.histories[0].tolist()], rows.items.tolist())
    prompt, answers = int(batch["attention_mask"].sum()), int(batch["answer_mask"].sum())
    repeated = rows.items.shape[1] if task.model.scoring_method == "naive" else 1  # naive: a prompt for each candidate
    prompts = 1 if task.ranker.context is None else 2  # a calibrated score reads another one
    seconds = prompts * (prompt * repeated + answers) / (2 * training_speed)
    if seconds > LONGEST_PROBE_S:
        return 1 / seconds
    count = max(1, min(count, int(LONGEST_PROBE_S / seconds)))
    return count / _seconds(lambda: task.validate(np.arange(count), device), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started


def tell_projection_cost(cost: ProjectionCost, task: ProjectionTask, arguments: StageArguments) -> None:
    """Log what stage 2 will cost and what would make it shorter, and warn where so few steps will teach nothing."""
    reached = cost.steps_within(arguments.max_seconds)
    text = (
        f"stage 2: {cost.prompts:,} prompts in {cost.steps:,} steps, {cost.tokens:,.0f} tokens a prompt (longest "
        f"{cost.longest:,}), {cost.tokens_per_second:,.0f} tokens/s forward and backward on {cost.device}: about "
        f"{duration(cost.steps * cost.step_seconds)}"
    )
    if cost.validations:
        text += (
            f", and {duration(cost.validation_seconds)} for {cost.validations} validations of "
            f"{cost.validation_users:,} users"
        )
    if reached < cost.steps:
        text += f"; its time limit of {arguments.max_seconds:,.0f} s ends it after about {reached:,} steps"
    logger.info("%s", text)
    if cost.seconds > 300:
        logger.info("stage 2 gets shorter with %s", "; ".join(_shorter(task, arguments)))
    warn_of_few_steps(reached, arguments, cost.step_seconds)


def _shorter(task: ProjectionTask, arguments: StageArguments) -> list[str]:
    model = task.model
    ways = [
        f"fewer candidates in a prompt (--project.num-candidates, now {task.num_candidates})",
        f"fewer history items in a prompt (--project.history-in-prompt, now {task.processor.history_in_prompt})",
        "fewer steps (--project.max-steps, --project.num-train-epochs)",
        "a smaller LLM",
    ]
    if next(model.language_model.parameters()).dtype == torch.float32 and arguments.mixed_precision == "no":
        ways.insert(2, "the LLM in half precision where the processor has it (--llm.dtype bfloat16)")
    if model.device.type == "cpu":
        ways.append("a GPU")
    return ways


def warn_of_few_steps(steps: int, arguments: StageArguments, step_seconds: float | None = None) -> None:
    """Warn where stage 2 takes fewer optimizer steps than it needs to learn anything.

    Args:
        steps: The steps it will take, or has taken.
        arguments: Its settings; `min_steps` is what is enough, 300 steps where it is not set.
        step_seconds: Seconds of one step, where measured.
    """
    enough = arguments.min_steps or ENOUGH_STEPS
    if steps >= enough:
        return
    takes = "" if step_seconds is None else f", which take about {duration(enough * step_seconds)} here"
    limits = [
        f"{flag} is {value:,.0f}"
        for flag, value in (
            ("--project.max-steps", arguments.max_steps),
            ("--project.max-seconds", arguments.max_seconds),
        )
        if value is not None
    ]
    logger.warning(
        "stage 2 with %d steps of %d prompts: so few teach the projectors little, and the ranking may stay near "
        "chance; give it %d steps or more%s%s",
        steps,
        global_batch_size(arguments) * arguments.gradient_accumulation_steps,
        enough,
        takes,
        f" ({', '.join(limits)} now)" if limits else " (--project.min-steps, --project.num-train-epochs)",
    )
