"""The command: what it runs without a suite, and what it tells."""

import json

from tests.benchmark.stub_method import content
from tests.command_line import refused, succeeded
from tests.small_run import write_data


def test_methods_on_ones_own_data_need_no_suite_and_a_llmrec_is_under_test(tmp_path):
    write_data(tmp_path / "data")
    given = ("benchmark", "--data", tmp_path / "data", "--methods", "popularity,item-knn", "--seeds", "0,1")
    found = succeeded(*given, "--output", tmp_path / "out")
    assert "3 of 3 runs are done, 3 of them computed now." in found.stdout
    assert "data, overall, item-knn, seed 1: " in found.stderr
    assert (tmp_path / "out" / "report.html").exists()
    again = json.loads(succeeded(*given, "--output", tmp_path / "out", "--json").stdout)
    assert (again["runs"], again["done"], again["computed"]) == (3, 3, 0)
    listed = succeeded(
        "benchmark", "--data", tmp_path / "data", "--methods", "popularity,a-llmrec", "--llm", "demo", "--list"
    )
    assert "2 runs, 0 done" in listed.stdout
    chosen = ("--preset", "quick", "--ranker", "fusion", "--llm", "demo")
    listed = succeeded("benchmark", "--data", tmp_path / "data", "--methods", "a-llmrec,no-llm", *chosen, "--list")
    assert "2 runs, 0 done" in listed.stdout
    told = refused("benchmark", "--data", tmp_path / "data", "--methods", "popularity", *chosen, "--list")
    assert "--ranker fusion: no method of this benchmark ranks so" in told


def test_unfinished_suite_is_reported_as_unfinished(tmp_path):
    suite = tmp_path / "mini.yaml"
    suite.write_text(json.dumps(content(methods=["popularity"], reference="popularity", scenarios=["overall"])))
    succeeded("benchmark", "--suite", suite, "--output", tmp_path / "out")
    wider = tmp_path / "wider.yaml"
    wider.write_text(
        json.dumps(content(methods=["popularity", "item-knn"], reference="popularity", scenarios=["overall"]))
    )
    found = succeeded("benchmark", "--suite", wider, "--output", tmp_path / "out", "--only-report")
    assert "1 of 3 runs are done, 0 of them computed now." in found.stdout
    assert "not computed yet" in (tmp_path / "out" / "report.md").read_text()


def test_failing_method_ends_with_one_and_a_mistake_with_two(tmp_path):
    suite = tmp_path / "mini.yaml"
    suite.write_text(json.dumps(content(methods=["unheard"], reference="unheard")))
    assert "unknown method 'unheard'" in refused("benchmark", "--suite", suite, "--output", tmp_path / "out")
    assert "--methods NAME,NAME" in refused("benchmark", "--output", tmp_path / "out")
    assert "--seeds takes different whole numbers" in refused(
        "benchmark", "--suite", "smoke", "--seeds", "1,1", "--list"
    )
