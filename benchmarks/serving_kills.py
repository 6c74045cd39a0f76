"""Kill processes that write items and events at random moments, and count what was confirmed and is gone.

A child process appends to the journal of items and to the SQLite store of the service and says so; it is killed with
SIGKILL after a random time, and all that it said must be there when both are opened again, in its order.

Run: python benchmarks/serving_kills.py [--kills 200] [--seed 0] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import allmrec_hf
from allmrec_hf.serving.item_journal import ItemJournal
from allmrec_hf.serving.user_histories import SQLiteHistories

WRITER = """
import sys
from pathlib import Path
from allmrec_hf.serving.item_journal import ItemJournal
from allmrec_hf.serving.user_histories import SQLiteHistories, UserEvent
folder, start = Path(sys.argv[1]), int(sys.argv[2])
journal, store = ItemJournal(folder / "items.jsonl"), SQLiteHistories(folder / "users.sqlite")
print("ready", flush=True)
number = start
while True:
    journal.append([{"item_id": f"I{number}", "title": "x" * (number % 997)}])
    print(f"item {number}", flush=True)
    store.append([UserEvent("u", f"I{number}")])
    print(f"event {number}", flush=True)
    number += 1
"""


def measure(kills: int, seed: int) -> dict[str, Any]:
    """Return how much was confirmed and how much of it is gone or half there."""
    draws = random.Random(seed)
    items: list[str] = []
    events: list[str] = []
    lost, torn, number = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(kills):
            command = [sys.executable, "-c", WRITER, str(folder), str(number)]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            lines = iter(writer.stdout or ())
            next(lines)  # ready
            time.sleep(draws.random() * 0.05)
            writer.kill()
            for kind, _, told in (line.rstrip("\n").partition(" ") for line in lines if line.endswith("\n")):
                (items if kind == "item" else events).append(f"I{told}")
                number = max(number, int(told) + 1)
            writer.wait()
            journal = ItemJournal(folder / "items.jsonl")
            stored = [item["item_id"] for addition in journal.additions for item in addition]
            journal.close()
            store = SQLiteHistories(folder / "users.sqlite")
            history = store.history("u")
            store.close()
            number = max(number, *(int(item[1:]) + 1 for item in stored[-1:]), 0)
            lost += len(set(items) - set(stored)) + len(set(events[-5_000:]) - set(history))
            torn = len(list(folder.glob("*.damaged-*")))
            known = [item for item in history if item in set(events)]
            if stored != sorted(stored, key=lambda item: int(item[1:])) or known != [
                e for e in events if e in set(history)
            ]:
                raise SystemExit("the order of what was written is another one")
    return {
        "version": allmrec_hf.__version__,
        "kills": kills,
        "seed": seed,
        "confirmed_items": len(items),
        "confirmed_events": len(events),
        "lost": lost,
        "torn_ends_put_aside": torn,
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.kills, options.seed), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
