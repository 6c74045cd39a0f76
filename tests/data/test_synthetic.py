import numpy as np
import polars as pl
import pytest

from allmrec_hf.data.synthetic import SyntheticWorld, description_vocabulary, invent_titles, vocabulary
from allmrec_hf.errors import DataError


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(seed=0)


def _with_place_from_end(interactions: pl.DataFrame) -> pl.DataFrame:
    place = pl.col("timestamp").rank("ordinal", descending=True).over("user_id")
    return interactions.with_columns(place.alias("place"))


def test_same_seed_gives_the_same_world_and_another_seed_another():
    first, again, other = (SyntheticWorld(seed, num_items=120, num_users=200) for seed in (0, 0, 1))
    assert first.items().equals(again.items())
    assert first.interactions().equals(again.interactions())
    assert first.items()["title"].to_list() != other.items()["title"].to_list()


def test_order_of_calls_does_not_change_the_world():
    first, again = (SyntheticWorld(3, num_items=120, num_users=50) for _ in range(2))
    items = first.items()
    interactions = again.interactions()
    assert items.equals(again.items())
    assert interactions.equals(first.interactions())


def test_sizes_ids_and_types_are_as_promised(world):
    items, interactions = world.items(), world.interactions()
    assert items.columns == ["item_id", "title", "description", "genre", "topic"]
    assert interactions.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert items["item_id"].to_list()[:2] == ["M0001", "M0002"]
    assert len(items) == items["item_id"].n_unique() == items["title"].n_unique() == 1000
    assert interactions["user_id"].n_unique() == 3000
    assert set(interactions["item_id"]) <= set(items["item_id"])


def test_users_watch_9_to_15_different_films_in_increasing_time(world):
    interactions = world.interactions()
    lengths = interactions.group_by("user_id").len()["len"]
    assert (lengths.min(), lengths.max()) == (9, 15)
    assert not interactions.select("user_id", "item_id").is_duplicated().any()
    steps = interactions.select(pl.col("timestamp").diff().over("user_id").drop_nulls().min())
    assert steps.item() > 0


def test_a_quarter_of_the_test_targets_is_cold_and_an_eighth_never_seen(world):
    interactions = _with_place_from_end(world.interactions())
    in_training = set(interactions.filter(pl.col("place") > 2)["item_id"])
    in_validation = set(interactions.filter(pl.col("place") == 2)["item_id"])
    targets = interactions.filter(pl.col("place") == 1)["item_id"].to_list()
    cold = np.mean([item not in in_training for item in targets])
    never_seen = np.mean([item not in in_training | in_validation for item in targets])
    assert cold == pytest.approx(0.24, abs=0.02)
    assert never_seen == pytest.approx(0.12, abs=0.02)


def test_new_releases_are_a_fifth_of_the_catalogue_and_never_in_training(world):
    ids = np.array(world.item_ids)
    interactions = _with_place_from_end(world.interactions())
    before = set(interactions.filter(pl.col("place") > 2)["item_id"])
    assert np.mean(world.release_class > 0) == pytest.approx(0.2, abs=0.01)
    assert not before & set(ids[world.release_class > 0])
    assert not set(interactions.filter(pl.col("place") > 1)["item_id"]) & set(ids[world.release_class == 2])


def test_users_stay_in_a_topic_or_move_to_one_of_two_topics_of_another_genre(world):
    items = world.items().select("item_id", "topic", "genre")
    steps = world.interactions().join(items, on="item_id", maintain_order="left")
    steps = steps.with_columns(
        pl.col("topic").shift(-1).over("user_id").alias("next_topic"),
        pl.col("genre").shift(-1).over("user_id").alias("next_genre"),
    ).drop_nulls("next_topic")
    stays = (steps["topic"] == steps["next_topic"]).mean()
    moved = steps.filter(pl.col("topic") != pl.col("next_topic"))
    assert stays == pytest.approx(0.55, abs=0.02)
    assert moved.group_by("topic").agg(pl.col("next_topic").n_unique())["next_topic"].max() <= 2
    assert (moved["genre"] != moved["next_genre"]).all()


def test_every_title_and_description_is_made_of_the_vocabulary(world):
    items = world.items()
    assert {word for title in items["title"] for word in title.split()} <= set(vocabulary())
    words = {word for text in items["description"] for word in text.lower().replace(".", "").replace(",", "").split()}
    assert words <= set(description_vocabulary())
    assert len(vocabulary()) == len(set(vocabulary())) < 500


def test_corpus_uses_no_title_of_the_catalogue_and_answers_with_a_listed_one():
    world = SyntheticWorld(seed=0, num_items=120, num_users=20)
    catalogue = set(world.items()["title"])
    documents = list(world.corpus(seed=5, num_documents=20))
    assert documents == list(world.corpus(seed=5, num_documents=20))
    for document in documents:
        *listed, answer = document.split('"')[1::2]
        assert answer in listed
        assert not catalogue & set(listed)


def test_small_worlds_work():
    world = SyntheticWorld(seed=2, num_items=120, num_users=30)
    assert len(world.items()) == 120
    assert world.interactions()["user_id"].n_unique() == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 20}, "at least 10 items per topic"),
        ({"num_users": 0}, "0 users"),
        ({"num_topics": 5}, "even and between 4 and 32"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        SyntheticWorld(**arguments)


def test_asking_for_more_titles_than_the_grammar_holds_is_refused():
    with pytest.raises(DataError, match="lower num_items"):
        invent_titles(20_000, np.random.default_rng(0), num_topics=4)
