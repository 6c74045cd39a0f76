"""Kill training, saving, adding items, serving and recommending in bulk with SIGKILL at random moments.

Each work is first done undisturbed, which gives its result and its time. Then a process does the same, is killed after
a random part of that time, and the work is taken up again, until the kills are used up and it ends. Counted is what was
wrong afterwards: something confirmed that is gone, something that cannot be read, another end than the undisturbed one.

Run: python benchmarks/kills.py [--kills 200] [--minutes 60] [--seed 0] [--work NAME] [--output FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl  # all is imported here and never used by this process: children start at once, forking is safe
import requests
import torch
from safetensors.torch import load_file

import allmrec_hf
from allmrec_hf import ItemCatalog
from allmrec_hf.batch_inference.recommend_users import recommend_users
from allmrec_hf.batch_inference.results import BatchSettings
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.data.new_items import add_items
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.serving.http_server import ModelSource, ServiceSettings, serve_http
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.trainer import ALLMRecTrainer

DEMO = Path(allmrec_hf.DEMO_CHECKPOINT)
LONGEST_S = 600.0


def forked(work: Callable[[], None]) -> int:
    """Start a process that does some work and ends with 0; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(child: int, seconds: float) -> int | None:
    """Wait for the end of a process; return its status, or None where it goes on after that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def kill(child: int) -> None:
    """Kill a process and wait for its end."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def whole(work: Callable[[], None]) -> float:
    """Do some work in a process of its own; return its seconds."""
    started = time.monotonic()
    child = forked(work)
    status = ended(child, LONGEST_S)
    if status is None:
        kill(child)
    if status != 0:
        raise SystemExit(f"the work failed or took longer than {LONGEST_S:g} s (status {status})")
    return time.monotonic() - started


class Tally:
    """What the kills of a work did: their number, and what was wrong."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.kills = self.finished_before = self.rounds = 0
        self.wrong: list[str] = []

    def goes_on(self, kills: int) -> bool:
        """Tell whether there are kills and time left."""
        return self.kills < kills and time.monotonic() < self.until

    def killed_after(self, child: int, seconds: float) -> bool:
        """Kill a process after some time; tell whether it was still at work, and note an end with an error."""
        status = ended(child, seconds)
        if status is None:
            kill(child)
            self.kills += 1
            return True
        self.finished_before += 1
        if status != 0:
            self.wrong.append(f"kill {self.kills}: taken up again, the work ended with an error ({status})")
        return False

    def check(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(f"kill {self.kills}: {what}")

    def told(self) -> dict[str, Any]:
        """Return the counts."""
        return {"kills": self.kills, "rounds": self.rounds, "wrong": len(self.wrong), "examples": self.wrong[:10]}


def in_child(work: Callable[[], Any]) -> Any:
    """Return what some work returns as JSON, done in a process of its own; None where it fails."""
    read, write = os.pipe()

    def tell() -> None:
        os.write(write, json.dumps(work()).encode())

    child = forked(tell)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def digest(path: Path) -> str:
    """Return a digest of a file's tensors, or of its bytes."""
    found = hashlib.sha256()
    if path.suffix == ".safetensors":
        for name, value in sorted(load_file(path).items()):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.contiguous().numpy().tobytes())
    else:
        found.update(path.read_bytes())
    return found.hexdigest()


# -- training


def training(kills: int, draws: random.Random, place: Path, until: float) -> dict[str, Any]:
    """Kill runs of all stages; a run that is gone on with gives the undisturbed weights."""

    def make_data() -> None:
        world = SyntheticWorld(num_items=60, num_users=60)
        prepare(world.interactions(), world.items(), output=place / "data", filter="none", num_candidates=5)

    def train(output: Path) -> None:
        loop = {"num_train_epochs": 2, "max_steps": 6, "per_device_train_batch_size": 16, "save_steps": 2, "seed": 3}
        loop |= {"early_stopping_patience": None, "max_validation_users": 10, "min_steps": None}
        flat = {"llm_name": "demo", "text_encoder": "demo", "joint_dim": 8, "warm_start_steps": 2, "num_candidates": 5}
        flat["backbone_options"] = {"hidden_size": 16, "num_layers": 1}
        sections: dict[str, Any] = {stage: dict(loop) for stage in ("backbone", "align", "project")}
        arguments = ALLMRecTrainingArguments(output, **sections).with_flat(**flat)
        trainer = ALLMRecTrainer(args=arguments, data=PreparedData.load(place / "data"))
        trainer.train(("backbone", "align", "project"), resume_from_checkpoint=True)

    def result(output: Path) -> Any:
        files = ("model.safetensors", "items.parquet", "backbone/model.safetensors")
        return [digest(output / name) for name in files]

    whole(make_data)
    seconds = whole(lambda: train(place / "whole"))
    expected = in_child(lambda: result(place / "whole"))
    tally = Tally(until)
    while tally.goes_on(kills):
        output = place / f"run-{tally.rounds}"
        going_on = True
        while going_on:  # killed again and again, a little later each time, until it ends
            left = tally.goes_on(kills)
            going_on = tally.killed_after(
                forked(partial(train, output)),
                draws.uniform(0.05, seconds) if left else LONGEST_S,
            )
        tally.check(in_child(partial(result, output)) == expected, "the weights are others than the undisturbed ones")
        shutil.rmtree(output)
        tally.rounds += 1
    return tally.told()


