"""Requests: ids and titles told apart, tables and data sets of requests, errors of single ones, whole histories."""

import logging
import sys
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from datasets import Dataset

from allmrec_hf import ALLMRecError, DataError, ItemCatalog, RecommendationPipeline
from allmrec_hf.errors import UnknownItemsError
from allmrec_hf.explaining.explanation import explain, require_items
from allmrec_hf.item_lookup import find_items
from tests.tiny import tiny_model, tiny_processor

FILMS = {10: "300", 20: "1917", 30: "1984", 40: "9"}  # titles that look like ids
IDS = [number for number in range(1, 44) if number not in (9, 21, 41)]  # 40 ids, not that of any title above


@pytest.fixture(scope="module")
def catalog() -> ItemCatalog:
    return ItemCatalog.from_records({"item_id": i, "title": FILMS.get(i, f"Film {i}")} for i in IDS)


@pytest.fixture(scope="module")
def recommend(catalog) -> RecommendationPipeline:
    processor = tiny_processor(catalog)
    model = tiny_model(tokenizer_fingerprint=processor.fingerprint)
    return RecommendationPipeline(model=model, processor=processor)


def ids_of(result):
    return [row["item_id"] for row in result]


# -- ids and titles


@pytest.mark.parametrize(("history", "unknown"), [([1, 2, 300], ["300"]), ([7, 9], ["9"]), ([1984, 8], ["1984"])])
def test_a_number_that_is_no_id_is_unknown_and_never_a_film_of_that_name(recommend, history, unknown, caplog):
    resolved = recommend.resolve({"history": history})
    assert [recommend.processor.catalog.item_id(index) for index in resolved.history] == [
        str(item) for item in history if str(item) not in unknown
    ]
    assert resolved.unknown_history == unknown
    with pytest.warns(UserWarning, match="1 history items are not in the catalogue"), caplog.at_level(logging.WARNING):
        recommend({"history": history}, top_k=1)
    assert f"'{unknown[0]}' is the title of item" in caplog.text
    assert "titles" in caplog.text


def test_an_error_says_how_to_ask_by_title_and_by_id(recommend):
    with pytest.raises(
        DataError, match=r"\['1984'\]; '1984' is the title of item 30; what is meant by title goes into"
    ):
        recommend({"history": ["1984"]})
    with pytest.raises(DataError, match=r"1 of 2 candidates .*\['300'\]; '300' is the title of item 10"):
        recommend({"history": [1], "candidates": [2, 300]})
    with pytest.raises(DataError, match=r"\['7'\]; '7' is the id of an item; what is meant by id goes into history"):
        recommend({"titles": ["7"]})


def test_titles_are_asked_for_by_name(recommend):
    by_id = recommend({"history": [10, 7], "candidates": [20, 8]})
    assert recommend({"titles": ["300", " FILM  7 "], "candidate_titles": ["film 8", "1917"]}) == by_id
    assert recommend({"titles": [300, "Film 7"], "candidates": ["20", "8"]}) == by_id
    assert recommend({"history": None, "titles": ["300", "Film 7"], "candidates": [20, 8]}) == by_id


@pytest.mark.parametrize(
    "history",
    [
        [7, 8],
        ["7", "8"],
        [7.0, 8.0],
        (" 7 ", "8"),
        np.array([7, 8]),
        np.array(["7", "8"]),
        torch.tensor([7, 8]),
        pl.Series([7, 8]),
        pd.Series(["7", "8"]),
    ],
    ids=lambda value: f"{type(value).__name__} {value[0]!r}",
)
def test_ids_may_be_text_or_numbers_of_any_library(recommend, history):
    resolved = recommend.resolve({"history": history})
    assert [recommend.processor.catalog.item_id(index) for index in resolved.history] == ["7", "8"]


@pytest.mark.parametrize("entry", [None, float("nan"), "007", "7.0", True, ["7"], "film 7"], ids=repr)
def test_what_is_no_id_stays_unknown(recommend, entry):
    resolved = recommend.resolve({"history": [entry, 8]})
    assert [recommend.processor.catalog.item_id(index) for index in resolved.history] == ["8"]
    assert len(resolved.unknown_history) == 1


def test_a_title_of_several_items_is_noted():
    catalog = ItemCatalog.from_records([{"item_id": f"H{n}", "title": "Hamlet"} for n in range(3)])
    found = find_items(catalog, ["hamlet"], "title")
    assert found.indices == [1]
    assert found.notes == ["3 items are titled 'hamlet', took H0 of ['H0', 'H1', 'H2']"]


