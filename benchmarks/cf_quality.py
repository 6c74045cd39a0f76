"""Compare our backbones with RecTools, RecBole and implicit: same data, split, ranks, sizes and budget.

    python benchmarks/cf_quality.py --data-root DATA --output RUNS --machine "2 cores" \
        --rectools-python R/bin/python --recbole-python B/bin/python --implicit-python I/bin/python

`--data-root` holds one folder per data set with `interactions.parquet` and `items.parquet`. Each benchmark run (data
set, library, model, seed) is a JSON file in `RUNS/results`, written when it is done and not computed again, so the same
command resumes an interrupted one, and parts can run side by side (`--datasets --libraries --models --seeds`). Only
runs that ran out of time are repeated when they are allowed more. At the end all runs found become
`benchmarks/results/cf_quality.json` and `docs/results/backbones.md`. A library whose Python is not given is left out.
What each Python must have installed stands at the top of its script in `other_libraries`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from other_libraries.exchange import Problem
from quality_table import OURS, page

from allmrec_hf import ranking
from allmrec_hf._version import __version__
from allmrec_hf.cf_encoder import (
    MODEL_TYPE_PREFIX,
    CFEncoder,
    cf_config_from_dict,
    cf_encoder_class,
    cf_encoder_types,
)
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.files import folder_written_whole, written_whole
from allmrec_hf.histories import pad_histories
from allmrec_hf.ranking import Ranks, summarize_ranks
from allmrec_hf.training import loop
from allmrec_hf.training.backbone_training import train_backbone
from allmrec_hf.training.presets import preset

FORMAT = 2  # of a run; 1 had metrics at the mean place of ties
HERE = Path(__file__).resolve().parent
DATASETS = ("ml_100k", "amazon_electronics_2023_sub")
OTHERS = {
    "rectools": ("sasrec",),
    "recbole": ("sasrec", "gru4rec", "nextitnet", "ncf", "bprmf", "lightgcn"),
    "implicit": ("bprmf", "als", "itemknn"),
}
WITHOUT_SEED = ("popularity", "itemknn")
HIDDEN_SIZE, MAX_HISTORY, NUM_LAYERS, PATIENCE = 64, 50, 2, 10
PROTOCOL = f"""
Written by `benchmarks/cf_quality.py`; do not edit by hand.

- Data: `allmrec prepare` (5-core, exact duplicates dropped), leave-one-out by time, ties in file order. Every library
  gets these very sequences, and its own split, where it makes one, is checked against ours user by user.
- Training on the training part alone. The best epoch is selected by NDCG@10 of the validation items in the whole
  catalogue, by the same code for the others and by our own loop for ours. Training stops after {PATIENCE} validations
  without improvement, or when the CPU time (of training and validation) is used up. What each run was allowed
  stands in the JSON; where a library had another amount than ours, it mostly had more.
- Test: the history is the training part and the validation item; the whole catalogue is ranked, seen items left out
  (an item bought again stays in); metrics are means over all orders of tied items, computed by `allmrec_hf.ranking`
  for all.
- Width {HIDDEN_SIZE}, history {MAX_HISTORY}, {NUM_LAYERS} layers in the transformers, one thread. Everything else is
  each library's default, and for ours the preset `default` with the backbone's recipe; RecBole's sequential models get
  batches of 256 instead of 2048, because in the time allowed the default would leave them few steps.
- RecBole's sequential models train on every prefix of every sequence, RecTools' on the last {MAX_HISTORY} targets of
  each user. RecBole's BPR, NeuMF and LightGCN and implicit's BPR cannot fold in the validation item and use the
  trained user vectors; ours and implicit's ALS encode the whole history.