# -- saving and adding items


def _checkpoint_rows(folder: Path) -> Any:
    """Return the rows of a checkpoint's table and catalogue and its highest item by a request, read as users do."""
    pipe = load_pipeline(str(folder))
    best = pipe({"history": ["M0001", "M0002"]}, ranker="cf", top_k=3)
    return [pipe.model.cf_encoder.num_items, len(pipe.processor.catalog), [row["item_id"] for row in best]]


def saving(kills: int, draws: random.Random, place: Path, until: float) -> dict[str, Any]:
    """Kill a process that saves two versions of a checkpoint in turn; what is there is whole, of one of them."""
    folder, small = place / "model", place / "small"

    def make() -> None:
        pipe = load_pipeline("demo")
        pipe.save_pretrained(small)
        pipe.save_pretrained(folder)

    def save() -> None:
        first, second = load_pipeline("demo"), load_pipeline("demo")
        second.add_items([{"item_id": f"S{n}", "title": f"Saved {n}"} for n in range(3)])
        (place / "ready").touch()
        while True:
            first.save_pretrained(folder)
            second.save_pretrained(folder)

    whole(make)
    known = in_child(lambda: _checkpoint_rows(small))
    tally = Tally(until)
    while tally.goes_on(kills):
        (place / "ready").unlink(missing_ok=True)
        child = forked(save)
        while not (place / "ready").exists():
            time.sleep(0.002)
        tally.killed_after(child, draws.uniform(0.0, 0.6))
        found = in_child(lambda: _checkpoint_rows(folder))
        same = found is not None and found[0] == found[1] and found[0] in (known[0], known[0] + 3)
        tally.check(same, f"the folder holds {found}")
        tally.check(not list(folder.glob(".*.ready")), "something is left to be put in place")
        tally.rounds += 1
    return tally.told()


def adding(kills: int, draws: random.Random, place: Path, until: float) -> dict[str, Any]:
    """Kill a process that adds items to a checkpoint in place; all are there or none, and adding again ends well."""
    source, folder = place / "source", place / "model"
    items = [{"item_id": f"A{n}", "title": f"Added {n}", "description": "A crime film."} for n in range(5)]

    def make() -> None:
        load_pipeline("demo").save_pretrained(source)
        shutil.copytree(source, place / "whole")
        add_items(str(place / "whole"), items)

    whole(make)
    known = in_child(lambda: _checkpoint_rows(source))
    expected = in_child(lambda: [digest(place / "whole" / name) for name in ("model.safetensors", "items.parquet")])
    shutil.copytree(source, folder)
    seconds = whole(lambda: add_items(str(folder), items) and None)
    tally = Tally(until)
    while tally.goes_on(kills):
        shutil.rmtree(folder)
        shutil.copytree(source, folder)
        # Half of the kills fall into the last third, where the files are written.
        start = 0.0 if draws.random() < 0.5 else 2 * seconds / 3
        tally.killed_after(forked(lambda: add_items(str(folder), items) and None), draws.uniform(start, seconds * 1.1))
        found = in_child(lambda: _checkpoint_rows(folder))
        whole_one = found is not None and found[0] == found[1] and found[0] in (known[0], known[0] + 5)
        tally.check(whole_one, f"the folder holds {found}")
        if whole_one and found[0] == known[0]:
            whole(lambda: add_items(str(folder), items) and None)
        again = in_child(lambda: [digest(folder / name) for name in ("model.safetensors", "items.parquet")])
        tally.check(again == expected, "after adding again it is another checkpoint")
        tally.rounds += 1
    return tally.told()


# -- serving


