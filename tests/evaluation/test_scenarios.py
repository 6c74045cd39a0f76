"""Scenarios on the invented world: nobody evaluated was trained on, and everybody is asked what they were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.evaluation.scenarios import LEFT_OUT, SCENARIOS, TRAINED_ON, EvaluationSplit, scenario

HELD_OUT = [
    scenario("cold-users", num_interactions=9, min_users=1),
    scenario("cold-users-cut"),
    scenario("few-shot", num_users=20),
    scenario("few-shot", num_users=20, largest=50),
]
ONE_DOMAIN = [*HELD_OUT, scenario("overall"), scenario("share", share=0.5), scenario("share", share=1.0)]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def world(folder: Path, name: str, prefix: str = "", **changes: Any) -> PreparedData:
    made = SyntheticWorld(**{"num_items": 120, "num_users": 200, **changes})
    user_id, item_id = ((pl.lit(prefix) + pl.col(name)).alias(name) for name in ("user_id", "item_id"))
    return prepare(
        made.interactions().with_columns(user_id, item_id),
        made.items().with_columns(item_id),
        output=folder / name,
        **{"filter": "none", "keep_items": "all", "name": name, "domain": "movie", "num_candidates": 10},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return world(tmp_path_factory.mktemp("worlds"), "films")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Return another domain, no id of which is in the first."""
    made = world(tmp_path_factory.mktemp("worlds"), "games", "g", num_items=60, num_users=70, seed=9)
    made.info["domain"] = "game"
    return made


def rows(data: PreparedData, split: str) -> dict[str, list[str]]:
    frame = data.candidate_frame.filter(split=split)
    return dict(frame.select("user_id", pl.concat_list("target", "candidates")).iter_rows())


def users(split: EvaluationSplit) -> tuple[set[str], set[str]]:
    return set(split.training.user_ids), set(split.evaluation.user_ids)


@pytest.mark.parametrize("chosen", HELD_OUT, ids=str)
def test_nobody_who_is_evaluated_was_trained_on(data, chosen):
    trained, evaluated = users(chosen.split(data))
    assert trained
    assert evaluated
    assert not trained & evaluated


@pytest.mark.parametrize("chosen", ONE_DOMAIN, ids=str)
def test_everybody_evaluated_keeps_the_candidates_of_the_original(data, chosen):
    split = chosen.split(data)
    for targets in ("validation", "test"):
        original = rows(data, targets)
        assert rows(split.evaluation, targets) == {user: original[user] for user in split.evaluation.user_ids}
        assert rows(split.training, targets) == {user: original[user] for user in split.training.user_ids}
        assert len(split.evaluation.candidates(targets)) == split.evaluation.num_users


@pytest.mark.parametrize("chosen", ONE_DOMAIN, ids=str)
def test_both_parts_have_one_catalogue_and_survive_the_disk(data, chosen, tmp_path):
    split = chosen.split(data)
    assert split.training.catalog is split.evaluation.catalog is data.catalog
    for number, part in enumerate((split.training, split.evaluation)):
        copy = PreparedData(part.interactions, part.catalog, part.candidate_frame, part.info)
        loaded = PreparedData.load(copy.save(tmp_path / str(number)))
        assert loaded.interactions.equals(part.interactions)
        assert loaded.candidate_frame.equals(part.candidate_frame)
        assert loaded.info == json.loads(json.dumps(part.info))
        assert loaded.catalog.frame.equals(data.catalog.frame)


@pytest.mark.parametrize("name", ["cold-users-cut", "few-shot", "share"])
def test_the_seed_alone_decides_who_is_drawn(data, name):
    parameters = {"few-shot": {"num_users": 30}, "share": {"share": 0.4}}.get(name, {})
    first, again, another = (users(scenario(name, seed=seed, **parameters).split(data)) for seed in (1, 1, 2))
    assert first == again
    assert first != another