- item-kNN: the best of cosine, TF-IDF and BM25 with 20 to 500 neighbours, selected on validation.
- Mean ± sample deviation over seeds.
"""


@dataclass(frozen=True)
class Run:
    """One run to compute."""

    dataset: str
    library: str
    model: str
    seed: int

    def path(self, output: Path, suffix: str = "") -> Path:
        """Return the file of the run."""
        return output / "results" / f"{self.dataset}--{self.library}{suffix}--{self.model}--{self.seed}.json"


def prepared(root: Path, dataset: str, output: Path) -> PreparedData:
    """Return the prepared data, made once."""
    folder = output / "data" / dataset
    if (folder / "dataset.json").exists():
        return PreparedData.load(folder)
    source = root / dataset
    return prepare(source / "interactions.parquet", source / "items.parquet", output=folder, name=dataset)


def write_problem(data: PreparedData, folder: Path) -> Problem:
    """Write prepared data as the arrays that adapters read; see `other_libraries/exchange.py`."""
    arrays: dict[str, np.ndarray] = {}
    for name, split in (("train", "train"), ("test", "train+validation")):
        sequences = data.sequences(split)  # type: ignore[arg-type]
        arrays[f"{name}_items"] = np.concatenate(sequences)
        arrays[f"{name}_offsets"] = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    for split in ("validation", "test"):
        held_out = data.candidates(split)  # type: ignore[arg-type]
        arrays[f"{split}_targets"] = np.zeros(data.num_users, dtype=np.int64)
        arrays[f"{split}_targets"][held_out.users] = held_out.targets
    with folder_written_whole(folder) as temporary:
        for name, values in arrays.items():
            np.save(temporary / f"{name}.npy", values)
        info = {"name": data.name, "num_items": data.num_items, "ranking": str(Path(ranking.__file__).resolve())}
        (temporary / "problem.json").write_text(json.dumps(info), encoding="utf-8")
    return Problem(folder)


def model_config(model: str, num_items: int) -> Any:
    """Return the config of one of our backbones with the sizes of the benchmark."""
    config_class = cf_encoder_class(model).config_class
    values = {"num_items": num_items, "hidden_size": HIDDEN_SIZE, "max_history_length": MAX_HISTORY}
    if model == "sasrec" and "num_layers" in {field.name for field in fields(config_class)}:  # type: ignore[arg-type]
        values["num_layers"] = NUM_LAYERS
    return cf_config_from_dict({"model_type": config_class.model_type, **values})


@torch.no_grad()
def encoder_ranks(cf_encoder: CFEncoder, problem: Problem) -> Ranks:
    """Return the ranks of the test targets under one of our backbones."""

    def score(users: np.ndarray) -> np.ndarray:
        histories = [problem.test_histories[user] for user in users]
        parts = []
        for start in range(0, len(users), 256):
            item_ids, mask = pad_histories(histories[start : start + 256], cf_encoder.config.max_history_length)
            parts.append(cf_encoder.score(cf_encoder.encode_users(item_ids, mask))[:, 1:].float().numpy())
        return np.concatenate(parts)

    ranks = problem.ranks(score, "test")
    return Ranks(ranks.better, ranks.tied)  # of the class that was imported here


def run_ours(run: Run, data: PreparedData, problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one of our backbones, or the popularity baseline."""
    versions = {"allmrec-hf": __version__, "torch": torch.__version__, "numpy": np.__version__}
    if run.model == "popularity":
        counts = data.item_counts("train")[1:].astype(np.float64)
        found = problem.ranks(lambda users: np.tile(counts, (len(users), 1)), "test")
        return {"metrics": summarize_ranks(Ranks(found.better, found.tied)), "versions": versions}
    torch.set_num_threads(options.threads)
    config = model_config(run.model, data.num_items)
    arguments = preset("default", "backbone", run.model)
    arguments = arguments.replaced(seed=run.seed, max_seconds=options.time_limit, early_stopping_patience=PATIENCE)
    cpu_time = mock.patch.object(loop, "monotonic", time.process_time)  # it counts, as for the others
    with tempfile.TemporaryDirectory() as folder, cpu_time:
        wall, cpu = time.monotonic(), time.process_time()
        cf_encoder = train_backbone(data, config, arguments, folder, progress=False)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        record = json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))
    result = record.get("result", record)
    curve = [
        (entry["epoch"], round(entry["validation/ndcg@10"], 5))
        for entry in result["history"]
        if "validation/ndcg@10" in entry
    ]
    return {
        "metrics": summarize_ranks(encoder_ranks(cf_encoder.eval(), problem)),
        "epochs": result["epochs"],
        "best_epoch": result["best_epoch"],
        "best_validation": result["best"],
        "stopped_by": result["stopped_by"],
        "seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "validation_curve": curve,
        "settings": {"config": config.to_diff_dict(), "training": arguments.to_dict()},
        "time_limit_s": options.time_limit,
        "versions": versions,
    }


