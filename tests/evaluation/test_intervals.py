"""Intervals of a report's metrics: those of the same users by hand, and those of a stored per-user table."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from allmrec_hf.errors import DataError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.intervals import metric_values, with_intervals
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.evaluation.significance import mean_interval
from allmrec_hf.ranking import Ranks


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("hit@1", [1.0, 0.0]), ("hit@3", [1.0, 1.0]), ("ndcg@3", [1.0, 0.5]), ("mrr", [1.0, 1 / 3])],
)
def test_a_metric_of_each_user_by_hand(metric, expected):
    assert metric_values(Ranks.of_places([1, 3]), metric).tolist() == pytest.approx(expected)


@pytest.fixture(scope="module", params=["candidates", "full"])
def result(request, small_data):
    ranker = PopularityRanker(small_data.item_counts("train"))
    return evaluate([ranker], small_data, request.param, max_users=40, num_retrieved=15)


def test_every_metric_of_every_group_has_the_interval_of_its_users(result):
    report = result.report
    (method,) = report["methods"]
    for group, metrics in report["methods"][method].items():
        if not metrics["users"]:
            assert group not in report["intervals"][method]
            continue
        assert set(report["intervals"][method][group]) == set(metrics) - {"users"}
        values = metric_values(result.ranks[method][result.members[group]], "mrr")
        interval = mean_interval(values)
        assert report["intervals"][method][group]["mrr"] == pytest.approx([interval.low, interval.high])
        assert interval.mean == pytest.approx(metrics["mrr"])


def test_a_stored_table_gives_the_same_intervals(result):
    stored = {name: value for name, value in result.to_dict().items() if name != "intervals"}
    again = with_intervals(stored, result.per_user(), "table.parquet")
    for method, groups in result.report["intervals"].items():
        for group, metrics in groups.items():
            for metric, interval in metrics.items():
                assert again["intervals"][method][group][metric] == pytest.approx(interval)


def test_a_table_of_other_users_is_refused(result):
    table = result.per_user().with_columns(pl.lit(1.0).alias("rank"), pl.lit(0).alias("tied"))
    with pytest.raises(DataError, match=r"table\.parquet is not the per-user table of its report"):
        with_intervals(result.to_dict(), table, "table.parquet")
    with pytest.raises(DataError, match=r"users of .* on overall is 39 in the table and 40 in the report"):
        with_intervals(result.to_dict(), result.per_user().head(39), "table.parquet")


def test_intervals_are_no_wider_than_the_metric(result):
    for groups in result.report["intervals"].values():
        for metrics in groups.values():
            ends = np.array(list(metrics.values()))
            assert (ends >= 0).all()
            assert (ends <= 1).all()
