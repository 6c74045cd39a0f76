"""Time CF training and evaluation: ours beside RecTools and RecBole, by size of the data, and by part of an epoch.

    python benchmarks/cf_speed.py --data DATA --output RUNS --machine "2 cores" \
        --rectools-python R/bin/python --recbole-python B/bin/python

`--data` holds `interactions.parquet` and `items.parquet`. Every figure is CPU time of a process of its own with one
thread, the libraries take turns, and the median of the repeats is reported. Each measurement is a JSON file in
`RUNS/speed`, written as soon as it is done and not made again, so an interrupted command goes on where it stopped
(`--again` measures anew). At the end all that were found become `benchmarks/results/cf_speed.json` and
`docs/results/cf_speed.md`. A library whose Python is not given is left out. What each Python must have installed stands
at the top of its script in `other_libraries`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cf_quality import write_problem
from speed_table import page

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.files import written_whole

HERE = Path(__file__).resolve().parent
OURS = "allmrec-hf"
PARTS = ("compare", "scaling", "profile")
LOSSES = ("cross_entropy", "bce")
SIZES = {"hidden_size": 64, "max_history_length": 50, "num_layers": 2, "num_heads": 1, "dropout": 0.2}
TRAINING = {"batch_size": 128, "learning_rate": 1e-3}
RECBOLE_BATCHES = 24
INTERACTIONS = (100_000, 300_000, 1_000_000, 3_000_000, 5_000_000)
REPEATED_UP_TO = 1_000_000  # interactions; larger data are trained on once
GENERATED_ITEMS = 10_000
PROFILED = {"sequences": ("sasrec", "cross_entropy"), "interactions": ("bprmf", "bpr")}


@dataclass(frozen=True)
class Measurement:
    """One process to time.

    Attributes:
        part: One of `PARTS`.
        name: What is timed, such as a library's name.
        variant: The loss, the number of interactions, or the backbone.
        repeat: The number of the repeat.
        settings: What the process is told.
    """

    part: str
    name: str
    variant: str
    repeat: int
    settings: dict[str, Any] = field(compare=False)

    def path(self, output: Path) -> Path:
        """Return the file of the measurement."""
        return output / "speed" / f"{self.part}--{self.name}--{self.variant}--{self.repeat}.json"


def own_settings(part: str, model: str, loss: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a process of ours."""
    config = {"loss": loss, "hidden_size": SIZES["hidden_size"], "max_history_length": SIZES["max_history_length"]}
    if model == "sasrec":
        config |= SIZES
    training = TRAINING if model == "sasrec" else {}
    common = {"seed": 0, "threads": options.threads, "epochs": options.epochs}
    return {**common, "part": part, "model": model, "config": config, "training": training}


def compare(options: argparse.Namespace, pythons: dict[str, str]) -> list[Measurement]:
    """Return the libraries in turn, for each loss."""
    found = []
    for repeat in range(options.repeats):
        for loss in LOSSES:
            theirs = {**SIZES, **TRAINING, "loss": loss, "seed": repeat, "threads": options.threads, "epochs": 1}
            found.append(Measurement("compare", OURS, loss, repeat, own_settings("compare", "sasrec", loss, options)))
            if "rectools" in pythons:
                found.append(Measurement("compare", "rectools", loss, repeat, theirs))
            if "recbole" in pythons and loss == "cross_entropy":
                found.append(Measurement("compare", "recbole", loss, repeat, {**theirs, "batches": RECBOLE_BATCHES}))
    return found


def scaling(options: argparse.Namespace) -> list[Measurement]:
    """Return the sizes in turn."""
    found = []
    for repeat in range(options.repeats):
        for count in options.interactions:
            if repeat and count > REPEATED_UP_TO:
                continue
            settings = own_settings("scaling", "sasrec", "bce", options) | {
                "interactions": count, "num_items": GENERATED_ITEMS,
            }  # fmt: skip
            found.append(Measurement("scaling", OURS, str(count), repeat, settings))
    return found


def profile(options: argparse.Namespace) -> list[Measurement]:
    """Return both kinds of training in turn."""
    return [
        Measurement("profile", kind, model, repeat, own_settings("profile", model, loss, options))
        for repeat in range(options.repeats)
        for kind, (model, loss) in PROFILED.items()
    ]


def measured(measurement: Measurement, data: Path, problem: Path, python: str, threads: int) -> dict[str, Any]:
    """Run the process of a measurement and return what it measured."""
    own = measurement.name not in ("rectools", "recbole")
    script = HERE / "cf_speed_ours.py" if own else HERE / "other_libraries" / f"{measurement.name}_speed.py"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    if not own:
        environment.pop("PYTHONPATH", None)  # it is our own Python's
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(measurement.settings), encoding="utf-8")
        arguments = [str((data if own else problem).resolve()), str(folder / "settings.json"), str(folder)]
        done = subprocess.run(
            [python, str(script), *arguments], capture_output=True, text=True, env=environment, cwd=folder
        )
        if done.returncode:
            raise RuntimeError(f"{script.name} failed:\n{done.stderr[-3000:]}")
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def write_report(options: argparse.Namespace) -> None:
    """Write the JSON of all measurements and the Markdown page."""
    paths = sorted((options.output / "speed").glob("*.json"))
    measurements = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not measurements:
        print("nothing was measured yet, so there is nothing to report")
        return
    result = json.dumps({"machine": options.machine, "measurements": measurements}, indent=1) + "\n"
    for path, content in ((options.results, result), (options.table, page(measurements, options.machine))):
        with written_whole(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(f"{len(measurements)} measurements are in {options.results} and {options.table}")


def prepared(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the folders of the prepared data and of the arrays for other libraries, made once."""
    folder, problem = options.output / "speed_data", options.output / "speed_problem"
    if not (folder / "dataset.json").exists():
        prepare(options.data / "interactions.parquet", options.data / "items.parquet", output=folder, name="speed")
    write_problem(PreparedData.load(folder), problem)
    return folder, problem


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds interactions.parquet and items.parquet")
    parser.add_argument("--output", type=Path, required=True, help="gets prepared data and measurements")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="epochs of ours in each process")
    parser.add_argument("--interactions", type=int, nargs="+", default=list(INTERACTIONS), help="for the part scaling")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rectools-python", help="a Python that has rectools")
    parser.add_argument("--recbole-python", help="a Python that has recbole")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    parser.add_argument("--machine", default="not described")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "cf_speed.json")
    parser.add_argument("--table", type=Path, default=HERE.parent / "docs" / "results" / "cf_speed.md")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what is missing and report all."""
    options = parsed()
    given = {"rectools": options.rectools_python, "recbole": options.recbole_python}
    pythons = {library: python for library, python in given.items() if python}
    for library in sorted(given.keys() - pythons.keys()):
        print(f"{library} is left out: --{library}-python is not given")
    data, problem = prepared(options)
    wanted: list[Measurement] = []
    for part in options.parts:
        wanted += (
            compare(options, pythons) if part == "compare" else {"scaling": scaling, "profile": profile}[part](options)
        )
    for measurement in wanted:
        path = measurement.path(options.output)
        if path.exists() and not options.again:
            continue
        python = pythons.get(measurement.name, sys.executable)
        facts = measured(measurement, data, problem, python, options.threads)
        stored = {**vars(measurement), "machine": options.machine, **facts}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        print(f"{path.stem}: {[round(value, 2) for value in facts['epoch_seconds']]} s of an epoch", flush=True)
    write_report(options)


if __name__ == "__main__":
    main()
