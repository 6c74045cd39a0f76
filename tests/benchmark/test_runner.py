"""Running: nothing finished is computed again, a kill changes nothing, and what cannot be done is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import polars as pl
import pytest
from filelock import FileLock

from allmrec_hf.benchmark.plan import plan
from allmrec_hf.benchmark.runner import Place, finished_runs, run_suite, write_report
from allmrec_hf.benchmark.suite_parser import parse_suite
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import ALLMRecError, DataError
from tests.benchmark import stub_method
from tests.benchmark.stub_method import KILL_AT, LOG, content


@pytest.fixture(autouse=True)
def fitted(monkeypatch, tmp_path):
    """Return a function that tells how often the stub was trained."""
    stub_method.register(monkeypatch)
    monkeypatch.setenv(LOG, str(tmp_path / "fitted.txt"))
    return lambda: len((tmp_path / "fitted.txt").read_text().splitlines())


def suite(**changes):
    return parse_suite(content(**changes), "mini.yaml")


def outcomes(output, **changes):
    """Return what every finished run found, without what depends on the clock."""
    runs = finished_runs(plan(suite(**changes)), output)
    return {run.key.folder_name: (run.report, run.ranks.to_dicts()) for run in runs}


def test_second_run_computes_nothing(tmp_path, fitted):
    outcome = run_suite(suite(), Place(tmp_path / "out"))
    assert (len(outcome.planned_runs), outcome.computed, outcome.skipped, outcome.failed) == (9, 9, [], [])
    assert fitted() == 9
    assert run_suite(suite(), Place(tmp_path / "out")).computed == 0
    assert fitted() == 9
    assert not (tmp_path / "out" / "parts").exists()
    assert not (tmp_path / "out" / "work").exists()


def test_runs_of_an_older_form_are_computed_again(tmp_path, fitted):
    run_suite(suite(), Place(tmp_path))
    whole = outcomes(tmp_path)
    for folder in sorted((tmp_path / "runs").iterdir())[:2]:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        (folder / "result.json").write_text(json.dumps({**content, "format": 1}), encoding="utf-8")
        pl.read_parquet(folder / "per_user.parquet").drop("tied").write_parquet(folder / "per_user.parquet")
    assert len(finished_runs(plan(suite()), tmp_path)) == 7
    assert run_suite(suite(), Place(tmp_path)).computed == 2
    assert fitted() == 9 + 2
    assert outcomes(tmp_path) == whole


def test_two_commands_cannot_use_one_folder_at_a_time(tmp_path, fitted):
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(ALLMRecError, match=r"another command is running in .*out"),
    ):
        run_suite(suite(), Place(tmp_path / "out"))
    assert run_suite(suite(), Place(tmp_path / "out")).computed == 9


def test_method_without_a_seed_runs_once():
    seeds = {
        label: [planned.key.seed for planned in plan(suite()) if planned.key.label == label]
        for label in ("steady", "stub")
    }
    assert seeds == {"steady": [0, 0, 0], "stub": [0, 0, 0, 1, 1, 1]}


def test_added_method_is_the_only_one_computed(tmp_path, fitted):
    run_suite(suite(), Place(tmp_path / "out"))
    stronger = {"label": "strong", "method": "stub", "options": {"strength": 2.0}}
    assert run_suite(suite(methods=["steady", "stub", stronger]), Place(tmp_path / "out")).computed == 6
    assert fitted() == 15


def test_run_tells_method_scenario_and_ranks_under_its_label(tmp_path):
    spec = {"label": "a label", "method": "stub", "ablation_of": "steady"}
    run_suite(suite(methods=["steady", spec], reference="a label"), Place(tmp_path))
    runs = finished_runs(plan(suite(methods=["steady", spec], reference="a label")), tmp_path)
    run = next(run for run in runs if run.key.label == "a label" and run.key.scenario == "few-shot-20")
    assert run.details["paper"] == "nobody, nowhere"
    assert run.details["ablation_of"] == "steady"
    assert run.details["scenario"]["parameters"]["num_users"] == 20
    assert run.ranks["method"].unique().to_list() == ["a label"]
    assert run.ranks.height == 30
    assert str(tmp_path) not in json.dumps([run.details, run.key.facts])


def test_the_whole_catalogue_and_shuffled_histories_stand_beside_the_candidates(tmp_path):
    outcome = run_suite(suite(scenarios=["overall"]), Place(tmp_path))
    write_report(suite(scenarios=["overall"]), outcome, tmp_path, "allmrec benchmark")
    runs = [run for run in finished_runs(plan(suite(scenarios=["overall"])), tmp_path) if run.key.label == "stub"]
    whole = [run.report["full_ranking"] for run in runs]
    assert [one["users"] for one in whole] == [run.report["users"] for run in runs]
    mean = {
        "NDCG@10": sum(one["methods"]["stub"]["overall"]["ndcg@10"] for one in whole) / 2,
        "coverage": sum(one["beyond_accuracy"]["stub"]["coverage"] for one in whole) / 2,
        "NDCG@5 among candidates, lost in random order": 0.0,  # the stub reads no history
    }
    lines = (tmp_path / "report.md").read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("| whole catalogue"))
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[place : place + 4]]
    row = next(dict(zip(cells[0], found, strict=True)) for found in cells if found[0] == "stub")
    assert {name: row[name] for name in mean} == {name: f"{value:.4f}" for name, value in mean.items()}
    assert ">whole catalogue</th>" in (tmp_path / "report.html").read_text()


def test_the_whole_catalogue_is_not_ranked_by_a_method_whose_llm_reads_every_item(tmp_path, monkeypatch):
    monkeypatch.setattr("allmrec_hf.evaluation.rankers.PopularityRanker.ranks_catalogue", False, raising=False)
    outcome = run_suite(suite(scenarios=["overall"]), Place(tmp_path))
    write_report(suite(scenarios=["overall"]), outcome, tmp_path, "allmrec benchmark")
    for run in finished_runs(plan(suite(scenarios=["overall"])), tmp_path):
        assert not {"full_ranking", "shuffled"} & set(run.report)
    assert "| whole catalogue" not in (tmp_path / "report.md").read_text()


def test_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path, fitted):
    run_suite(suite(), Place(tmp_path / "calm"))
    whole = fitted()
    environment = {**os.environ, KILL_AT: str(whole + 3), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.benchmark.stub_method", str(tmp_path / "killed")]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    done = len(list((tmp_path / "killed" / "runs").glob("*/result.json")))
    assert 0 < done < 9
    assert run_suite(suite(), Place(tmp_path / "killed")).computed == 9 - done
    assert fitted() == whole + 9 + 1  # the run that the kill hit, twice
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "calm")


def test_another_process_finds_what_this_one_finds(tmp_path):
    only = {"methods": ["item-knn"], "reference": "item-knn", "scenarios": ["overall"], "seeds": [0]}
    run_suite(suite(**only), Place(tmp_path / "one"))
    outcome = run_suite(suite(**only), Place(tmp_path / "two"), processes=2)
    assert outcome.computed == 1
    assert outcomes(tmp_path / "two", **only) == outcomes(tmp_path / "one", **only)


def test_scenario_without_users_is_left_out_with_its_reason(tmp_path):
    scenarios = {"scenarios": ["overall", "cold-users"]}
    outcome = run_suite(suite(**scenarios), Place(tmp_path))
    assert outcome.computed == 3
    assert [entry["scenario"] for entry in outcome.skipped] == ["cold-users"]
    assert "0 users with exactly 3 interactions, scenario cold-users needs 50" in outcome.skipped[0]["reason"]
    assert json.loads((tmp_path / "skipped.json").read_text()) == outcome.skipped
    report = write_report(suite(**scenarios), outcome, tmp_path)
    assert "needs 50" in report.read_text(encoding="utf-8")


def test_method_that_fails_is_told_and_the_others_go_on(tmp_path):
    broken = {"label": "broken", "method": "stub", "options": {"fail": True}, "only_scenarios": ["overall"]}
    outcome = run_suite(suite(methods=[broken, "steady"], reference="steady"), Place(tmp_path))
    assert outcome.computed == 3
    assert [entry["seed"] for entry in outcome.failed] == [0, 1]
    assert outcome.failed[0]["error"] == "RuntimeError: no such luck"
    assert (tmp_path / "failed.json").exists()


def test_more_shots_than_users_are_refused_with_both_counts_before_anything_runs(tmp_path, fitted):
    few = suite(scenarios=["overall", {"name": "few-shot", "num_users": 60}])
    with pytest.raises(DataError, match="asks for 60 training users, and world has 60 users"):
        run_suite(few, Place(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_domains_that_share_ids_are_refused(tmp_path):
    worlds = [
        {"name": name, "synthetic": {"seed": seed, "num_items": 80, "num_users": 60, "num_topics": 4}}
        for seed, name in enumerate(("one", "two"))
    ]
    crossed = [{"name": "cross-domain", "train": "one", "test": "two"}]
    both = suite(datasets=worlds, scenarios=crossed)
    with pytest.raises(DataError, match=r"one and two share 60 user ids .* and 80 item ids"):
        run_suite(both, Place(tmp_path))


def test_cutoff_above_the_candidates_of_prepared_data_is_refused(tmp_path):
    run_suite(suite(), Place(tmp_path / "first"))
    (folder,) = (tmp_path / "first" / "data").iterdir()
    assert PreparedData.load(folder).info["num_candidates"] == 10
    entry = {"datasets": [{"name": "own", "prepared": str(folder)}]}
    assert run_suite(suite(**entry, evaluation={"cutoffs": [1, 10]}), Place(tmp_path / "fits")).computed == 9
    with pytest.raises(ALLMRecError, match="cutoffs names 20, but own has sets of 10 candidates"):
        run_suite(suite(**entry, evaluation={"cutoffs": [20]}), Place(tmp_path / "refused"))


def test_method_that_needs_an_llm_is_refused_at_once_without_one(tmp_path):
    with pytest.raises(ALLMRecError, match="needs an LLM; give the suite's `llm`, or --llm"):
        run_suite(suite(methods=["steady", "llm-only"], reference="steady"), Place(tmp_path))


def test_runs_of_another_form_of_the_suite_stay_out_of_the_report(tmp_path):
    run_suite(suite(), Place(tmp_path))
    other = suite(evaluation={"cutoffs": [1]})
    run_suite(other, Place(tmp_path))
    assert len(finished_runs(plan(other), tmp_path)) == 9
    with pytest.raises(DataError, match="holds no finished run of this suite"):
        finished_runs(plan(suite(seeds=[7])), tmp_path)


def test_report_is_made_of_finished_runs_alone(tmp_path):
    outcome = run_suite(suite(), Place(tmp_path))
    report = write_report(suite(), outcome, tmp_path, "allmrec benchmark")
    assert report.is_file()
    assert isinstance(pl.read_parquet(tmp_path / "tables" / "results.parquet"), pl.DataFrame)


def test_processes_end_with_the_one_that_started_them():
    code = (
        "import multiprocessing, time; from concurrent.futures import ProcessPoolExecutor;"
        "from allmrec_hf.benchmark.runner import _start_process;"
        "pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _start_process, (1, None));"
        "pool.submit(print, 'at work', flush=True); pool.submit(time.sleep, 600); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as started:
        assert started.stdout.readline() == b"at work\n"
        started.kill()
        assert started.communicate(timeout=60)[0] == b""  # everybody who could write has ended
