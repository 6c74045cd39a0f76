"""Run a suite: compute every benchmark run that has no stored result yet."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..data.prepared import PreparedData
from ..errors import ALLMRecError, DataError
from ..evaluation.evaluation_cost import tell_evaluation_cost
from ..evaluation.geometry import joint_embedding_geometry
from ..evaluation.protocol import Ranker, ranks_catalogue
from ..evaluation.scenarios import CrossDomain, EvaluationSplit, FewShot
from ..files import written_whole
from ..methods.a_llmrec import facts
from ..methods.method import Method
from ..methods.registry import method
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import part_name
from ..stored_values import json_value
from ..training.llms import check_llm
from .benchmark_report import render
from .launched import Crew, launched
from .plan import PlannedRun, plan
from .published_full_ranking import published_figures
from .runs import (
    BenchmarkRun,
    RunKey,
    check_same_candidates,
    discard_unfinished,
    is_done,
    load_run,
    run_folder,
    save_run,
)
from .sources import check_files, prepared_data
from .suite import Suite, check_cutoffs
from .verdicts import UNTRAINED

logger = logging.getLogger(__name__)
PARTS, WORK = "parts", "work"
_GroupOutcome = tuple[int, list[dict[str, Any]], list[dict[str, Any]]]  # computed, skipped, failed
SKIPPED_FILE, FAILED_FILE, LOCK_FILE = "skipped.json", "failed.json", ".lock"


@dataclass(frozen=True)
class Place:
    """The folders of a benchmark, and what is allowed in it.

    Attributes:
        output: Its folder.
        data_root: Folder of the raw files that the suite names.
        allow_other_counts: Go on where data are not the published ones.
        trust_remote_code: Run code that comes with LLMs, their tokenizers or text encoders; no file remembers it.
    """

    output: Path
    data_root: Path | None = None
    allow_other_counts: bool = False
    trust_remote_code: bool = False


@dataclass
class Outcome:
    """The outcome of one call of `run_suite`.

    Attributes:
        planned_runs: All benchmark runs of the suite.
        computed: How many of them this call computed.
        done: How many of them are done, now or before.
        skipped: Scenarios that cannot be made: dataset, scenario, reason.
        failed: Runs that ended with an error: dataset, scenario, label, seed, error.
        report: The report, where there was anything to tell.
        rank: The number of this process among those that were launched together; the first one writes and tells.
    """

    planned_runs: list[PlannedRun]
    computed: int = 0
    done: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    report: Path | None = None
    rank: int = 0


def run_suite(
    suite: Suite,
    place: Place,
    processes: int = 1,
    keep_parts: bool = False,
    prepare_process: Callable[[], None] | None = None,
) -> Outcome:
    """Compute the benchmark runs of a suite that have no stored result yet.

    Of an earlier call only its finished runs and the checkpoints of unfinished methods are used, so it may have ended
    in any way. Processes of `torchrun` or `accelerate launch` that all call this share the runs out, see `launched`.

    Args:
        suite: The suite.
        place: Where it runs.
        processes: How many runs are computed at a time, each with other trained parts.
        keep_parts: Keep backbones, alignments and text embeddings when all is done.
        prepare_process: Called first in each process that is started, such as to set up its log; it can be pickled.

    Raises:
        ALLMRecError: when the suite does not fit its data, or another command is running in the folder; nothing is
            computed then.
    """
    place.output.mkdir(parents=True, exist_ok=True)
    with launched() as crew:
        if crew.world > 1 and processes > 1:
            raise ALLMRecError(f"the runs are shared out by {crew.world} launched processes already; leave out --jobs")
        try:
            with nullcontext() if crew.rank else FileLock(place.output / LOCK_FILE, timeout=0):
                return _run_suite(suite, place, processes, keep_parts, prepare_process, crew)
        except Timeout as error:
            raise ALLMRecError(
                f"another command is running in {place.output}; wait for it, or give another --output"
            ) from error


def _run_suite(
    suite: Suite,
    place: Place,
    processes: int,
    keep_parts: bool,
    prepare_process: Callable[[], None] | None,
    crew: Crew,
) -> Outcome:
    trust = place.trust_remote_code
    outcome = Outcome(
        [replace(planned, setting=replace(planned.setting, trust_remote_code=trust)) for planned in plan(suite)]
    )
    outcome.rank = crew.rank
    to_do = [planned for planned in outcome.planned_runs if not is_done(place.output, planned.key)]
    data = Datasets(suite, place)
    if crew.rank == 0:
        done = len(outcome.planned_runs) - len(to_do)
        logger.info("%d runs, %d of them done already", len(outcome.planned_runs), done)
        discard_unfinished(place.output)
        needed = {name for each in outcome.planned_runs for name in (each.dataset.name, *each.scenario.domains)}
        for spec in (spec for spec in suite.datasets if spec.name in needed):
            check_files(spec, place.data_root, place.output)
        _check_llms(to_do)
        _check_splits(suite, outcome.planned_runs, data)
    numbers = crew.of_main("to do", [outcome.planned_runs.index(planned) for planned in to_do])
    groups = _groups([outcome.planned_runs[number] for number in numbers])
    started, finished = time.monotonic(), 0
    mine: list[_GroupOutcome] = []
    for found in _all_groups(groups[crew.rank :: crew.world], data, processes, prepare_process):
        mine.append(found)
        finished += found[0] + len(found[2])
        logger.info("%d of %d runs after %.0f s", finished, len(numbers), time.monotonic() - started)
    everyone = crew.gathered("outcomes", mine)
    for number in range(len(groups)):  # in the order of one process
        computed, skipped, failed = everyone[number % crew.world][number // crew.world]
        outcome.computed += computed
        outcome.skipped += [entry for entry in skipped if entry not in outcome.skipped]  # once for all seeds
        outcome.failed += failed
    if crew.rank:
        return outcome
    _write(place.output / SKIPPED_FILE, outcome.skipped)
    _write(place.output / FAILED_FILE, outcome.failed)
    if not outcome.failed and not keep_parts:
        shutil.rmtree(place.output / PARTS, ignore_errors=True)
        shutil.rmtree(place.output / WORK, ignore_errors=True)
    return outcome


def finished_runs(planned_runs: Iterable[PlannedRun], output: Path) -> list[BenchmarkRun]:
    """Return the finished runs of a suite, and check that they compare.

    Runs of an earlier form of the suite in the same folder are left out, with a warning in the log.

    Raises:
        DataError: when there are none, or two were ranked on different candidates.
    """
    keys: list[RunKey] = [planned.key for planned in planned_runs if is_done(output, planned.key)]
    if not keys:
        raise DataError(f"{output} holds no finished run of this suite; run it without --only-report")
    present = len(list((output / "runs").glob("*/result.json")))
    if present > len(keys):
        logger.warning(
            "%d runs in %s are none of this suite's, or of an older form, and are left out",
            present - len(keys),
            output,
        )
    runs = [load_run(run_folder(output, key)) for key in keys]
    check_same_candidates(runs)
    return runs


class Datasets:
    """The prepared data of a suite, each prepared when it is first asked for and then kept."""

    def __init__(self, suite: Suite, place: Place) -> None:
        self.suite = suite
        self.place = place
        self._loaded: dict[str, PreparedData] = {}

    def __getitem__(self, name: str) -> PreparedData:
        """Return a data set by its name in the suite."""
        if name not in self._loaded:
            spec = next(spec for spec in self.suite.datasets if spec.name == name)
            place = self.place
            self._loaded[name] = prepared_data(spec, place.data_root, place.output, place.allow_other_counts)
        return self._loaded[name]

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; it loads the data itself."""
        return {"suite": self.suite, "place": self.place, "_loaded": {}}