def run_other(run: Run, problem: Problem, python: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run another library's model in its own Python and compute the metrics from its ranks."""
    limit = limit_of(run.library, options)
    settings = {
        "model": run.model,
        "seed": run.seed,
        "time_limit_s": limit,
        "patience": PATIENCE,
        "hidden_size": HIDDEN_SIZE,
        "max_history_length": MAX_HISTORY,
        "num_layers": NUM_LAYERS,
        "threads": options.threads,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        script = HERE / "other_libraries" / f"{run.library}_run.py"
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(options.threads))}
        environment.pop("PYTHONPATH", None)  # it is our own Python's
        command = [python, str(script), str(problem.folder.resolve()), str(folder / "settings.json"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"{script.name} failed:\n{done.stderr[-3000:]}")
        ranks = Ranks(*np.load(folder / "ranks.npy"))
        facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if len(ranks) != len(problem.users("test")):
        raise RuntimeError(f"{script.name} gave {len(ranks)} ranks for {len(problem.users('test'))} users")
    return {"metrics": summarize_ranks(ranks), **facts, "time_limit_s": limit}


def limit_of(library: str, options: argparse.Namespace) -> float:
    """Return the CPU seconds that a library's runs are allowed."""
    return options.time_limit if library == OURS else options.other_time_limit or options.time_limit


def is_done(path: Path, time_limit_s: float) -> bool:
    """Tell whether a run is there, in today's form, and was not cut short by a smaller limit than is allowed now."""
    if not path.exists():
        return False
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("format", 1) < FORMAT:
        return False
    return stored.get("stopped_by") != "time_limit" or stored["time_limit_s"] >= time_limit_s


def runs_of(options: argparse.Namespace, pythons: dict[str, str]) -> Iterator[Run]:
    """Return what the options ask for, one seed of everything after the other."""
    own = [name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types()]
    models = {OURS: ("popularity", *own), **{library: OTHERS[library] for library in pythons}}
    for dataset in options.datasets:
        for seed in options.seeds:
            for library in options.libraries:
                for model in models.get(library, ()):
                    wanted = options.models is None or model in options.models
                    if wanted and not (model in WITHOUT_SEED and seed != options.seeds[0]):
                        yield Run(dataset, library, model, seed)


def check(problem: Problem, data: PreparedData, pythons: dict[str, str], options: argparse.Namespace) -> None:
    """Let every library rank by popularity and refuse to go on where its metrics are not ours to the last digit."""
    ours = run_ours(Run(data.name, OURS, "popularity", 0), data, problem, options)["metrics"]
    for library, python in pythons.items():
        theirs = run_other(Run(data.name, library, "popularity", 0), problem, python, options)["metrics"]
        if theirs != ours:
            raise RuntimeError(f"popularity by {library} gives {theirs}, ours {ours}: the data or the ranks differ")
        print(f"{data.name}: popularity by {library} is ours, NDCG@10 {ours['ndcg@10']:.6f}", flush=True)


def write_report(options: argparse.Namespace) -> None:
    """Write the JSON of all runs and the Markdown page."""
    runs = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((options.output / "results").glob("*.json"))
    ]
    older = [run for run in runs if run.get("format", 1) < FORMAT]
    if older:
        print(f"{len(older)} runs of an older form, before ties were averaged, are left out")
    runs = [run for run in runs if run not in older]
    if not runs:
        print("no run yet, so nothing to report")
        return
    command = (
        "python benchmarks/cf_quality.py --data-root DATA --output RUNS \\\n    "
        "--rectools-python RECTOOLS/bin/python --recbole-python RECBOLE/bin/python "
        f"--implicit-python IMPLICIT/bin/python \\\n    --time-limit {options.time_limit:g} "
        f"--other-time-limit {options.other_time_limit or options.time_limit:g} --machine {json.dumps(options.machine)}"
    )
    text = page(runs, PROTOCOL, command, options.machine)
    result = json.dumps({"machine": options.machine, "runs": runs}, indent=1) + "\n"
    for path, content in ((options.results, result), (options.table, text)):
        with written_whole(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(f"{len(runs)} runs are in {options.results} and {options.table}")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="holds one folder per data set")
    parser.add_argument("--output", type=Path, required=True, help="gets prepared data and runs")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--libraries", nargs="+", default=[OURS, *OTHERS], choices=[OURS, *OTHERS])
    parser.add_argument("--models", nargs="+", help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--time-limit", type=float, default=90.0, help="CPU seconds of training and validation of a run"
    )
    parser.add_argument("--other-time-limit", type=float, help="the same for the other libraries, where it differs")
    parser.add_argument("--suffix", default="", help="of the libraries' names in runs: keeps another budget apart")
    parser.add_argument("--threads", type=int, default=1)
    for library in OTHERS:
        parser.add_argument(f"--{library}-python", help=f"a Python that has {library}")
    parser.add_argument("--check", action="store_true", help="only compare the libraries' data and ranks with ours")
    parser.add_argument("--again", action="store_true", help="compute runs that exist")
    parser.add_argument("--no-report", action="store_true", help="leave results and table alone")
    parser.add_argument("--machine", default="not described")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "cf_quality.json")
    parser.add_argument("--table", type=Path, default=HERE.parent / "docs" / "results" / "backbones.md")
    return parser.parse_args(arguments)


