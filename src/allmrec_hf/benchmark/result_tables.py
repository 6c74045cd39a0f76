"""Compute the tables of results and comparisons from the ranks of all benchmark runs; every figure comes from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import ALLMRecError, DataError
from ..evaluation.evaluation_report import metric_names
from ..evaluation.significance import (
    Interval,
    average_over_seeds,
    bootstrap_means,
    check_same_users,
    deviation,
    holm,
    mcnemar,
    percentile_interval,
    sign_flip_tests,
)
from ..evaluation.warmth import GROUPS, OVERALL
from ..files import written_whole
from ..ranking import Ranks, hit_at_k, ndcg_at_k, reciprocal_rank
from .runs import BenchmarkRun, check_same_candidates

BASE_SCENARIO = "overall"
SIGNIFICANT = 0.05
FEW_USERS = 10
"""Groups of fewer users are shown but not compared: nothing in them is emphasised."""
_CUTOFF = re.compile(r"(hit|ndcg)@([1-9]\d*)")
_COMPARED = ("hit@1", "ndcg@10")
_RESULTS: dict[str, Any] = {
    **dict.fromkeys(("dataset", "scenario", "group", "label", "metric"), pl.String),
    **dict.fromkeys(("mean", "low", "high", "deviation"), pl.Float64),
    **dict.fromkeys(("seeds", "users"), pl.Int64),
    "among_best": pl.Boolean,
}
_COMPARISONS: dict[str, Any] = {
    **dict.fromkeys(("dataset", "scenario", "group", "metric", "reference", "label"), pl.String),
    **dict.fromkeys(("difference", "low", "high", "worst_seed", "p_randomisation", "p_mcnemar", "p_holm"), pl.Float64),
    "users": pl.Int64,
}


@dataclass(frozen=True)
class Tables:
    """All results and comparisons of a benchmark as long tables.

    Attributes:
        results: A row for each dataset, scenario, group, label and metric: `mean`, `low`, `high` over users of the
            values averaged over seeds; `deviation` over seeds (null for one); `seeds`, `users`; `among_best`: the
            interval of its difference to the highest mean includes 0.
        comparisons: A row for each comparison: `difference` is reference minus label, with `low`, `high`; `worst_seed`,
            the smallest difference over pairs of seeds; p values of the randomisation test, of McNemar's (hits only,
            the least favourable seed; null where ties make a hit a share), and Holm's correction of the former over all
            comparisons of the reference in that dataset, scenario and metric.
    """

    results: pl.DataFrame
    comparisons: pl.DataFrame

    def write(self, folder: Path) -> None:
        """Write both as parquet."""
        for name, frame in (("results", self.results), ("comparisons", self.comparisons)):
            with written_whole(folder / f"{name}.parquet") as temporary:
                frame.write_parquet(temporary)


@dataclass(frozen=True)
class _Columns:
    """Per-user values of all labels of a dataset and scenario.

    Attributes:
        labels: L labels.
        metrics: M metrics.
        values: `(U, L, M)` averaged over seeds.
        seed_ranks: For each label, seed -> ranks of the U targets.
        groups: For each group, `(U,)` its members.
    """

    labels: list[str]
    metrics: list[str]
    values: NDArray[np.float64]
    seed_ranks: Mapping[str, Mapping[int, Ranks]]
    groups: Mapping[str, NDArray[np.bool_]]


def per_user_values(metric: str, ranks: Ranks) -> NDArray[np.float64]:
    """Return a metric of each user, `(U,)`, from the ranks of their targets.

    Raises:
        ALLMRecError: when the metric is unknown.
    """
    if metric == "mrr":
        return reciprocal_rank(ranks)
    match = _CUTOFF.fullmatch(metric)
    if match is None:
        raise ALLMRecError(f"unknown metric {metric!r}; known ones: hit@K, ndcg@K, mrr")
    return (hit_at_k if match[1] == "hit" else ndcg_at_k)(ranks, int(match[2]))


def chance(run: BenchmarkRun, metric: str, group: str = OVERALL) -> float:
    """Return what a random order of the candidates, or one score for all, reaches in expectation.

    Every run of a dataset and scenario has the same; the evaluator found it from each user's own number of candidates.

    Raises:
        DataError: when the run's report does not say it.
    """
    try:
        return float(run.report["chance"][group][metric])
    except (KeyError, TypeError) as error:
        raise DataError(f"{_title(run)}: its report has no chance level of {metric}, {group}") from error


def labels_in_order(runs: Iterable[BenchmarkRun], order: Sequence[str] = ()) -> dict[str, BenchmarkRun]:
    """Return the first run of each label: those of `order` first, then the others as they come."""
    first: dict[str, BenchmarkRun] = {}
    for run in runs:
        first.setdefault(run.key.label, run)
    return {label: first[label] for label in [*(label for label in order if label in first), *first]}


def default_reference(runs: Iterable[BenchmarkRun]) -> str | None:
    """Return the label of the method under test where none was named: the first whole A-LLMRec, or None."""
    for label, run in labels_in_order(runs).items():
        if run.key.method == "a-llmrec" and not run.details.get("ablation_of"):
            return label
    return None


def measured(runs: Iterable[BenchmarkRun]) -> list[str]:
    """Return the metrics that can be made from ranks, in the order of the reports; NDCG@1 equals Hit@1."""
    names: list[str] = []
    for run in runs:
        names += [name for name in metric_names(run.report) if name not in names and name != "valid"]
    return names


def headline(metrics: Sequence[str]) -> list[str]:
    """Return the metrics shown with tests and plots: Hit@1 and NDCG@10, or the first there is."""
    return [name for name in _COMPARED if name in metrics] or list(metrics[:1])


def make_tables(runs: Sequence[BenchmarkRun], reference: str | None, order: Sequence[str] = ()) -> Tables:
    """Compute means, intervals, tests and corrections of all runs.

    Args:
        runs: Finished runs.
        reference: Label of the method that every other is compared with; None compares only ablations.
        order: Labels in the order of the tables.

    Raises:
        ALLMRecError: when no run has the reference's label.
        DataError: when runs of one dataset and scenario have other candidates, users or groups, or one label has two
            runs of one seed.
    """
    labels = list(labels_in_order(runs, order))
    if reference is not None and reference not in labels:
        raise ALLMRecError(f"no run is labelled {reference!r}, the method under test; labels: {', '.join(labels)}")
    check_same_candidates(list(runs))
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for (dataset, scenario), members in by_scenario(runs).items():
        place = {"dataset": dataset, "scenario": scenario}
        columns = _columns(members, labels)
        pairs = _pairs(members, columns.labels, reference)
        for group, mask in columns.groups.items():
            if mask.any():
                resampled = bootstrap_means(columns.values[mask].reshape(int(mask.sum()), -1))
                resampled = resampled.reshape(len(resampled), *columns.values.shape[1:])  # (R, L, M)
                results += [{**place, **row} for row in _results(columns, group, resampled)]
                comparisons += [{**place, **row} for row in _comparisons(columns, group, resampled, pairs)]
    return Tables(pl.DataFrame(results, _RESULTS), _corrected(pl.DataFrame(comparisons, _COMPARISONS)))


def by_scenario(runs: Iterable[BenchmarkRun]) -> dict[tuple[str, str], list[BenchmarkRun]]:
    """Return the runs of each dataset and scenario, both in the order in which they first appear."""
    found: dict[tuple[str, str], list[BenchmarkRun]] = {}
    for run in runs:
        found.setdefault((run.key.dataset, run.key.scenario), []).append(run)
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    return dict(sorted(found.items(), key=lambda entry: datasets.index(entry[0][0])))


def _columns(runs: Sequence[BenchmarkRun], labels: Sequence[str]) -> _Columns:
    first = runs[0]
    names = [name for name, kind in first.ranks.schema.items() if kind == pl.Boolean and name != OVERALL]
    names.sort(key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS))
    by_label: dict[str, dict[int, Ranks]] = {label: {} for label in labels}
    for run in runs:
        titles = (_title(first), _title(run))
        check_same_users(first.ranks, run.ranks, titles, ["user_id", "target"])
        if any(name not in run.ranks.columns or not run.ranks[name].equals(first.ranks[name]) for name in names):
            raise DataError(f"{titles[0]} and {titles[1]} put users into different groups; make both on the same data")
        seeds = by_label[run.key.label]
        if run.key.seed in seeds:
            raise DataError(
                f"{titles[1]} was run twice on {run.key.dataset}, {run.key.scenario}, with different settings; "
                "keep the one you mean, or give the two different labels"
            )
        seeds[run.key.seed] = _ranks(run)
    present = [label for label in labels if by_label[label]]
    metrics = measured(runs)
    values = [
        [
            average_over_seeds([per_user_values(metric, ranks) for ranks in by_label[label].values()])[0]
            for label in present
        ]
        for metric in metrics
    ]
    groups = {OVERALL: np.ones(len(first.ranks), dtype=bool)}
    groups |= {name: first.ranks[name].fill_null(False).to_numpy() for name in names}
    return _Columns(present, metrics, np.array(values).transpose(2, 1, 0), by_label, groups)


def _title(run: BenchmarkRun) -> str:
    return f"{run.key.label} (seed {run.key.seed})"


def _ranks(run: BenchmarkRun) -> Ranks:
    """Return the ranks of a run with the last place that counts under its protocol."""
    limits = {"full": run.report.get("num_retrieved"), "paper": 1}
    limit = limits.get(run.report["protocol"]) or np.inf
    if not {"rank", "tied"} <= set(run.ranks.columns) or not len(run.ranks):
        raise DataError(
            f"{_title(run)}: {len(run.ranks)} ranks with the columns {', '.join(run.ranks.columns)}; rank and tied "
            "are needed (a version before ties were kept wrote it: delete the run and run again)"
        )
    ranks, tied = (run.ranks[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("rank", "tied"))
    try:
        return Ranks.of_expected(ranks, tied, limit)
    except ValueError as error:
        raise DataError(f"{_title(run)}: {error} (rank: 1 is best, inf is a miss; tied: a count)") from error


def _results(columns: _Columns, group: str, resampled: NDArray[np.float64]) -> list[dict[str, Any]]:
    mask = columns.groups[group]
    means = columns.values[mask].mean(axis=0)  # (L, M)
    rows = []
    for m, metric in enumerate(columns.metrics):
        best = int(means[:, m].argmax())
        for n, label in enumerate(columns.labels):
            interval = percentile_interval(means[n, m], resampled[:, n, m])
            behind = percentile_interval(means[best, m] - means[n, m], resampled[:, best, m] - resampled[:, n, m])
            seeds = [float(per_user_values(metric, ranks[mask]).mean()) for ranks in columns.seed_ranks[label].values()]
            rows.append(
                {
                    "group": group,
                    "label": label,
                    "metric": metric,
                    **_fields(interval, "mean"),
                    "deviation": deviation(seeds),
                    "seeds": len(seeds),
                    "users": int(mask.sum()),
                    "among_best": n == best or not behind.excludes_zero,
                }
            )
    return rows


def _comparisons(
    columns: _Columns, group: str, resampled: NDArray[np.float64], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    if not pairs:
        return []
    mask = columns.groups[group]
    first, second = (np.array([columns.labels.index(pair[side]) for pair in pairs]) for side in (0, 1))
    differences = columns.values[mask][:, first] - columns.values[mask][:, second]  # (U, P, M)
    p_values = sign_flip_tests(differences.reshape(len(differences), -1)).reshape(differences.shape[1:])
    rows = []
    for p, (reference, label) in enumerate(pairs):
        for m, metric in enumerate(columns.metrics):
            drawn = resampled[:, first[p], m] - resampled[:, second[p], m]
            by_seed = _by_seed(columns, (reference, label), metric, mask)
            rows.append(
                {
                    "group": group,
                    "metric": metric,
                    "reference": reference,
                    "label": label,
                    **_fields(percentile_interval(differences[:, p, m].mean(), drawn), "difference"),
                    "worst_seed": min((float((one - other).mean()) for one, other in by_seed), default=None),
                    "p_randomisation": p_values[p, m],
                    "p_mcnemar": _mcnemar(metric, by_seed),
                    "users": int(mask.sum()),
                }
            )
    return rows


def _mcnemar(metric: str, by_seed: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float | None:
    """Return McNemar's p of the least favourable seed; None where ties make a hit a share, which it cannot test."""
    hits = metric.startswith("hit@") and all(np.isin(values, (0.0, 1.0)).all() for both in by_seed for values in both)
    return max((mcnemar(*both) for both in by_seed), default=None) if hits else None


