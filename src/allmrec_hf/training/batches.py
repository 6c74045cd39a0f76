"""The batches of one process: its share of each batch of an epoch, from any batch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .stage_arguments import StageArguments
from .task import Batch, StageTask, rows_of

Share = tuple[Batch, float, int]  # a batch, its loss weight and its number of examples


class BatchShares(Dataset):
    """The share of one process in the batches of an epoch.

    Args:
        task: The stage.
        batches: Example numbers of each batch, the same on every process.
        seed: Numbers that, with the number of the batch, seed its randomness.
        start: Number of the first batch.
        shard: Rank of the process and number of processes.
    """

    def __init__(
        self,
        task: StageTask,
        batches: Sequence[np.ndarray],
        seed: tuple[int, ...],
        start: int,
        shard: tuple[int, int],
    ) -> None:
        self.task, self.batches, self.seed, self.start, self.shard = task, batches, seed, start, shard

    def __len__(self) -> int:
        return len(self.batches) - self.start

    def __getitem__(self, index: int) -> Share:
        number = self.start + index
        rank, count = self.shard
        examples = self.batches[number]
        generator = np.random.default_rng((*self.seed, number, 0))  # the same on every process
        rows = np.arange(rank, len(examples), count)
        if not len(rows):  # fewer examples than processes: take part with weight 0, since all must call backward
            return self.task.share(examples, np.arange(1), generator), 0.0, 0
        batch = self.task.share(examples, rows, generator)
        return batch, self.task.loss_weight(batch), len(rows)


def step_groups(shares: BatchShares, arguments: StageArguments, pin_memory: bool) -> Iterator[tuple[list[Share], int]]:
    """Yield what each optimizer step reads, and of how many batches it is; the last step of an epoch may have fewer."""
    loader: DataLoader[Any] = DataLoader(
        shares,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(arguments.seed),  # else it would draw from the global generator
    )
    group: list[Share] = []
    number = 0
    for number, (batch, weight, examples) in enumerate(loader, start=1):
        parts = shares.task.parts(batch)
        if len(parts) == 1 or not weight:
            group.append((parts[0], weight, examples))
        else:
            group += [(part, shares.task.loss_weight(part), rows_of(part, shares.task.of_batch)) for part in parts]
        if number % arguments.gradient_accumulation_steps == 0:
            yield group, arguments.gradient_accumulation_steps
            group = []
    if group:
        yield group, number % arguments.gradient_accumulation_steps


def _as_is(item: Any) -> Any:
    return item
