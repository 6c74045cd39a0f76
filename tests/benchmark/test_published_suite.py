"""The suite `published`: figures of full ranking with their sources, ours beside them where the data are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from allmrec_hf.benchmark.plan import plan
from allmrec_hf.benchmark.published_full_ranking import FULL_RANKING_DATASETS, full_ranking_values
from allmrec_hf.benchmark.result_tables import make_tables
from allmrec_hf.benchmark.runner import Place, finished_runs, run_suite
from allmrec_hf.benchmark.suite_parser import load_suite, parse_suite
from allmrec_hf.benchmark.views import grid_lines, published_grid, published_note
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import PopularityRanker
from tests.command_line import run

WORLD = {"seed": 0, "num_items": 60, "num_users": 80}
CONTENT = {
    "published": "s3rec",
    "datasets": [{"name": "beauty", "synthetic": WORLD}, {"name": "toys", "synthetic": {**WORLD, "seed": 1}}],
    "scenarios": ["overall"],
    "methods": ["popularity", {"label": "SASRec", "method": "popularity"}],
    "evaluation": {"protocol": "full", "cutoffs": [1, 10]},
}


def value(dataset, label, metric):
    found = [v.value for v in full_ranking_values() if (v.dataset, v.label, v.metric) == (dataset, label, metric)]
    return found[0] if len(found) == 1 else found


def test_figures_are_those_of_their_sources():
    assert value("beauty", "sasrec", "ndcg@10") == 0.0597
    assert value("beauty", "bsarec", "hit@10") == 0.1002
    assert value("sports", "hstu", "ndcg@10") == 0.0332
    assert value("toys", "sasrec, binary cross entropy", "hit@10") == 0.0766
    assert value("toys", "tiger", "hit@10") == []  # not published
    assert all(figure.source for figure in full_ranking_values())


def test_the_suite_ranks_the_whole_catalogue_of_the_very_sequences_with_the_default_preset():
    suite = load_suite("published")
    assert (suite.preset, suite.published, suite.evaluation.protocol) == ("default", "s3rec", "full")
    assert tuple(spec.name for spec in suite.datasets) == FULL_RANKING_DATASETS
    assert suite.datasets[0].expected == {"users": 22363, "items": 12101, "interactions": 198502}
    assert {spec.prepare["filter"] for spec in suite.datasets} == {"none"}
    labels = {spec.label for spec in suite.methods}
    assert {"sasrec", "bsarec", "hstu", "ligr"} <= labels & {figure.label for figure in full_ranking_values()}


def test_the_protocol_is_part_of_a_run_and_older_runs_keep_their_key():
    whole = plan(parse_suite(CONTENT, "a suite"))[0].key
    usual = plan(parse_suite({**CONTENT, "evaluation": {"cutoffs": [1, 10]}}, "a suite"))[0].key
    assert whole.digest != usual.digest
    assert usual.facts["evaluation"] == {"max_users": None, "cutoffs": [1, 10], "history_buckets": None}
    with pytest.raises(
        ALLMRecError, match=r"evaluation\.protocol: unknown protocol 'all'; known ones: candidates, full"
    ):
        parse_suite({**CONTENT, "evaluation": {"protocol": "all"}}, "a suite")


def test_a_cut_off_above_the_candidates_is_allowed_where_the_catalogue_is_ranked():
    for protocol in ("full", "candidates"):
        content = {**CONTENT, "evaluation": {"protocol": protocol, "cutoffs": [50]}}
        if protocol == "full":
            assert parse_suite(content, "a suite").evaluation.cutoffs == (50,)
        else:
            with pytest.raises(ALLMRecError, match="names 50, but beauty has sets of 20 candidates"):
                parse_suite(content, "a suite")


def test_ours_stand_beside_the_published_figures(tmp_path):
    suite = parse_suite(CONTENT, "a suite").with_datasets(["beauty"])
    outcome = run_suite(suite, Place(tmp_path))
    assert (outcome.computed, outcome.failed) == (2, [])
    runs = finished_runs(plan(suite), tmp_path)
    world = SyntheticWorld(**WORLD)
    data = prepare(world.interactions(), world.items(), filter="none", keep_items="all", domain="movie")
    expected = evaluate([PopularityRanker(data.item_counts("train"))], data, "full", cutoffs=(1, 10)).report
    ours = expected["methods"]["popularity"]["overall"]["ndcg@10"]
    assert runs[0].report["protocol"] == "full"
    assert runs[0].report["methods"]["popularity"]["overall"]["ndcg@10"] == ours
    tables = make_tables(runs, None)
    grid = published_grid("beauty", full_ranking_values(), tables)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in grid.sections[0].rows}
    assert grid.sections[0].heading == "overall, all users, NDCG@10"
    assert rows["sasrec"][:3] == ["0.0597", f"{ours:.4f}", f"{ours - 0.0597:+.4f}"]
    assert rows["tiger"] == ["0.0384", "-", "-", "the papers and re-runs with Cornac"]
    assert rows["popularity"] == ["-", f"{ours:.4f}", "-", "-"]
    assert published_grid("office", full_ranking_values(), tables) is None
    assert "the same sequences" in published_note(full_ranking_values())
    lines = grid_lines(grid)
    assert lines[1].startswith("method ")
    assert len({line.index(cell) for line, cell in ((lines[1], "published"), (lines[2], "0.0597"))}) == 1


def test_prepared_data_with_the_published_counts_stand_for_their_data_set(tmp_path):
    world = SyntheticWorld(**WORLD)
    data = prepare(world.interactions(), world.items(), output=tmp_path / "mine", filter="none", keep_items="all")
    suite = parse_suite(CONTENT, "a suite")
    counts = {name: data.info["counts"][name] for name in ("users", "items", "interactions")}
    datasets = (
        replace(suite.datasets[0], expected={**counts, "users": 1}),
        replace(suite.datasets[1], expected=counts),
    )
    found = replace(suite, datasets=datasets).with_data(tmp_path / "mine")
    assert (found.datasets[0].name, found.published) == ("toys", "s3rec")
    other = replace(suite, datasets=datasets[:1] * 2).with_data(tmp_path / "mine")
    assert (other.datasets[0].name, other.published) == ("mine", None)


def test_without_data_the_published_rows_are_printed(capsys):
    result = run("benchmark", "--suite", "published")
    assert result.exit_code == 0
    assert result.output.count("bsarec") == 6  # three data sets, two metrics
    assert "0.0610" in result.output
    assert "--data-root DIR" in result.output
    found = json.loads(run("benchmark", "--suite", "published", "--json").output)["published"]
    assert found[0] | {"source": ""} == {
        **{"dataset": "beauty", "scenario": "overall", "group": "overall", "label": "sasrec", "value": 0.0597},
        **{"metric": "ndcg@10", "source": ""},
    }


def test_a_data_root_without_the_files_is_refused_and_what_is_missing_of_one_is_told(tmp_path):
    command = ("benchmark", "--suite", tmp_path / "suite.yaml", "--output", tmp_path / "out")
    table = {"table": {"interactions": "sports/interactions.parquet"}}
    for datasets in ([{"name": "sports", **table}, {"name": "toys", **table}], [{"name": "sports", **table}]):
        content = {**CONTENT, "datasets": datasets, "methods": ["popularity"]}
        Path(tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
        result = run(*command, "--data-root", tmp_path)
        assert result.exit_code == 2
        assert "the data set sports needs 1 files, missing:" in result.output
    content = {**CONTENT, "datasets": [CONTENT["datasets"][0], {"name": "sports", **table}], "methods": ["popularity"]}
    Path(tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "left out: the data set sports is made from sports/interactions.parquet" in result.output
    assert "beauty, published figures" in result.output
    assert "sports, published figures" in result.output
