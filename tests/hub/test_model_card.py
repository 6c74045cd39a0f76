"""The model card says what its data says, and nothing from outside changes the page."""

from __future__ import annotations

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from allmrec_hf.checkpoint_code import EVAL_RESULTS_FILE
from allmrec_hf.data.eval_tasks import benchmark_tasks
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.hub import card as card_module
from allmrec_hf.hub.card import (
    ALLMRecCard,
    card_files,
    escape,
    evaluation_results,
    read_card,
    render_card,
    write_card,
)

ROOT = Path(__file__).resolve().parents[2]


def metrics(value: float, users: int = 7) -> dict[str, float]:
    return {
        "users": users,
        "hit@1": value,
        "ndcg@1": value,
        "hit@10": value / 2,
        "ndcg@10": value / 3,
        "mrr": value / 7,
    }


@pytest.fixture
def report() -> dict:
    groups = {"overall": metrics(0.123456789), "warm": metrics(0.2), "cold": metrics(0.05), "never_seen": {"users": 0}}
    return {
        "dataset": "toy",
        "split": "test",
        "protocol": "candidates",
        "users": 7,
        "users_available": 9,
        "num_items": 50,
        "num_candidates": 20,
        "num_retrieved": None,
        "seed": 4,
        "candidates_sha256": "ab" * 32,
        "groups": {"warm": {"items": 17}, "cold": {"items": 18}, "never_seen": {"items": 2}},
        "versions": {"torch": "2.13.0"},
        "methods": {"a-llmrec": groups, "popularity": {name: dict(values) for name, values in groups.items()}},
    }


@pytest.fixture
def card(report) -> ALLMRecCard:
    return ALLMRecCard(
        name="a-llmrec-toy",
        base_model="facebook/opt-6.7b",
        base_model_parameters=6_658_473_984,
        cf_backbone="sasrec",
        cf_parameters=12_345,
        trained_parameters={"aligner": 678, "projectors": 91_011},
        text_encoder="org/text-encoder",
        dataset_name="toy interactions",
        dataset_id="org/toy",
        counts={"users": 300, "items": 50, "interactions": 4_321},
        training={"stage 1 (align)": {"learning_rate": 1e-4, "epochs": 10}, "stage 2 (project)": {"batch_size": 4}},
        seeds={"training": 17},
        versions={"torch": "2.13.0"},
        evaluation=report,
        license="apache-2.0",
        language=["en"],
        example_history=["B1", "B2"],
        repo_id="org/a-llmrec-toy",
    )


def test_everything_the_card_was_given_is_on_the_page(card):
    text = render_card(card)
    for expected in ("6,658,473,984", "12,345", "91,011", "4,321", "0.0001", "training 17", "torch 2.13.0"):
        assert expected in text
    for expected in (
        "stage 1 (align)",
        "stage 2 (project)",
        '["B1", "B2"]',
        'model="org/a-llmrec-toy"',
        "org/text-encoder",
    ):
        assert expected in text


def test_metadata_reads_back_as_a_model_card(card):
    data = ModelCard(render_card(card)).data
    assert data.base_model == "facebook/opt-6.7b"
    assert data.library_name == "allmrec-hf"
    assert data.pipeline_tag == "recommendation"
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.datasets == "org/toy"


def test_every_number_of_the_model_index_is_in_the_report_unrounded(card, report):
    results = ModelCard(render_card(card)).data.eval_results
    found = {(result.dataset_config, result.metric_type): result.metric_value for result in results}
    expected = {
        (group, name): value
        for group, values in report["methods"]["a-llmrec"].items()
        for name, value in values.items()
        if name != "users"
    }
    assert found == expected
    assert results[0].dataset_args == {"protocol": "candidates", "num_candidates": 20, "seed": 4}


def test_every_number_of_the_table_is_in_the_report(card, report):
    shown = re.findall(r"\b0\.\d{4}\b", render_card(card).split("## Evaluation")[1].split("## Limits")[0])
    stored = [
        f"{value:.4f}"
        for method, groups in report["methods"].items()
        for values in groups.values()
        for name, value in values.items()
        if name not in ("users", "ndcg@1")
        for _ in range(2 if method == "a-llmrec" else 1)  # beside the backbone, and among all methods
    ]
    assert sorted(shown) == sorted(stored)


@pytest.fixture
def whole_report(report) -> dict:
    """Return a report on the whole catalogue, with intervals, the backbone and what the lists are like."""
    methods = {"a-llmrec": report["methods"]["a-llmrec"], "sasrec": {"overall": metrics(0.1), "warm": metrics(0.3)}}
    intervals = {
        method: {
            group: {name: [value - 0.01, value + 0.01] for name, value in values.items() if name != "users"}
            for group, values in groups.items()
        }
        for method, groups in methods.items()
    }
    lists = {"places": 10.0, "coverage": 0.4321, "popularity_lift": -0.25, "share of cold": 0.1357}
    beyond = {"a-llmrec": lists, "sasrec": {**lists, "coverage": 0.8765}}
    return {
        **report,
        "protocol": "full",
        "num_retrieved": 30,
        "methods": methods,
        "intervals": intervals,
        "beyond_accuracy": beyond,
    }


