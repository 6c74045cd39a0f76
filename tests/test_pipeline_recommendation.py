"""`pipeline("recommendation")`: requests, batches, streams, new items, errors."""

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from allmrec_hf import CheckpointError, DataError, RecommendationPipeline
from allmrec_hf.training.alignment import text_embedding_table
from tests.tiny import tiny_llm, tiny_model, tiny_processor

REQUESTS = [
    {"history": ["I1", "I2"]},
    {"history": ["I5"], "candidates": ["I9", "I3", "I12"]},
    {"history": [f"I{i}" for i in range(1, 15)]},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    model = tiny_model(tokenizer_fingerprint=processor.fingerprint)
    model.save_pretrained(path, include_llm=True)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recommend(checkpoint) -> RecommendationPipeline:
    return pipeline("recommendation", model=str(checkpoint))


def flat(results):
    return [[(item["item_id"], item["rank"]) for item in row] for row in results]


def test_history_alone_retrieves_ranks_and_leaves_seen_items_out(recommend):
    found = recommend(REQUESTS[2], top_k=7)
    assert [item["rank"] for item in found] == [1, 2, 3, 4, 5, 6, 7]
    assert not {item["item_id"] for item in found} & set(REQUESTS[2]["history"])
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)
    assert set(found[0]) == {"item_id", "title", "score", "rank", "parts"}


def test_given_candidates_are_ranked_whatever_their_order(recommend):
    found = recommend(REQUESTS[1])
    assert {item["item_id"] for item in found} == {"I9", "I3", "I12"}
    turned = recommend({"history": ["I5"], "candidates": ["I12", "I9", "I3"]})
    assert flat([turned]) == flat([found])


def test_batch_stream_and_dataset_equal_one_by_one(recommend):
    alone = flat([recommend(request, top_k=5) for request in REQUESTS])
    assert flat(recommend(REQUESTS, top_k=5, batch_size=2)) == alone
    assert flat(recommend(REQUESTS, top_k=5)) == alone
    assert flat(recommend((request for request in REQUESTS), top_k=5, batch_size=3)) == alone
    rows = [{"request": request} for request in REQUESTS]
    assert flat(recommend(KeyDataset(rows, "request"), top_k=5, batch_size=2)) == alone


def test_unknown_history_items_are_reported_and_left_out(recommend):
    with pytest.warns(UserWarning, match=r"1 history items are not in the catalogue and were left out: \['Nowhere'\]"):
        found = recommend({"history": ["I1", "Nowhere", "I2"]}, top_k=3)
    assert flat([found]) == flat([recommend(REQUESTS[0], top_k=3)])


def test_more_permutations_average_scores(recommend):
    once = recommend(REQUESTS[1])
    often = recommend(REQUESTS[1], num_permutations=4)
    assert {item["item_id"] for item in often} == {item["item_id"] for item in once}
    assert [item["score"] for item in often] != [item["score"] for item in once]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"history": []}, "the history is empty"),
        ({"history": ["X", "Y"]}, r"none of the 2 history items is in the catalogue of 40 items: \['X', 'Y'\]"),
        (
            {"history": ["I1"], "candidates": ["I2", "Z"]},
            r"1 of 2 candidates are not in the catalogue .*\['Z'\]; add new",
        ),
        ({"history": ["I1"], "candidates": []}, "the list of candidates is empty"),
        ({"history": ["I1"], "candidates": ["I2", "I2"]}, "given more than once"),
        ({"history": "I1"}, "must be a list of item ids"),
        ({"histories": ["I1"]}, 'a mapping with "history"'),
        (["I1", "I2"], "one request is a mapping"),
        ("I1", "one request is a mapping"),
        ({"history": [f"I{i}" for i in range(1, 41)]}, "nothing left to recommend"),
    ],
)
def test_bad_requests_are_explained(recommend, request_, message):
    with pytest.raises(DataError, match=message):
        recommend(request_)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"top_k": 0}, "top_k must be"), ({"topk": 3}, r"unknown arguments \['topk'\]")]
)
def test_bad_arguments_are_explained(recommend, arguments, message):
    with pytest.raises(DataError, match=message):
        recommend(REQUESTS[0], **arguments)


