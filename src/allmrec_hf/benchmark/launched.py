"""The processes of `torchrun` or `accelerate launch` share the runs of a benchmark out; each computes as if alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

LONGEST = timedelta(days=365)  # that one process waits for the others
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


@dataclass
class Crew:
    """The processes that were launched together.

    Attributes:
        rank: The number of this one.
        world: How many there are.
        store: Where they leave each other word; None of one alone.
    """

    rank: int = 0
    world: int = 1
    store: Any = None

    def gathered(self, name: str, value: Any) -> list[Any]:
        """Return the value, which JSON can hold, that each process gives under a name; the slowest is waited for."""
        if self.store is None:
            return [value]
        self.store.set(f"{name}/{self.rank}", json.dumps(value))
        return [json.loads(self.store.get(f"{name}/{rank}")) for rank in range(self.world)]

    def of_main(self, name: str, value: Any) -> Any:
        """Return what the first process gives under a name; it is waited for."""
        if self.store is None:
            return value
        if self.rank == 0:
            self.store.set(name, json.dumps(value))
        return json.loads(self.store.get(name))


def launched_rank() -> int:
    """Return the number of this process among those that were launched together; 0 of one alone."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def launched() -> Iterator[Crew]:
    """Find the other processes, and hide them from Accelerate, so that what is trained here is trained by one process.

    With CUDA each process of a machine sees one device.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        yield Crew()
        return
    store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST))
    store.set_timeout(LONGEST)
    crew = Crew(rank, world, torch.distributed.PrefixStore("allmrec-benchmark", store))
    hidden = {name: os.environ.pop(name) for name in _LAUNCHER_VARIABLES if name in os.environ}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available():
        seen = devices.split(",") if devices else [str(number) for number in range(torch.cuda.device_count())]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(hidden.get("LOCAL_RANK", rank)) % len(seen)]
    try:
        yield crew
        crew.gathered("left", True)  # the store may be the first process's
    finally:
        os.environ.update(hidden)
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