def test_the_backbone_and_the_intervals_stand_beside_every_number(card, whole_report):
    text = render_card(card.with_report(whole_report)).split("### From the whole catalogue")[1]
    overall = text.split("**overall**")[1].split("**warm**")[0]
    assert "| metric | a-llmrec | sasrec (backbone) |" in overall
    assert "| hit@1 | 0.1235 [0.1135, 0.1335] | 0.1000 [0.0900, 0.1100] |" in overall
    assert "| hit@1 | 0.2000 [0.1900, 0.2100] | 0.3000 [0.2900, 0.3100] |" in text.split("**warm**")[1]
    assert "| hit@1 | 0.0500 [0.0400, 0.0600] | - |" in text.split("**cold**")[1]


def test_a_report_without_intervals_or_backbone_says_so(card):
    text = render_card(card)
    assert "Its report holds no intervals. The backbone was not evaluated beside it." in text


def test_biases_are_those_that_were_measured(card, whole_report):
    assert "What its lists favour was not measured" in render_card(card)
    text = render_card(card.with_report(whole_report)).split("## Biases")[1].split("## Limits")[0]
    assert "Of the first 10 places" in text
    assert "| coverage | 0.4321 | 0.8765 |" in text
    assert "| popularity lift | -0.2500 | -0.2500 |" in text
    assert "| share of cold | 0.1357 | 0.1357 |" in text


def test_reports_of_one_kind_replace_each_other_and_candidates_come_first(card, report, whole_report):
    both = replace(card, evaluation=None).with_report(whole_report).with_report(report)
    assert both.reports == [report, whole_report]
    newer = {**report, "users": 8}
    assert both.with_report(newer).reports == [newer, whole_report]
    assert both.with_report({**report, "scenario": {"label": "share-0.5"}}).evaluation == report


def test_results_of_several_protocols_keep_their_own_arguments(card, whole_report):
    results = ModelCard(render_card(card.with_report(whole_report))).data.eval_results
    by_config = {result.dataset_config: result.dataset_args["protocol"] for result in results}
    assert by_config["overall"] == "candidates"
    assert by_config["overall, full"] == "full"


def test_evaluation_results_are_read_back_by_the_library_s_own_reader(card, report, whole_report):
    entries = parse_eval_result_entries(yaml.safe_load(card_files(card.with_report(whole_report))[EVAL_RESULTS_FILE]))
    found = {entry.task_id: entry.value for entry in entries}
    own = report["methods"]["a-llmrec"]
    assert found["candidates_hit_at_1_overall"] == own["overall"]["hit@1"]
    assert found["candidates_ndcg_at_10_cold"] == own["cold"]["ndcg@10"]
    assert found["full_hit_at_10_warm"] == own["warm"]["hit@10"]
    assert set(found) <= {task["id"] for task in benchmark_tasks(20)}
    assert not any(name.endswith("never_seen") for name in found)  # nobody is in that group
    assert {entry.dataset_id for entry in entries} == {"org/toy"}
    notes = {entry.task_id: entry.notes for entry in entries}
    assert "95 % interval 0.0517 to 0.0717; backbone sasrec 0.0500" in notes["full_hit_at_10_overall"]


def test_results_of_data_that_are_not_on_the_hub_say_so(card):
    (entry, *_) = yaml.safe_load(card_files(replace(card, dataset_id=None))[EVAL_RESULTS_FILE])
    assert entry["dataset"]["id"] == "toy-interactions"
    assert "not recorded as one of the Hub" in entry["notes"]


def test_scenarios_and_validation_are_no_tasks_of_the_data(card, report):
    for change in ({"split": "validation"}, {"scenario": {"label": "share-0.5"}}):
        assert EVAL_RESULTS_FILE not in card_files(replace(card, evaluation={**report, **change}))


def test_the_licence_of_every_part_is_told_and_an_unknown_one_is_called_unknown(card):
    text = render_card(replace(card, part_licenses={"language model": "other"}, license=None))
    rows = text.split("## Licence")[1]
    assert "| language model, facebook/opt-6.7b | other |" in rows
    assert "| text encoder, org/text-encoder | unknown |" in rows
    assert "| data, toy interactions | unknown |" in rows
    assert "| what was trained here | unknown |" in rows
    assert ModelCard(text).data.license == "unknown"


def test_training_time_is_that_of_the_stages(card):
    results = {"align": {"steps": 1414, "epochs": 14, "seconds": 86.27, "device": "cpu", "processes": 2}}
    assert "| align | 1,414 | 14 | 86.3 | cpu | 2 |" in render_card(replace(card, stage_results=results))
    assert "How long the training took was not recorded." in render_card(card)


@pytest.mark.parametrize(("ranker", "words"), [(None, "likelihood of their titles"), ("fusion", "weighted sum")])
def test_the_card_says_what_ranks(card, ranker, words):
    assert words in render_card(replace(card, ranker=ranker))


