"""The routes of recommending: the same answers as the pipeline's, and what is wrong is named."""

from __future__ import annotations

import math
from urllib.parse import quote

import pytest
import torch
from transformers import pipeline

from allmrec_hf.serving.schemas import MAX_CANDIDATES, MAX_HISTORY

HISTORY = ["M0001", "M0002", "M0003"]


@pytest.fixture(scope="module")
def recommend():
    return pipeline("recommendation")


def post(client, route, status=200, **body):
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def refused(client, route, **body):
    return post(client, route, 422, **body)["error"]


def test_recommend_answers_as_the_pipeline_does(client, recommend):
    request = {"history": HISTORY, "top_k": 4, "ranker": "cf", "user_id": "u17"}
    found = post(client, "recommend", **request)
    assert found == {"model": "demo", "ranker": "cf", **recommend.respond(request)}
    assert [row["item_id"] for row in found["recommendations"]] == [row["item_id"] for row in recommend(request)]


def test_the_likelihood_of_a_batch_is_that_of_the_pipeline(client, recommend):
    found = post(client, "recommend", history=HISTORY, num_candidates=5, top_k=5)["recommendations"]
    expected = recommend({"history": HISTORY}, num_candidates=5, top_k=5)
    assert [row["item_id"] for row in found] == [row["item_id"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)


def test_rank_puts_all_given_candidates_in_order(client):
    candidates = [f"M{number:04}" for number in range(10, 30)]
    found = post(client, "rank", history=HISTORY, candidates=candidates, ranker="cf")["recommendations"]
    assert sorted(row["item_id"] for row in found) == candidates
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert len(post(client, "rank", history=HISTORY, candidates=candidates, top_k=3)["recommendations"]) == 3


def test_titles_stand_for_ids(client, recommend):
    titles = [recommend.processor.catalog.title(index) for index in (1, 2, 3)]
    assert (
        post(client, "recommend", titles=titles, ranker="cf")["recommendations"]
        == post(client, "recommend", history=HISTORY, ranker="cf")["recommendations"]
    )


def test_unknown_items_of_a_history_are_left_out_and_told(client):
    found = post(client, "recommend", history=[*HISTORY, "nowhere"], ranker="cf")
    assert found["unknown_history"] == ["nowhere"]
    assert found["recommendations"] == post(client, "recommend", history=HISTORY, ranker="cf")["recommendations"]


@pytest.mark.parametrize("by", ["joint", "cf"])
def test_similar_items_are_those_of_the_largest_cosine(client, recommend, by):
    model = recommend.model
    rows = torch.arange(1, model.cf_encoder.num_items + 1)
    with torch.no_grad():
        vectors = (model.item_vectors(rows) if by == "joint" else model.cf_encoder.item_embeddings[rows]).double()
        cosines = torch.cosine_similarity(vectors[6], vectors, dim=-1)
    cosines[6] = -2
    expected = [recommend.processor.catalog.item_id(int(place) + 1) for place in cosines.argsort(descending=True)[:3]]
    found = post(client, "similar", item="M0007", top_k=3, by=by)
    assert [row["item_id"] for row in found["similar"]] == expected
    assert found["similar"][0]["score"] == pytest.approx(float(cosines.max()), abs=1e-5)


def test_explain_is_that_of_the_package(client, recommend):
    from allmrec_hf import explain

    options = {"candidates": ["M0008"], "gradient_steps": 1}
    found = post(client, "explain", history=HISTORY, item="M0007", **options)
    expected = explain(recommend.model, recommend.processor, HISTORY, "M0007", **options)
    assert found["value"]["nats"] == pytest.approx(expected["value"]["nats"], abs=1e-4)
    assert [row.get("item_id") for row in found["contributions"]] == [
        row.get("item_id") for row in expected["contributions"]
    ]


# -- what is wrong


def test_all_unknown_candidates_are_listed(client):
    unknown = [f"X{number}" for number in range(12)]
    error = refused(client, "rank", history=HISTORY, candidates=["M0004", *unknown])
    assert error["type"] == "unknown_items"
    assert error["items"] == unknown
    assert error["fields"][0]["field"] == "candidates"


def test_a_history_of_which_nothing_is_known_is_refused_with_its_items(client):
    error = refused(client, "recommend", titles=["No such film", "Nor this"])
    assert (error["type"], error["items"], error["fields"][0]["field"]) == (
        "unknown_items",
        ["No such film", "Nor this"],
        "titles",
    )


WRONG = [
    ("recommend", {}, "history"),
    ("recommend", {"history": []}, "history"),
    ("recommend", {"history": "M0001"}, "history"),
    ("recommend", {"history": [True]}, "history.0"),
    ("recommend", {"history": ["M0001", None]}, "history.1"),
    ("recommend", {"history": [["M0001"]]}, "history.0"),
    ("recommend", {"history": ["M0001"] * (MAX_HISTORY + 1)}, "history"),
    ("recommend", {"history": ["M0001"], "titles": ["a"]}, "titles"),
    ("recommend", {"history": ["M0001"], "top_k": 0}, "top_k"),
    ("recommend", {"history": ["M0001"], "top_k": "3"}, "top_k"),
    ("recommend", {"history": ["M0001"], "top_k": True}, "top_k"),
    ("recommend", {"history": ["M0001"], "top_k": 10**30}, "top_k"),
    ("recommend", {"history": ["M0001"], "ranker": 3}, "ranker"),
    ("recommend", {"history": ["M0001"], "ranker": "fusion"}, "ranker"),
    ("recommend", {"history": ["M0001"], "num_candidates": -1}, "num_candidates"),
    ("recommend", {"history": ["M0001"], "num_permutations": 10**6}, "num_permutations"),
    ("recommend", {"history": ["M0001"], "histroy": ["M0001"]}, "histroy"),
    ("recommend", {"history": ["M0001"], "candidates": []}, "candidates"),
    ("recommend", {"history": ["M0001"], "model": ""}, "model"),
    ("recommend", {"user_id": ""}, "user_id"),
    ("recommend", {"user_id": "x" * 257}, "user_id"),
    ("rank", {"history": ["M0001"]}, "candidates"),
    ("rank", {"history": ["M0001"], "candidates": ["M0004"], "candidate_titles": ["a"]}, "candidate_titles"),
    ("rank", {"history": ["M0001"], "candidates": ["M0004"] * (MAX_CANDIDATES + 1)}, "candidates"),
    ("rank", {"history": ["M0001"], "candidate_titles": ["x" * 1001]}, "candidate_titles.0"),
    ("similar", {}, "item"),
    ("similar", {"item": "M0001", "by": "colour"}, "by"),
    ("similar", {"item": "M0001", "item_title": "a"}, "item_title"),
    ("explain", {"history": ["M0001"]}, "item"),
    ("explain", {"history": ["M0001"], "item": "M0002", "contrast": 1}, "contrast"),
    ("explain", {"history": ["M0001"], "item": "M0002", "gradient_steps": 1000}, "gradient_steps"),
]


@pytest.mark.parametrize(("route", "body", "field"), WRONG, ids=lambda value: str(value)[:60])
def test_the_wrong_field_is_named(client, route, body, field):
    error = refused(client, route, **body)
    assert error["fields"][0]["field"] == field


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe", 422),
        (b'{"history": [NaN]}', 422),
        (b'{"history": [Infinity]}', 422),
        (b'{"history": ["\\ud800"]}', 422),
        (b'{"history": [' + b"9" * 5000 + b"]}", 400),
        (b"[" * 100_000, 400),
    ],
    ids=range(9),
)
def test_a_body_that_is_no_request_is_refused(client, content, status):
    response = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["type"] in ("invalid_request", "bad_request")


