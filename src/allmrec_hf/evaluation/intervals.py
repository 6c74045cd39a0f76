"""How certain the metrics of a report are: the interval of each, from every user's rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DataError
from ..ranking import Ranks, hit_at_k, ndcg_at_k, reciprocal_rank
from .significance import CONFIDENCE, ROUNDING, bootstrap_means, percentile_interval
from .warmth import OVERALL

Intervals = dict[str, dict[str, dict[str, list[float]]]]


def metric_values(ranks: Ranks, metric: str) -> NDArray[np.float64]:
    """Return `(B,)` a metric of each user; its mean is the value in the report.

    Args:
        ranks: The ranks of B users.
        metric: `hit@K`, `ndcg@K` or `mrr`.
    """
    if metric == "mrr":
        return np.asarray(reciprocal_rank(ranks))
    name, _, cutoff = metric.partition("@")
    return np.asarray({"hit": hit_at_k, "ndcg": ndcg_at_k}[name](ranks, int(cutoff)))


def metric_intervals(
    methods: Mapping[str, Mapping[str, Mapping[str, float]]],
    ranks: Mapping[str, Ranks],
    members: Mapping[str, NDArray[np.bool_]],
    valid: Mapping[str, NDArray[np.float64]] | None = None,
) -> Intervals:
    """Return the bootstrap interval of every metric of a report: method -> group -> metric -> lower and upper end.

    The users that are drawn are the same for all methods and metrics of a group.

    Args:
        methods: The report's metrics: method -> group -> metric -> value.
        ranks: For each method, the ranks of R users.
        members: For each group, `(R,)` True where the user belongs to it.
        valid: For each method that wrote titles, `(R,)` 1 where the title was a candidate's.
    """
    found: Intervals = {method: {} for method in methods}
    for group, mask in members.items():
        keys, columns = [], []
        for method, groups in methods.items():
            for metric in groups.get(group, {}):
                if metric == "users":
                    continue
                values = (valid or {})[method] if metric == "valid" else metric_values(ranks[method], metric)
                keys.append((method, metric))
                columns.append(values[mask])
        if not keys:
            continue
        matrix = np.stack(columns, axis=1)
        drawn = bootstrap_means(matrix)
        for number, (method, metric) in enumerate(keys):
            interval = percentile_interval(float(matrix[:, number].mean()), drawn[:, number], CONFIDENCE)
            found[method].setdefault(group, {})[metric] = [interval.low, interval.high]
    return found


def with_intervals(report: Mapping[str, Any], per_user: pl.DataFrame, where: str) -> dict[str, Any]:
    """Return a report with its intervals, made from the per-user table beside it.

    Args:
        report: A report that has none, or has.
        per_user: What `EvaluationResult.per_user` returned.
        where: The table's name, for messages.

    Raises:
        DataError: when the table is not that of the report.
    """
    limit = float(report["num_retrieved"]) if report["protocol"] == "full" else np.inf
    limit = 1.0 if report["protocol"] == "paper" else limit
    methods: dict[str, Any] = {}
    ranks: dict[str, Ranks] = {}
    members: dict[str, NDArray[np.bool_]] = {}
    for method, groups in report["methods"].items():
        rows = per_user.filter(pl.col("method") == method)
        methods[method] = {group: _without_valid(metrics) for group, metrics in groups.items()}
        ranks[method] = Ranks.of_expected(rows["rank"].to_numpy(), rows["tied"].to_numpy(), limit)
        members = {
            group: np.ones(len(rows), dtype=np.bool_) if group == OVERALL else rows[group].to_numpy()
            for group in groups
            if group == OVERALL or group in rows.columns
        }
        for group, mask in members.items():
            _check(report, method, group, ranks[method][mask], where)
    return {**report, "intervals": metric_intervals(methods, ranks, members)}


def _without_valid(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "valid"}


def _check(report: Mapping[str, Any], method: str, group: str, ranks: Ranks, where: str) -> None:
    metrics: Sequence[tuple[str, float]] = list(report["methods"][method][group].items())
    for name, value in metrics:
        if name == "valid":
            continue
        found = len(ranks) if name == "users" else float(metric_values(ranks, name).mean())
        if abs(found - value) > ROUNDING:
            raise DataError(
                f"{where} is not the per-user table of its report: {name} of {method!r} on {group} is {found} in the "
                f"table and {value} in the report; store both from the same evaluation"
            )
