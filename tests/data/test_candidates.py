from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from allmrec_hf.data import candidates as module
from allmrec_hf.data.candidates import SeenItems, sample_candidates, title_groups
from allmrec_hf.errors import DataError


def distinct(num_items: int) -> np.ndarray:
    return np.arange(num_items + 1)


def world(num_users: int = 200, num_items: int = 100, per_user: int = 12) -> tuple[np.ndarray, np.ndarray, SeenItems]:
    rng = np.random.default_rng(0)
    items = np.argsort(rng.random((num_users, num_items)), axis=1)[:, :per_user] + 1
    users = np.arange(num_users)
    return users, items[:, -1], SeenItems(np.repeat(users, per_user), items.ravel(), num_items)


def test_every_set_holds_its_target_once_and_nothing_else_the_user_has_seen() -> None:
    users, targets, seen = world()
    sampled = sample_candidates(users, targets, seen, distinct(100), 20, seed=3, split="test")
    assert sampled.items.shape == (200, 20)
    assert ((sampled.items == targets[:, None]).sum(axis=1) == 1).all()
    assert (seen.contains(users, sampled.items).sum(axis=1) == 1).all()
    assert all(len(set(row)) == 20 for row in sampled.items.tolist())
    assert sampled.items.min() >= 1
    assert sampled.items.max() <= 100
    assert not sampled.duplicate_titles.any()


def test_same_seed_and_split_give_the_same_sets_and_others_give_other_sets() -> None:
    users, targets, seen = world()
    first, again, other_seed, other_split = (
        sample_candidates(users, targets, seen, distinct(100), 20, seed, split).items
        for seed, split in ((1, "test"), (1, "test"), (2, "test"), (1, "validation"))
    )
    assert (first == again).all()
    assert (first != other_seed).any(axis=1).all()
    assert (first != other_split).any(axis=1).all()


@pytest.mark.parametrize("rounds", [32, 0])
def test_a_users_set_depends_on_neither_the_other_users_nor_their_order(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REJECTION_ROUNDS", rounds)
    users, targets, seen = world()
    together = sample_candidates(users, targets, seen, distinct(100), 20, 5, "test").items
    order = np.random.default_rng(1).permutation(len(users))[:50]
    apart = sample_candidates(users[order], targets[order], seen, distinct(100), 20, 5, "test").items
    assert (together[order] == apart).all()


@pytest.mark.parametrize("rounds", [32, 0])
def test_negatives_are_uniform_over_what_is_allowed_and_targets_over_the_places(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REJECTION_ROUNDS", rounds)  # 0 leaves all to the exact sampler
    users = np.arange(20_000)
    targets = np.full(20_000, 1)
    seen = SeenItems(np.repeat(users, 2), np.tile([1, 2], 20_000), 12)
    sampled = sample_candidates(users, targets, seen, distinct(12), 6, 0, "test").items
    counts = np.bincount(sampled.ravel(), minlength=13)
    assert counts[2] == 0
    # Each of the 10 allowed items is in a set with probability 1/2: 10,000 expected, standard deviation 71.
    assert np.abs(counts[3:] - 10_000).max() < 5 * 71
    # The target stands in each of 6 places with probability 1/6: 3,333 expected, standard deviation 53.
    assert np.abs(np.bincount((sampled == 1).argmax(axis=1), minlength=6) - 3_333).max() < 5 * 53


@pytest.mark.parametrize("rounds", [32, 0])
def test_no_title_occurs_twice_in_a_set(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REJECTION_ROUNDS", rounds)
    groups = np.concatenate([[0], np.repeat(np.arange(1, 26), 4)])  # 25 titles, four items each
    users, targets, seen = world()
    sampled = sample_candidates(users, targets, seen, groups, 20, 0, "test")
    full = ~sampled.duplicate_titles
    assert full.mean() > 0.9
    assert all(len(set(row)) == 20 for row in groups[sampled.items[full]].tolist())
    assert ((sampled.items == targets[:, None]).sum(axis=1) == 1).all()


def test_titles_repeat_and_are_counted_only_where_too_few_are_left() -> None:
    groups = np.array([0, 1, 1, 1, 2, 2, 3])
    seen = SeenItems(np.array([0, 1, 1]), np.array([1, 1, 6]), 6)
    sampled = sample_candidates(np.array([0, 1]), np.array([1, 1]), seen, groups, 3, 0, "test")
    assert sampled.duplicate_titles.tolist() == [False, True]
    assert sorted(groups[sampled.items[0]].tolist()) == [1, 2, 3]
    assert 6 not in sampled.items[1]
    assert len(set(sampled.items[1].tolist())) == 3


def test_a_seen_item_does_not_block_its_title_in_the_exact_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REJECTION_ROUNDS", 0)
    seen = SeenItems(np.zeros(2, int), np.array([1, 2]), 3)  # items 2 and 3 share a title; 2 is seen
    sampled = sample_candidates(np.array([0]), np.array([1]), seen, np.array([0, 1, 2, 2]), 2, 0, "test")
    assert sorted(sampled.items[0].tolist()) == [1, 3]
    assert not sampled.duplicate_titles.any()


def test_a_set_that_needs_the_whole_catalogue_is_found() -> None:
    seen = SeenItems(np.array([0]), np.array([7]), 20)
    sampled = sample_candidates(np.array([0]), np.array([7]), seen, distinct(20), 20, 0, "test")
    assert sorted(sampled.items[0].tolist()) == list(range(1, 21))


def test_a_catalogue_smaller_than_the_set_is_an_error_with_both_counts() -> None:
    seen = SeenItems(np.array([0]), np.array([1]), 5)
    with pytest.raises(DataError, match="the catalogue has 5 items, but a candidate set needs 20"):
        sample_candidates(np.array([0]), np.array([1]), seen, distinct(5), 20, 0, "test")


def test_a_user_who_has_seen_nearly_everything_is_an_error_that_names_the_user() -> None:
    seen = SeenItems(np.zeros(8, int), np.arange(1, 9), 10)
    with pytest.raises(
        DataError, match="user 'bot' has left only 2 of the catalogue's 10 items unseen, but 4 negatives"
    ):
        sample_candidates(np.array([0]), np.array([1]), seen, distinct(10), 5, 0, "test", ["bot"])


def test_titles_are_compared_without_case_and_space_and_untitled_items_match_nothing() -> None:
    groups = title_groups(pl.Series(["Lost  Harbor", "lost harbor ", None, None, "", "Other"]))
    assert groups.tolist() == [0, 1, 1, 3, 4, 5, 6]
