"""The process of the service: its start, kill -9, its end, and a folder that is replaced under it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

import allmrec_hf
from tests.command_line import refused


class Service:
    """`allmrec serve` in a process of its own."""

    def __init__(self, *options):
        command = [sys.executable, "-m", "allmrec_hf.cli.main", "serve", "--port", "0", *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        self._started = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._started.wait(60), self.log
        while True:
            try:
                self.get("health")
                return
            except requests.ConnectionError:
                time.sleep(0.02)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else line)
            if isinstance(self.log[-1], dict) and self.log[-1]["message"] == "serving":
                self.url = f"http://127.0.0.1:{self.log[-1]['port']}"
                self._started.set()
        self._started.set()

    def get(self, path, **options):
        return requests.get(f"{self.url}/{path}", timeout=60, **options)

    def post(self, path, **body):
        return requests.post(f"{self.url}/{path}", json=body, timeout=60)


class Place:
    """A copy of the demo checkpoint and a state, with the service that runs there."""

    def __init__(self, folder):
        self.model, self.state = folder / "run", folder / "state"
        self.copy_model()
        self.service = self.start()

    def copy_model(self):
        shutil.copytree(allmrec_hf.DEMO_CHECKPOINT, self.model, dirs_exist_ok=True)

    def start(self):
        self.service = Service("--model", f"films={self.model}", "--state", self.state, "--batch-tokens", 1)
        return self.service


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.service.process.kill()
    made.service.process.wait()


def test_files_may_be_replaced_while_they_are_served_and_a_broken_model_is_not_taken(place):
    service = place.service
    request = {"history": ["M0001", "M0002"], "num_candidates": 10, "top_k": 5}
    before = service.post("v1/recommend", **request).json()
    for path in place.model.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")  # in place: what is mapped from them is gone
    assert service.post("v1/recommend", **request).json() == before
    assert service.post("v1/items", items=[{"item_id": "N1", "title": "Added after"}]).status_code == 201
    assert service.get("v1/models").json()["models"][0]["changed_on_disk"] is True
    refusal = service.post("v1/models/films/reload")
    assert (refusal.status_code, refusal.json()["error"]["type"]) == (409, "reload_failed")
    assert "stays in service" in refusal.json()["error"]["message"]
    assert service.post("v1/recommend", **request).json() == before
    place.copy_model()
    assert service.post("v1/models/films/reload").json()["changed_on_disk"] is False
    assert service.get("v1/items/N1").json()["title"] == "Added after"
    assert service.post("v1/recommend", **request).json() == before


def test_requests_are_answered_while_a_model_is_loaded_anew(place):
    service = place.service
    done, statuses = threading.Event(), []

    def ask():
        while not done.is_set():
            statuses.append(service.post("v1/recommend", history=["M0001"], ranker="cf").status_code)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    for number in range(3):
        assert service.post("v1/items", items=[{"item_id": f"R{number}", "title": "New"}]).ok
        service.post("v1/models/films/reload").raise_for_status()
        assert service.get(f"v1/items/R{number}").ok
    done.set()
    for client in clients:
        client.join()
    assert set(statuses) == {200}
    told = [line for line in service.log if isinstance(line, dict) and line.get("route") == "/v1/recommend"]
    assert {"request_id", "ms", "status"} <= set(told[0])
    assert "M0001" not in json.dumps(service.log)


def test_a_client_that_goes_stops_what_it_asked_for(place):
    """An explanation of many passes is begun, its client goes, and the next request is answered long before its end."""
    service = place.service
    body = {"history": [f"M{number:04}" for number in range(1, 31)], "item": "M0500", "gradient_steps": 64}
    started = time.monotonic()
    service.post("v1/explain", **body).raise_for_status()
    whole = time.monotonic() - started
    with pytest.raises(requests.Timeout):
        requests.post(f"{service.url}/v1/explain", json=body, timeout=whole / 10)
    started = time.monotonic()
    service.post("v1/recommend", history=["M0001"], ranker="cf").raise_for_status()
    assert time.monotonic() - started < whole / 2
    gone = [line for line in service.log if isinstance(line, dict) and line.get("status") == 499]
    assert [line["route"] for line in gone] == ["/v1/explain"]


def test_two_services_do_not_share_a_state(place):
    told = refused("serve", "--model", "demo", "--port", 0, "--state", place.state)
    assert "another service uses the folder" in told


def test_what_was_confirmed_is_there_after_kill_9_and_the_end_loses_no_accepted_request(place):
    service, items, events = place.service, set(), []

    def write(number):
        name = f"K{number}"
        with contextlib.suppress(requests.ConnectionError):
            if service.post("v1/items", items=[{"item_id": name, "title": f"Killed {name}"}]).status_code == 201:
                items.add(name)

    with ThreadPoolExecutor(4) as clients:
        written = [clients.submit(write, number) for number in range(200)]
        for number in range(5):
            assert service.post("v1/events", events=[{"user_id": "u", "item_id": f"E{number}"}]).ok
            events.append(f"E{number}")
        while sum(one.done() for one in written) < 15:
            time.sleep(0.002)
        service.process.kill()
    service.process.wait()
    assert 10 <= len(items) < 200
    again = place.start()
    assert {item for item in items if again.get(f"v1/items/{item}").ok} == items
    assert again.get("v1/users/u/history").json()["history"] == events
    _end(again)


def _end(service):
    answers, ready = [], threading.Barrier(9)

    def ask(number):
        body = {"history": [f"M{number + 1:04}"], "num_candidates": 40, "num_permutations": 8, "top_k": 3}
        ready.wait()
        answers.append(service.post("v1/recommend", **body).status_code)

    clients = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for client in clients:
        client.start()
    ready.wait()
    while not answers:
        lines = service.get("metrics").text.splitlines()
        waiting = next(line for line in lines if line.startswith("allmrec_waiting_requests{"))
        if float(waiting.split()[-1]) >= 7:  # of eight one is read, as each is a batch of its own
            break
    assert len(answers) < 7
    service.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join()
    service.process.wait(60)
    assert answers == [200] * 8
    assert service.process.returncode in (0, -signal.SIGTERM)


# -- what keeps it from starting


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = refused("serve", "--model", "demo", "--port", port, "--state", tmp_path)
    assert f"port {port} of 127.0.0.1 is in use; choose another with --port" in told


def test_an_address_of_another_machine_is_named(tmp_path):
    told = refused("serve", "--model", "demo", "--host", "203.0.113.1", "--anonymous", "--state", tmp_path)
    assert "cannot listen on 203.0.113.1 port 8000" in told


def test_a_state_that_is_a_file_is_named(tmp_path):
    (tmp_path / "state").write_text("")
    told = refused("serve", "--model", "demo", "--port", 0, "--state", tmp_path / "state")
    assert "cannot be written" in told
    assert "give another one with --state" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    told = refused("serve", "--model", "demo", "--port", 0, "--state", tmp_path / "state")
    assert "cannot be written" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "demo", "--model", "demo"], "two models are called 'default'"),
        (["--model", "a/b=demo"], "a served model's name is"),
        (["--model", "x="], "names no folder"),
        (["--host", "0.0.0.0"], "without tokens"),
        (["--store", "mysql://x"], "sqlite or redis"),
        (["--model", "a=demo", "--model", "b=demo", "--llm", "other"], "--llm and --text-encoder are of one model"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, message):
    assert message in refused("serve", "--port", 0, "--state", tmp_path / "state", *options)
