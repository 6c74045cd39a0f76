"""The paper's suites: its settings and figures as published, and a clear word where its data are missing or others."""

from __future__ import annotations

import gzip
import json

import pytest

from allmrec_hf.benchmark.published import COUNTS, DATASETS, published_values
from allmrec_hf.benchmark.runner import Place, run_suite
from allmrec_hf.benchmark.sources import check_counts, check_files, prepared_data
from allmrec_hf.benchmark.suite import DatasetSpec
from allmrec_hf.benchmark.suite_parser import load_suite
from allmrec_hf.errors import DataError


@pytest.fixture(params=DATASETS)
def name(request):
    return request.param


def published(dataset, label, scenario="overall", group="overall"):
    found = [
        value.value
        for value in published_values(dataset)
        if (value.label, value.scenario, value.group) == (label, scenario, group)
    ]
    assert len(found) == 1
    return found[0]


def test_suite_has_the_parts_and_preset_of_the_paper(name):
    suite = load_suite(f"paper-{name}")
    assert (suite.llm, suite.preset, suite.backbone) == ("facebook/opt-6.7b", "paper", "sasrec")
    assert suite.text_encoder == "sentence-transformers/nq-distilbert-base-v1"
    assert not suite.budget
    assert suite.published == name


def test_data_are_filtered_as_the_authors_did_and_their_counts_are_asserted(name):
    spec = load_suite(f"paper-{name}").datasets[0]
    assert spec.name == name
    assert spec.prepare["filter"] == "a-llmrec"
    assert spec.prepare["drop_duplicates"] is False
    rated = name in ("beauty", "toys")
    assert (spec.prepare["k_core"], spec.prepare.get("count_min_rating")) == ((4, 3) if rated else (5, None))
    counts = COUNTS[name]
    assert spec.expected == {"users": counts.users, "items": counts.items, "interactions": counts.interactions}
    assert counts.interactions / counts.users == pytest.approx(counts.mean_length, abs=0.5)


def test_text_reconstruction_has_the_weight_of_the_data_set(name):
    whole = next(spec for spec in load_suite(f"paper-{name}").methods if spec.label == "a-llmrec")
    assert whole.options == {"text_reconstruction_weight": 0.5 if name in ("movies", "games") else 0.2}


def test_every_published_figure_of_the_data_set_has_a_run_in_the_suite(name):
    suite = load_suite(f"paper-{name}")
    for value in published_values(name):
        method = next(spec for spec in suite.methods if spec.label == value.label)
        scenario = next(spec for spec in suite.scenarios if spec.label == value.scenario)
        assert method.runs_in(name, scenario), value
        assert scenario.is_for(name), value


def test_published_figures_are_those_of_the_paper():
    assert published("movies", "a-llmrec") == 0.6237
    assert published("toys", "tallrec") == 0.0710
    assert published("games", "a-llmrec", group="cold") == 0.426
    assert published("beauty", "sasrec", group="warm") == 0.631
    assert published("movies", "sasrec", "few-shot-128") == 0.154
    assert published("games", "a-llmrec (text)", "cross-domain-movies-games") == 0.1203
    assert published("beauty", "a-llmrec, all positions") == 0.6002
    assert published("toys", "random joint embedding") == 0.0776
    assert published_values("office") == []


def test_missing_files_are_named_with_where_they_are_published(name, tmp_path):
    suite = load_suite(f"paper-{name}")
    with pytest.raises(DataError, match=r"is made from .*\.json\.gz and meta_.*amazon_v2.*--data-root DIR"):
        run_suite(suite, Place(tmp_path / "out"))
    with pytest.raises(DataError, match=r"missing: .*\.json\.gz, .*meta_.*published at https://"):
        run_suite(suite, Place(tmp_path / "out", tmp_path))
    assert not (tmp_path / "out" / "runs").exists()


def test_other_counts_are_refused_with_both_numbers_or_allowed(caplog):
    spec = load_suite("paper-beauty").datasets[0]
    found = {"users": 9_930, "items": 6_142, "interactions": 63_950}
    message = "items: published 6,141, found 6,142; interactions: published 63,953, found 63,950"
    with pytest.raises(DataError, match=f"beauty is not the published data set: {message}.*--allow-other-counts"):
        check_counts(spec, found, allow_other_counts=False)
    check_counts(spec, found, allow_other_counts=True)
    assert message in caplog.text
    check_counts(spec, {"users": 9_930, "items": 6_141, "interactions": 63_953}, allow_other_counts=False)


def test_raw_files_are_prepared_by_the_filter_of_the_paper_and_only_once(tmp_path):
    beauty = load_suite("paper-beauty").datasets[0]
    spec = DatasetSpec(beauty.name, beauty.source, beauty.options, {**beauty.prepare, "num_candidates": 2})
    rows = [
        {"reviewerID": f"u{user}", "asin": f"i{item}", "unixReviewTime": 10 * item + user, "overall": 5.0}
        for user in range(12)
        for item in range(12)
        if (item - user) % 12 < 6
    ]
    items = [{"asin": f"i{item}", "title": f"Soap {item}", "description": ["Soap."]} for item in range(12)]
    for key, lines in (("interactions", rows), ("items", items)):
        with gzip.open(tmp_path / spec.options[key], "wt") as handle:
            handle.write("\n".join(map(json.dumps, lines)))
    first = prepared_data(spec, tmp_path, tmp_path / "out", allow_other_counts=True)
    assert first.info["settings"]["filter"] == "a-llmrec"
    for key in ("interactions", "items"):
        (tmp_path / spec.options[key]).unlink()
    check_files(spec, tmp_path, tmp_path / "out")
    again = prepared_data(spec, tmp_path, tmp_path / "out", allow_other_counts=True)
    assert again.candidate_frame.equals(first.candidate_frame)
