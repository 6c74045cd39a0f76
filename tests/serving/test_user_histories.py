"""Stored histories: one behaviour of SQLite and of a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sqlite3
import subprocess
import threading
import time

import pytest
from starlette.testclient import TestClient

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.serving import recommender_service, user_histories
from allmrec_hf.serving.http_app import create_app
from allmrec_hf.serving.service_errors import ServiceError
from allmrec_hf.serving.user_histories import RedisHistories, SQLiteHistories, UserEvent, open_histories
from tests.serving.conftest import demo_service


class RedisServer:
    """A redis-server of this test on a free port, which can be stopped and started again."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = None

    def start(self):
        options = ["--port", self.port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"]
        command = ["redis-server", *options, "--dir", self.folder, "--loglevel", "warning"]
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    if shutil.which("redis-server") is None:
        pytest.skip("this machine has no redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path):
    if request.param == "sqlite":
        opened = SQLiteHistories(tmp_path / "users.sqlite")
    else:
        opened = RedisHistories(request.getfixturevalue("redis_server").url)
        opened._redis.flushdb()
    yield opened
    opened.close()


def events(user, *items):
    return [UserEvent(user, item) for item in items]


def test_items_come_back_in_the_order_they_came(store):
    store.append(events("u", "b", "a"))
    store.append(events("u", "b", "c:d", "a"))
    store.append(events("v", "z"))
    assert store.history("u") == ["b", "a", "b", "c:d", "a"]
    assert (store.history("v"), store.history("w")) == (["z"], [])


def test_times_decide_the_order_and_those_without_are_last(store):
    store.append([UserEvent("u", "late", 5_000), UserEvent("u", "early", 1_000), UserEvent("u", "same", 5_000)])
    assert store.history("u") == ["early", "late", "same"]
    future = 4_000_000_000_000
    store.append([UserEvent("u", "future", future), UserEvent("u", "now")])
    assert store.history("u") == ["early", "late", "same", "future", "now"]


def test_a_clock_that_goes_backwards_changes_no_order(store, monkeypatch):
    for number, now in enumerate((9_000, 3_000, 6_000, 9_001)):
        monkeypatch.setattr(user_histories, "now_ms", lambda now=now: now)
        store.append(events("u", f"i{number}"))
    assert store.history("u") == ["i0", "i1", "i2", "i3"]


def test_only_the_last_events_are_kept(store, monkeypatch):
    monkeypatch.setattr(user_histories, "KEPT", 3)
    store.append(events("u", *"abcde"))
    store.append([UserEvent("u", "old", 1)])
    assert store.history("u") == ["c", "d", "e"]


def test_a_user_can_be_forgotten(store):
    store.append(events("u", "a"))
    assert (store.forget("u"), store.forget("u")) == (True, False)
    assert store.history("u") == []


@pytest.mark.parametrize("name", ["a b", "ü🎬", "x'; DROP TABLE events; --", "a*", "a\nb", "a\x00b", "%s {} \\"])
def test_any_text_is_a_user_and_an_item(store, name):
    store.append(events(name, name))
    assert store.history(name) == [name]
    assert store.history(name + "x") == []


def test_many_writers_lose_nothing(store):
    def write(writer):
        for number in range(20):
            store.append(events("u", f"{writer}-{number}"))

    writers = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = store.history("u")
    assert len(found) == 80
    for writer in range(4):
        assert [item for item in found if item.startswith(f"{writer}-")] == [f"{writer}-{n}" for n in range(20)]


# -- faults


def test_a_locked_database_is_503_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(user_histories, "BUSY_SECONDS", 0.05)
    store = SQLiteHistories(tmp_path / "users.sqlite")
    other = sqlite3.connect(tmp_path / "users.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ServiceError, match="does not answer") as told:
        store.append(events("u", "a", "b"))
    assert (told.value.status, told.value.retry_after) == (503, 1)
    assert store.history("u") == []  # readers of a WAL are not locked out
    other.execute("ROLLBACK")
    store.append(events("u", "a", "b"))
    assert store.history("u") == ["a", "b"]


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "users.sqlite").write_bytes(b"something else " * 100)
    with pytest.raises(ALLMRecError, match=r"users\.sqlite cannot be opened: file is not a database"):
        SQLiteHistories(tmp_path / "users.sqlite")


def test_redis_may_be_gone_and_come_back(redis_server, tmp_path):
    service = demo_service(tmp_path, store=redis_server.url)
    service.histories._redis.flushdb()
    with TestClient(create_app(service)) as client:
        event = {"events": [{"user_id": "u", "item_id": "M0001"}]}
        assert client.post("/v1/events", json=event).status_code == 201
        redis_server.kill()
        gone = client.post("/v1/events", json=event)
        assert (gone.status_code, gone.json()["error"]["type"]) == (503, "store_unavailable")
        assert str(redis_server.port) not in gone.text
        assert gone.headers["retry-after"] == "1"
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        asked = {"history": ["M0001"], "ranker": "cf"}
        assert client.post("/v1/recommend", json=asked).status_code == 200  # which needs no store
        redis_server.start()
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/users/u/history").json()["history"] == ["M0001"]  # written before it was killed


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("redis://127.0.0.1:1/0", "Redis does not answer"),
        ("redis://127.0.0.1:port/0", "no address of Redis"),
        ("postgres://name:secret@host/0", r"sqlite or redis://HOST:PORT/0, not 'host/0'"),
    ],
)
def test_a_store_that_cannot_be_is_an_error_at_the_start(tmp_path, address, message):
    with pytest.raises(ALLMRecError, match=message):
        open_histories(address, tmp_path)