def test_no_requests_give_no_results(recommend):
    assert recommend([]) == []


def test_pipeline_round_trip(recommend, tmp_path):
    recommend.save_pretrained(tmp_path / "saved")
    again = pipeline("recommendation", model=str(tmp_path / "saved"))
    assert again(REQUESTS, top_k=4) == recommend(REQUESTS, top_k=4)


def test_tokenizer_of_another_llm_is_refused(checkpoint):
    processor = tiny_processor()
    processor.tokenizer.add_tokens(["foreign"])
    with pytest.raises(CheckpointError, match="not the one this model was trained with"):
        pipeline("recommendation", model=AutoModel.from_pretrained(checkpoint), processor=processor)


def test_catalogue_of_another_size_is_refused(checkpoint):
    processor = tiny_processor()
    processor.catalog = processor.catalog.extended([{"item_id": "N1", "title": "New"}])
    with pytest.raises(CheckpointError, match="the catalogue has 41 items but the model's item table 40"):
        pipeline("recommendation", model=AutoModel.from_pretrained(checkpoint), processor=processor)


def static_text_encoder(width: int = 12) -> SentenceTransformer:
    words = {
        word: number for number, word in enumerate(["[UNK]", "[PAD]", "Lonely", "Silent", "Paper", "River", "New"])
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=width)], device="cpu")


def test_added_items_can_be_candidates_histories_and_retrieved_and_are_kept(tmp_path):
    model, processor = tiny_model("llama", text_encoder_included=True), tiny_processor()
    model.attach_text_encoder(static_text_encoder())
    recommend = pipeline("recommendation", model=model, processor=processor)
    before = recommend(REQUESTS[1])
    assert recommend.add_items([{"item_id": "N1", "title": "New River", "description": "Silent"}]) == ["N1"]
    assert recommend(REQUESTS[1]) == before
    assert recommend({"history": ["I1", "N1"], "candidates": ["N1", "I4"]})[0]["rank"] == 1
    everything = recommend({"history": ["I1"]}, top_k=40)
    assert "N1" in {item["item_id"] for item in everything}
    recommend.save_pretrained(tmp_path / "grown", include_llm=True)
    again = pipeline("recommendation", model=str(tmp_path / "grown"))
    assert flat([again({"history": ["I1"]}, top_k=40)]) == flat([everything])
    assert again.add_items([{"item_id": "N2", "title": "Paper New"}]) == ["N2"]  # the text encoder came along


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no items were given"),
        ([{"item_id": "I1", "title": "Again"}], r"1 item ids are in the catalogue already: \['I1'\]"),
        ([{"title": "No id"}], "no column item_id"),
    ],
)
def test_bad_new_items_change_nothing(items, message):
    model, processor = tiny_model(None), tiny_processor()
    model.attach_language_model(tiny_llm())
    model.attach_text_encoder(static_text_encoder())
    recommend = pipeline("recommendation", model=model, processor=processor)
    with pytest.raises(DataError, match=message):
        recommend.add_items(items)
    assert model.cf_encoder.num_items == len(processor.catalog) == 40


def test_items_without_a_text_are_not_alike(finished_run):
    recommend = pipeline("recommendation", model=str(finished_run))
    model, catalog = recommend.model, recommend.processor.catalog
    model.keep_text_embeddings(text_embedding_table(model.text_encoder, catalog.texts()))
    model.keep_words(catalog.texts())
    recommend.add_items([{"item_id": name} for name in ("U0", "U1", "U2")])
    for ranker in ("text", "words"):
        found = recommend({"history": ["U0"], "candidates": ["U1", "U2", catalog.item_id(1)]}, ranker=ranker)
        assert {item["score"] for item in found} == {0.0}