def main() -> None:
    """Compute the missing runs and report all."""
    options = parsed()
    given = {library: getattr(options, f"{library}_python") for library in OTHERS}
    pythons = {library: python for library, python in given.items() if python and library in options.libraries}
    for library in OTHERS:
        if library in options.libraries and library not in pythons:
            print(f"{library} is left out: --{library}-python is not given")
    failures = []
    for dataset in options.datasets:
        data = prepared(options.data_root, dataset, options.output)
        problem = write_problem(data, options.output / "problems" / dataset)
        if options.check:
            check(problem, data, pythons, options)
            continue
        for run in runs_of(argparse.Namespace(**{**vars(options), "datasets": [dataset]}), pythons):
            path = run.path(options.output, options.suffix)
            if not options.again and is_done(path, limit_of(run.library, options)):
                continue
            try:
                if run.library == OURS:
                    result = run_ours(run, data, problem, options)
                else:
                    result = run_other(run, problem, pythons[run.library], options)
            except Exception as error:  # one library's failure must not lose the others' runs
                failures.append(f"{path.stem}: {error}")
                print(failures[-1], flush=True)
                continue
            stored = {
                "format": FORMAT,
                **vars(run),
                "library": run.library + options.suffix,
                "machine": options.machine,
                **result,
            }
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            facts = f"{result.get('epochs')} epochs, {result.get('seconds')} s, {result.get('stopped_by')}"
            print(f"{path.stem}: NDCG@10 {result['metrics']['ndcg@10']:.4f}, {facts}", flush=True)
    if not options.check and not options.no_report:
        write_report(options)
    if failures:
        raise SystemExit(f"{len(failures)} runs failed: {[failure.splitlines()[0] for failure in failures]}")


if __name__ == "__main__":
    main()