# -- through the service


@pytest.fixture
def client(service):
    with TestClient(create_app(service)) as opened:
        yield opened


def test_a_shop_posts_events_and_asks_for_a_user(client):
    rows = [{"user_id": "u", "item_id": item} for item in ("M0001", "M0002", "later")]
    assert client.post("/v1/events", json={"events": rows}).json() == {"stored": 3, "unknown_items": ["later"]}
    assert client.get("/v1/users/u/history").json() == {"user_id": "u", "history": ["M0001", "M0002", "later"]}
    by_user = client.post("/v1/recommend", json={"user_id": "u", "ranker": "cf"}).json()
    by_history = client.post("/v1/recommend", json={"history": ["M0001", "M0002"], "ranker": "cf"}).json()
    assert by_user["recommendations"] == by_history["recommendations"]
    assert (by_user["user_id"], by_user["unknown_history"]) == ("u", ["later"])
    asked = {"user_id": "u", "item": "M0007", "candidates": ["M0008"], "gradient_steps": 1}
    explained = client.post("/v1/explain", json=asked).json()
    assert [row["item_id"] for row in explained["contributions"] if row["source"] != "user"] == ["M0001", "M0002"]
    assert client.delete("/v1/users/u/history").status_code == 204
    assert client.post("/v1/recommend", json={"user_id": "u"}).json()["error"]["type"] == "unknown_user"
    assert client.delete("/v1/users/u/history").status_code == 404


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"user_id": "u"}, "events.0.item_id"),
        ({"item_id": "a"}, "events.0.user_id"),
        ({"user_id": 3, "item_id": "a"}, "events.0.user_id"),
        ({"user_id": "u", "item_id": None}, "events.0.item_id"),
        ({"user_id": "u", "item_id": " "}, "events.0.item_id"),
        ({"user_id": "u", "item_id": 1.5}, "events.0.item_id"),
        ({"user_id": "u", "item_id": "a", "timestamp": -1}, "events.0.timestamp"),
        ({"user_id": "u", "item_id": "a", "timestamp": 1e18}, "events.0.timestamp"),
        ({"user_id": "u", "item_id": "a", "timestamp": "now"}, "events.0.timestamp"),
        ({"user_id": "u", "item_id": "a", "rating": 5}, "events.0.rating"),
    ],
)
def test_the_wrong_field_of_an_event_is_named(client, event, field):
    good = {"user_id": "u", "item_id": "M0001"}
    for rows in ([event], [event, good]):
        response = client.post("/v1/events", json={"events": rows})
        assert response.status_code == 422
        assert response.json()["error"]["fields"][0]["field"] == field
    assert client.get("/v1/users/u/history").status_code == 404


def test_a_slow_store_is_not_waited_for_by_any_number_of_requests(service, monkeypatch):
    monkeypatch.setattr(recommender_service, "MAX_STORE_CALLS", 3)
    gate = threading.Event()
    monkeypatch.setattr(service.histories, "history", lambda user_id: [user_id] if gate.wait(30) else [])

    async def ask():
        waiting = [asyncio.ensure_future(service.history(f"u{number}")) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="too many requests wait for the store") as told:
            await service.history("u4")
        gate.set()
        return told.value.status, [found["history"] for found in await asyncio.gather(*waiting)]

    assert asyncio.run(ask()) == (429, [["u0"], ["u1"], ["u2"]])