def test_a_card_without_evaluation_claims_no_number(card):
    text = render_card(replace(card, evaluation=None))
    assert "This checkpoint has not been evaluated." in text
    assert "model-index" not in text
    assert "numbers above" not in text


def test_a_bare_card_says_what_is_unknown():
    text = render_card(ALLMRecCard(name="bare"))
    assert "No licence was stated" in text
    assert "The training data was not recorded." in text
    assert "The training settings were not recorded." in text
    assert "base_model" not in text
    assert not re.search(r"\bNone\b|\{\{|\{%", text)


def test_a_backbone_alone_does_not_speak_of_a_language_model(card):
    text = render_card(replace(card, backbone_only=True, base_model=None, evaluation=None))
    assert "language model" not in text
    assert "AutoModel.from_pretrained" in text
    assert "pipeline_tag" not in text


def test_warnings_stand_at_the_top(card):
    text = render_card(replace(card, warnings=["Its world is invented."]))
    assert text.index("Its world is invented.") < text.index("## Use")


def test_an_unknown_method_is_refused(card):
    with pytest.raises(ALLMRecError, match=r"no method 'gru4rec'; it has \['a-llmrec', 'popularity'\]"):
        evaluation_results(replace(card, method="gru4rec"))


NASTY = (
    "</td><script>alert(1)</script> | [x](http://evil.example) ![y](z) `code` **b** {{ card_data }} "
    "www.evil.example a@b\n---\nlicense: mit\n# H"
)


@pytest.mark.parametrize("place", ["name", "cf_backbone", "dataset_name", "dataset_source", "license", "base_model"])
def test_text_from_outside_cannot_change_the_page(card, report, place):
    text = render_card(replace(card, evaluation=None, **{place: NASTY}))
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "\n# H" not in body
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", body)
    assert not re.search(r"http://evil|www\.evil|a@b", body)
    assert "\nlicense: mit" not in text
    assert ModelCard(text).data.library_name == "allmrec-hf"
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4, 7}


def test_names_inside_the_report_are_escaped_too(card, report):
    report["dataset"] = NASTY
    report["methods"]["<b>|x"] = report["methods"]["popularity"]
    text = render_card(card)
    assert "<script>" not in text.split("\n---\n", 1)[1]
    assert "&lt;b&gt;\\|x" in text
    table = [line for line in text.splitlines() if line.startswith(("| overall", "| warm |", "| cold |"))]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table} == {8}


def test_item_ids_cannot_leave_the_code_block(card):
    history = ['a"b', "```\n# H", "\\"]
    text = render_card(replace(card, example_history=history))
    line = next(line for line in text.splitlines() if line.startswith("recommend({"))
    assert eval(re.search(r"\[.*\]", line)[0]) == history
    assert "\n```\n# H" not in text


def test_a_path_of_the_training_machine_is_not_published(card):
    for path in ("/home/someone/models/tiny-lm", "C:\\Users\\someone\\tiny-lm", "../models/tiny-lm/"):
        text = render_card(replace(card, base_model=path, text_encoder=path))
        assert "tiny-lm (a local folder)" in text
        assert "someone" not in text
        assert "base_model" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b*c", "a\\_b\\*c"),
        ("x\u202ey\x00z\n", "x y z"),
        ("a" * 400, "a" * 299 + "…"),
        ("", ""),
        ("日本 😀", "日本 😀"),
    ],
)
def test_escape_by_hand(text, expected):
    assert escape(text) == expected


def test_the_card_is_written_with_its_source_and_read_back(card, tmp_path):
    path = write_card(card, tmp_path)
    assert path.read_text() == render_card(card)
    assert {file.name for file in tmp_path.iterdir()} == {".eval_results", "README.md", "model_card.json"}
    again = read_card(tmp_path)
    assert again == card
    assert render_card(again) == path.read_text()


def test_evaluation_is_added_to_a_card_that_training_wrote(card, report, tmp_path):
    write_card(replace(card, evaluation=None), tmp_path)
    write_card(replace(read_card(tmp_path), evaluation=report), tmp_path)
    assert "0.1235" in (tmp_path / "README.md").read_text()


def test_a_damaged_card_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model_card.json in"):
        read_card(tmp_path)
    (tmp_path / "model_card.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_card.json is no JSON"):
        read_card(tmp_path)
    (tmp_path / "model_card.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds list"):
        read_card(tmp_path)
    (tmp_path / "model_card.json").write_text(json.dumps({"name": "x", "colour": 1}))
    with pytest.raises(CheckpointError, match=r"unknown fields \['colour'\]"):
        read_card(tmp_path)


def test_a_card_that_cannot_be_rendered_leaves_nothing_behind(card, tmp_path):
    with pytest.raises(ALLMRecError):
        write_card(replace(card, method="gru4rec"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_reviewed_template_is_the_packaged_one():
    packaged = ROOT / "src" / "allmrec_hf" / "hub" / "model_card_template.md"
    assert (ROOT / "model_cards" / "template.md").read_bytes() == packaged.read_bytes()


def test_docstring_examples_run():
    assert doctest.testmod(card_module).failed == 0
