"""Measure retrieval from large catalogues: exact, the naive way, one topk per large slice, and FAISS indexes.

Every way runs in a process of its own, so that its peak memory is its own. Items lie in clusters, as trained ones do.

Run: python benchmarks/retrieval_speed.py --output benchmarks/results/retrieval_speed.json --machine "2 cores, CPU"
FAISS rows need `pip install 'allmrec-hf[retrieval]'`; without it they are left out. The figures are written after every
run, and those of other runs already in the file are kept, so the work can be split by `--items` and `--ways`.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

EXACT_WAYS = ("exact", "one topk per slice", "naive")
FAISS_WAYS = ("ivf",)
LEAST_ITEMS_FAISS = 100_000


def clustered(num_items: int, num_users: int, width: int, seed: int) -> tuple:
    """Return users `(B, d)` and an item table `(N + 1, d)` around 1,000 centres, items of various norms."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(1000, width, generator=generator)
    table = torch.zeros(num_items + 1, width)
    for rows in table[1:].split(50_000):  # in place, so that the peak of memory is the table itself
        rows.normal_(generator=generator).mul_(0.7)
        rows += centres[torch.randint(0, 1000, (len(rows),), generator=generator)]
        rows *= torch.randn(len(rows), 1, generator=generator).mul_(0.2).exp_()
    users = centres[torch.randint(0, 1000, (num_users,), generator=generator)]
    return users + 0.7 * torch.randn(num_users, width, generator=generator), table


def one_topk_per_slice(users, table, k: int, slice_scores: int = 2**26) -> tuple:
    """Return the best k by a full topk of each slice of 64 M scores: what `exact_top_items` is compared with."""
    import torch

    items, scores = torch.zeros(len(users), 0, dtype=torch.long), users.new_zeros(len(users), 0)
    step = max(k, slice_scores // len(users))
    for start in range(1, len(table), step):
        part, columns = (users @ table[start : start + step].T).topk(min(k, len(table[start : start + step])))
        items, scores = torch.cat([items, columns + start], dim=1), torch.cat([scores, part], dim=1)
        scores, order = scores.topk(min(k, scores.shape[1]))
        items = items.gather(1, order)
    return items, scores


def peak_mib() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(run: Callable[[], object], repeats: int) -> dict:
    """Time a call after one that is not counted: wall-clock (least and median) and the CPU time of all threads."""
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - started_cpu))
    figures = {"ms": min(wall), "median_ms": statistics.median(wall), "cpu_ms": min(cpu)}
    return {name: round(value, 2) for name, value in figures.items()}


def child(task: dict) -> dict:
    """Measure one way on one catalogue."""
    import torch

    from allmrec_hf.retrieval import FaissIndex, exact_top_items

    torch.set_num_threads(task["threads"])
    users, table = clustered(task["items"], task["users"], task["width"], task["seed"])
    exclude = torch.randint(0, task["items"] + 1, (task["users"], 50), generator=torch.Generator().manual_seed(1))
    before = peak_mib()
    result = {"way": task["way"], "items": task["items"], "k": task["k"]}
    if task["way"] in EXACT_WAYS:
        ways = {
            "exact": lambda: exact_top_items(
                lambda part, start, stop: part @ table[start:stop].T, users, len(table) - 1, task["k"]
            ),
            "one topk per slice": lambda: one_topk_per_slice(users, table, task["k"]),
            "naive": lambda: (users @ table.T)[:, 1:].topk(task["k"])[::-1],
        }
        result |= timed(ways[task["way"]], task["repeats"])
        result["extra_mib"] = round(peak_mib() - before, 1)
        torch.testing.assert_close(ways[task["way"]]()[1], one_topk_per_slice(users, table, task["k"])[1])
        if task["way"] == "exact":
            score_range = lambda part, start, stop: part @ table[start:stop].T  # noqa: E731
            excluding = timed(
                lambda: exact_top_items(score_range, users, len(table) - 1, task["k"], exclude), task["repeats"]
            )
            result["ms_excluding_50"], result["cpu_ms_excluding_50"] = excluding["ms"], excluding["cpu_ms"]
        return result
    import faiss

    faiss.omp_set_num_threads(task["threads"])
    started = time.perf_counter()
    index = FaissIndex(table)
    result |= {"build_s": round(time.perf_counter() - started, 2), "breadth": index.breadth, "faiss": faiss.__version__}
    result["recall"] = round(index.recall_against_exact(users, task["k"]), 4)
    result |= timed(lambda: index.search(users, task["k"]), task["repeats"])
    result["extra_mib"] = round(peak_mib() - before, 1)
    return result


def main() -> None:
    """Measure every way on every catalogue, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_700, 10_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--ways", nargs="+", choices=[*EXACT_WAYS, *FAISS_WAYS], default=[*EXACT_WAYS, *FAISS_WAYS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="not described")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    result: dict = {"machine": options.machine, "users": options.users, "width": options.width}
    result |= {"threads": options.threads, "dtype": "float32", "seed": options.seed, "runs": []}
    if options.output and options.output.exists():
        result["runs"] = json.loads(options.output.read_text(encoding="utf-8"))["runs"]
    for items, way, k in itertools.product(options.items, options.ways, options.k):
        if way in FAISS_WAYS and (items < LEAST_ITEMS_FAISS or not importlib.util.find_spec("faiss")):
            continue
        task = {"items": items, "way": way, "k": k}
        result["runs"] = [run for run in result["runs"] if any(run[name] != task[name] for name in task)]
        task |= {name: getattr(options, name) for name in ("users", "width", "threads", "repeats", "seed")}
        command = [sys.executable, __file__, "--child", json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        result["runs"].append(json.loads(output))
        print(json.dumps(result["runs"][-1]), flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
