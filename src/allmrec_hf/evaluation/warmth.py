"""Group users: by the training interactions of their target, by history length, and by a caller's own groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ALLMRecError

OVERALL = "overall"
GROUPS = (OVERALL, "warm", "cold", "never_seen")
NEW_USERS = "new_users"  # of a time split: nothing of them was known before the date
PAPER_SHARE = 0.35  # section 5.3, arXiv 2404.11343
RANK_COLUMNS = ("user_id", "target", "method", "rank", "tied", "answer")  # of the per-user table, beside the groups


@dataclass(frozen=True)
class WarmthGroups:
    """The warm, cold and never seen items; a user belongs to the groups of the target.

    Attributes:
        warm: `(N + 1,)` True for the share of items with the most training interactions.
        cold: `(N + 1,)` True for the share with the fewest, and for every item without any.
        never_seen: `(N + 1,)` True for items without an interaction before the target.
        counts: `(N + 1,)` training interactions, by which warm and cold were chosen.
    """

    warm: NDArray[np.bool_]
    cold: NDArray[np.bool_]
    never_seen: NDArray[np.bool_]
    counts: NDArray[np.int64]

    @classmethod
    def from_counts(
        cls, train_counts: ArrayLike, known_counts: ArrayLike | None = None, share: float = PAPER_SHARE
    ) -> WarmthGroups:
        """Sort the catalogue by training interactions and cut a share off both ends.

        Both ends hold `floor(share * N)` items. Among items with equal counts the one earlier in the catalogue is the
        warmer, so the cut is the same in every run. An item without training interactions is always cold, never warm,
        however many there are.

        Args:
            train_counts: `(N + 1,)` interactions per catalogue index in the training part; index 0 is padding.
            known_counts: `(N + 1,)` interactions in everything before the target (training and, for the test target,
                validation); decides "never seen". None takes `train_counts`.
            share: Share of the items at each end, in (0, 0.5]; the paper takes 0.35.

        Raises:
            ALLMRecError: when shapes differ, the catalogue is empty or the share is out of range.

        Example:
            >>> groups = WarmthGroups.from_counts([0, 9, 0, 4, 1, 1])
            >>> groups.warm.nonzero()[0].tolist(), groups.cold.nonzero()[0].tolist()
            ([1], [2])
        """
        counts = np.asarray(train_counts, dtype=np.int64)
        known = counts if known_counts is None else np.asarray(known_counts, dtype=np.int64)
        if counts.ndim != 1 or counts.shape != known.shape or len(counts) < 2:
            raise ALLMRecError(f"item counts must both be (N + 1,) with N > 0; got {counts.shape} and {known.shape}")
        if not 0 < share <= 0.5:
            raise ALLMRecError(f"the share of warm and of cold items must be in (0, 0.5]; got {share}")
        warmest_first = np.argsort(-counts[1:], kind="stable") + 1
        num_items = int(share * len(warmest_first))
        warm, cold = np.zeros(len(counts), dtype=bool), np.zeros(len(counts), dtype=bool)
        warm[warmest_first[:num_items]] = True
        cold[warmest_first[len(warmest_first) - num_items :]] = True
        warm &= counts > 0
        cold |= counts == 0
        never_seen = known == 0
        cold[0] = never_seen[0] = False
        return cls(warm=warm, cold=cold, never_seen=never_seen, counts=counts)

    def members(self, targets: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Return, for each group's name, `(B,)` True where a user's target belongs to it; groups overlap."""
        return {
            OVERALL: np.ones(len(targets), dtype=bool),
            "warm": self.warm[targets],
            "cold": self.cold[targets],
            "never_seen": self.never_seen[targets],
        }

    def describe(self) -> dict[str, dict[str, int]]:
        """Return how many items each group holds and the training interactions at its border."""
        description = {
            "warm": {"items": int(self.warm.sum())},
            "cold": {"items": int(self.cold.sum())},
            "never_seen": {"items": int(self.never_seen.sum())},
        }
        if self.warm.any():
            description["warm"]["min_interactions"] = int(self.counts[self.warm].min())
        if self.cold.any():
            description["cold"]["max_interactions"] = int(self.counts[self.cold].max())
        return description


def history_groups(lengths: ArrayLike, edges: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Return `(B,)` masks of users by the length of what is known of them, one bucket for each edge and one beyond.

    Args:
        lengths: `(B,)` interactions known before the target.
        edges: The largest length of each bucket but the last, growing.

    Raises:
        ALLMRecError: when the edges are no growing positive integers.

    Example:
        >>> list(history_groups([2, 5, 6, 40], (5, 10)))
        ['history 1-5', 'history 6-10', 'history 11+']
    """
    known = isinstance(edges, Sequence) and len(edges) > 0 and all(type(edge) is int for edge in edges)
    if not known or edges[0] < 1 or sorted(set(edges)) != list(edges):
        raise ALLMRecError(f"history_buckets must be growing positive integers, such as 5, 10, 20; got {edges!r}")
    first = [1, *(edge + 1 for edge in edges)]
    spans = [f"{low}-{high}" if low < high else f"{low}" for low, high in zip(first, edges, strict=False)]
    bucket = np.searchsorted(edges, np.asarray(lengths), side="left")  # (B,) a length equal to an edge is within
    return {f"history {span}": bucket == number for number, span in enumerate([*spans, f"{first[-1]}+"])}


def checked_groups(groups: Mapping[str, ArrayLike], num_users: int) -> dict[str, NDArray[np.bool_]]:
    """Return a caller's own groups as masks.

    Args:
        groups: For each name, `(U,)` booleans, one for each user of the split.
        num_users: U.

    Raises:
        ALLMRecError: when a name is taken or cannot stand in a table, or a mask is not `(U,)` booleans.
    """
    masks = {name: np.asarray(mask) for name, mask in groups.items()}
    for name, mask in masks.items():
        taken = name in (*GROUPS, NEW_USERS, *RANK_COLUMNS) or name.startswith("history ")
        if taken or not name.strip() or not name.isprintable():
            raise ALLMRecError(f"a group cannot be called {name!r}; the name is taken, empty or not printable")
        if mask.dtype != np.bool_ or mask.shape != (num_users,):
            raise ALLMRecError(
                f"group {name!r} is {mask.dtype} {mask.shape}; expected booleans ({num_users},), one for each user "
                "with candidates, in their order"
            )
    return masks
