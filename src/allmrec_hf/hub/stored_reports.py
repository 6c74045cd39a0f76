"""The stored reports that a card is made from: evaluations, with their per-user tables, and what training recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import CheckpointError, DataError
from ..evaluation.intervals import with_intervals
from ..files import PARQUET_ERRORS
from ..stored_values import json_value

REPORT_PATTERNS = ("evaluation*.json", "result.json")
INNER_REPORT = "full_ranking"
STAGE_FACTS = ("steps", "epochs", "seconds", "stopped_by")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: when it is missing, no JSON, or holds something else.
    """
    try:
        values = json_value(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); give a stored report") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); store the report again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected an object; store the report again")
    return values


def is_report(values: Any) -> bool:
    """Tell whether values are the report of an evaluation."""
    return isinstance(values, Mapping) and {"methods", "protocol", "split", "dataset"} <= set(values)


def report_key(report: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells reports of one card apart: a later one of the same key takes the place of an earlier one."""
    scenario = report["scenario"]["label"] if "scenario" in report else None
    return report["dataset"], report["split"], report["protocol"], scenario


def single_reports(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return reports of one protocol each: one of candidates may hold that of the whole catalogue for the same users.

    Where that of the whole catalogue was also stored by itself, the latter is returned.
    """
    reports = list(reports)
    known = {report_key(report) for report in reports}
    found = []
    for report in reports:
        found.append({name: values for name, values in report.items() if name != INNER_REPORT})
        inner = report.get(INNER_REPORT)
        if inner is not None and report_key(inner) not in known:
            found.append(dict(inner))
    return found


def report_file(report: Mapping[str, Any]) -> str:
    """Return the name under which a run folder stores a report; that of test users' candidates is `evaluation.json`."""
    _, split, protocol, scenario = report_key(report)
    parts = [split if split != "test" else "", protocol if protocol != "candidates" else "", scenario or ""]
    return "-".join(["evaluation", *filter(None, parts)]) + ".json"


def read_reports(path: Path) -> list[dict[str, Any]]:
    """Return the evaluation reports of a file or a folder, with intervals where a per-user table lies beside them.

    A file holds one report, or several by name under `reports`; `NAME.json`, or the name, is that of the table
    `NAME.parquet`. Of a folder, `evaluation*.json` and `result.json` are read.

    Raises:
        CheckpointError: when there is none.
        DataError: when a table is not that of its report.
    """
    if path.is_dir():
        files = [file for pattern in REPORT_PATTERNS for file in sorted(path.glob(pattern))]
        found = [report for file in files for report in read_reports(file)]
        if not found:
            raise CheckpointError(f"{path} holds no report ({' or '.join(REPORT_PATTERNS)}); give one with --report")
        return found
    values = read_json(path)
    named = {path.stem: values} if is_report(values) else values.get("reports", {})
    if not isinstance(named, Mapping) or not named or not all(map(is_report, named.values())):
        raise CheckpointError(f"{path} is no report of an evaluation; give what `allmrec evaluate --output` wrote")
    return [_with_table(report, path.parent / f"{name}.parquet") for name, report in named.items()]


def _with_table(report: dict[str, Any], table: Path) -> dict[str, Any]:
    if "intervals" in report or not table.is_file():
        return report
    try:
        frame = pl.read_parquet(table)
    except PARQUET_ERRORS as error:
        raise DataError(f"{table} is no readable per-user table ({error}); store it again, or remove it") from error
    return with_intervals(report, frame, str(table))


def folder_reports(folder: Path) -> list[dict[str, Any]]:
    """Return the reports that lie in a folder; none where there are none."""
    return read_reports(folder) if any(any(folder.glob(pattern)) for pattern in REPORT_PATTERNS) else []


def stage_results(run: Path, stages: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return what each stage of a run folder took: steps, epochs, seconds, the device and the number of processes.

    Args:
        run: The run folder, with `checkpoints/STAGE/training.json`.
        stages: Those wanted, in their order; None takes every stage that ended, in the order in which they did.
    """
    files = {path.parent.name: path for path in (run / "checkpoints").glob("*/training.json")}
    if stages is None:
        stages = sorted(files, key=lambda stage: files[stage].stat().st_mtime_ns)
    results = {}
    for stage in stages:
        record = read_json(files[stage]) if stage in files else {}
        if isinstance(result := record.get("result"), Mapping):
            facts = {name: result[name] for name in STAGE_FACTS if name in result}
            results[stage] = {**facts, "device": record.get("device"), "processes": record.get("processes")}
    return results
