"""The global time split: who is asked for what after which history, and that nothing late is trained on."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from allmrec_hf.cf_encoder import MODEL_TYPE_PREFIX, cf_config_from_dict
from allmrec_hf.data.hub_layout import read_layout, write_layout
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.subsets import resplit_by_time, with_recent, with_shuffled_histories, with_users, without
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.data.time_split import Cuts, SplitRules, find_cuts
from allmrec_hf.errors import DataError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.evaluation.scenarios import scenario
from allmrec_hf.training.backbone_training import train_backbone
from allmrec_hf.training.samples import validation_targets
from allmrec_hf.training.stage_arguments import StageArguments

ROWS = [
    *[("a", "i1", 1), ("a", "i2", 2), ("a", "i3", 12), ("a", "i4", 22), ("a", "i5", 23)],
    *[("b", "i1", 3), ("b", "i2", 4), ("b", "i6", 21)],  # nothing in the validation part, then a new item
    *[("c", "i1", 11), ("c", "i2", 13), ("c", "i3", 24)],  # new in the validation part
    *[("d", "i2", 25), ("d", "i6", 26)],  # new in the test part
    ("e", "i1", 27),  # new, with nothing to be asked with
    *[("f", "i1", 5), ("f", "i2", 6)],  # gone before the validation
]
DATES = {"split": "time", "validation_from": 10, "test_from": 20}


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return prepare(frame(ROWS), output=tmp_path / "d", filter="none", num_candidates=2, **DATES)


def ids(data: PreparedData, items: np.ndarray) -> list[str]:
    return [data.catalog.item_id(int(item)) for item in items]


def asked(data: PreparedData, split: Any) -> dict[str, tuple[list[str], str]]:
    """Return the history and the target of each user of a split."""
    found = data.candidates(split)
    return {
        data.user_ids[user]: (ids(data, data.history(user, split)), data.catalog.item_id(int(target)))
        for user, target in zip(found.users.tolist(), found.targets, strict=True)
    }


def test_each_user_is_asked_for_the_first_item_after_the_date(data: PreparedData) -> None:
    assert asked(data, "validation") == {"a": (["i1", "i2"], "i3"), "c": (["i1"], "i2")}
    assert asked(data, "test") == {
        "a": (["i1", "i2", "i3"], "i4"),
        "b": (["i1", "i2"], "i6"),
        "c": (["i1", "i2"], "i3"),
        "d": (["i2"], "i6"),
    }


def test_training_parts_end_before_the_dates(data: PreparedData) -> None:
    names = ["a", "b", "c", "d", "e", "f"]  # in the order of the file
    assert data.user_ids == names
    train = [ids(data, items) for items in data.sequences("train")]
    known = [ids(data, items) for items in data.sequences("train+validation")]
    assert dict(zip(names, train, strict=True)) == {
        **{"a": ["i1", "i2"], "b": ["i1", "i2"], "c": [], "d": [], "e": [], "f": ["i1", "i2"]}
    }
    assert dict(zip(names, known, strict=True)) == {
        **{"a": ["i1", "i2", "i3"], "b": ["i1", "i2"], "c": ["i1", "i2"], "d": [], "e": [], "f": ["i1", "i2"]}
    }
    assert data.new_users("validation").tolist() == [False, False, True, True, True, False]
    assert data.new_users("test").tolist() == [False, False, False, True, True, False]
    assert data.item_counts("train")[data.catalog.indices(["i1", "i2", "i3", "i6"])].tolist() == [3, 3, 0, 0]


def test_who_and_what_is_new_is_counted(data: PreparedData) -> None:
    counts = data.info["counts"]
    assert {name: counts[name] for name in ("train", "validation", "test")} == {"train": 6, "validation": 3, "test": 7}
    assert (counts["validation_targets"], counts["test_targets"]) == (2, 4)
    assert (counts["test_targets_of_new_users"], counts["new_users_without_history"]) == (1, 1)
    assert (counts["items_first_seen_in_test"], counts["test_targets_first_seen_in_test"]) == (3, 3)  # i4, i5, i6
    assert counts["users_without_test_target"] == 2
    assert data.info["split"] == {"kind": "time", "validation_from": 10, "test_from": 20}


def test_groups_of_a_report_are_new_users_and_items_never_seen_before_the_date(data: PreparedData) -> None:
    groups = evaluate([PopularityRanker(data.item_counts("train"))], data).report["methods"]["popularity"]
    assert {name: groups[name]["users"] for name in ("overall", "never_seen", "new_users")} == {
        **{"overall": 4, "never_seen": 3, "new_users": 1}
    }


def test_saved_data_load_the_same_and_are_checked(data: PreparedData, tmp_path: Path) -> None:
    loaded = PreparedData.load(data.directory)
    assert loaded.digests == data.digests
    assert asked(loaded, "test") == asked(data, "test")
    write_layout(data, tmp_path / "hub", "org/d")
    assert asked(read_layout(tmp_path / "hub"), "test") == asked(data, "test")
    assert "split by one date for all users" in (tmp_path / "hub" / "README.md").read_text()
    info = json.loads((data.directory / "dataset.json").read_text())
    for split, message in (
        ({"kind": "time", "validation_from": 10, "test_from": 24}, "is not split by the times"),
        ({"kind": "leave-one-out"}, "is not leave-one-out"),
        ({"kind": "time", "validation_from": "x", "test_from": 24}, "has the split"),
        ("time", "has the split 'time'"),
    ):
        (data.directory / "dataset.json").write_text(json.dumps({**info, "split": split}))
        with pytest.raises(DataError, match=message):
            PreparedData.load(data.directory)


def test_another_split_of_the_same_rows_has_other_digests(data: PreparedData, tmp_path: Path) -> None:
    other = prepare(frame(ROWS), output=tmp_path / "o", filter="none", num_candidates=2, **{**DATES, "test_from": 24})
    assert other.digests["items"] == data.digests["items"]
    assert other.digests["interactions"] != data.digests["interactions"]


def test_negatives_are_no_item_of_the_user_at_any_time(data: PreparedData) -> None:
    for split in ("validation", "test"):
        found = data.candidates(split)  # type: ignore[arg-type]
        for user, target, items in zip(found.users, found.targets, found.items, strict=True):
            assert set(items.tolist()) & set(data.sequence(int(user)).tolist()) == {int(target)}


def test_the_filter_counts_what_is_before_the_validation(tmp_path: Path) -> None:
    rows = [*ROWS, ("g", "i1", 7), ("g", "i2", 21), ("a", "rare", 6), ("b", "rare", 24)]
    data = prepare(frame(rows), output=tmp_path / "d", k_core=2, num_candidates=2, **DATES)
    assert data.user_number("g") is None  # one interaction before the validation: dropped, and not new later
    assert data.catalog.index("rare") is None
    assert data.catalog.index("i6") is not None  # bought after the date alone
    assert data.user_number("e") is not None
    assert "2 later interactions of dropped users or items left out" in data.info["report"][-3]["note"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"test_from": 0.2}, (60, 80)),
        ({"test_from": "0.2", "validation_from": "0.3"}, (50, 80)),
        ({"test_from": 80, "validation_from": 0.05}, (75, 80)),
        ({"test_from": "90", "validation_from": "10"}, (10, 90)),
        ({}, (80, 90)),
    ],
)
def test_a_share_is_of_the_latest_interactions(rules: dict[str, Any], expected: tuple[int, int]) -> None:
    assert find_cuts(pl.Series(range(100)).shuffle(1), SplitRules("time", **rules)) == Cuts(*expected)


def test_interactions_of_equal_time_are_not_divided() -> None:
    assert find_cuts(pl.Series([1, 1, 2, 3, 5, 5, 5, 5]), SplitRules("time", 0.25, 0.25)) == Cuts(2, 5)


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_a_date_is_read_in_the_unit_of_the_data(unit: int) -> None:
    start = 1_500_000_000  # 2017-07-14T02:40:00Z
    times = pl.Series([(start + 86400 * day) * unit for day in range(100)])
    found = find_cuts(times, SplitRules("time", "2017-09-01", "2017-08-01T12:00:00+02:00"))
    assert found == Cuts(1_501_581_600 * unit, 1_504_224_000 * unit)
    half = find_cuts(times, SplitRules("time", "2017-09-01T00:00:00.5Z", "2017-08-01"))
    assert half.test_from == (1_504_224_001 if unit == 1 else 1_504_224_000 * unit + unit // 2)  # rounded up


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_from": "2031-01-01"}, "are not seconds .* since 1970; give a share"),
        ({"test_from": 30}, "test_from 30 is not within the data, which go from 1 to 27"),
        ({"test_from": 1}, "test_from 1 is not within the data"),
        ({"test_from": 10}, "one of the three parts is empty"),
        ({"validation_from": 20}, "one of the three parts is empty"),
        ({"test_from": 0.7, "validation_from": None}, "one of the three parts is empty"),
        ({"test_from": 27}, "the test part has 1 interactions, and no user has anything before one of them"),
        ({"test_from": 1.5}, "test_from is 1.5; expected a share above 0 and below 1, a date"),
        ({"test_from": 0}, "test_from is 0; expected a share"),
        ({"test_from": "nan"}, "test_from is 'nan'; expected a share"),
        ({"split": "leave-one-out"}, "test_from and validation_from: a date belongs to split 'time'"),
        ({"split": "random"}, "split is 'random'; choose one of"),
        ({"order": "file"}, "split 'time' needs times, and with order 'file' none are read"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(frame(ROWS), output=tmp_path / "d", filter="none", num_candidates=2, **{**DATES, **changes})
    assert not (tmp_path / "d").exists()


def test_a_date_outside_of_data_with_dates_tells_both_ends(tmp_path: Path) -> None:
    rows = [(user, item, f"2020-01-{1 + time:02}") for user, item, time in ROWS]
    with pytest.raises(DataError, match=r"from .* \(2020-01-02T00:00:00Z, .*to .*2020-01-28T00:00:00Z"):
        prepare(frame(rows), output=tmp_path / "d", filter="none", split="time", test_from="2021-01-01")
    with pytest.raises(DataError, match="test_from is 'soon'; expected a share"):
        prepare(frame(rows), output=tmp_path / "d", filter="none", split="time", test_from="soon")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    rows = SyntheticWorld(num_items=60, num_users=80).interactions().select("user_id", "item_id", "timestamp")
    late = (pl.col("user_id") > "U00070") * (rows["timestamp"].max() - rows["timestamp"].min() + 1)  # come last
    return rows.with_columns(pl.col("timestamp") + late)


def late_moved(world: pl.DataFrame, test_from: int) -> pl.DataFrame:
    """Return the world with the items of all interactions of the test part moved on by one row."""
    is_late = pl.col("timestamp") >= test_from
    late = world.filter(is_late)
    return pl.concat([world.filter(~is_late), late.with_columns(pl.col("item_id").shift(1).fill_null("M0001"))])


@pytest.fixture(scope="module")
def two_futures(world: pl.DataFrame) -> tuple[PreparedData, PreparedData]:
    """Return data that are the same before the test, and other after it."""
    items = pl.DataFrame({"item_id": world["item_id"].unique().sort()})
    choices: dict[str, Any] = {"filter": "none", "keep_items": "all", "num_candidates": 5, "split": "time"}
    first = prepare(world, items, test_from=0.2, **choices)
    dates = {name: first.info["split"][name] for name in ("test_from", "validation_from")}
    return first, prepare(late_moved(world, dates["test_from"]), items, **dates, **choices)


def test_what_is_after_the_date_changes_nothing_of_what_is_trained_on(
    two_futures: tuple[PreparedData, PreparedData],
) -> None:
    first, second = two_futures
    assert first.catalog.item_ids == second.catalog.item_ids
    assert not first.split_frame("test").equals(second.split_frame("test"))
    for part in ("train", "train+validation"):
        pairs = zip(first.sequences(part), second.sequences(part), strict=True)  # type: ignore[arg-type]
        assert all((a == b).all() for a, b in pairs)
        assert (first.item_counts(part) == second.item_counts(part)).all()  # type: ignore[arg-type]
    samples = [validation_targets(data) for data in two_futures]
    assert (samples[0].targets == samples[1].targets).all()
    assert all((a == b).all() for a, b in zip(samples[0].histories, samples[1].histories, strict=True))


@pytest.mark.parametrize(
    ("backbone", "part"),
    [("sasrec", "train"), ("sasrec", "train+validation"), ("bprmf", "train"), ("lightgcn", "train"), ("ncf", "train")],
)
def test_what_is_after_the_date_changes_no_weight(
    tmp_path: Path, two_futures: tuple[PreparedData, PreparedData], backbone: str, part: Any
) -> None:
    assert two_futures[0].new_users("test").any()  # who have no training interaction: trained with all the same
    weights = []
    for number, data in enumerate(two_futures):
        config = cf_config_from_dict({"model_type": f"{MODEL_TYPE_PREFIX}{backbone}", "num_items": data.num_items})
        arguments = StageArguments(num_train_epochs=1, per_device_train_batch_size=256)
        weights.append(train_backbone(data, config, arguments, tmp_path / str(number), split=part).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_users_stay_with_their_targets_and_histories_cannot_be_cut(data: PreparedData) -> None:
    assert asked(with_users(data, ["a", "d"]), "test") == {
        name: value for name, value in asked(data, "test").items() if name in ("a", "d")
    }
    with pytest.raises(DataError, match="is split by time: to cut histories"):
        with_recent(data, 3)


def test_without_splits_again_by_the_same_dates(data: PreparedData) -> None:
    rest = without(data, ["b"], ["i4"], seed=1)
    assert rest.info["split"] == data.info["split"]
    assert asked(rest, "test")["a"] == (["i1", "i2", "i3"], "i5")


def test_leave_one_out_data_can_be_split_by_time_as_a_scenario(tmp_path: Path) -> None:
    data = prepare(frame(ROWS), output=tmp_path / "d", filter="none", num_candidates=2)
    split = scenario("time-split", test_from=20, validation_from=10).split(data)
    assert split.training is split.evaluation
    assert {user: target for user, (_, target) in asked(split.evaluation, "test").items()} == {
        **{"a": "i4", "b": "i6", "c": "i3", "d": "i6"}
    }
    assert split.description["label"] == "time-split-test-from-20-validation-from-10"
    assert split.description["split"]["test_from"] == 20
    with pytest.raises(DataError, match=r"test_from is 2\.5; expected a share"):
        scenario("time-split", test_from=2.5)
    by_file = prepare(frame(ROWS), output=tmp_path / "f", filter="none", num_candidates=2, order="file")
    with pytest.raises(DataError, match="read without times"):
        resplit_by_time(by_file, SplitRules("time"), seed=0)


def test_shuffled_training_histories_keep_everything_but_the_order(world: pl.DataFrame) -> None:
    data = prepare(world, filter="none", num_candidates=5)
    shuffled, again = (with_shuffled_histories(data, 3) for _ in range(2))
    assert shuffled.digests == again.digests
    moved = 0
    for user in range(data.num_users):
        before, after = data.sequences("train")[user], shuffled.sequences("train")[user]
        assert sorted(before.tolist()) == sorted(after.tolist())
        moved += int((before != after).any())
        assert (data.sequence(user)[len(before) :] == shuffled.sequence(user)[len(before) :]).all()
    assert moved > data.num_users / 2
    assert (data.candidates("test").items == shuffled.candidates("test").items).all()
    assert with_shuffled_histories(data, 4).digests["interactions"] != shuffled.digests["interactions"]
    by_time = prepare(world, filter="none", num_candidates=5, split="time")
    assert with_shuffled_histories(by_time, 3).cuts == by_time.cuts


def test_scenario_of_shuffled_histories_trains_and_asks_after_the_same_random_order(data):
    split = scenario("shuffled-histories", seed=3).split(data)
    assert split.training is split.evaluation
    assert split.training.digests["interactions"] == with_shuffled_histories(data, 3).digests["interactions"]
    assert split.description["label"] == "shuffled-histories-seed-3"
    assert split.evaluation.candidates("test").items.tolist() == data.candidates("test").items.tolist()


@pytest.mark.parametrize(
    "value", [datetime.date(2018, 1, 9), pd.Timestamp("2018-01-09"), np.datetime64("2018-01-09"), "2018-01-09"]
)
def test_a_date_may_be_of_any_library(value: Any, tmp_path: Path) -> None:
    day = 86_400
    pairs = [(user, place) for user in range(3) for place in range(12)]
    rows = [(f"u{user}", f"i{3 * user + place}", 1_514_764_800 + place * day) for user, place in pairs]
    chosen = {"split": "time", "test_from": value, "validation_from": np.float32(0.5), "num_candidates": np.int64(2)}
    data = prepare(frame(rows), output=tmp_path / "d", filter="none", seed=np.int64(1), k_core=np.int64(2), **chosen)
    assert data.info["split"]["test_from"] == 1_514_764_800 + 8 * day
    json.dumps(data.info)


def test_a_time_in_seconds_is_understood_where_times_with_fractions_are_kept_finer(tmp_path: Path) -> None:
    start, pairs = 1_500_000_000, [(user, place) for user in range(3) for place in range(12)]
    rows = [(f"u{user}", f"i{3 * user + place}", start + place + 0.5 * (place % 2)) for user, place in pairs]
    chosen = {"split": "time", "test_from": start + 8, "validation_from": start + 6, "num_candidates": 2}
    data = prepare(frame(rows), output=tmp_path / "d", filter="none", **chosen)
    assert data.info["split"]["test_from"] == (start + 8) * 1000
