"""Measure the HTTP service under load: concurrent clients, statuses, times and memory.

Each client waits for its answer before it asks again; of 20 requests 16 recommend by the LLM, 2 by the backbone, one
posts an event and one adds an item; one of the first asks by user. Clients and service share the machine.

Run: python benchmarks/serving_load.py [--clients 64] [--seconds 600] [--model demo] [--output FILE]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

import allmrec_hf


class Client(threading.Thread):
    """One client, with a connection of its own."""

    def __init__(self, number: int, port: int, item_ids: list[str], until: float) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.item_ids, self.until = number, port, item_ids, until
        self.random = random.Random(number)
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()

    def run(self) -> None:
        """Ask until the time is over."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        count = 0
        while time.monotonic() < self.until:
            path, body = self._request(count)
            count += 1
            started = time.monotonic()
            try:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
                continue
            self.statuses[str(response.status)] += 1
            if response.status == 429:
                time.sleep(float(response.headers["retry-after"]))
            elif response.status < 300 and path == "/v1/recommend":
                self.seconds.append(time.monotonic() - started)

    def _request(self, count: int) -> tuple[str, dict[str, Any]]:
        kind = count % 20
        history = self.random.sample(self.item_ids, self.random.randint(1, 20))
        user = f"u{self.number}"
        if kind == 0:
            return "/v1/events", {"events": [{"user_id": user, "item_id": item} for item in history[:3]]}
        if kind == 1:
            return "/v1/recommend", {"user_id": user, "top_k": 10}
        if kind == 2:
            item = {"item_id": f"L{self.number}-{count}", "title": f"Load {self.number} {count}"}
            return "/v1/items", {"items": [item]}
        return "/v1/recommend", {"history": history, "top_k": 10, **({"ranker": "cf"} if kind in (3, 4) else {})}


def started_service(model: str, state: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a service on a free port and return its process and port."""
    command = [
        sys.executable,
        "-m",
        "allmrec_hf.cli.main",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--state",
        str(state),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    ready = threading.Event()
    found: list[int] = []

    def read() -> None:
        for line in process.stderr or ():
            if '"serving"' in line:
                found.append(json.loads(line)["port"])
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(300):
        raise SystemExit("the service does not start")
    return process, found[0]


def percentile(values: list[float], share: float) -> float:
    """Return a percentile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measure(model: str, clients: int, seconds: float) -> dict[str, Any]:
    """Return what the clients and the memory of the service showed."""
    from allmrec_hf.cli.loading import load_pipeline

    item_ids = load_pipeline(model).processor.catalog.item_ids
    with tempfile.TemporaryDirectory() as folder:
        service, port = started_service(model, Path(folder))
        try:
            until = time.monotonic() + seconds
            asking = [Client(number, port, item_ids, until) for number in range(clients)]
            for client in asking:
                client.start()
            memory = []
            process = psutil.Process(service.pid)
            while time.monotonic() < until:
                time.sleep(min(1.0, seconds / 60))
                memory.append(process.memory_info().rss / 2**20)
            for client in asking:
                client.join()
        finally:
            service.terminate()
            service.wait(60)
    statuses = sum((client.statuses for client in asking), Counter[str]())
    times = sorted(second for client in asking for second in client.seconds)
    part = max(1, len(memory) // 10)
    return {
        "version": allmrec_hf.__version__,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "model": model,
        "clients": clients,
        "seconds": seconds,
        "statuses": dict(sorted(statuses.items())),
        "requests_per_second": round(sum(statuses.values()) / seconds, 1),
        "recommend_seconds": {
            name: round(percentile(times, share), 3) for name, share in (("p50", 0.5), ("p95", 0.95))
        },
        "memory_mb": {  # means of the second and of the last tenth of the time
            "early": round(sum(memory[part : 2 * part]) / part, 1),
            "late": round(sum(memory[-part:]) / part, 1),
            "most": round(max(memory), 1),
        },
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.model, options.clients, options.seconds), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