def test_few_shots_are_nested_and_ask_the_same_users(data):
    splits = [scenario("few-shot", num_users=k, largest=64).split(data) for k in (8, 32, 64)]
    small, medium, large = (users(split)[0] for split in splits)
    assert (len(small), len(medium), len(large)) == (8, 32, 64)
    assert small < medium < large
    assert len({frozenset(users(split)[1]) for split in splits}) == 1
    assert users(splits[0])[1] == set(data.user_ids) - large


def test_shares_are_nested_ask_everybody_and_end_in_the_whole(data):
    splits = [scenario("share", share=share).split(data) for share in (0.1, 0.5, 1)]
    trained = [users(split)[0] for split in splits]
    assert [len(part) for part in trained] == [20, 100, 200]
    assert trained[0] < trained[1] < trained[2]
    assert all(split.evaluation.user_ids == data.user_ids for split in splits)
    assert splits[2].training.interactions.equals(data.interactions)
    groups = splits[0].groups()
    assert (groups[TRAINED_ON].sum(), groups[LEFT_OUT].sum()) == (20, 180)
    assert {user for user, known in zip(data.user_ids, groups[TRAINED_ON], strict=True) if known} == trained[0]
    assert splits[2].groups() == {}


def test_cold_users_are_all_with_exactly_so_many_interactions(data):
    split = scenario("cold-users", num_interactions=9, min_users=1).split(data)
    lengths = {user: len(data.sequence(number)) for number, user in enumerate(data.user_ids)}
    assert users(split)[1] == {user for user, length in lengths.items() if length == 9}
    assert users(split)[0] == {user for user, length in lengths.items() if length != 9}


def test_cut_users_keep_three_interactions_and_the_target(data):
    split = scenario("cold-users-cut").split(data)
    assert split.evaluation.num_users == 40
    for number, user in enumerate(split.evaluation.user_ids):
        original = data.sequence(data.user_number(user))
        assert split.evaluation.sequence(number).tolist() == original[-3:].tolist()
        assert split.evaluation.candidates("test").targets[number] == original[-1]


def test_a_domain_is_evaluated_by_what_another_taught(data, other):
    split = scenario("cross-domain").split(data, other)
    assert split.training.catalog is split.evaluation.catalog
    assert split.training.num_items == data.num_items + other.num_items
    assert split.training.user_ids == [f"films:{user}" for user in data.user_ids]
    assert (split.training.candidates("validation").items == data.candidates("validation").items).all()
    assert (split.evaluation.candidates("test").items == other.candidates("test").items + data.num_items).all()
    assert split.evaluation.history(0, "test").tolist() == (other.history(0, "test") + data.num_items).tolist()
    assert (split.training.domain, split.evaluation.domain) == ("movie", "movie")  # the words the methods were taught
    assert split.description["trained_on"] == "films"
    result = split.evaluate([PopularityRanker(split.training.item_counts("train"))])
    assert result.members["never_seen"].all()
    assert result.ranks["popularity"].expected.tolist() == [5.5] * other.num_users  # it knows nothing of these items
    assert result.report["dataset"] == "games"


def test_domains_that_share_ids_are_refused_or_cleaned(data, other, tmp_path):
    mixed = other.interactions.select("user_id", "item_id", "timestamp")
    mixed = mixed.with_columns(pl.col("user_id").replace({"gu0": data.user_ids[3], other.user_ids[1]: "u4"}))
    names = dict(zip(other.catalog.item_ids[:7], data.catalog.item_ids[10:17], strict=True))
    mixed = mixed.with_columns(pl.col("item_id").replace(names))
    items = other.catalog.frame.with_columns(pl.col("item_id").replace(names))
    shared = prepare(
        mixed, items, output=tmp_path / "g", filter="none", keep_items="all", num_candidates=10, name="games"
    )
    common = len(set(shared.user_ids) & set(data.user_ids))
    with pytest.raises(DataError, match=rf"share {common} user ids .* and 7 item ids \(first .*\).*overlap='drop'"):
        scenario("cross-domain").split(data, shared)
    split = scenario("cross-domain", overlap="drop", seed=2).split(data, shared)
    plain = {user.removeprefix("films:") for user in split.training.user_ids}
    assert not plain & set(shared.user_ids)
    assert split.training.num_items == data.num_items + shared.num_items - 7
    assert not {f"films:{item}" for item in names.values()} & set(split.training.catalog.item_ids)
    assert rows(split.evaluation, "test").keys() == {f"games:{user}" for user in shared.user_ids}
    sets = split.training.candidates("validation")
    assert sets.items.max() <= data.num_items - 7  # negatives of the trained domain alone
    assert (split.description["shared_users_dropped"], split.description["shared_items_dropped"]) == (common, 7)
    again = scenario("cross-domain", overlap="drop", seed=2).split(data, shared)
    assert again.training.candidate_frame.equals(split.training.candidate_frame)