def serving(kills: int, draws: random.Random, place: Path, until: float) -> dict[str, Any]:
    """Kill a service while items and events are posted; everything that was confirmed is there afterwards."""

    def started() -> tuple[int, str]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = int(found.getsockname()[1])

        def serve() -> None:
            source = ModelSource(str(DEMO), lambda: load_pipeline("demo"))
            serve_http({"demo": source}, ServiceSettings(port=port, state=place / "state"))

        return forked(serve), f"http://127.0.0.1:{port}"

    def wait(url: str) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if requests.get(f"{url}/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.02)
        raise SystemExit("the service does not start again")

    tally, items, events, number = Tally(until), [], [], 0
    child, url = started()
    while tally.goes_on(kills):
        wait(url)
        killer = threading.Timer(draws.uniform(0.0, 0.4), os.kill, (child, signal.SIGKILL))
        killer.start()
        try:
            while True:
                name, number = f"K{number}", number + 1
                body: dict[str, Any] = {"items": [{"item_id": name, "title": f"Killed {name}"}]}
                if requests.post(f"{url}/v1/items", json=body, timeout=30).status_code == 201:
                    items.append(name)
                body = {"events": [{"user_id": "u", "item_id": name}]}
                if requests.post(f"{url}/v1/events", json=body, timeout=30).status_code == 201:
                    events.append(name)
        except requests.RequestException:
            pass
        killer.join()
        os.waitpid(child, 0)
        tally.kills += 1
        child, url = started()
        wait(url)
        stored = requests.get(f"{url}/v1/users/u/history", timeout=30).json().get("history", [])
        confirmed = [item for item in stored if item in set(events)]
        tally.check(confirmed == events, "confirmed events are gone or in another order")
        asked = [*items[-3:], *draws.sample(items, min(3, len(items)))]
        there = [requests.get(f"{url}/v1/items/{item}", timeout=30).ok for item in asked]
        tally.check(all(there), "confirmed items are gone")
        tally.rounds += 1
    kill(child)
    lost = in_child(lambda: len(set(items) - _journaled(place / "state" / "items-demo.jsonl")))
    tally.check(lost == 0, f"{lost} confirmed items are not in the journal")
    return {**tally.told(), "confirmed_items": len(items), "confirmed_events": len(events)}


def _journaled(path: Path) -> set[str]:
    from allmrec_hf.serving.item_journal import ItemJournal

    journal = ItemJournal(path)
    journal.close()
    return {item["item_id"] for addition in journal.additions for item in addition}


# -- recommending in bulk


def bulk(kills: int, draws: random.Random, place: Path, until: float) -> dict[str, Any]:
    """Kill a run over a file of users; gone on with, it writes the undisturbed table."""

    def make() -> None:
        ids = ItemCatalog.load(DEMO).item_ids
        rows = {"user": list(range(60)), "history": [ids[n : n + 1 + n % 9] for n in range(60)]}
        pl.DataFrame(rows).write_parquet(place / "users.parquet")

    def light() -> Any:
        pipe = load_pipeline("demo")
        return pipe.model, pipe.processor

    def recommend(output: Path) -> None:
        settings = BatchSettings(top_k=5, ranker="likelihood", batch_size=4)
        recommend_users(
            place / "users.parquet", output, lambda: load_pipeline("demo"), light, settings, rows_per_part=6
        )

    def result(output: Path) -> Any:
        return pl.read_parquet(output).write_json()

    whole(make)
    seconds = whole(lambda: recommend(place / "whole.parquet"))
    expected = in_child(lambda: result(place / "whole.parquet"))
    tally = Tally(until)
    while tally.goes_on(kills):
        output = place / f"out-{tally.rounds}.parquet"
        going_on = True
        while going_on:
            left = tally.goes_on(kills)
            going_on = tally.killed_after(
                forked(partial(recommend, output)),
                draws.uniform(0.05, seconds) if left else LONGEST_S,
            )
            if going_on and output.exists():  # killed after the last rename: a new call says that it is there
                going_on = False
        tally.check(in_child(partial(result, output)) == expected, "the table is another than the undisturbed one")
        tally.rounds += 1
    return tally.told()


WORKS: dict[str, Callable[[int, random.Random, Path, float], dict[str, Any]]] = {
    "training": training,
    "saving": saving,
    "adding": adding,
    "serving": serving,
    "bulk": bulk,
}


def measure(kills: int, seed: int, only: list[str], minutes: float) -> dict[str, Any]:
    """Return what the kills of each work did; they share number and time evenly."""
    chosen = only or list(WORKS)
    found: dict[str, Any] = {}
    for number, name in enumerate(chosen):
        share = kills // len(chosen) + (number < kills % len(chosen))
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            found[name] = WORKS[name](
                share, random.Random(f"{seed} {name}"), Path(place), started + 60 * minutes / len(chosen)
            )
        found[name]["seconds"] = round(time.monotonic() - started, 1)
        print(name, found[name], file=sys.stderr, flush=True)
    return {
        "version": allmrec_hf.__version__,
        "seed": seed,
        "kills": sum(one["kills"] for one in found.values()),
        "wrong": sum(one["wrong"] for one in found.values()),
        "works": found,
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="shared by the works; then they end with fewer kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", action="append", default=[], choices=list(WORKS), help="only this one")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.kills, options.seed, options.work, options.minutes), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