def test_explanations_tell_ids_and_titles_apart(recommend):
    model, processor = recommend.model, recommend.processor
    with pytest.raises(DataError, match=r"1 of 2 ids of the history .*\['300'\]; '300' is the title of item 10"):
        explain(model, processor, [1, 300], 7)
    with pytest.raises(DataError, match="by id and by title"):
        explain(model, processor, [1], 7, titles=["300"])
    by_id = explain(model, processor, [10, 7], 8, [8, 20], gradient_steps=1)
    by_title = explain(
        model, processor, titles=["300", "film 7"], item_title="Film 8", candidate_titles=["1917"], gradient_steps=1
    )
    assert by_title["item"] == by_id["item"]
    assert by_title["contributions"] == by_id["contributions"]


def test_ids_like_an_unknown_one_are_found_in_a_large_catalogue_too(monkeypatch):
    monkeypatch.setattr("allmrec_hf.explaining.explanation._COMPARED_IDS", 20)
    catalog = ItemCatalog(pl.DataFrame({"item_id": [f"B{n:06d}" for n in range(1, 501)]}))
    with pytest.raises(DataError, match=r"ids like 'B00012x': .*'B00012"):
        require_items(catalog, ["B00012x"], "history")


def test_unknown_history_items_stand_in_every_row_of_their_result_alone(recommend):
    with pytest.warns(UserWarning, match="left out"):
        first, second = recommend([{"history": [1, 300], "user_id": "u"}, {"history": [1, 2]}], top_k=2, batch_size=2)
    assert [row["unknown_history"] for row in first] == [["300"], ["300"]]
    assert not any("unknown_history" in row for row in second)
    with pytest.raises(DataError, match="cannot have the key 'unknown_history'"):
        recommend({"history": [1], "unknown_history": []})


@pytest.mark.parametrize("absent", [float("nan"), None, pd.NA, np.float32("nan")], ids=repr)
def test_what_a_table_lacks_is_no_list(recommend, absent):
    request = {"history": [1, 2]}
    told = recommend({**request, "titles": absent, "candidates": absent, "candidate_titles": absent}, top_k=1)
    assert told == recommend(request, top_k=1)


def test_a_set_has_no_order_and_no_candidates_are_told_as_such(recommend):
    with pytest.raises(DataError, match=r"'history' must be a list .* in their order; a set has none"):
        recommend({"history": {1, 2}})
    with pytest.raises(DataError, match="the list of candidates is empty; name some, or leave it out"):
        recommend({"history": [1, 2], "candidates": []})


def test_counts_may_be_whole_numbers_of_numpy_and_of_columns_that_pandas_made_floats(recommend):
    assert len(recommend({"history": [1, 2]}, top_k=np.int64(2))) == len(recommend({"history": [1, 2]}, top_k=2.0)) == 2
    found = recommend(pd.DataFrame({"history": [[1, 2], [5]], "top_k": [3, None]}), top_k=2)
    assert [len(each) for each in found] == [3, 2]
    with pytest.raises(DataError, match=r"top_k must be a whole number of at least 1, got 2\.5"):
        recommend({"history": [1, 2]}, top_k=2.5)


def test_a_row_of_pandas_that_mixes_texts_and_numbers_leaves_the_other_rows_as_they_are(recommend):
    first, second = (recommend.processor.catalog.item_ids[place] for place in (0, 1))
    mixed = pd.DataFrame({"history": [[first, 5], [second]], "of": ["a", None]})
    assert recommend(mixed, on_error="return") == recommend(
        [{"history": [first, 5], "of": "a"}, {"history": [second], "of": None}], on_error="return"
    )
    with pytest.raises(DataError, match="more than once"):
        recommend(pd.DataFrame([[[1], [2]]], columns=["history", "history"]))


def test_responses_are_those_of_all_requests_whatever_the_batch_size(recommend):
    whole = recommend.respond(GOOD, top_k=2)
    for one, other in zip(recommend.respond(GOOD, top_k=2, batch_size=1), whole, strict=True):
        assert ids_of(one["recommendations"]) == ids_of(other["recommendations"])
    with pytest.raises(DataError, match="batch_size must be a whole number"):
        recommend.respond(GOOD, batch_size=0)


# -- many requests


REQUESTS = [{"history": [1, 2], "user_id": "a"}, {"history": [300], "user_id": "b"}, {"history": [5], "user_id": "c"}]
GOOD = [REQUESTS[0], REQUESTS[2]]


