"""Select the users to evaluate, with their histories, targets, candidates and groups."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from ..errors import DataError
from .protocol import CandidateRows, EvaluationData, History, KnowsNewUsers, TargetSplit
from .shares import rank_and_world, shared_out
from .warmth import NEW_USERS, checked_groups, history_groups

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """The users under evaluation, the same arrays for every ranker."""

    data: EvaluationData
    split: TargetSplit
    users: NDArray[np.int64]  # (R,)
    targets: NDArray[np.int64]  # (R,)
    items: NDArray[np.int64]  # (R, C)
    positions: NDArray[np.int64]  # (R,) column of the target
    places: NDArray[np.int64]  # (R,) row of each user among all with candidates

    def mapped(
        self, ranker: str, batch_size: int, call: Callable[[slice, list[History], NDArray[np.int64]], T]
    ) -> list[T]:
        """Return what a call returns for each batch of users; several processes share the batches out.

        Args:
            ranker: Its name, for the progress bar.
            batch_size: Users of a batch.
            call: Takes a slice of rows, their histories and a copy of their candidates, which a ranker may spoil.
        """
        starts = range(0, len(self.users), batch_size)
        rank, world = rank_and_world()
        hidden = True if rank else None
        with tqdm(total=len(self.users), desc=f"evaluate {ranker}", unit="user", disable=hidden) as progress:

            def compute(number: int) -> T:
                rows = slice(starts[number], min(starts[number] + batch_size, len(self.users)))
                histories = [self.data.history(int(user), self.split) for user in self.users[rows]]
                found = call(rows, histories, self.items[rows].copy())
                progress.update(min(world * (rows.stop - rows.start), len(self.users) - progress.n))
                return found

            return shared_out(len(starts), compute)


def select_rows(
    data: EvaluationData, split: TargetSplit, candidates: CandidateRows, max_users: int | None, seed: int
) -> Rows:
    """Return the users of a split, or a seeded sample of them.

    Raises:
        DataError: when there are none, or a row of candidates does not hold its target exactly once.
    """
    users, targets, items = (np.asarray(part) for part in (candidates.users, candidates.targets, candidates.items))
    if len(users) == 0:
        what = "prepare the data from longer histories"
        if split in getattr(data, "in_training", ()):
            what = "it is trained on in these data, which refit has made; evaluate on those that it was given"
        raise DataError(f"{data.name}: the {split} split has no users; {what}")
    found = (items == targets[:, None]).sum(axis=1)
    if (found != 1).any():
        user = data.user_ids[int(users[np.argmax(found != 1)])]
        raise DataError(
            f"{data.name}: {int((found != 1).sum())} of {len(users)} candidate rows do not hold their target exactly "
            f"once, first that of user {user!r}; prepare the data again"
        )
    chosen = np.arange(len(users))
    if max_users is not None and max_users < len(users):
        chosen = np.sort(np.random.default_rng(seed).choice(len(users), size=max_users, replace=False))
        logger.info("a sample of %d of %d users, seed %d", max_users, len(users), seed)
        users, targets, items = users[chosen], targets[chosen], items[chosen]
    positions = np.argmax(items == targets[:, None], axis=1)
    return Rows(data, split, users, targets, items, positions, chosen)


def further_members(
    rows: Rows, groups: Mapping[str, ArrayLike], history_buckets: Sequence[int] | None
) -> dict[str, NDArray[np.bool_]]:
    """Return `(R,)` True where a user belongs: to those new in a time split, a history bucket, a caller's group."""
    members: dict[str, NDArray[np.bool_]] = {}
    new_users = rows.data.new_users(rows.split)[rows.users] if isinstance(rows.data, KnowsNewUsers) else None
    if new_users is not None and new_users.any():
        members[NEW_USERS] = new_users
    if history_buckets is not None:
        lengths = [len(rows.data.history(int(user), rows.split)) for user in rows.users]
        members |= history_groups(lengths, history_buckets)
    masks = checked_groups(groups, len(rows.data.candidates(rows.split).users))
    return members | {name: mask[rows.places] for name, mask in masks.items()}


def count_seen_targets(rows: Rows) -> int:
    """Return how many targets stand in their user's history already."""
    histories = (rows.data.history(int(user), rows.split) for user in rows.users)
    return sum(int(target in history) for target, history in zip(rows.targets, histories, strict=True))