def test_a_domain_cannot_be_another_to_itself(data, other):
    with pytest.raises(DataError, match="called 'films' and 'films', which does not keep their ids apart"):
        scenario("cross-domain").split(data, data)
    other = PreparedData(other.interactions, other.catalog, other.candidate_frame, {**other.info, "name": "films:b"})
    with pytest.raises(DataError, match="does not keep their ids apart"):
        scenario("cross-domain").split(data, other)


def test_the_number_of_data_sets_is_checked(data):
    with pytest.raises(DataError, match=r"cross-domain takes 2 data sets, 1 were given \(train on the first"):
        scenario("cross-domain").split(data)
    with pytest.raises(DataError, match="overall takes 1 data sets, 2 were given"):
        scenario("overall").split(data, data)


def test_the_description_counts_what_is_in_both_parts(data):
    split = scenario("few-shot", num_users=5, seed=3).split(data)
    known = split.training.item_counts("train")
    assert split.description == {
        "scenario": "few-shot",
        "label": "few-shot-5-seed-3",
        "parameters": {"num_users": 5, "largest": None, "seed": 3},
        "users_trained_on": 5,
        "training_interactions": int(known.sum()),
        "users_evaluated": 195,
        "items": 120,
        "items_trained_on": int((known > 0).sum()),
    }
    assert split.training.info["scenario"]["part"] == "training"
    assert json.loads(json.dumps(split.description)) == split.description


def test_a_label_tells_scenarios_of_one_kind_apart():
    made = [scenario("few-shot", num_users=8, largest=64), scenario("share", share=0.1), scenario("cold-users")]
    assert [chosen.label for chosen in made] == ["few-shot-8", "share-0.1", "cold-users"]
    assert scenario("cold-users", num_interactions=4, min_users=1).label == "cold-users-num-interactions-4"


def test_the_report_shows_the_scenario_and_its_groups(data):
    split = scenario("overall").split(data)
    assert split.training is split.evaluation is data
    result = split.evaluate([PopularityRanker(data.item_counts("train"))], max_users=150)
    names = ["overall", "warm", "cold", "never_seen", *(f"history {span}" for span in ("1-5", "6-10", "11-20"))]
    groups = result.to_dict()["methods"]["popularity"]
    assert list(groups) == [*names, "history 21-50", "history 51+"]
    assert sum(groups[name]["users"] for name in groups if name.startswith("history")) == 150
    assert groups["history 51+"] == {"users": 0}
    assert result.report["scenario"] == split.description
    assert result.to_table().startswith("films, scenario overall, test split")
    assert "history 6-10" in result.per_user().columns


def test_warm_cold_and_never_seen_follow_the_training_part(data):
    split = scenario("few-shot", num_users=5).split(data)
    result = split.evaluate([PopularityRanker(split.training.item_counts("train"))])
    known = split.training.item_counts("train+validation")
    assert result.members["never_seen"].tolist() == (known[split.evaluation.candidates("test").targets] == 0).tolist()
    assert result.report["groups"]["never_seen"]["items"] == int((known[1:] == 0).sum())


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("cold-users", {}, r"films has 0 users with exactly 3 interactions.* needs 50 .*use cold-users-cut"),
        ("cold-users-cut", {"share": 0.001}, "a share of 0.001 of 200 users with targets is nobody"),
        ("cold-users-cut", {"share": 1}, "holds out all 200 users"),
        ("few-shot", {"num_users": 1000}, "asks for 1000 training users, and films has 200 users .* at most 199"),
        ("few-shot", {"num_users": 5, "largest": 200}, "asks for 200 training users, and films has 200 users"),
        ("share", {"share": 0.001}, "a share of 0.001 of 200 users is nobody"),
    ],
)
def test_data_that_do_not_allow_a_scenario_are_refused_with_both_counts(data, name, parameters, message):
    with pytest.raises(DataError, match=message):
        scenario(name, **parameters).split(data)


