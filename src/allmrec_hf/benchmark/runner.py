"""Runs a suite: computes the cells that are not there yet, whatever became of the last attempt."""

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
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..data.prepared import PreparedData
from ..errors import ALLMRecError, DataError
from ..evaluation.geometry import joint_embedding_geometry
from ..evaluation.protocol import Ranker
from ..evaluation.scenarios import CrossDomain, FewShot, Trial
from ..files import written_whole
from ..methods.a_llmrec import facts
from ..methods.method import Method, method
from ..modeling_allmrec import ALLMRecModel
from ..training.parts import check_llm
from .cells import (
    Cell,
    CellKey,
    cell_folder,
    discard_unfinished,
    is_done,
    load_cell,
    refuse_other_candidates,
    save_cell,
)
from .plan import Job, part_name, plan
from .published import published_values
from .report import render
from .sources import check_files, prepared_data
from .suite import Suite, check_cutoffs
from .verdicts import UNTRAINED

logger = logging.getLogger(__name__)
PARTS, WORK = "parts", "work"
_GroupOutcome = tuple[int, list[dict[str, Any]], list[dict[str, Any]]]  # computed, skipped, failed
SKIPPED_FILE, FAILED_FILE, LOCK_FILE = "skipped.json", "failed.json", ".lock"


