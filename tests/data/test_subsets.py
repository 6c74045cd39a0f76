"""Parts of prepared data: who and what stays, and that what stays is as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.subsets import (
    UNSAVED,
    joint_catalog,
    num_interactions,
    prefixed,
    users_with_targets,
    with_recent,
    with_users,
    without,
)
from allmrec_hf.errors import DataError


@pytest.fixture
def data(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame) -> PreparedData:
    return prepare(
        interactions, items, output=tmp_path / "d", filter="none", keep_items="all", num_candidates=6, name="d"
    )


def rows(data: PreparedData, split: str) -> dict[str, tuple[str, list[str]]]:
    """Return target and candidates, as ids in their order, by user id."""
    frame = data.candidate_frame.filter(split=split)
    return {
        user: (target, items) for user, target, items in frame.select("user_id", "target", "candidates").iter_rows()
    }


def test_some_users_keep_their_order_interactions_targets_and_candidates(data: PreparedData) -> None:
    part = with_users(data, ["u7", "u2", "u11"], {"scenario": "mine"})
    assert part.user_ids == ["u2", "u7", "u11"]
    assert part.catalog is data.catalog
    for number, user in enumerate([2, 7, 11]):
        assert part.sequence(number).tolist() == data.sequence(user).tolist()
    for split in ("validation", "test"):
        assert rows(part, split) == {user: rows(data, split)[user] for user in part.user_ids}
        original = data.candidates(split)  # type: ignore[arg-type]
        assert (part.candidates(split).items == original.items[[2, 7, 11]]).all()  # type: ignore[arg-type]


def test_a_part_says_what_it_is_and_claims_no_folder(data: PreparedData, tmp_path: Path) -> None:
    part = with_users(data, ["u1", "u2"], {"scenario": "mine"})
    assert (part.name, part.domain, part.info["scenario"]) == ("d", "item", "mine")
    assert str(part.directory) == UNSAVED
    assert "scenario" not in data.info
    assert part.info["counts"] == {
        **{"users": 2, "items": 45, "interactions": 12, "train": 8, "validation": 2, "test": 2},
        **{"users_only_trained_on": 0, "items_without_interactions": 45 - part.interactions["item_id"].n_unique()},
    }
    part.save(tmp_path / "part")
    loaded = PreparedData.load(tmp_path / "part")
    assert loaded.info == part.info
    assert loaded.interactions.equals(part.interactions)
    assert rows(loaded, "test") == rows(part, "test")


@pytest.mark.parametrize(
    ("users", "message"),
    [([], "at least one user"), (["u1", "x", "y"], r"2 of 3 user ids are not in the data, first \['x', 'y'\]")],
)
def test_nobody_and_strangers_are_refused(data: PreparedData, users: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_users(data, users)


def test_recent_interactions_leave_targets_and_candidates_alone(data: PreparedData) -> None:
    part = with_recent(data, 3)
    for user in range(data.num_users):
        assert part.sequence(user).tolist() == data.sequence(user)[-3:].tolist()
        assert part.history(user, "test").tolist() == data.sequence(user)[-3:-1].tolist()
    assert rows(part, "test") == rows(data, "test")
    assert rows(part, "validation") == rows(data, "validation")
    with pytest.raises(DataError, match="num_interactions is 2; leave-one-out needs at least 3"):
        with_recent(data, 2)


def test_removed_items_are_nowhere_and_the_rest_is_split_and_sampled_again(data: PreparedData) -> None:
    gone = [data.catalog.item_id(int(data.sequence(0)[-1])), "i41"]
    part = without(data, ["u3"], gone, seed=4)
    assert set(data.catalog.item_ids) - set(part.catalog.item_ids) == set(gone)
    assert "u3" not in part.user_ids
    assert not set(part.interactions["item_id"]) & set(gone)
    assert part.history(0, "test").tolist() == part.catalog.indices(
        [data.catalog.item_id(int(item)) for item in data.sequence(0)[:-2]]
    )
    for split in ("validation", "test"):
        sets = part.candidates(split)  # type: ignore[arg-type]
        assert len(sets) == 29
        for user, target, items in zip(sets.users, sets.targets, sets.items, strict=True):
            assert np.isin(items, part.sequence(int(user))).sum() == 1
            assert (items == target).sum() == 1
    assert part.candidate_frame.equals(without(data, ["u3"], gone, seed=4).candidate_frame)
    assert not part.candidate_frame.equals(without(data, ["u3"], gone, seed=5).candidate_frame)


def test_removing_everybody_says_what_is_left(data: PreparedData) -> None:
    with pytest.raises(DataError, match=r"without 30 users and 0 items no user .* is left \(0 of 180 interactions"):
        without(data, data.user_ids, [], seed=0)


def test_prefixes_change_ids_and_nothing_else(data: PreparedData) -> None:
    catalog = joint_catalog([data.catalog, data.catalog], ["a:", "b:"])
    assert (len(catalog), catalog.item_id(1), catalog.item_id(46)) == (90, "a:i0", "b:i0")
    assert catalog.text(46) == data.catalog.text(1)
    part = prefixed(data, "b:", catalog, {"scenario": "joint"})
    assert part.user_ids == [f"b:{user}" for user in data.user_ids]
    assert (part.candidates("test").items == data.candidates("test").items + 45).all()
    assert [sequence.tolist() for sequence in part.sequences()] == [(s + 45).tolist() for s in data.sequences()]


def test_users_without_targets_are_told_apart(tmp_path: Path, interactions: pl.DataFrame) -> None:
    short = interactions.filter((pl.col("user_id") != "u5") | (pl.col("timestamp") == 0))
    data = prepare(short, output=tmp_path / "d", filter="none", num_candidates=6)
    assert users_with_targets(data) == [user for user in data.user_ids if user != "u5"]
    assert num_interactions(data) == {user: 2 if user == "u5" else 6 for user in data.user_ids}
    assert with_users(data, ["u5", "u6"]).info["counts"]["users_only_trained_on"] == 1


def test_users_and_items_are_named_by_numbers_where_their_ids_are(tmp_path: Path) -> None:
    rows = [(user, (user + t) % 9, t) for user in range(9) for t in range(4)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = prepare(log, output=tmp_path / "d", filter="none", num_candidates=3)
    assert [data.user_number(user) for user in (3, 3.0, "3", " 3", "03", None)] == [3, 3, 3, 3, None, None]
    assert with_users(data, [2, "4"]).user_ids == ["2", "4"]
    rest = without(data, [2], [5], seed=0)
    assert "2" not in rest.user_ids
    assert 5 not in rest.catalog
