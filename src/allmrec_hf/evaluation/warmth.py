"""Groups of users by how well the training data knows their target item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ALLMRecError

OVERALL = "overall"
GROUPS = (OVERALL, "warm", "cold", "never_seen")
PAPER_SHARE = 0.35  # section 5.3, arXiv 2404.11343


@dataclass(frozen=True)
class WarmthGroups:
    """Which items count as warm, cold and never seen; a user belongs to the groups of the target.

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
