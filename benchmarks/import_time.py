"""Measure what `import allmrec_hf` adds to `import transformers`, each in fresh processes.

Run: python benchmarks/import_time.py [--repeats 9] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import allmrec_hf

TIMED = "import time; {}; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
AUTO_CLASSES = "from transformers import AutoModel, AutoProcessor, pipeline"
PROGRAMS = {  # what is imported before the clock starts, and what is timed
    "transformers": ("pass", "import transformers"),
    "transformers_and_allmrec_hf": ("pass", "import transformers, allmrec_hf"),
    "allmrec_hf_after_transformers": ("import transformers", "import allmrec_hf"),
    "auto_classes": ("pass", AUTO_CLASSES),
    "auto_classes_and_allmrec_hf": ("pass", f"import allmrec_hf; {AUTO_CLASSES}"),
    "allmrec_hf_after_auto_classes": (AUTO_CLASSES, "import allmrec_hf"),
}


def seconds(program: tuple[str, str]) -> float:
    """Return how long a fresh process takes for some imports, after others."""
    command = [sys.executable, "-c", TIMED.format(*program)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(repeats: int) -> dict[str, object]:
    """Return the median seconds of each program, and what this package adds; the programs take turns."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        seconds(program)  # from now on the files are in the memory of the system
    for _ in range(repeats):
        for name, program in PROGRAMS.items():
            times[name].append(seconds(program))
    medians = {name: statistics.median(values) for name, values in times.items()}
    alone, added = medians["transformers"], medians["allmrec_hf_after_transformers"]
    return {
        "version": allmrec_hf.__version__,
        "repeats": repeats,
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "added_seconds": round(added, 4),  # timed by itself: less noisy than a difference of two processes
        "ratio": round((alone + added) / alone, 4),
    }


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.repeats), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
