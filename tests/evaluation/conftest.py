"""A small data set in memory with the members that evaluation reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from allmrec_hf.catalog import ItemCatalog


@dataclass
class Candidates:
    users: np.ndarray
    targets: np.ndarray
    items: np.ndarray


@dataclass
class ToyData:
    """Ten items; item i is titled `Title i`; each user has the sequence given, the last two items held out."""

    sequences: list[list[int]]
    candidate_items: list[list[int]]
    num_items: int = 10
    name: str = "toy"
    info: dict[str, Any] = field(default_factory=lambda: {"seed": 3})

    def __post_init__(self) -> None:
        self.catalog = ItemCatalog.from_records(
            [{"item_id": f"i{index}", "title": f"Title {index}"} for index in range(1, self.num_items + 1)]
        )
        self.user_ids = [f"u{user}" for user in range(len(self.sequences))]

    def history(self, user: int, split: str) -> np.ndarray:
        return np.array(self.sequences[user][: -1 if split == "test" else -2])

    def candidates(self, split: str) -> Candidates:
        position = -1 if split == "test" else -2
        targets = np.array([sequence[position] for sequence in self.sequences])
        return Candidates(np.arange(len(self.sequences)), targets, np.array(self.candidate_items))

    def item_counts(self, split: str) -> np.ndarray:
        cut = -2 if split == "train" else -1
        known = [item for sequence in self.sequences for item in sequence[:cut]]
        return np.bincount(known, minlength=self.num_items + 1)


@pytest.fixture
def toy_data() -> ToyData:
    """Training counts: item 1 three times, 2 twice, 3 twice, 4 once; validation 5, 5, 6, 2; test 2, 3, 10, 5."""
    return ToyData(
        sequences=[[1, 3, 5, 2], [1, 2, 5, 3], [1, 2, 6, 10], [3, 4, 2, 5]],
        candidate_items=[[5, 7, 2], [3, 8, 5], [6, 9, 10], [9, 2, 5]],
    )
