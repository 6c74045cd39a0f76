"""The Markdown page of the speed benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

Measurement = dict[str, Any]
OURS = "allmrec-hf"
HEADER = """# How fast the backbones train and rank

Written by `benchmarks/cf_speed.py`; do not edit by hand. Machine: {machine}. CPU seconds of a process of its own, one
thread; the libraries took turns. Each figure is the median of its repeats, with their range. Only the ratios mean
something on another machine.

```bash
python benchmarks/cf_speed.py --data DATA --output RUNS --rectools-python R/bin/python --recbole-python B/bin/python
```
"""
COMPARED = """
## Beside other libraries

SASRec on MovieLens-1M (file order in place of time, which speed does not depend on): width 64, history 50, 2 blocks,
1 head, dropout 0.2, Adam. `cross_entropy` is over the whole catalogue, `bce` against one sampled item. An epoch is
timed without validation and checkpoints. Ours and RecTools train on the last 50 targets of each user in batches of 128
users; RecTools computes padded positions too, and draws negatives that the user may have seen. **RecBole trains on
every prefix of every sequence, another amount of work**: {batches} of its batches of {recbole_batch} prefixes were
timed and scaled to the epoch (a straight line through 0, no full epoch was run). Its time for 1,000 targets compares
better, though each target costs it a pass over 50 positions.

The evaluation ranks the whole catalogue for every user with seen items left out: ours as in validation (the rank of the
target, NDCG@10 and Hit@10); in brackets `evaluate(protocol="full")`, which also retrieves each user's 100 best items.
RecTools: `recommend` of 10 items and its NDCG@10; RecBole: its own full sort with its default metrics.
"""
SCALED = """
## By number of interactions

SASRec with `bce` (the loss that samples) on generated sequences of 5 to 95 items over {items:,} items.
"""
PROFILED = """
## Where an epoch goes

Shares of the CPU time; `batches` and `collate` are the loader, negative sampling included.
"""


def page(measurements: Sequence[Measurement], machine: str) -> str:
    """Return the whole page, with the parts that were measured."""
    text = HEADER.format(machine=machine)
    for part, section in (("compare", _compared), ("scaling", _scaled), ("profile", _profiled)):
        found = [one for one in measurements if one["part"] == part]
        if found:
            text += section(found)
    return text + "\n" + _versions(measurements)


def _heading(*names: str, words: int) -> str:
    """Return the first two lines of a table whose first columns hold words, the others numbers."""
    return f"\n| {' | '.join(names)} |\n| {' | '.join(['---'] * words + ['---:'] * (len(names) - words))} |\n"


def _grouped(measurements: Sequence[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    groups: defaultdict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for one in measurements:
        groups[one["variant"], one["name"]].append(one)
    return dict(groups)


def _values(measurements: Sequence[Measurement], value: Callable[[Measurement], float]) -> tuple[float, str]:
    values = [value(one) for one in measurements]
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return median(values), f"{median(values):.2f}{spread}"


def _epoch(one: Measurement) -> float:
    return median(one["epoch_seconds"])


def _compared(measurements: Sequence[Measurement]) -> str:
    groups = _grouped(measurements)
    recbole = next((group[0] for (_, name), group in groups.items() if name == "recbole"), {})
    text = COMPARED.format(
        batches=recbole.get("measured_batches", "some"), recbole_batch=recbole.get("batch_size", "its default")
    )
    text += _heading(
        *("loss", "library", "s / epoch", "of ours", "targets", "positions", "s / 1,000 targets", "of ours"),
        *("s / evaluation", "of ours"),
        words=2,
    )
    for (loss, name), group in sorted(groups.items(), key=lambda entry: (entry[0][0] != "cross_entropy", entry[0][1])):
        own = groups.get((loss, OURS), group)
        epoch, epochs = _values(group, _epoch)
        evaluation, evaluations = _values(group, lambda one: one["evaluation_seconds"])
        own_epoch, own_evaluation = _values(own, _epoch)[0], _values(own, lambda one: one["evaluation_seconds"])[0]
        targets, per_target = group[0]["targets"], epoch / group[0]["targets"]
        if "retrieval_seconds" in group[0]:
            evaluations += f" [{_values(group, lambda one: one['retrieval_seconds'])[1]}]"
        text += (
            f"| {loss} | {name} | {epochs} | {epoch / own_epoch:.2f} | {targets:,} | {group[0]['positions']:,} "
            f"| {1000 * per_target:.4f} | {per_target / (own_epoch / own[0]['targets']):.2f} "
            f"| {evaluations} | {evaluation / own_evaluation:.2f} |\n"
        )
    return text


def _scaled(measurements: Sequence[Measurement]) -> str:
    groups = sorted(_grouped(measurements).values(), key=lambda group: group[0]["interactions"])
    counts = np.array([group[0]["interactions"] for group in groups], dtype=np.float64)
    seconds = np.array([_values(group, _epoch)[0] for group in groups])
    text = SCALED.format(items=groups[0][0]["settings"]["num_items"])
    fitted, line = seconds, ""
    if len(groups) > 2:
        slope, start = np.polyfit(counts, seconds, 1)
        fitted = start + slope * counts
        explained = 1 - ((seconds - fitted) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
        line = (
            f"\nStraight line: {1e6 * slope:.2f} s for each million interactions, {start:+.2f} s, R² {explained:.5f}.\n"
        )
    text += _heading("interactions", "users", "runs", "s / epoch", "on the line", "µs / interaction", words=0)
    for group, count, second, expected in zip(groups, counts, seconds, fitted, strict=True):
        text += (
            f"| {count:,.0f} | {group[0]['num_users']:,} | {len(group)} | {_values(group, _epoch)[1]} | {expected:.2f} "
            f"({100 * (second / expected - 1):+.1f} %) | {1e6 * second / count:.2f} |\n"
        )
    return text + line


def _profiled(measurements: Sequence[Measurement]) -> str:
    names = ("batches", "collate", "forward", "backward", "optimizer", "loop")
    text = PROFILED + _heading("trained on", "backbone", "batch", "s / epoch", *names, "loader in all", words=2)
    for (model, kind), group in sorted(_grouped(measurements).items(), key=lambda entry: entry[0][1], reverse=True):
        shares = {name: median(one["shares"][name] for one in group) for name in names}
        text += (
            f"| {kind} ({group[0]['interactions']:,} interactions) | {model} | {group[0]['batch_size']} "
            f"| {_values(group, _epoch)[1]} | {' | '.join(f'{100 * shares[name]:.1f} %' for name in names)} "
            f"| {100 * (shares['batches'] + shares['collate']):.1f} % |\n"
        )
    return text


def _versions(measurements: Sequence[Measurement]) -> str:
    found: dict[str, dict[str, str]] = {}
    for one in measurements:
        library = one["name"] if one["name"] in ("rectools", "recbole") else OURS
        found[library] = one["versions"]
    lines = [
        f"- {library}: {', '.join(f'{package} {number}' for package, number in versions.items())}"
        for library, versions in sorted(found.items())
    ]
    return "## Versions\n\n" + "\n".join(lines) + "\n"
