"""What holds of candidate sets whatever the interactions are."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec_hf.data.candidates import SeenItems, sample_candidates, title_groups
from allmrec_hf.errors import DataError
from tests.properties import MANY

TITLES = st.sampled_from(["Night", "night ", "Day", "Dawn", "Dusk", "", None])


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Return users with targets, what they have seen, titles, and how many candidates are wanted."""
    num_items = draw(st.integers(2, 24))
    items = st.integers(1, num_items)
    histories = draw(st.lists(st.lists(items, min_size=1, max_size=12), min_size=1, max_size=6))
    titles = draw(st.lists(TITLES, min_size=num_items, max_size=num_items)) if draw(st.booleans()) else None
    return {
        "histories": histories,
        "titles": titles or [f"Item {number}" for number in range(num_items)],
        "num_candidates": draw(st.integers(2, num_items)),
        "seed": draw(st.integers(0, 2**63)),
        "split": draw(st.sampled_from(["validation", "test"])),
    }


def sample(problem: dict[str, Any], rows: list[int]) -> Any:
    histories = problem["histories"]
    owners = np.concatenate([np.full(len(history), user) for user, history in enumerate(histories)])
    seen = SeenItems(owners, np.concatenate(histories), len(problem["titles"]))
    groups = title_groups(pl.Series("title", problem["titles"], dtype=pl.String))
    targets = np.array([histories[row][-1] for row in rows])
    wanted = (problem["num_candidates"], problem["seed"], problem["split"])
    return sample_candidates(np.array(rows), targets, seen, groups, *wanted)


@MANY
@given(problems(), st.data())
def test_a_set_is_the_target_and_items_that_the_user_has_not_seen(problem: dict[str, Any], data: st.DataObject) -> None:
    histories, count = problem["histories"], problem["num_candidates"]
    num_items = len(problem["titles"])
    every = list(range(len(histories)))
    if any(num_items - len(set(history)) < count - 1 for history in histories):
        with pytest.raises(DataError, match="negatives are needed"):
            sample(problem, every)
        return
    sampled = sample(problem, every)
    groups = title_groups(pl.Series("title", problem["titles"], dtype=pl.String))
    for user, history in enumerate(histories):
        row = sampled.items[user].tolist()
        assert len(row) == len(set(row)) == count
        assert set(row) & set(history) == {history[-1]}
        assert set(row) <= set(range(1, num_items + 1))
        different = len(set(groups[row])) == count
        assert different != sampled.duplicate_titles[user]
        unseen = set(range(1, num_items + 1)) - set(history)
        titles_left = {groups[item] for item in unseen} - {groups[history[-1]]}
        assert different == (len(titles_left) >= count - 1)
    again = sample(problem, every)
    assert again.items.tolist() == sampled.items.tolist()
    some = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    assert sample(problem, some).items.tolist() == sampled.items[some].tolist()  # whoever else is there


def test_the_seed_and_the_split_change_the_sets() -> None:
    problem: dict[str, Any] = {
        "histories": [[1, 2, 3]] * 20,
        "titles": [str(number) for number in range(50)],
        "num_candidates": 5,
        "seed": 0,
        "split": "test",
    }
    first = sample(problem, list(range(20))).items
    assert len({tuple(row) for row in first.tolist()}) == 20
    for change in ({"seed": 1}, {"split": "validation"}):
        assert (sample(problem | change, list(range(20))).items != first).any(axis=1).mean() > 0.9
