import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import allmrec_hf
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


DEMO = Path(allmrec_hf.__file__).parent / "demo"
PROMPT = (
    'is a user representation.This user has watched "{}","{}" in the previous. Recommend one next movie for this user '
    'to watch next from the following movie title set, "{}","{}". The recommendation is '
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DEMO / "language_model")


def test_demo_tokenizer_knows_every_word_of_the_world_and_the_prompt(world, tokenizer):
    titles = world.items()["title"].to_list()
    text = PROMPT.format(*titles[:4]) + " ".join(titles)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_demo_tokenizer_gives_pieces_the_tokens_of_the_whole(world, tokenizer):
    text = PROMPT.format(*world.items()["title"].to_list()[:4])
    pieces = [*re.split(r'(?<=")|(?=")', text)]
    ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert [tokenizer.bos_token_id, *ids] == tokenizer(text)["input_ids"]


def test_demo_tokenizer_decodes_an_answer_to_the_quoted_title(world, tokenizer):
    for title in world.items()["title"].to_list()[:50]:
        ids = tokenizer(f'"{title}"', add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == f'"{title}"'


def test_demo_parts_are_as_small_as_promised():
    assert (DEMO / "language_model" / "model.safetensors").stat().st_size < 2_000_000
    assert (DEMO / "text_encoder" / "model.safetensors").stat().st_size < 200_000


def test_demo_language_model_finds_the_title_behind_the_word_in_front(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "language_model")
    documents = list(SyntheticWorld(seed=1, num_items=120, num_users=20).corpus(seed=3, num_documents=20))
    right = 0
    for document in documents:
        word, rest = document.split(" ", 1)
        question, answer, _ = rest.rsplit('"', 2)
        # The user's slot stands in front of <bos>.
        ids = [tokenizer.convert_tokens_to_ids(word), *tokenizer(question + '"')["input_ids"]]
        said = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=8)
        right += tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True) == f'{answer}"'
    assert right >= 17


def test_demo_text_encoder_puts_films_of_a_topic_together(world):
    items = world.items()
    encoder = SentenceTransformer(str(DEMO / "text_encoder"), device="cpu")
    vectors = encoder.encode((items["title"] + ", " + items["description"]).to_list(), normalize_embeddings=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1.0)
    topics = items["topic"].to_numpy()
    assert (topics[similarity.argmax(axis=1)] == topics).mean() > 0.9


@torch.no_grad()
def test_demo_language_model_prefers_the_topic_of_the_watched_titles(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "language_model")
    titles, topics = invent_titles(1280, np.random.default_rng(5))
    prompt = PROMPT.replace('"{}","{}" in', '"{}","{}","{}" in').replace('set, "{}","{}"', 'set, "{}","{}","{}","{}"')
    right = 0
    for topic in range(32):
        watched = np.flatnonzero(topics == topic)
        others = [int(np.flatnonzero(topics == (topic + step) % 32)[topic]) for step in (5, 11, 17)]
        listed = [int(watched[3]), *others]
        listed = listed[topic % 4 :] + listed[: topic % 4]
        texts = [titles[i] for i in [*watched[:3], *listed]]
        question = tokenizer(prompt.format(*texts))["input_ids"]
        answers = [tokenizer(f'"{titles[i]}"', add_special_tokens=False)["input_ids"] for i in listed]
        ids = torch.zeros(4, len(question) + max(map(len, answers)), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, answer in enumerate(answers):
            whole = torch.tensor(question + answer)
            ids[row, : len(whole)] = whole
            labels[row, len(question) : len(whole)] = whole[len(question) :]
        losses = [model(ids[[row]], labels=labels[[row]]).loss.item() for row in range(4)]
        right += listed[int(np.argmin(losses))] == watched[3]
    assert right >= 20