def test_a_body_over_the_limit_is_not_read(client):
    big = b'{"titles": ["' + b"x" * 2**20 + b'"]}'
    assert client.post("/v1/recommend", content=big).json()["error"]["type"] == "too_large"
    parts = (big[start : start + 1000] for start in range(0, len(big), 1000))  # without a length beforehand
    assert client.post("/v1/recommend", content=parts, headers={"content-type": "application/json"}).status_code == 413


def test_a_history_of_all_items_leaves_nothing_to_recommend(client, recommend):
    error = refused(client, "recommend", history=recommend.processor.catalog.item_ids)
    assert "nothing left to recommend" in error["message"]


def test_unknown_models_items_and_routes_are_404(client):
    assert post(client, "recommend", 404, history=HISTORY, model="other")["error"]["type"] == "unknown_model"
    assert post(client, "similar", 422, item="nowhere")["error"]["items"] == ["nowhere"]
    assert client.get("/v1/items/nowhere").json()["error"]["items"] == ["nowhere"]
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found"
    assert client.put("/v1/items").status_code == 405


def test_a_failure_inside_tells_nothing_of_the_inside(client, service, caplog):
    from starlette.testclient import TestClient

    from allmrec_hf.serving.http_app import create_app

    def broken(*_):
        raise RuntimeError("secret place")

    service.models["demo"].pipeline.resolve = broken
    with TestClient(create_app(service)) as inside:
        response = inside.post("/v1/recommend", json={"history": HISTORY})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_scores_are_finite_numbers_of_json(client):
    rows = post(client, "recommend", history=HISTORY)["recommendations"]
    assert all(math.isfinite(row["score"]) for row in rows)


