"""What a training step is made of: one history and one target for each user, and batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..data.candidates import Touched, sample_candidates, title_groups
from ..data.prepared import PreparedData
from ..errors import DataError

REJECTION_ROUNDS = 200
EXACT_CELLS = 2**26  # pairs of users and items up to which each has a byte that says whether it was touched
FILTER_SLOTS = 8  # else: bytes for each interaction; with them one pair in eight that was not touched needs a search
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio spreads neighbouring keys
BUCKET_BATCHES = 50  # batches that are sorted by length together


@dataclass(frozen=True)
class Samples:
    """Histories and the item that follows each.

    Attributes:
        users: `(S,)` user numbers.
        histories: S arrays of catalogue indices in time order.
        targets: `(S,)` catalogue indices.
    """

    users: np.ndarray
    histories: Sequence[np.ndarray]
    targets: np.ndarray

    def __len__(self) -> int:
        """Return S."""
        return len(self.users)

    def take(self, rows: np.ndarray) -> Samples:
        """Return some samples, in the order of the rows."""
        return Samples(self.users[rows], [self.histories[row] for row in rows], self.targets[rows])


def last_of_training(data: PreparedData) -> Samples:
    """Return the last item of every training sequence and what came before it (the paper's targets)."""
    sequences = data.sequences("train")
    users = np.array([user for user, sequence in enumerate(sequences) if len(sequence) > 1], dtype=np.int64)
    if not len(users):
        raise DataError(f"{data.name}: no user has two training interactions; there is nothing to train on")
    histories = [sequences[user][:-1] for user in users]
    return Samples(users, histories, np.array([sequences[user][-1] for user in users], dtype=np.int64))


def validation_targets(data: PreparedData) -> Samples:
    """Return every validation item and the training sequence before it."""
    candidates = data.candidates("validation")
    return Samples(candidates.users, [data.history(int(u), "validation") for u in candidates.users], candidates.targets)


def drawn(samples: Samples, count: int | None, seed: int) -> Samples:
    """Return at most `count` samples, drawn once with a seed, in their order; all where `count` is None."""
    if count is None or count >= len(samples):
        return samples
    return samples.take(np.sort(np.random.default_rng(seed).permutation(len(samples))[:count]))


class NegativeSampler:
    """Draws items that a user did not touch in the known part of the data.

    Only items that somebody touched there are drawn: any other does not exist yet, and one that were only ever a
    negative would be learnt as such. What comes after the known part, training does not know: an item that were
    spared because it is a user's target would give that away.

    Args:
        data: Prepared data.
        split: The known part, `"train"` or `"train+validation"`.
    """

    def __init__(self, data: PreparedData, split: Literal["train", "train+validation"] = "train+validation") -> None:
        sequences = data.sequences(split)
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        items = np.concatenate(sequences)
        self._known = np.unique(np.append(items, 0))  # catalogue index of each place, place 0 is padding
        places = self._places(items)
        self._touched = Touched(users, places, len(self._known) - 1)
        cells, bits = len(sequences) * len(self._known), max(1, (FILTER_SLOTS * len(items) - 1).bit_length())
        self._shift = None if cells <= EXACT_CELLS else np.uint64(64 - bits)  # None: each pair has a slot of its own
        self._filter = np.zeros(cells if self._shift is None else 2**bits, dtype=np.bool_)  # True where touched
        self._filter[self._slots(users, places)] = True
        self._groups = title_groups(data.catalog.frame["title"])[self._known]
        self._user_ids = data.user_ids

    def _places(self, items: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._known, items)

    def _slots(self, users: np.ndarray, places: np.ndarray) -> np.ndarray:
        keys = users * len(self._known) + places
        if self._shift is None:
            return keys
        return (keys.astype(np.uint64) * GOLDEN_RATIO) >> self._shift  # multiplicative hashing, modulo 2^64

    def _has_touched(self, users: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Tell for each pair whether the user touched the item; an empty slot answers it without a search."""
        touched = self._filter[self._slots(users, places)]
        if self._shift is not None:
            rows = np.flatnonzero(touched)
            touched[rows] = self._touched.contains(users[rows], places[rows, None])[:, 0]
        return touched

    def candidates(self, samples: Samples, num_candidates: int, generator: np.random.Generator) -> np.ndarray:
        """Return `(S, C)` the target and C - 1 negatives of each sample, shuffled, no title twice."""
        drawn = sample_candidates(
            samples.users,
            self._places(samples.targets),
            self._touched,
            self._groups,
            num_candidates,
            seed=int(generator.integers(2**63)),
            split="train",
            user_ids=self._user_ids,
        )
        return self._known[drawn.items]

    def negatives(self, users: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return `(P,)` one uniform negative for each of `users` `(P,)`, which may repeat.

        Raises:
            DataError: when a user touched (nearly) every item.
        """
        places = generator.integers(1, len(self._known), len(users))
        open_rows = np.flatnonzero(self._has_touched(users, places))
        for _ in range(REJECTION_ROUNDS):
            if not len(open_rows):
                break
            redrawn = generator.integers(1, len(self._known), len(open_rows))
            places[open_rows] = redrawn
            open_rows = open_rows[self._has_touched(users[open_rows], redrawn)]
        if not len(open_rows):
            return self._known[places]
        user = self._user_ids[int(users[open_rows[0]])]
        raise DataError(
            f"user {user!r} touched nearly all of the {len(self._known) - 1} items that anybody touched; there is no "
            "negative for them"
        )


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of one epoch as shuffled batches of similar length, so that little is padding.

    Args:
        lengths: `(S,)` length of each sample.
        batch_size: Rows in a batch; the last one may be smaller.
        seed: The seed; seed and epoch alone decide the order.
        epoch: The epoch, from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * BUCKET_BATCHES):
        rows = order[start : start + batch_size * BUCKET_BATCHES]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[number] for number in generator.permutation(len(batches))]
