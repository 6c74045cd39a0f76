"""Make training examples: a history and a target for each user, negatives, and batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..data.candidates import SeenItems, sample_candidates, title_groups
from ..data.prepared import PreparedData
from ..errors import DataError

Split = Literal["train", "train+validation"]

REJECTION_ROUNDS = 200
EXACT_CELLS = 2**26  # pairs of users and items up to which each has a byte that says whether it was seen
FILTER_SLOTS = 8  # else: bytes for each interaction; with them one pair in eight that was not seen needs a search
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


@dataclass(frozen=True)
class Windows:
    """Sequences cut so that each item but the first of a sequence is a target once, none behind more than L inputs.

    Attributes:
        sequences: `(W,)` the number of each window's sequence; those of one sequence follow each other, latest first.
        ends: `(W,)` where the window ends in its sequence: behind its last target.
        lengths: `(W,)` its targets, and as many inputs: the item before each target.
    """

    sequences: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray


def windows(sequence_lengths: np.ndarray, max_length: int) -> Windows:
    """Return the windows of sequences; only the oldest of a sequence, which begins it, may be shorter than L.

    Args:
        sequence_lengths: `(S,)` items of each sequence.
        max_length: L, at least 1.

    Example:
        >>> found = windows(np.array([8, 1, 3]), max_length=3)
        >>> found.sequences.tolist(), found.ends.tolist(), found.lengths.tolist()
        ([0, 0, 0, 2], [8, 5, 2, 3], [3, 3, 1, 2])
    """
    counts = -(-np.maximum(sequence_lengths - 1, 0) // max_length)
    sequences = np.repeat(np.arange(len(sequence_lengths)), counts)
    newer = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)  # windows behind it
    ends = sequence_lengths[sequences] - newer * max_length
    return Windows(sequences, ends, np.minimum(ends - 1, max_length))


def all_of_training(data: PreparedData, max_length: int) -> Samples:
    """Return the windows of all training sequences: each target stands behind up to L inputs, all of them targets too.

    Args:
        data: Prepared data.
        max_length: L, see `windows`.
    """
    sequences = data.sequences("train")
    found = windows(np.array([len(sequence) for sequence in sequences], dtype=np.int64), max_length)
    if not len(found.sequences):
        raise DataError(f"{data.name}: no user has two training interactions; there is nothing to train on")
    spans = list(zip(found.sequences.tolist(), found.ends.tolist(), found.lengths.tolist(), strict=True))
    histories = [sequences[user][end - length - 1 : end - 1] for user, end, length in spans]
    return Samples(found.sequences, histories, np.array([sequences[user][end - 1] for user, end, _ in spans]))


def validation_targets(data: PreparedData) -> Samples:
    """Return every validation item and the training sequence before it."""
    candidates = data.candidates("validation")
    return Samples(candidates.users, [data.history(int(u), "validation") for u in candidates.users], candidates.targets)


def drawn_rows(total: int, count: int | None, seed: int) -> np.ndarray:
    """Return at most `count` of the rows `0..total - 1`, drawn once with a seed, in order; all where it is None."""
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def drawn(samples: Samples, count: int | None, seed: int) -> Samples:
    """Return at most `count` samples, drawn once with a seed, in their order; all where `count` is None."""
    rows = drawn_rows(len(samples), count, seed)
    return samples if len(rows) == len(samples) else samples.take(rows)


def training_targets(data: PreparedData) -> np.ndarray:
    """Return the items `(T,)` that a backbone which reads sequences is trained to score: all but the first of each."""
    return np.concatenate([sequence[1:] for sequence in data.sequences("train")])


class NegativeSampler:
    """Draws items that a user did not touch in the known part of the data.

    What comes after the known part, training does not know: an item that were spared because it is a user's target
    would give that away. And an item that is never a target would be learnt as one that nobody wants: only items of
    `items` are drawn.

    Args:
        data: Prepared data.
        split: The known part, `"train"` or `"train+validation"`; what a user has seen there is not drawn for that user.
        items: Catalogue indices that may be drawn, in any order and repeated; those that somebody has seen in the known
            part where not given.
    """

    def __init__(self, data: PreparedData, split: Split = "train", items: np.ndarray | None = None) -> None:
        sequences = data.sequences(split)
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        seen = np.concatenate(sequences)
        self._known = np.unique(np.append(seen if items is None else items, 0))  # of each place; place 0 is padding
        drawable = np.isin(seen, self._known)
        users, places = users[drawable], self._places(seen[drawable])
        self._seen = SeenItems(users, places, len(self._known) - 1)
        cells, bits = len(sequences) * len(self._known), max(1, (FILTER_SLOTS * len(seen) - 1).bit_length())
        self._shift = None if cells <= EXACT_CELLS else np.uint64(64 - bits)  # None: each pair has a slot of its own
        self._filter = np.zeros(cells if self._shift is None else 2**bits, dtype=np.bool_)  # True where seen
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
        """Tell for each pair whether the user has seen the item; an empty slot answers it without a search."""
        seen = self._filter[self._slots(users, places)]
        if self._shift is not None:
            rows = np.flatnonzero(seen)
            seen[rows] = self._seen.contains(users[rows], places[rows, None])[:, 0]
        return seen

    def candidates(self, samples: Samples, num_candidates: int, generator: np.random.Generator) -> np.ndarray:
        """Return `(S, C)` the target and C - 1 negatives of each sample, shuffled, no title twice."""
        drawn = sample_candidates(
            samples.users,
            self._places(samples.targets),
            self._seen,
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
            DataError: when a user has seen (nearly) every item.
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
            f"user {user!r} has seen nearly all of the {len(self._known) - 1} items that may be negatives; none is "
            "left for them"
        )


def random_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of one epoch as batches drawn at random, shorter samples first in each.

    For a loss that is a mean over a batch's targets, of which a long sample has more: in batches of similar length a
    target of a short sample would count as much as ten of long ones.

    Args:
        lengths: `(S,)` length of each sample.
        batch_size: Rows in a batch; the last one may be smaller.
        seed: The seed; seed and epoch alone decide the order.
        epoch: The epoch, from 0.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [rows[np.argsort(lengths[rows], kind="stable")] for rows in batches]


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of one epoch as shuffled batches of similar length, so that little is padding.

    For samples of one target each; see `random_batches`.

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
