"""What stage 0 trains on: sequences for backbones that read a history, interactions for those with user vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..errors import DataError
from .devices import global_batch_size
from .samples import NegativeSampler, Split, random_batches, windows
from .stage_arguments import StageArguments
from .task import Batch


class SequenceBatches:
    """Make batches of sequences: all but the last item are inputs, all but the first are targets.

    A sequence of more than `max_history_length + 1` items is cut into windows, so that each of its items but the first
    is a target once in every epoch; see `windows`.

    Args:
        cf_encoder: The backbone; its config names the loss, and with it the negatives.
        data: Prepared data.
        split: The part that is trained on; negatives are items that the user did not touch in it.
        arguments: Batch size and seed.
    """

    def __init__(self, cf_encoder: CFEncoder, data: PreparedData, split: Split, arguments: StageArguments) -> None:
        sequences = data.sequences(split)
        self.batch_size, self.seed = global_batch_size(arguments), arguments.seed
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self.items = np.concatenate(sequences)  # all sequences one after the other
        found = windows(lengths, cf_encoder.config.max_history_length)
        if not len(found.sequences):
            raise DataError(f"{data.name}: no user has two training interactions; there is nothing to train on")
        starts = np.cumsum(lengths) - lengths
        self.users = found.sequences  # (W,) of each window
        self.ends = starts[self.users] + found.ends  # (W,) where in `items` each window ends
        self.lengths = found.lengths  # (W,) of the inputs, and of the targets
        self.targets = np.delete(self.items, starts[lengths > 0])  # of one epoch
        self.negatives = _Negatives(cf_encoder, data, split, self.targets)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the rows of each batch of an epoch."""
        return random_batches(self.lengths, self.batch_size, self.seed, epoch)

    def targets_of(self, examples: np.ndarray) -> np.ndarray:
        """Return the targets of some windows, one after the other."""
        lengths = self.lengths[examples]
        newer = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.items[np.repeat(self.ends[examples] - lengths, lengths) + newer]

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return inputs, mask and targets `(B, L)`, and what the loss samples; see `CFEncoder.training_loss`."""
        lengths, width = self.lengths[examples], int(self.lengths[examples].max())
        real = np.arange(width) >= width - lengths[:, None]  # (B, L)
        places = self.ends[examples, None] - width + np.arange(width)  # of the targets; the input stands one before
        targets = np.where(real, self.items[np.maximum(places, 0)], 0)
        item_ids = np.where(real, self.items[np.maximum(places - 1, 0)], 0)
        batch = {"item_ids": item_ids, "attention_mask": real, "targets": targets}
        batch |= self.negatives.shared(targets[real], generator)
        if self.negatives.own:
            batch["negatives"] = np.zeros((*targets.shape, self.negatives.own), dtype=np.int64)
            batch["negatives"][real] = self.negatives.of(np.repeat(self.users[examples], lengths), generator)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


class InteractionBatches:
    """Make batches of interactions, each a user number, the item and items that the user did not touch.

    The arguments are those of `SequenceBatches`.
    """

    def __init__(self, cf_encoder: CFEncoder, data: PreparedData, split: Split, arguments: StageArguments) -> None:
        sequences = data.sequences(split)
        self.batch_size, self.seed = global_batch_size(arguments), arguments.seed
        self.users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        self.items = np.concatenate(sequences)
        self.targets = self.items  # of one epoch
        self.negatives = _Negatives(cf_encoder, data, split, self.targets)

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the interactions of each batch of an epoch, in a new order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.users))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def targets_of(self, examples: np.ndarray) -> np.ndarray:
        """Return the targets of some interactions."""
        return self.items[examples]

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return users and targets `(B,)`, and what the loss samples: `negatives (B, K)`."""
        users, targets = self.users[examples], self.items[examples]
        batch = {"users": users, "targets": targets} | self.negatives.shared(targets, generator)
        if self.negatives.own:
            batch["negatives"] = self.negatives.of(users, generator)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


class _Negatives:
    """Draw what the loss of a backbone compares its targets with."""

    def __init__(self, cf_encoder: CFEncoder, data: PreparedData, split: Split, targets: np.ndarray) -> None:
        config = cf_encoder.config
        self.own = config.num_negatives if config.loss in ("bce", "gbce", "bpr") else 0  # K of each target's own
        self.uniform = config.num_negatives if config.loss == "sampled_softmax" else 0
        if self.own:
            self.sampler = NegativeSampler(data, split, items=targets)
        if self.uniform:
            self.shares = np.bincount(targets, minlength=data.num_items + 1) / len(targets)  # (N + 1,)
            self.known = np.flatnonzero(self.shares)

    def of(self, users: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return `(P, K)` items that each of `users` `(P,)` has never seen."""
        return self.sampler.negatives(np.repeat(users, self.own), generator).reshape(len(users), self.own)

    def shared(self, targets: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return `negatives (S,)` and their `log_weights (S,)`: the batch's targets `(P,)` and uniform items.

        An item that came c times weighs c / E[c]: its expected count is P times its share of all interactions, plus
        its part of the uniform draws.
        """
        if not self.uniform:
            return {}
        drawn = generator.choice(self.known, self.uniform)
        items, counts = np.unique(np.concatenate([targets, drawn]), return_counts=True)
        expected = len(targets) * self.shares[items] + self.uniform / len(self.known)
        return {"negatives": items, "log_weights": np.log(counts / expected).astype(np.float32)}