def test_no_other_origin_is_let_in(client):
    response = client.options(
        "/v1/recommend", headers={"origin": "https://elsewhere", "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in response.headers
    posted = client.post("/v1/recommend", json={"history": HISTORY}, headers={"origin": "https://elsewhere"})
    assert "access-control-allow-origin" not in posted.headers


def test_the_examples_of_the_openapi_are_served(client):
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    tried = 0
    for path, routes in described["paths"].items():
        body = routes.get("post", {}).get("requestBody")
        if body is None:
            continue
        schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        response = client.post(path, json=schema["examples"][0])
        assert response.status_code < 300, (path, response.text)
        tried += 1
    assert tried == 6


def test_each_of_several_models_has_its_own_items(tmp_path):
    from starlette.testclient import TestClient

    from allmrec_hf.serving.http_app import create_app
    from allmrec_hf.serving.http_server import ServiceSettings, build_service
    from tests.serving.conftest import DEMO

    service = build_service({"films": DEMO, "other": DEMO}, ServiceSettings(state=tmp_path))
    with TestClient(create_app(service)) as client:
        item = {"item_id": "N1", "title": "The Lost Harbor"}
        assert post(client, "items", 201, model="other", items=[item])["items"] == 1001
        assert client.get("/v1/items/N1").status_code == 404
        assert client.get("/v1/items/N1", params={"model": "other"}).json()["model"] == "other"
        assert [one["items"] for one in client.get("/v1/models").json()["models"]] == [1000, 1001]
        assert post(client, "recommend", history=HISTORY, ranker="cf")["model"] == "films"
        assert post(client, "recommend", history=["N1"], ranker="cf", model="other")["model"] == "other"
        assert post(client, "recommend", 422, history=["N1"], ranker="cf")["error"]["items"] == ["N1"]
        counted = client.get("/metrics").text
        assert 'allmrec_catalogue_items{model="other"} 1001.0' in counted
        assert 'allmrec_requests_total{route="/v1/recommend",status="422"} 1.0' in counted
        assert 'allmrec_batch_requests_count{model="films"} 2.0' in counted


def test_models_lists_the_rankers_that_it_can_serve_and_asking_for_another_says_why(client):
    (model,) = client.get("/v1/models").json()["models"]
    for name in model["rankers"]:
        post(client, "rank", history=HISTORY, candidates=HISTORY[:2], ranker=name)
    assert "letter" not in model["rankers"]  # the demo's tokenizer has no letters
    told = post(client, "rank", 422, history=HISTORY, candidates=HISTORY[:2], ranker="letter")["error"]
    assert "one token of its own" in told["message"]


@pytest.mark.parametrize("user", ["a/b", "/", "x y?z#"])
def test_the_history_of_any_user_is_told_and_forgotten(client, user):
    post(client, "events", 201, events=[{"user_id": user, "item_id": "M0011"}])
    address = f"/v1/users/{quote(user, safe='')}/history"
    assert "M0011" in client.get(address).text
    assert client.delete(address).status_code == 204
    assert "M0011" not in client.get(address).text
