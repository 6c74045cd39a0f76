"""What training steps are made of: targets, negatives, batches of similar length."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import DataError
from allmrec_hf.training.samples import (
    NegativeSampler,
    Samples,
    all_of_training,
    bucketed_batches,
    drawn,
    last_of_training,
    random_batches,
    training_targets,
    validation_targets,
    windows,
)


def data_of(sequences, num_items=7):
    """Prepare sequences of catalogue indices in memory, with one candidate set of the target alone and item 1."""
    rows, candidates = [], []
    for user, sequence in enumerate(sequences):
        held_out = ["validation", "test"] if len(sequence) > 2 else []
        splits = ["train"] * (len(sequence) - len(held_out)) + held_out
        rows += [(f"u{user}", f"i{item}", time, splits[time]) for time, item in enumerate(sequence)]
        for split, place in (("validation", -2), ("test", -1)) if held_out else ():
            target = f"i{sequence[place]}"
            candidates.append((split, f"u{user}", target, [target, "i1" if target != "i1" else "i2"]))
    return PreparedData(
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "split"], orient="row"),
        ItemCatalog.from_records({"item_id": f"i{i}", "title": f"T{i}"} for i in range(1, num_items + 1)),
        pl.DataFrame(candidates, schema=["split", "user_id", "target", "candidates"], orient="row"),
        {"format": 1, "name": "toy", "domain": "item", "seed": 0, "num_candidates": 2},
    )


@pytest.fixture(scope="module")
def toy():
    return data_of([[1, 2, 3, 4, 5], [3, 1, 2], [4, 6], [6, 5]])


def test_training_targets_are_the_last_training_items_of_users_with_two(toy):
    samples = last_of_training(toy)
    assert samples.users.tolist() == [0, 2, 3]  # the second user keeps one training item only
    assert [history.tolist() for history in samples.histories] == [[1, 2], [4], [6]]
    assert samples.targets.tolist() == [3, 6, 5]


def test_validation_targets_follow_the_training_part(toy):
    samples = validation_targets(toy)
    assert samples.users.tolist() == [0, 1]
    assert [history.tolist() for history in samples.histories] == [[1, 2, 3], [3]]
    assert samples.targets.tolist() == [4, 1]


def test_data_without_two_training_items_are_refused_by_name():
    with pytest.raises(DataError, match="toy: no user has two training interactions"):
        last_of_training(data_of([[1, 2, 3], [2, 3, 4]]))


def test_a_draw_of_users_is_seeded_and_keeps_their_order(toy):
    samples = Samples(np.arange(50), [np.array([1])] * 50, np.arange(50))
    part = drawn(samples, 10, seed=1)
    assert part.users.tolist() == sorted(part.users.tolist()) == drawn(samples, 10, seed=1).users.tolist()
    assert part.users.tolist() != drawn(samples, 10, seed=2).users.tolist()
    assert drawn(samples, None, seed=1) is drawn(samples, 50, seed=1) is samples


def test_negatives_are_uniform_over_what_others_have_seen_and_the_user_has_not(toy):
    sampler = NegativeSampler(toy, "train+validation")
    users = np.array([0, 1] * 3000)
    drawn_items = sampler.negatives(users, np.random.default_rng(0))
    counts = {user: np.bincount(drawn_items[users == user], minlength=8) for user in (0, 1)}
    assert counts[0].nonzero()[0].tolist() == [5, 6]  # its test item 5 may be drawn, training must not know it
    assert counts[1].nonzero()[0].tolist() == [2, 4, 5, 6]
    assert np.abs(counts[0][[5, 6]] - 1500).max() < 150  # five standard deviations
    assert np.abs(counts[1][[2, 4, 5, 6]] - 750).max() < 120


def test_an_item_never_seen_before_the_test_is_never_drawn():
    data = data_of([[1, 2, 3, 4, 5], [3, 1, 2], [4, 6]])  # 5 is a test item alone, 7 is nobody's
    sampler = NegativeSampler(data, "train+validation")
    drawn_items = sampler.negatives(np.array([1] * 500), np.random.default_rng(0))
    assert set(drawn_items.tolist()) == {2, 4, 6}
    sets = sampler.candidates(last_of_training(data), 2, np.random.default_rng(0))
    assert not set(sets.ravel().tolist()) & {5, 7}


def test_candidates_hold_the_target_once_and_nothing_touched(toy):
    sampler, samples = NegativeSampler(toy, "train+validation"), last_of_training(toy)
    for seed in range(20):
        sets = sampler.candidates(samples, 3, np.random.default_rng(seed))
        assert ((sets == samples.targets[:, None]).sum(axis=1) == 1).all()
        assert not set(sets[0]) & {1, 2, 4}
        assert all(len(set(row)) == 3 for row in sets)


def test_a_user_who_has_seen_everything_is_named():
    data = data_of([[1, 2, 3, 4, 5, 6, 1, 2], [1, 2, 3]])
    sampler = NegativeSampler(data, "train+validation")
    with pytest.raises(DataError, match="user 'u0' has seen nearly all of the 6 items"):
        sampler.negatives(np.array([0]), np.random.default_rng(0))
    with pytest.raises(DataError, match="'u0' has left only 0 of the catalogue's 6 items unseen"):
        sampler.candidates(last_of_training(data), 3, np.random.default_rng(0))


def test_only_the_named_items_are_drawn_and_of_these_none_that_the_user_touched(toy):
    sampler = NegativeSampler(toy, "train", items=np.array([6, 3, 5, 3, 7]))  # 7 is nobody's, 3 is the first user's
    users = np.array([0, 2] * 400)
    negatives = sampler.negatives(users, np.random.default_rng(0))
    assert set(negatives[users == 0].tolist()) == {5, 6, 7}
    assert set(negatives[users == 2].tolist()) == {3, 5, 7}
    sets = sampler.candidates(last_of_training(toy).take(np.array([0, 2])), 3, np.random.default_rng(0))
    assert set(sets[0]) < {3, 5, 6, 7}
    assert 3 in sets[0]  # the target itself


def test_windows_make_each_item_but_the_first_a_target_once():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([[0, 1, 2, 3, 4, 5, 6, 7], rng.integers(0, 40, 50)])
    for width in (1, 2, 3, 50):
        found = windows(lengths, width)
        targets = {sequence: [] for sequence in range(len(lengths))}
        for sequence, end, length in zip(found.sequences, found.ends, found.lengths, strict=True):
            assert 1 <= length <= width
            assert length == width or end == length + 1  # a short one begins its sequence
            targets[sequence] += range(end - length, end)
        assert all(sorted(targets[s]) == list(range(1, length)) for s, length in enumerate(lengths))


def test_all_training_targets_come_in_windows_with_their_history():
    data = data_of([[1, 2, 3, 4, 5, 6, 7, 1, 2], [3, 1, 2], [4, 6]])
    samples = all_of_training(data, 3)
    assert samples.users.tolist() == [0, 0, 2]
    assert [history.tolist() for history in samples.histories] == [[4, 5, 6], [1, 2, 3], [4]]
    assert samples.targets.tolist() == [7, 4, 6]
    assert training_targets(data).tolist() == [2, 3, 4, 5, 6, 7, 6]


def test_batches_hold_every_row_once_and_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    batches = bucketed_batches(lengths, 16, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert max(len(batch) for batch in batches) == 16
    padding = sum((lengths[batch].max() - lengths[batch]).sum() for batch in batches)
    order = np.random.default_rng(0).permutation(1000)
    unsorted = [order[start : start + 16] for start in range(0, 1000, 16)]
    assert padding < 0.1 * sum((lengths[batch].max() - lengths[batch]).sum() for batch in unsorted)


def test_no_rows_give_no_batches():
    assert bucketed_batches(np.array([]), 4, seed=0, epoch=0) == []


def test_negatives_do_not_depend_on_how_touched_pairs_are_looked_up(toy, monkeypatch):
    users = np.array([0, 1] * 100)
    exact = NegativeSampler(toy).negatives(users, np.random.default_rng(0))
    monkeypatch.setattr("allmrec_hf.training.samples.EXACT_CELLS", 0)
    hashed = NegativeSampler(toy).negatives(users, np.random.default_rng(0))
    np.testing.assert_array_equal(exact, hashed)


def test_what_comes_after_the_known_part_is_a_negative_like_any_other(toy):
    users, generator = np.zeros(500, dtype=np.int64), np.random.default_rng(0)  # trained on 1, 2, 3; validation item 4
    assert set(NegativeSampler(toy, "train").negatives(users, generator).tolist()) == {4, 5, 6}
    assert set(NegativeSampler(toy, "train+validation").negatives(users, generator).tolist()) == {5, 6}


def test_targets_of_short_and_long_samples_come_alike_in_random_batches():
    lengths = np.concatenate([np.full(300, 2), np.full(100, 20)])
    batches = random_batches(lengths, 40, seed=3, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(400))
    assert all((np.diff(lengths[rows]) >= 0).all() for rows in batches)  # shorter first in each
    shares = [float((lengths[rows] == 20).mean()) for rows in batches]
    assert max(shares) < 0.6  # a quarter of all; in batches of similar length 0 or 1
    assert min(shares) > 0.05
    again = random_batches(lengths, 40, seed=3, epoch=0)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))
    assert any((one != other).any() for one, other in zip(batches, random_batches(lengths, 40, 3, 1), strict=True))
