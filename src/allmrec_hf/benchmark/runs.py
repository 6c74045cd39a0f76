"""A benchmark run: one method with one seed in one scenario of one data set. A stored run is not computed again.

```
OUTPUT/runs/<dataset>--<scenario>--<label>--<seed>--<digest>/result.json      what was run and its results
                                                             /per_user.parquet every user's rank and ties
```
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import ALLMRecError, DataError
from ..files import PARQUET_ERRORS, written_whole
from ..stored_values import json_value

RUNS = "runs"
RESULT_FILE, RANKS_FILE = "result.json", "per_user.parquet"
FORMAT = 3  # 1 had ranks without their ties, from which metrics cannot be made; 2 no ranking of the whole catalogue
_UNSAFE = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class RunKey:
    """Everything that identifies a benchmark run; keys with different digests are different runs.

    Attributes:
        dataset: Name of the data set within the suite.
        scenario: Name of the scenario with its parameters, such as `few-shot-256`.
        label: The method's name in tables, unique within the suite.
        method: The method's name in the registry.
        seed: The seed.
        facts: Everything else that decides the result: options, LLM, preset, budget, how the data were made.
    """

    dataset: str
    scenario: str
    label: str
    method: str
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return twelve hexadecimal digits over everything in the key."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def folder_name(self) -> str:
        """Return a name for the run's folder that no label can break out of."""
        words = [_UNSAFE.sub("-", part.lower()).strip("-")[:40] for part in (self.dataset, self.scenario, self.label)]
        return "--".join([*words, str(self.seed), self.digest])


@dataclass(frozen=True)
class BenchmarkRun:
    """A finished benchmark run.

    Attributes:
        key: What it is.
        report: `EvaluationResult.report` of this one method.
        ranks: `EvaluationResult.per_user()`: user_id, target, a Boolean column for each group, method, rank, tied,
            answer.
        seconds: Wall-clock time of training and evaluation.
        details: What the method says of itself: `paper`, `simplified`, LLM and its size, geometry, ...
    """

    key: RunKey
    report: Mapping[str, Any]
    ranks: pl.DataFrame
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)


def run_folder(output: Path, key: RunKey) -> Path:
    """Return where a run is kept."""
    return output / RUNS / key.folder_name


def is_done(output: Path, key: RunKey) -> bool:
    """Tell whether a run was finished, in the form that this version writes; `result.json` is the last file written.

    A run of an older form counts as missing and is computed again. A damaged run is reported when it is read.
    """
    file = run_folder(output, key) / RESULT_FILE
    try:
        written = json_value(file.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return file.is_file()
    return not (isinstance(written, int) and written < FORMAT)


def save_run(output: Path, run: BenchmarkRun) -> Path:
    """Write a run and return its folder; a kill leaves either a whole run or none."""
    folder = run_folder(output, run.key)
    (folder / RESULT_FILE).unlink(missing_ok=True)  # of an older form
    with written_whole(folder / RANKS_FILE) as temporary:
        run.ranks.write_parquet(temporary)
    content = {
        "format": FORMAT,
        "key": asdict(run.key),
        "report": dict(run.report),
        "seconds": run.seconds,
        "details": dict(run.details),
    }
    with written_whole(folder / RESULT_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def load_run(folder: Path) -> BenchmarkRun:
    """Read a finished run.

    Raises:
        DataError: when a file is missing or damaged.
    """
    try:
        content = json_value((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(
                f"{folder} has format {content['format']}, this version reads {FORMAT}; delete the folder to compute "
                "it again"
            )
        ranks = pl.read_parquet(folder / RANKS_FILE)
        return BenchmarkRun(RunKey(**content["key"]), content["report"], ranks, content["seconds"], content["details"])
    except (*PARQUET_ERRORS, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ALLMRecError):
            raise
        raise DataError(f"{folder} is no finished run ({error!r}); delete the folder to compute it again") from error


def check_same_candidates(runs: list[BenchmarkRun]) -> None:
    """Check that all runs of one data set and scenario were ranked on the same candidate file.

    Raises:
        DataError: naming the two benchmark runs.
    """
    first: dict[tuple[str, str], BenchmarkRun] = {}
    for run in runs:
        other = first.setdefault((run.key.dataset, run.key.scenario), run)
        for name in ("candidates_sha256", "users", "protocol", "split", "num_retrieved"):
            if run.report.get(name) != other.report.get(name):
                raise DataError(
                    f"{run.key.label} (seed {run.key.seed}) and {other.key.label} (seed {other.key.seed}) cannot be "
                    f"compared on {run.key.dataset}, {run.key.scenario}: {name} is {run.report.get(name)!r} "
                    f"and {other.report.get(name)!r}; evaluate both on the same candidate file "
                    "(delete one run and run again)"
                )


def discard_unfinished(output: Path) -> None:
    """Remove what a kill left of runs that were being written."""
    for folder in (output / RUNS).glob("*"):
        if folder.is_dir() and not (folder / RESULT_FILE).exists():
            shutil.rmtree(folder)
