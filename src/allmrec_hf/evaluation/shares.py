"""Several processes share out one evaluation: each computes some batches, and all get the results of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from ..errors import ALLMRecError

T = TypeVar("T")
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables by which `accelerate launch` says that a model larger than one device is to be sharded."""


def process_state() -> PartialState:
    """Return what this process knows of the others; where there is no accelerator, they talk over gloo.

    Accelerate would take processes on CPUs for strangers unless it is told so when the state is first made.
    """
    if any(name in os.environ for name in SHARDING):  # else transformers would load weights on one process alone
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with sharding_hidden():
        return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


@contextmanager
def sharding_hidden() -> Iterator[None]:
    """Have Accelerate synchronise what is trained, not shard it, whatever its configuration: see `sharded_llm`."""
    hidden = {name: os.environ.pop(name) for name in SHARDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many there are, as `torchrun` or `accelerate launch` started them."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and not PartialState._shared_state:
        return 0, 1
    state = process_state()
    return state.process_index, state.num_processes


def leave() -> None:
    """Wait for the others, and part from them: a process that ends first may take their connections with it."""
    if rank_and_world()[1] > 1:
        state = process_state()
        state.wait_for_everyone()
        state.destroy_process_group()


def shared_out(count: int, compute: Callable[[int], T]) -> list[T]:
    """Return what `compute` returns for 0 to `count - 1`, on every process; each computes a share.

    Args:
        count: How many there are.
        compute: Takes a number; called once for each, on one of the processes.

    Raises:
        ALLMRecError: what was raised on this process, or told by another one; all stop then.
    """
    rank, world = rank_and_world()
    if world == 1:
        return [compute(number) for number in range(count)]
    found: dict[int, T] = {}
    raised: Exception | None = None
    try:
        for number in range(rank, count, world):
            found[number] = compute(number)
    except Exception as error:  # the others would wait for this process for ever
        raised = error
    told = gather_object([(found, None if raised is None else f"{type(raised).__name__}: {raised}")])
    if raised is not None:
        raise raised
    errors: Sequence[str] = [error for _, error in told if error is not None]
    if errors:
        raise ALLMRecError(f"another process could not go on: {errors[0]}")
    merged = {number: value for part, _ in told for number, value in part.items()}
    return [merged[number] for number in range(count)]
