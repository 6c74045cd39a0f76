"""What a report says on the tasks of its data as a benchmark, see `data.eval_tasks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..data.eval_tasks import GROUPS, METRICS, SPLIT, task_id


class TaskResult(NamedTuple):
    """One number of a method.

    Attributes:
        task: The task's id.
        group: The group of targets.
        metric: The metric.
        value: Its value.
    """

    task: str
    group: str
    metric: str
    value: float


def task_results(report: Mapping[str, Any], method: str) -> list[TaskResult]:
    """Return a method's numbers on the tasks; none of a report on other users or data than those of the tasks.

    Args:
        report: A report; one of a scenario or of the validation split is about no task.
        method: The method's name in it.
    """
    if report["split"] != SPLIT or "scenario" in report:
        return []
    protocol, groups = report["protocol"], report["methods"][method]
    return [
        TaskResult(task_id(protocol, metric, group), group, metric, groups[group][metric])
        for group in GROUPS
        for metric in METRICS.get(protocol, ())
        if metric in groups.get(group, {})
    ]
