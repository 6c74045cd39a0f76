"""Measure `prepare` on generated interactions of the size of the paper's largest data set (3.4 million).

Run: python benchmarks/prepare_speed.py --output benchmarks/results/prepare_speed.json --machine "2 cores, CPU"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

USERS, ITEMS, INTERACTIONS = 297_498, 59_944, 3_409_147
FIRST_TIME, LAST_TIME = 946_684_800, 1_538_352_000
WORDS = ["lost", "harbor", "silent", "winter", "golden", "road", "glass", "river", "night", "summer", "paper", "stone"]
CHILD = """
import json, sys, time
from allmrec_hf.data.prepare import prepare
started = time.perf_counter()
data = prepare(sys.argv[1], sys.argv[2], output=sys.argv[3])
resources = {**data.info["resources"], "seconds_with_writing": round(time.perf_counter() - started, 3)}
print(json.dumps({"resources": resources, "report": data.info["report"]}))
"""
LOAD = """
import json, sys, time
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.data_report import peak_memory_mib
started = time.perf_counter()
data = PreparedData.load(sys.argv[1])
loaded = time.perf_counter() - started
rows = len(data.candidates("test"))
print(json.dumps({"seconds": round(loaded, 3), "seconds_with_candidates": round(time.perf_counter() - started, 3),
                  "candidate_rows": rows, "peak_memory_mib": peak_memory_mib()}))
"""


def generate(directory: Path, ending: str, interactions: int, users: int, items: int, seed: int) -> tuple[Path, Path]:
    """Write Zipf-like interactions (long-tailed users and items, days as times, 1 % repeats) and items with titles."""
    rng = np.random.default_rng(seed)
    activity = rng.pareto(1.6, users) + 1.5
    user = np.concatenate([np.arange(users), rng.choice(users, interactions - users, p=activity / activity.sum())])
    popularity = 1 / (np.arange(items) + 10.0) ** 0.8
    item = rng.choice(items, interactions, p=popularity / popularity.sum())
    day = rng.integers(FIRST_TIME // 86_400, LAST_TIME // 86_400, interactions)
    frame = pl.DataFrame(
        {"user": user, "item": item, "timestamp": day * 86_400, "rating": rng.integers(1, 6, user.size)}
    )
    repeats = frame.sample(interactions // 100, seed=seed)
    frame = pl.concat([frame[: interactions - repeats.height], repeats]).sample(fraction=1.0, shuffle=True, seed=seed)
    frame = frame.select(
        pl.format("A{}", pl.col("user").cast(pl.String).str.zfill(13)).alias("user_id"),
        pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)).alias("item_id"),
        "timestamp",
        pl.col("rating").cast(pl.Float64),
    )
    words = rng.integers(0, len(WORDS), (items, 4))
    catalog = pl.DataFrame(
        {
            "item_id": [f"B{number:09d}" for number in range(items)],
            "title": [" ".join(WORDS[word] for word in row) for row in words],
            "description": [" ".join(WORDS[word] for word in row[::-1]) * 5 for row in words],
        }
    )
    paths = directory / f"interactions.{ending}", directory / f"items.{ending}"
    for table, path in zip((frame, catalog), paths, strict=True):
        table.write_csv(path) if ending == "csv" else table.write_parquet(path)
    return paths


def run_child(program: str, *arguments: object) -> dict:
    """Run a program in a process of its own, so that its peak memory is its own, and return what it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Generate, prepare, load, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interactions", type=int, default=INTERACTIONS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="not described")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        paths = generate(directory, options.format, options.interactions, options.users, options.items, options.seed)
        prepared = run_child(CHILD, *paths, directory / "prepared")
        result = {
            "machine": options.machine,
            "format": options.format,
            "megabytes": round(paths[0].stat().st_size / 1e6, 1),
            "prepare": prepared["resources"],
            "load": run_child(LOAD, directory / "prepared"),
            "report": prepared["report"],
            "versions": {"polars": pl.__version__, "numpy": np.__version__},
        }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
