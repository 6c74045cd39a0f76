"""Groups by the warmth of the target, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.warmth import WarmthGroups, history_groups


def items(mask: np.ndarray) -> list[int]:
    return mask.nonzero()[0].tolist()


def test_both_ends_hold_thirty_five_percent_of_the_items():
    counts = [0, *range(100, 0, -1)]  # item 1 is the warmest of 100
    groups = WarmthGroups.from_counts(counts)
    assert items(groups.warm) == list(range(1, 36))
    assert items(groups.cold) == list(range(66, 101))
    assert items(groups.never_seen) == []


def test_among_equal_counts_the_earlier_item_is_the_warmer():
    groups = WarmthGroups.from_counts([0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    assert items(groups.warm) == [1, 2, 3]
    assert items(groups.cold) == [8, 9, 10]


def test_items_without_interactions_are_cold_and_never_warm_however_many():
    groups = WarmthGroups.from_counts([0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0])
    assert items(groups.warm) == [2]
    assert items(groups.cold) == [1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_never_seen_counts_everything_known_before_the_target():
    groups = WarmthGroups.from_counts([0, 3, 0, 0], known_counts=[0, 3, 1, 0])
    assert items(groups.never_seen) == [3]
    assert items(groups.cold) == [2, 3]


def test_padding_belongs_to_no_group():
    groups = WarmthGroups.from_counts([0, 1, 1, 1])
    assert [mask[0] for mask in (groups.warm, groups.cold, groups.never_seen)] == [False, False, False]


def test_users_belong_to_the_groups_of_their_target():
    members = WarmthGroups.from_counts([0, 9, 5, 1, 0], share=0.25).members(np.array([4, 1, 2, 4]))
    assert {name: mask.tolist() for name, mask in members.items()} == {
        "overall": [True, True, True, True],
        "warm": [False, True, False, False],
        "cold": [True, False, False, True],
        "never_seen": [True, False, False, True],
    }


def test_description_names_sizes_and_borders():
    description = WarmthGroups.from_counts([0, 9, 5, 1, 0], share=0.5).describe()
    assert description == {
        "warm": {"items": 2, "min_interactions": 5},
        "cold": {"items": 2, "max_interactions": 1},
        "never_seen": {"items": 1},
    }


@pytest.mark.parametrize("share", [0, 0.6, -1])
def test_a_share_that_would_overlap_is_refused(share):
    with pytest.raises(ALLMRecError, match=r"in \(0, 0.5\]"):
        WarmthGroups.from_counts([0, 1, 2], share=share)


def test_counts_of_different_catalogues_are_refused():
    with pytest.raises(ALLMRecError, match=r"\(3,\) and \(4,\)"):
        WarmthGroups.from_counts([0, 1, 2], [0, 1, 2, 3])


def test_every_history_length_is_in_exactly_one_bucket():
    buckets = history_groups(range(1, 60), (1, 5, 50))
    assert list(buckets) == ["history 1", "history 2-5", "history 6-50", "history 51+"]
    assert np.sum(list(buckets.values()), axis=0).tolist() == [1] * 59
    assert [int(mask.sum()) for mask in buckets.values()] == [1, 4, 45, 9]


@pytest.mark.parametrize("edges", [(), (0, 5), (5, 5), (10, 5), (2.5,), ("5",), 5, "5"])
def test_edges_that_do_not_grow_are_refused(edges):
    with pytest.raises(ALLMRecError, match="growing positive integers, such as 5, 10, 20; got"):
        history_groups([1, 2], edges)
