"""Bearer tokens: who may read, who may write, and which files of tokens are fit."""

from __future__ import annotations

import contextlib
import hmac

import pytest
from starlette.testclient import TestClient

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.serving.bearer_tokens import BearerTokens, read_tokens
from allmrec_hf.serving.http_app import create_app
from allmrec_hf.serving.http_server import ServiceSettings, access
from allmrec_hf.serving.service_errors import ServiceError

READ, WRITE = "r" * 32, "w" * 32


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from tests.serving.conftest import demo_service

    service = demo_service(tmp_path_factory.mktemp("state"))
    with TestClient(create_app(service, BearerTokens([READ, "older" + READ], [WRITE]))) as opened:
        yield opened


@pytest.mark.parametrize(
    ("headers", "reads", "writes"),
    [
        ({}, 401, 401),
        (bearer("x" * 32), 401, 401),
        (bearer(READ[:-1]), 401, 401),
        (bearer(READ + "r"), 401, 401),
        (bearer(""), 401, 401),
        ({"authorization": READ}, 401, 401),
        ({"authorization": f"Basic {READ}"}, 401, 401),
        ({"authorization": b"Bearer \xff\xfe"}, 401, 401),
        (bearer(READ), 200, 403),
        (bearer("older" + READ), 200, 403),
        (bearer(WRITE), 200, 201),
        ({"authorization": f"bearer  {WRITE}"}, 200, 201),
    ],
    ids=range(12),
)
def test_each_token_does_what_it_is_for(client, headers, reads, writes):
    assert client.get("/v1/models", headers=headers).status_code == reads
    assert client.get("/metrics", headers=headers).status_code == reads
    asked = client.post("/v1/recommend", json={"history": ["M0001"], "ranker": "cf"}, headers=headers)
    assert asked.status_code == reads
    event = {"events": [{"user_id": "u", "item_id": "M0001"}]}
    assert client.post("/v1/events", json=event, headers=headers).status_code == writes
    if reads == 401:
        assert asked.headers["www-authenticate"] == "Bearer"


def test_every_writing_route_wants_the_writing_token(client):
    described = client.get("/openapi.json").json()["paths"]
    writing = 0
    for path, routes in described.items():
        for method in routes:
            if method == "get" or path in ("/v1/recommend", "/v1/rank", "/v1/similar", "/v1/explain"):
                continue
            assert client.request(method, path, headers=bearer(READ)).status_code == 403, (method, path)
            writing += 1
    assert writing == 4


def test_health_needs_no_token(client):
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_every_known_token_is_compared_whole(monkeypatch):
    compared = []
    monkeypatch.setattr(
        hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or one == other
    )
    tokens = BearerTokens([READ, "b" * 40], [WRITE])
    for token in (READ, "b" * 40, WRITE, "no", "x" * 10_000):
        compared.clear()
        with contextlib.suppress(ServiceError):
            tokens.check(f"Bearer {token}", False)
        assert compared == [(32, 32)] * 3  # digests of one length, all three whichever fits


def test_nobody_writes_where_there_are_only_reading_tokens():
    with pytest.raises(ServiceError, match="takes no writes") as told:
        BearerTokens([READ]).check(f"Bearer {READ}", True)
    assert told.value.status == 403


# -- files


@pytest.fixture
def token_file(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "tokens"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def test_several_tokens_of_a_file_are_valid(token_file):
    assert read_tokens(token_file(f"{READ}\n\n{WRITE}\n", 0o640)) == [READ, WRITE]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_a_file_that_all_can_read_is_refused(token_file, mode):
    with pytest.raises(ALLMRecError, match="every user of this machine; chmod 600"):
        read_tokens(token_file(READ, mode))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("short", "token 1 must be"), (f"{READ}\ntwo words of it", "token 2 must be")],
)
def test_a_file_without_fit_tokens_is_refused(token_file, text, message):
    with pytest.raises(ALLMRecError, match=message):
        read_tokens(token_file(text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ALLMRecError, match="nothing cannot be read"):
        read_tokens(tmp_path / "nothing")


def test_other_machines_are_not_served_without_tokens(token_file):
    with pytest.raises(ALLMRecError, match="without tokens the service listens on this machine only"):
        access(ServiceSettings(host="0.0.0.0"))
    assert access(ServiceSettings(host="0.0.0.0", anonymous=True)).open
    assert not access(ServiceSettings(host="0.0.0.0", token_file=token_file(READ))).open


def test_one_token_is_not_for_both(token_file, tmp_path):
    path = token_file(READ)
    with pytest.raises(ALLMRecError, match="are the same"):
        access(ServiceSettings(token_file=path, write_token_file=path))
    with pytest.raises(ALLMRecError, match="give --token-file too"):
        access(ServiceSettings(write_token_file=path))


def test_an_open_service_is_addressed_as_this_machine_only(service):
    with TestClient(
        create_app(service, hosts=frozenset({"localhost", "::1"})), base_url="http://localhost:8000"
    ) as opened:
        assert opened.get("/health").status_code == 200
        assert opened.get("/health", headers={"host": "[::1]:8000"}).status_code == 200
        assert opened.get("/health", headers={"host": "elsewhere.example"}).status_code == 421