@pytest.mark.parametrize(
    "make",
    [
        Dataset.from_list,
        lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
        lambda rows: Dataset.from_list(rows).with_format("numpy"),
        lambda rows: Dataset.from_list(rows).with_format("torch"),
        pl.DataFrame,
        pd.DataFrame,
        tuple,
        iter,
        lambda rows: (row for row in rows),
        lambda rows: map(dict, rows),
    ],
    ids=["Dataset", "IterableDataset", "numpy", "torch", "Polars", "pandas", "tuple", "iterator", "generator", "map"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_requests_of_every_kind_equal_a_list(recommend, make, batch_size):
    expected = [ids_of(recommend(request, top_k=3)) for request in GOOD]
    found = list(recommend(make(GOOD), top_k=3, batch_size=batch_size))
    assert [ids_of(result) for result in found] == expected
    assert [[row["user_id"] for row in result] for result in found] == [["a"] * 3, ["c"] * 3]


def test_a_column_that_only_some_requests_have_is_left_out_where_it_is_null(recommend):
    rows = [
        {"history": ["1", "2"], "candidates": ["7", "8"], "titles": None},
        {"history": None, "candidates": None, "titles": ["Film 5"]},
    ]
    found = list(recommend(Dataset.from_list(rows), top_k=3))
    assert sorted(ids_of(found[0])) == ["7", "8"]
    assert ids_of(found[1]) == ids_of(recommend({"history": [5]}, top_k=3))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_one_bad_request_stops_a_batch_unless_its_error_is_wished_for(recommend, batch_size):
    with pytest.raises(DataError, match="none of the 1 history items"):
        recommend(REQUESTS, batch_size=batch_size)
    found = recommend(REQUESTS, top_k=3, batch_size=batch_size, on_error="return")
    assert [ids_of(found[0]), ids_of(found[2])] == [ids_of(recommend(request, top_k=3)) for request in GOOD]
    assert set(found[1]) == {"error", "user_id"}
    assert found[1]["user_id"] == "b"
    assert "none of the 1 history items" in found[1]["error"]


BAD = [
    {"history": IDS, "user_id": 1},  # found out when nothing is left to retrieve
    {"history": [1], "candidates": [2, 2]},
    {"history": "1"},
    "1",
    None,
    {"history": [1], "candidate": [2]},
    {"history": [1], "score": 2},
    {"history": [1], "titles": ["Film 5"]},
]


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_is_wrong_with_requests_the_others_are_served(recommend, stream):
    good = {"history": [3]}
    rows = [good, *(row for bad in BAD for row in (bad, good))]
    found = list(recommend(iter(rows) if stream else rows, top_k=2, batch_size=4, on_error="return"))
    assert len(found) == len(rows)
    expected = ids_of(recommend(good, top_k=2))
    for row, result in zip(rows, found, strict=True):
        assert ids_of(result) == expected if row is good else set(result) <= {"error", "user_id", "candidate"}


def test_a_prompt_that_cannot_fit_is_the_error_of_its_request_alone(catalog):
    processor = tiny_processor(catalog, max_length=160)
    model = tiny_model(tokenizer_fingerprint=processor.fingerprint)
    recommend = RecommendationPipeline(model=model, processor=processor, on_error="return")
    rows = [{"history": [1], "candidates": [2, 3]}, {"history": [1], "candidates": IDS[1:]}]
    found = recommend(rows, batch_size=2)
    assert sorted(ids_of(found[0])) == ["2", "3"]
    assert "context" in found[1]["error"]


def test_the_whole_batch_reads_one_prompt_each_where_nothing_is_wrong(recommend, monkeypatch):
    calls = []
    score = recommend.model.score
    monkeypatch.setattr(
        recommend.model, "score", lambda **batch: calls.append(len(batch["input_ids"])) or score(**batch)
    )
    recommend([*GOOD, REQUESTS[1]], batch_size=3, on_error="return")
    assert calls == [2]


def test_keys_of_the_caller_come_back_and_misspelt_ones_are_refused(recommend):
    row = recommend({"history": [1], "user_id": 7, "session": None}, top_k=1)[0]
    assert (row["user_id"], row["session"], row["rank"]) == (7, None, 1)
    for key, match in (("candidate", "is 'candidates' meant"), ("title", "which its result has"), (5, "are text")):
        with pytest.raises(DataError, match=match):
            recommend({"history": [1], key: [2]})
    with pytest.raises(DataError, match="on_error must be one of"):
        recommend({"history": [1]}, on_error="ignore")
    with pytest.raises(DataError, match="top_k must be"):
        recommend({"history": [1]}, top_k=True)


def test_warnings_of_many_users_are_not_kept(recommend):
    module = sys.modules["allmrec_hf.pipeline_recommendation"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for number in range(1000, 1020):
            recommend.preprocess({"history": [1, number]})
    assert len(told) == 20
    assert len(getattr(module, "__warningregistry__", {})) <= 1


# -- whole histories


def test_retrieval_leaves_out_the_whole_history_though_the_model_reads_its_end(recommend):
    processor, model = recommend.processor, recommend.model
    processor_short = tiny_processor(processor.catalog, max_history_length=3)
    history = list(range(1, 36))  # only the last 3 are read, 5 of 40 items are unseen
    tensors = processor_short.history_tensors([history, [1]])
    assert tensors["history_ids"].tolist() == [[33, 34, 35], [0, 0, 1]]
    found = model.retrieve(**tensors, top_k=10).item_indices.tolist()
    assert sorted(found[0]) == [0] * 5 + [36, 37, 38, 39, 40]
    assert 1 not in found[1]
    assert len(set(found[1])) == 10
    short = RecommendationPipeline(model=model, processor=processor_short)
    ids = [processor.catalog.item_id(index) for index in history]
    assert set(ids_of(short({"history": ids}, top_k=10))) == {processor.catalog.item_id(i) for i in range(36, 41)}
    batch = processor_short([history], [[36, 37]])
    assert "seen_ids" not in batch  # a prompt's tensors are what score and generate take
    assert model.score(**batch).shape == (1, 2)


# -- options of a request, responses


def test_a_request_may_bring_its_own_options(recommend):
    requests = [
        {"history": [1, 2], "top_k": 1},
        {"history": [1, 2], "ranker": "cf", "top_k": np.int64(4)},
        {"history": [1, 2], "num_candidates": 3, "num_permutations": 2},
        {"history": [1, 2], "ranker": None, "top_k": None},
    ]
    options = [{"top_k": 1}, {"ranker": "cf", "top_k": 4}, {"num_candidates": 3, "num_permutations": 2}, {}]
    together = recommend(requests, top_k=2, batch_size=4)
    for found, given in zip(together, options, strict=True):
        expected = recommend({"history": [1, 2]}, **{"top_k": 2, **given})
        assert [row["item_id"] for row in found] == [row["item_id"] for row in expected]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)
        assert not {"top_k", "ranker", "num_candidates", "num_permutations"} & set(found[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number"),
        ({"num_candidates": "5"}, "num_candidates must be a whole number"),
        ({"num_permutations": True}, "num_permutations must be a whole number"),
        ({"ranker": 3}, "ranker must be the name of a ranker"),
        ({"ranker": "other"}, "unknown ranker 'other'"),
        ({"topk": 3}, "is 'top_k' meant"),
    ],
)
def test_wrong_options_of_a_request_are_refused(recommend, options, message):
    with pytest.raises(ALLMRecError, match=message):
        recommend({"history": [1, 2], **options})
    bad, good = recommend([{"history": [1, 2], "u": 1, **options}, {"history": [1, 2]}], on_error="return", top_k=1)
    assert message in bad["error"]
    assert bad["u"] == 1
    assert len(good) == 1


def test_a_response_says_what_was_left_out(recommend):
    request = {"history": [1, "nowhere", 2], "user_id": "u", "ranker": "cf"}
    with pytest.warns(UserWarning, match="left out"):
        rows = recommend(request, top_k=2)
    found = recommend.respond(request, top_k=2)
    assert found["unknown_history"] == ["nowhere"]
    assert found["user_id"] == "u"
    assert [row["item_id"] for row in found["recommendations"]] == [row["item_id"] for row in rows]
    assert set(found["recommendations"][0]) == {"item_id", "title", "score", "rank", "parts"}
    assert recommend.respond([request], top_k=2) == [found]
    assert recommend.respond([]) == []
    failed, _ = recommend.respond([{"history": [10**9], "user_id": "v"}, request], on_error="return")
    assert set(failed) == {"user_id", "error"}


def test_unknown_items_are_told_as_data(recommend):
    unknown = [f"x{number}" for number in range(7)]
    for key in ("candidates", "candidate_titles"):
        with pytest.raises(UnknownItemsError) as told:
            recommend.resolve({"history": [1, 2], key: unknown})
        assert (told.value.field, told.value.items) == (key, unknown)
    with pytest.raises(UnknownItemsError) as told:
        recommend.resolve({"titles": unknown})
    assert (told.value.field, told.value.items) == ("titles", unknown)