def compute_run(planned: PlannedRun, split: EvaluationSplit, data: Datasets) -> BenchmarkRun:
    """Train and evaluate one method in one scenario; only the method stores anything, its checkpoints."""
    output, evaluation = data.place.output.resolve(), data.suite.evaluation
    folders = {name: output / getattr(planned.setting, name) for name in ("folder", "parts", "common")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    setting = replace(planned.setting, **folders)
    trained = method(planned.method.method)
    started = time.monotonic()
    ranker = trained.fit(split.training, setting)
    ranker.name = planned.key.label
    if trained.reads_llm:
        tell_evaluation_cost(ranker, split.evaluation, max_users=evaluation.max_users)
    fitted = time.monotonic()
    more = evaluation.protocol == "candidates" and ranks_catalogue(ranker)  # hours where an LLM reads every item
    result = split.evaluate(
        [ranker],
        evaluation.protocol,
        max_users=evaluation.max_users,
        cutoffs=evaluation.cutoffs,
        full_ranking=more,
        shuffle_test=more,
    )
    ended = time.monotonic()
    details = _details(planned, trained, split, ranker)
    details |= {"seconds_fit": fitted - started, "seconds_evaluate": ended - fitted}
    return BenchmarkRun(planned.key, result.to_dict(), result.per_user(), ended - started, details)


def _groups(planned_runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Return runs in groups with common trained parts, which are what processes share out."""
    return [list(part) for _, part in groupby(planned_runs, key=lambda planned: planned.group)]


def _all_groups(
    groups: Sequence[Sequence[PlannedRun]],
    data: Datasets,
    processes: int,
    prepare_process: Callable[[], None] | None,
) -> Iterable[_GroupOutcome]:
    """Yield the outcome of each group."""
    if processes <= 1:
        yield from (_run_group(group, data) for group in groups)
        return
    threads = max(1, torch.get_num_threads() // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_process, (threads, prepare_process)) as pool:
        try:
            yield from pool.map(_run_group, groups, [data] * len(groups))
        except BrokenProcessPool as error:
            raise ALLMRecError(
                "a process was ended by the system, probably for want of memory; give fewer --jobs and run the same "
                "command again: finished runs stay"
            ) from error


def _start_process(threads: int, prepare_process: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if prepare_process is not None:
        prepare_process()


def _end_with_parent() -> None:
    """End this process when its parent is killed, so that a resumed benchmark has the folders to itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_group(planned_runs: Sequence[PlannedRun], data: Datasets) -> _GroupOutcome:
    first, failed = planned_runs[0], []
    try:
        split = make_split(first, data)
    except DataError as error:
        logger.warning("%s, %s cannot be made: %s", first.key.dataset, first.key.scenario, error)
        return 0, [{"dataset": first.key.dataset, "scenario": first.key.scenario, "reason": str(error)}], []
    for planned in planned_runs:
        try:
            run = compute_run(planned, split, data)
        except Exception as error:  # one method's failure must not cost the others their results
            if isinstance(error, ALLMRecError):
                logger.error("%s failed: %s", planned, error)
            else:
                logger.exception("%s failed", planned)
            names = {name: getattr(planned.key, name) for name in ("dataset", "scenario", "label", "seed")}
            failed.append(names | {"error": f"{type(error).__name__}: {error}"})
            continue
        save_run(data.place.output, run)
        shutil.rmtree(data.place.output / planned.setting.folder, ignore_errors=True)
        logger.info("%s: %.0f s", planned, run.seconds)
    return len(planned_runs) - len(failed), [], failed


def make_split(planned: PlannedRun, data: Datasets) -> EvaluationSplit:
    """Return the evaluation split of a run's scenario on its data.

    Raises:
        DataError: when the data do not allow the scenario.
    """
    split = planned.scenario.scenario.split(
        *(data[name] for name in planned.scenario.domains or (planned.dataset.name,))
    )
    buckets = data.suite.evaluation.history_buckets
    if buckets is None:
        return split
    parameters = {**split.description["parameters"], "history_buckets": list(buckets)}
    return replace(split, history_buckets=buckets, description={**split.description, "parameters": parameters})


def _details(planned: PlannedRun, trained: Method, split: EvaluationSplit, ranker: Ranker) -> dict[str, Any]:
    """Return what a report says of a method besides its ranking."""
    found = facts(ranker)
    if planned.setting.llm is not None and "llm" in found:
        random = planned.method.method in UNTRAINED
        found["llm"] = ("random weights, as " if random else "") + part_name(planned.setting.llm)
    model = getattr(ranker, "model", None)
    if isinstance(model, ALLMRecModel) and _was_aligned(model):
        found["geometry"] = joint_embedding_geometry(model)
    return found | {
        "paper": trained.paper,
        "simplified": trained.simplified,
        "ablation_of": planned.method.ablation_of,
        "scenario": dict(split.description),
        "options": dict(planned.setting.options),
        "backbone": planned.setting.backbone,
    }


def _was_aligned(model: ALLMRecModel) -> bool:
    """Tell whether stage 1 filled the item table; MLP-LLM and LLM-Only have no joint embeddings."""
    return int((model.item_table.interaction_counts > 0).sum()) > 1


def _check_llms(planned_runs: Iterable[PlannedRun]) -> None:
    """Check that all LLMs are there, before anything is computed."""
    needing = [planned for planned in planned_runs if method(planned.method.method).reads_llm]
    for planned in needing:
        planned.setting.required_llm(planned.key.label)
    seen: list[tuple[str, str | None, dict[str, Any], bool]] = []
    for planned in needing:
        options = planned.setting.options
        own = dict(options.get("llm_options") or {})
        own |= {name: options[name] for name in ("gguf_file", "gguf_packed") if name in options}
        own |= {"check_memory": False} if options.get("llm_check_memory") is False else {}
        asked = (str(planned.setting.llm), options.get("llm_revision"), own, planned.setting.trust_remote_code)
        if asked not in seen:
            seen.append(asked)
            check_llm(*asked)


def _check_splits(suite: Suite, planned_runs: Iterable[PlannedRun], data: Datasets) -> None:
    """Prepare all data and check that they allow what the suite asks of them, before anything is trained.

    What the suite names itself (K users, two domains) is its mistake; that data have no user of some kind is not.
    """
    for planned in {planned.group[:2]: planned for planned in planned_runs}.values():
        check_cutoffs(suite, planned.key.dataset, int(data[planned.key.dataset].info["num_candidates"]))
        if isinstance(planned.scenario.scenario, (FewShot, CrossDomain)):
            make_split(planned, data)


def write_report(suite: Suite, outcome: Outcome, output: Path, command: str = "") -> Path:
    """Write the report of all finished runs of the suite, and of what the last call could not compute.

    Raises:
        ALLMRecError: when there are no finished runs, or they cannot be compared.
    """
    runs = finished_runs(outcome.planned_runs, output)
    outcome.done = len(runs)
    labels = [spec.label for spec in suite.methods]
    reference = suite.reference if any(run.key.label == suite.reference for run in runs) else None
    skipped, failed = _not_there(outcome.planned_runs, output)
    return render(
        output,
        runs,
        suite.title,
        reference,
        command=command,
        order=labels,
        published=published_figures(suite.published),
        skipped=skipped,
        failed=failed,
    )


def _not_there(planned_runs: Iterable[PlannedRun], output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the runs that were skipped or not computed yet, and those that failed and are still missing."""
    names = ("dataset", "scenario", "label", "seed")
    waiting = [
        {name: getattr(planned.key, name) for name in names}
        for planned in planned_runs
        if not is_done(output, planned.key)
    ]
    failed = [entry for entry in _read(output / FAILED_FILE) if {name: entry.get(name) for name in names} in waiting]
    known = [{name: entry[name] for name in names} for entry in failed]
    skipped = _read(output / SKIPPED_FILE)
    places = {(entry["dataset"], entry["scenario"]) for entry in skipped}
    for entry in waiting:
        if entry not in known and (entry["dataset"], entry["scenario"]) not in places:
            skipped.append({**entry, "reason": "not computed yet"})
    return skipped, failed


def _read(path: Path) -> list[dict[str, Any]]:
    """Return what `_write` wrote."""
    try:
        return list(json_value(path.read_text(encoding="utf-8"))) if path.exists() else []
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it") from error


def _write(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write what was not computed; without any, remove the file of an earlier call."""
    if not entries:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