@dataclass(frozen=True)
class Place:
    """Where a benchmark runs.

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
    """What a run came to.

    Attributes:
        jobs: All cells of the suite.
        computed: How many of them this run computed.
        done: How many of them are done, now or before.
        skipped: Scenarios that cannot be made: dataset, scenario, reason.
        failed: Cells that ended with an error: dataset, scenario, label, seed, error.
        report: The report, where there was anything to tell.
    """

    jobs: list[Job]
    computed: int = 0
    done: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    report: Path | None = None


def run_suite(
    suite: Suite,
    place: Place,
    processes: int = 1,
    keep_parts: bool = False,
    prepare_process: Callable[[], None] | None = None,
) -> Outcome:
    """Compute the cells of a suite that are not there yet.

    Nothing is known of an earlier run but its finished cells and what methods left to be gone on with, so it may have
    ended in any way.

    Args:
        suite: The suite.
        place: Where it runs.
        processes: How many cells are computed at a time, each with other trained parts.
        keep_parts: Keep backbones, alignments and text embeddings when all is done.
        prepare_process: Called first in each process that is started, such as to set up its log; it can be pickled.

    Raises:
        ALLMRecError: when the suite does not fit its data, or another command is at work in the folder; nothing is
            computed then.
    """
    place.output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.output / LOCK_FILE, timeout=0):
            return _run_suite(suite, place, processes, keep_parts, prepare_process)
    except Timeout as error:
        raise ALLMRecError(
            f"another command is at work in {place.output}; wait for it, or give another --output"
        ) from error


def _run_suite(
    suite: Suite, place: Place, processes: int, keep_parts: bool, prepare_process: Callable[[], None] | None
) -> Outcome:
    trust = place.trust_remote_code
    outcome = Outcome([replace(job, setting=replace(job.setting, trust_remote_code=trust)) for job in plan(suite)])
    to_do = [job for job in outcome.jobs if not is_done(place.output, job.key)]
    logger.info("%d cells, %d of them done already", len(outcome.jobs), len(outcome.jobs) - len(to_do))
    discard_unfinished(place.output)
    needed = {name for job in outcome.jobs for name in (job.dataset.name, *job.scenario.domains)}
    for spec in (spec for spec in suite.datasets if spec.name in needed):
        check_files(spec, place.data_root, place.output)
    _check_llms(to_do)
    data = Datasets(suite, place)
    _check_trials(suite, outcome.jobs, data)
    started, finished = time.monotonic(), 0
    for computed, skipped, failed in _all_groups(to_do, data, processes, prepare_process):
        outcome.computed += computed
        outcome.skipped += [entry for entry in skipped if entry not in outcome.skipped]  # once for all seeds
        outcome.failed += failed
        finished += computed + len(failed)
        logger.info("%d of %d cells after %.0f s", finished, len(to_do), time.monotonic() - started)
    _write(place.output / SKIPPED_FILE, outcome.skipped)
    _write(place.output / FAILED_FILE, outcome.failed)
    if not outcome.failed and not keep_parts:
        shutil.rmtree(place.output / PARTS, ignore_errors=True)
        shutil.rmtree(place.output / WORK, ignore_errors=True)
    return outcome


def finished_cells(jobs: Iterable[Job], output: Path) -> list[Cell]:
    """Return the finished cells of a suite, and check that they compare.

    Cells of an earlier form of the suite that lie in the same folder are left out, which the log says.

    Raises:
        DataError: when there are none, or two were ranked on different candidates.
    """
    keys: list[CellKey] = [job.key for job in jobs if is_done(output, job.key)]
    if not keys:
        raise DataError(f"{output} holds no finished cell of this suite; run it without --only-report")
    present = len(list((output / "cells").glob("*/result.json")))
    if present > len(keys):
        logger.warning(
            "%d cells in %s are none of this suite's, or of an older form, and are left out",
            present - len(keys),
            output,
        )
    cells = [load_cell(cell_folder(output, key)) for key in keys]
    refuse_other_candidates(cells)
    return cells


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


def run_cell(job: Job, trial: Trial, data: Datasets) -> Cell:
    """Train and evaluate one method in one scenario; only the method itself stores anything, to go on with."""
    output, evaluation = data.place.output.resolve(), data.suite.evaluation
    folders = {name: output / getattr(job.setting, name) for name in ("folder", "parts", "common")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    setting = replace(job.setting, **folders)
    trained = method(job.method.method)
    started = time.monotonic()
    ranker = trained.fit(trial.training, setting)
    ranker.name = job.key.label
    fitted = time.monotonic()
    result = trial.evaluate([ranker], max_users=evaluation.max_users, cutoffs=evaluation.cutoffs)
    ended = time.monotonic()
    details = _details(job, trained, trial, ranker)
    details |= {"seconds_fit": fitted - started, "seconds_evaluate": ended - fitted}
    return Cell(job.key, result.to_dict(), result.per_user(), ended - started, details)


def _all_groups(
    jobs: Sequence[Job], data: Datasets, processes: int, prepare_process: Callable[[], None] | None
) -> Iterable[_GroupOutcome]:
    """Yield what each group of jobs with common parts came to; groups are what processes share out."""
    groups = [list(part) for _, part in groupby(jobs, key=lambda job: job.group)]
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
                "command again: finished cells stay"
            ) from error


def _start_process(threads: int, prepare_process: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if prepare_process is not None:
        prepare_process()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: whoever goes on must not meet it in the same folders."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_group(jobs: Sequence[Job], data: Datasets) -> _GroupOutcome:
    first, failed = jobs[0], []
    try:
        trial = make_trial(first, data)
    except DataError as error:
        logger.warning("%s, %s cannot be made: %s", first.key.dataset, first.key.scenario, error)
        return 0, [{"dataset": first.key.dataset, "scenario": first.key.scenario, "reason": str(error)}], []
    for job in jobs:
        try:
            cell = run_cell(job, trial, data)
        except Exception as error:  # one method's failure must not cost the others their results
            if isinstance(error, ALLMRecError):
                logger.error("%s failed: %s", job, error)
            else:
                logger.exception("%s failed", job)
            names = {name: getattr(job.key, name) for name in ("dataset", "scenario", "label", "seed")}
            failed.append(names | {"error": f"{type(error).__name__}: {error}"})
            continue
        save_cell(data.place.output, cell)
        shutil.rmtree(data.place.output / job.setting.folder, ignore_errors=True)
        logger.info("%s: %.0f s", job, cell.seconds)
    return len(jobs) - len(failed), [], failed


def make_trial(job: Job, data: Datasets) -> Trial:
    """Return the trial of a job's scenario on its data.

    Raises:
        DataError: when the data do not allow the scenario.
    """
    trial = job.scenario.scenario.trial(*(data[name] for name in job.scenario.domains or (job.dataset.name,)))
    buckets = data.suite.evaluation.history_buckets
    if buckets is None:
        return trial
    parameters = {**trial.description["parameters"], "history_buckets": list(buckets)}
    return replace(trial, history_buckets=buckets, description={**trial.description, "parameters": parameters})


def _details(job: Job, trained: Method, trial: Trial, ranker: Ranker) -> dict[str, Any]:
    """Return what a report says of a method besides its ranking."""
    found = facts(ranker)
    if job.setting.llm is not None and "llm" in found:
        random = job.method.method in UNTRAINED
        found["llm"] = ("random weights, as " if random else "") + part_name(job.setting.llm)
    model = getattr(ranker, "model", None)
    if isinstance(model, ALLMRecModel) and _was_aligned(model):
        found["geometry"] = joint_embedding_geometry(model)
    return found | {
        "paper": trained.paper,
        "simplified": trained.simplified,
        "ablation_of": job.method.ablation_of,
        "scenario": dict(trial.description),
        "options": dict(job.setting.options),
        "backbone": job.setting.backbone,
    }


def _was_aligned(model: ALLMRecModel) -> bool:
    """Tell whether stage 1 filled the item table; MLP-LLM and LLM-Only have no joint embeddings."""
    return int((model.item_table.interaction_counts > 0).sum()) > 1


def _check_llms(jobs: Iterable[Job]) -> None:
    """Refuse, before anything is computed, LLMs that are missing."""
    needing = [job for job in jobs if method(job.method.method).reads_llm]
    for job in needing:
        job.setting.required_llm(job.key.label)
    seen: list[tuple[str, str | None, dict[str, Any], bool]] = []
    for job in needing:
        options = job.setting.options
        own = dict(options.get("llm_options") or {})
        asked = (str(job.setting.llm), options.get("llm_revision"), own, job.setting.trust_remote_code)
        if asked not in seen:
            seen.append(asked)
            check_llm(*asked)


def _check_trials(suite: Suite, jobs: Iterable[Job], data: Datasets) -> None:
    """Prepare all data, and refuse what the suite asks of them that cannot be; nobody should wait hours for that.

    What the suite names itself (K users, two domains) is its mistake; that data have no user of some kind is not.
    """
    for job in {job.group[:2]: job for job in jobs}.values():
        check_cutoffs(suite, job.key.dataset, int(data[job.key.dataset].info["num_candidates"]))
        if isinstance(job.scenario.scenario, (FewShot, CrossDomain)):
            make_trial(job, data)


def write_report(suite: Suite, outcome: Outcome, output: Path, command: str = "") -> Path:
    """Write the report of all finished cells of the suite, and of what did not come about in the last run.

    Raises:
        ALLMRecError: when there are no finished cells, or they cannot be compared.
    """
    cells = finished_cells(outcome.jobs, output)
    outcome.done = len(cells)
    labels = [spec.label for spec in suite.methods]
    reference = suite.reference if any(cell.key.label == suite.reference for cell in cells) else None
    skipped, failed = _not_there(outcome.jobs, output)
    return render(
        output,
        cells,
        suite.title,
        reference,
        command=command,
        order=labels,
        published=published_values(suite.published) if suite.published else (),
        skipped=skipped,
        failed=failed,
    )


def _not_there(jobs: Iterable[Job], output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what was skipped, or not computed yet, and what failed and has not come about since."""
    names = ("dataset", "scenario", "label", "seed")
    waiting = [{name: getattr(job.key, name) for name in names} for job in jobs if not is_done(output, job.key)]
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
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it") from error


def _write(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write what did not come about; without any, an earlier run's file goes."""
    if not entries:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
