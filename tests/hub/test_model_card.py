"""The model card says what its data says, and nothing from outside changes the page."""

from __future__ import annotations

import doctest
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.hub import card as card_module
from allmrec_hf.hub.card import ALLMRecCard, escape, evaluation_results, read_card, render_card, write_card

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
        for groups in report["methods"].values()
        for values in groups.values()
        for name, value in values.items()
        if name not in ("users", "ndcg@1")
    ]
    assert sorted(shown) == sorted(stored)


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
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4}


def test_names_inside_the_report_are_escaped_too(card, report):
    report["dataset"] = NASTY
    report["methods"]["<b>|x"] = report["methods"]["popularity"]
    text = render_card(card)
    assert "<script>" not in text.split("\n---\n", 1)[1]
    assert "&lt;b&gt;\\|x" in text
    table = [line for line in text.splitlines() if line.startswith(("| overall", "| warm", "| cold"))]
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
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "model_card.json"]
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
