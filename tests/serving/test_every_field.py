"""Every field of every route with every kind of wrong value: 422 with the field's name, and nothing done.

What is wrong is decided by the service's own OpenAPI: another library tells whether a field's schema allows the value.
"""

from __future__ import annotations

import json

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="it comes with the official SDK of MCP")

VALUES = [
    *(None, True, False, 0, -1, 1.5, 2**31, 2**70, -(2**70), 1e300),
    *("", " ", "x", "x" * 65, "x" * 600, "x" * 25_000, "\x00", "2"),
    *([], [None], [[]], [{}], [True], [""], ["x" * 2000], [1.5], {}, {"a": 1}, [{"a": 1}]),
]
ROUTES = {
    "recommend": {"history": ["M0001", "M0002"], "ranker": "cf", "top_k": 2},
    "rank": {"history": ["M0001"], "candidates": ["M0005", "M0006"], "ranker": "cf"},
    "similar": {"item": "M0001"},
    "explain": {"history": ["M0001"], "item": "M0005"},
    "items": {"items": [{"item_id": "N1", "title": "New"}]},
    "events": {"events": [{"user_id": "u", "item_id": "M0001", "timestamp": 5}]},
}
ONE_OF = {"history": ["titles", "user_id"], "candidates": ["candidate_titles"], "item": ["item_title"]}


@pytest.fixture(scope="module")
def described(client):
    return client.get("/openapi.json").json()


def schema_of(described, route):
    """Return the schema of a route's body."""
    body = described["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return described["components"]["schemas"][body["$ref"].rpartition("/")[2]]


def allows(described, schema, value):
    """Tell whether a schema of the OpenAPI allows a value."""
    whole = {**schema, "components": described["components"]}
    return bool(jsonschema.Draft202012Validator(whole).is_valid(value))


def refused_field(client, route, body):
    response = client.post(f"/v1/{route}", content=json.dumps(body), headers={"content-type": "application/json"})
    return response.status_code, [one["field"] for one in response.json().get("error", {}).get("fields", [])]


def without_rivals(body, name):
    """Return a body without the fields that exclude a field."""
    for group, others in ONE_OF.items():
        if name in (group, *others):
            return {key: value for key, value in body.items() if key not in (group, *others)}
    return body


@pytest.mark.parametrize("route", ROUTES)
def test_a_value_that_the_schema_refuses_is_422_with_the_fields_name(client, described, route):
    schema, tried = schema_of(described, route), set()
    for name, field in schema["properties"].items():
        for value in VALUES:
            if allows(described, field, value):
                continue
            body = {**without_rivals(ROUTES[route], name), name: value}
            status, fields = refused_field(client, route, body)
            assert status == 422, (name, value)
            assert any(found == name or found.startswith(f"{name}.") for found in fields), (name, value, fields)
            tried.add(name)
    assert tried == set(schema["properties"])


@pytest.mark.parametrize(("route", "field"), [("items", "items"), ("events", "events")])
def test_a_wrong_value_inside_an_entry_is_422_with_its_place(client, described, route, field):
    entries = schema_of(described, route)["properties"][field]["items"]["$ref"].rpartition("/")[2]
    good = ROUTES[route][field][0]
    tried = set()
    for name, schema in described["components"]["schemas"][entries]["properties"].items():
        for value in VALUES:
            if allows(described, schema, value):
                continue
            status, fields = refused_field(client, route, {field: [good, {**good, name: value}]})
            assert status == 422, (name, value)
            assert any(found.startswith(f"{field}.1.{name}") for found in fields), (name, value, fields)
            tried.add(name)
    assert {"item_id", "title"} <= tried or {"user_id", "item_id", "timestamp"} <= tried
    assert client.get("/v1/items/N1").status_code == 404
    assert client.get("/v1/users/u/history").status_code == 404


@pytest.mark.parametrize("route", ROUTES)
def test_a_field_that_is_missing_or_unknown_is_named(client, described, route):
    schema, body = schema_of(described, route), ROUTES[route]
    for name in [*schema.get("required", []), *(one for one in ("history", "candidates", "item") if one in body)]:
        if name == "candidates" and route != "rank":
            continue
        status, fields = refused_field(client, route, {key: value for key, value in body.items() if key != name})
        assert (status, fields) == (422, [name])
    assert refused_field(client, route, {**body, "surprise": 1}) == (422, ["surprise"])


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", f"/v1/items/{'x' * 513}", "item_id"),
        ("GET", f"/v1/items/M0001?model={'x' * 65}", "model"),
        ("GET", f"/v1/users/{'x' * 257}/history", "user_id"),
        ("DELETE", f"/v1/users/{'x' * 257}/history", "user_id"),
        ("POST", f"/v1/models/{'x' * 65}/reload", "name"),
    ],
)
def test_a_part_of_an_address_that_is_too_long_is_named(client, method, path, field):
    response = client.request(method, path)
    assert response.status_code == 422
    assert [one["field"] for one in response.json()["error"]["fields"]] == [field]


def test_an_unknown_user_is_named_whatever_is_asked_of_them(client):
    for response in (
        client.get("/v1/users/nobody/history"),
        client.delete("/v1/users/nobody/history"),
        client.post("/v1/recommend", json={"user_id": "nobody"}),
        client.post("/v1/rank", json={"user_id": "nobody", "candidates": ["M0005"]}),
        client.post("/v1/explain", json={"user_id": "nobody", "item": "M0005"}),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["fields"][0]["field"]) == (404, "unknown_user", "user_id")


@pytest.mark.parametrize("route", ["recommend", "rank", "explain"])
def test_all_unknown_items_are_listed_by_id_wherever_they_stand(client, route):
    unknown = [f"other-{number}" for number in range(30)]
    body = {**ROUTES[route], "candidates": ["M0005", *unknown]}
    response = client.post(f"/v1/{route}", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["items"]) == (422, "unknown_items", unknown)
    assert error["fields"][0]["field"] == "candidates"


def test_a_history_of_a_hundred_thousand_items_is_refused_at_the_door_and_read_from_its_end_inside(client):
    long = ["M0001"] * 100_000
    for response in (
        client.post("/v1/recommend", json={"history": long}),
        client.post("/v1/recommend", content=json.dumps({"history": [1] * 100_000})),
    ):
        assert (response.status_code, response.json()["error"]["type"]) in (
            (413, "too_large"),
            (422, "invalid_request"),
        )
    assert refused_field(client, "recommend", {"history": [1] * 100_000}) == (422, ["history"])


def test_a_history_of_a_hundred_thousand_items_is_read_from_its_end_by_the_pipeline():
    from allmrec_hf.cli.loading import load_pipeline

    recommend = load_pipeline("demo")
    ids = recommend.processor.catalog.item_ids
    long = [*ids[:500] * 200, *ids[500:550]]
    found = recommend.respond({"history": long, "candidates": ids[600:605]}, ranker="cf")
    assert "the model reads the last 50 of 100050 history items" in found["notes"]
    short = recommend.respond({"history": long[-50:], "candidates": ids[600:605]}, ranker="cf")
    assert found["recommendations"] == short["recommendations"]