def test_a_part_without_a_single_target_is_refused(tmp_path):
    frame = pl.DataFrame(
        {
            "user_id": ["a"] * 2 + ["b"] * 4,
            "item_id": [f"i{number}" for number in range(6)],
            "timestamp": [1, 2, 1, 2, 3, 4],
        }
    )
    data = prepare(frame, output=tmp_path / "d", filter="none", num_candidates=2)
    chosen = [scenario("share", share=0.5, seed=seed) for seed in range(8)]
    assert {tuple(made.split(data).training.user_ids) for made in chosen if drawn(made, data)} == {("b",)}
    unlucky = next(made for made in chosen if not drawn(made, data))
    with pytest.raises(DataError, match="none of the 1 users of the training part has 3 interactions, at least 1 is"):
        unlucky.split(data)


def drawn(made, data):
    try:
        return bool(made.split(data))
    except DataError:
        return False


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "warm",
            {},
            "unknown scenario 'warm'; known ones: overall, cold-users, cold-users-cut, few-shot, share, time-",
        ),
        ("few-shot", {}, r"needs the parameters \['num_users'\]; it has num_users, largest, seed"),
        ("few-shot", {"k": 3}, r"has no parameters \['k'\]; it has num_users, largest, seed"),
        ("few-shot", {"num_users": "all"}, "num_users is 'all'; it has to be a whole number of at least 1"),
        ("few-shot", {"num_users": 8, "largest": 7}, "largest is 7; it has to be a whole number of at least 8"),
        ("share", {"share": 0}, "share is 0; it has to be a number above 0 and at most 1"),
        ("share", {"share": float("nan")}, "share is nan"),
        ("share", {"share": 0.5, "seed": -1}, "seed is -1; it has to be a whole number of at least 0"),
        ("cold-users", {"num_interactions": 2}, "num_interactions is 2; it has to be a whole number of at least 3"),
        ("cold-users", {"min_users": 0}, "min_users is 0"),
        ("cross-domain", {"overlap": "keep"}, "overlap is 'keep'; choose 'error' or 'drop'"),
        ("overall", {"history_buckets": 5}, "growing positive integers"),
    ],
)
def test_names_and_parameters_are_checked_at_the_door(name, parameters, message):
    with pytest.raises(ALLMRecError, match=message):
        scenario(name, **parameters)


def test_every_scenario_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in SCENARIOS)


def real(folder: str, output: Path, **changes: Any) -> PreparedData:
    if not (SHARED / folder).is_dir():
        pytest.skip("the real data sets are not here (expected ../shared/data beside the repository)")
    frames = [pl.read_parquet(SHARED / folder / name) for name in ("interactions.parquet", "items.parquet")]
    return prepare(*frames, output=output / folder, name=folder, **changes)


def test_real_purchases_in_every_scenario(tmp_path):
    office = real("amazon_office_products_2018_tail", tmp_path)
    gifts = real("amazon_gift_cards_2018", tmp_path)
    with pytest.raises(DataError, match=r"has 0 users with exactly 3 interactions, scenario cold-users needs 50"):
        scenario("cold-users").split(office)
    made = [
        scenario("cold-users", num_interactions=5).split(office),
        scenario("cold-users-cut").split(office),
        scenario("few-shot", num_users=128, largest=256).split(office),
        scenario("share", share=0.25).split(office),
        scenario("cross-domain", overlap="drop").split(gifts, office),
    ]
    for split in made:
        result = split.evaluate([PopularityRanker(split.training.item_counts("train"))])
        assert result.report["users"] == split.description["users_evaluated"] > 200
