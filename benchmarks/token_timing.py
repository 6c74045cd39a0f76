"""Measure whether the time of refusing a token tells how much of it is right.

Tokens that share none, half, and all but the last of the characters with the valid one are refused in random order; all
are made before the first is timed. Told are the median nanoseconds of each kind, and Welch's t of the first against the
others, of the fastest nine tenths of the refusals: beyond about 4.5 a difference would be real.

Run: python benchmarks/token_timing.py [--refusals 60000] [--seed 0] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import string
import time
from pathlib import Path
from typing import Any

import allmrec_hf
from allmrec_hf.serving.bearer_tokens import BearerTokens
from allmrec_hf.serving.service_errors import ServiceError

LENGTH = 64


def refused_in(tokens: BearerTokens, header: str) -> int:
    """Return the nanoseconds that a refusal takes."""
    started = time.perf_counter_ns()
    try:
        tokens.check(header, writes=False)
    except ServiceError:
        return time.perf_counter_ns() - started
    raise SystemExit("a wrong token was taken")


def welch_t(first: list[int], second: list[int]) -> float:
    """Return Welch's t of two samples."""
    spread = statistics.variance(first) / len(first) + statistics.variance(second) / len(second)
    return (statistics.fmean(first) - statistics.fmean(second)) / math.sqrt(spread)


def measure(refusals: int, seed: int) -> dict[str, Any]:
    """Return what the times tell."""
    draws = random.Random(seed)
    letters = string.ascii_letters + string.digits
    valid = "".join(draws.choice(letters) for _ in range(LENGTH))
    tokens = BearerTokens([valid])
    tokens.check(f"Bearer {valid}", writes=False)
    kinds = (0, LENGTH // 2, LENGTH - 1)
    made = []
    for _ in range(refusals + 1000):
        shared = draws.choice(kinds)
        rest = [draws.choice(letters.replace(valid[place], "")) for place in range(shared, LENGTH)]
        made.append((shared, f"Bearer {valid[:shared]}{''.join(rest)}"))
    seconds: dict[int, list[int]] = {shared: [] for shared in kinds}
    for number, (shared, header) in enumerate(made):
        took = refused_in(tokens, header)
        if number >= 1000:  # the first ones warm caches up
            seconds[shared].append(took)
    kept = {shared: sorted(times)[: len(times) * 9 // 10] for shared, times in seconds.items()}
    return {
        "version": allmrec_hf.__version__,
        "seed": seed,
        "refusals": sum(map(len, seconds.values())),
        "median_ns": {f"{shared} of {LENGTH} right": statistics.median(times) for shared, times in seconds.items()},
        "welch_t_against_none_right": {
            f"{shared} of {LENGTH} right": round(welch_t(times, kept[0]), 2) for shared, times in kept.items() if shared
        },
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refusals", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.refusals, options.seed), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