def _fields(interval: Interval, name: str) -> dict[str, float]:
    return {name: interval.mean, "low": interval.low, "high": interval.high}


def _by_seed(
    columns: _Columns, pair: tuple[str, str], metric: str, mask: NDArray[np.bool_]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return both methods' values by user for pairs of seeds: a method of one seed meets every seed of the other."""
    first, second = (columns.seed_ranks[label] for label in pair)
    shared = [(seed, seed) for seed in first if seed in second]
    if min(len(first), len(second)) == 1:
        shared = [(one, other) for one in first for other in second]
    return [
        (per_user_values(metric, first[one][mask]), per_user_values(metric, second[other][mask]))
        for one, other in shared
    ]


def _pairs(runs: Sequence[BenchmarkRun], labels: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    pairs = [(reference, label) for label in labels if label != reference] if reference in labels else []
    found = labels_in_order(runs)
    for label in labels:
        parent = found[label].details.get("ablation_of")
        if parent in labels and parent not in (label, reference):
            pairs.append((parent, label))
    return [(str(first), second) for first, second in pairs]


def _corrected(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Return the table with Holm's correction, family by family."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for number, family in enumerate(comparisons.select("dataset", "scenario", "metric", "reference").iter_rows()):
        families.setdefault(family, []).append(number)
    corrected = np.ones(len(comparisons))
    for rows in families.values():
        corrected[rows] = holm(comparisons["p_randomisation"].to_numpy()[rows])
    return comparisons.with_columns(pl.Series("p_holm", corrected, dtype=pl.Float64))
