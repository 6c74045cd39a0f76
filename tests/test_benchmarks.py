from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from allmrec_hf.benchmark.plan import plan
from allmrec_hf.benchmark.suite_parser import load_suite
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import BackboneRanker

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def cf_quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as when it is run as a script
    import cf_quality

    return cf_quality


def run(library: str, seed: int, ndcg: float, **changes: Any) -> dict[str, Any]:
    metrics = {"users": 10, "ndcg@10": ndcg, "hit@10": 0.5, "mrr": 0.25}
    facts = {
        "epochs": 4,
        "best_epoch": 3,
        "seconds": 9.0,
        "stopped_by": "early_stopping",
        "time_limit_s": 90.0,
    }
    names = {"dataset": "films", "library": library, "model": "sasrec", "seed": seed, "versions": {"torch": "2.13.0"}}
    return {**names, "metrics": metrics, **facts, **changes}


def test_the_table_shows_means_deviations_and_rows_against_us(cf_quality: ModuleType) -> None:
    runs = [run("allmrec-hf", 0, 0.1), run("allmrec-hf", 1, 0.2), run("recbole", 0, 0.4, stopped_by="time_limit")]
    page = sys.modules["quality_table"].page(runs, "How.", "python x.py", "one core")
    assert (
        "| SASRec | allmrec-hf | 0.1500 ± 0.0707 | 0.5000 ± 0.0000 | 0.2500 ± 0.0000 | 4 (3) | 9 | patience |" in page
    )
    assert "| SASRec | recbole | **0.4000** | 0.5000 | 0.2500 | 4 (3) | 9 | limit of 90 s |" in page
    assert (
        "- SASRec: behind recbole by 0.2500 NDCG@10 (0.1500 against 0.4000, 2 and 1 seeds); recbole ran out of time"
        in page
    )


def test_ranks_from_the_arrays_are_those_of_the_evaluator(
    cf_quality: ModuleType, small_data: PreparedData, tmp_path: Path
) -> None:
    problem = cf_quality.write_problem(small_data, tmp_path / "problem")
    assert [list(sequence) for sequence in problem.train] == [list(sequence) for sequence in small_data.sequences()]
    config = SASRecConfig(num_items=small_data.num_items, hidden_size=8, num_layers=1, initializer_range=1.0)
    model = SASRecModel(config).eval()
    ranks = cf_quality.encoder_ranks(model, problem)
    expected = evaluate([BackboneRanker(model)], small_data, protocol="full", num_retrieved=small_data.num_items)
    np.testing.assert_array_equal(ranks.better, expected.ranks["sasrec"].better)
    np.testing.assert_array_equal(ranks.tied, expected.ranks["sasrec"].tied)


def test_scores_that_leave_items_out_are_refused(
    cf_quality: ModuleType, small_data: PreparedData, tmp_path: Path
) -> None:
    problem = cf_quality.write_problem(small_data, tmp_path / "problem")
    with pytest.raises(ValueError, match=r"finite and \(\d+, 120\)"):
        problem.ranks(lambda users: np.full((len(users), 120), -np.inf), "test")
    with pytest.raises(ValueError, match="one column for each item"):
        problem.ranks(lambda users: np.zeros((len(users), 119)), "test")


def test_popularity_needs_no_other_library(cf_quality: ModuleType, small_data: PreparedData, tmp_path: Path) -> None:
    options = cf_quality.parsed(["--data-root", str(tmp_path), "--output", str(tmp_path), "--seeds", "0", "1"])
    runs = list(cf_quality.runs_of(options, {}))
    assert {run.library for run in runs} == {"allmrec-hf"}
    assert sum(run.model == "popularity" for run in runs) == len(options.datasets)
    problem = cf_quality.write_problem(small_data, tmp_path / "problem")
    run = cf_quality.Run("small", "allmrec-hf", "popularity", 0)
    assert cf_quality.run_ours(run, small_data, problem, options)["metrics"]["users"] == len(problem.users("test"))


def test_a_run_is_computed_again_only_where_more_time_is_allowed(cf_quality: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert not cf_quality.is_done(path, 10.0)
    path.write_text('{"stopped_by": "early_stopping", "time_limit_s": 90.0}', encoding="utf-8")
    assert not cf_quality.is_done(path, 1.0)  # of the form before ties were averaged
    path.write_text('{"format": 2, "stopped_by": "time_limit", "time_limit_s": 90.0}', encoding="utf-8")
    assert cf_quality.is_done(path, 90.0)
    assert not cf_quality.is_done(path, 91.0)
    path.write_text('{"format": 2, "stopped_by": "early_stopping", "time_limit_s": 90.0}', encoding="utf-8")
    assert cf_quality.is_done(path, 1000.0)


def test_one_rate_explains_what_was_measured_and_the_page_of_scale_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale

    measured = scale.json.loads(scale.MEASURED.read_text(encoding="utf-8"))
    for name, predicted, real in scale.checks(measured):
        assert 2 / 3 < real / predicted < 3 / 2, name
    assert scale.tables() in scale.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.name)
def test_suites_of_the_folder_are_planned(path: Path) -> None:
    assert plan(replace(load_suite(path), llm="demo"))
