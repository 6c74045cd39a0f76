"""A card's numbers are those of stored reports, and `allmrec card --check` finds any that is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allmrec_hf.checkpoint_code import EVAL_RESULTS_FILE, generated_card
from allmrec_hf.hub.card import ALLMRecCard, card_files, write_card
from allmrec_hf.hub.card_check import PLACEHOLDER, check_card
from allmrec_hf.hub.stored_reports import folder_reports
from tests.command_line import run as command

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"a-llmrec": 0.6, "sasrec": 0.5, "popularity": 0.25}


def report(protocol: str = "candidates") -> dict[str, Any]:
    """Return a report whose numbers all differ."""
    groups = {"overall": 100, "warm": 41, "cold": 37, "never_seen": 0}
    methods: dict[str, Any] = {}
    for row, (method, value) in enumerate(METHODS.items()):
        methods[method] = {}
        for column, (group, users) in enumerate(groups.items()):
            base = value + 0.0111 * row + 0.00123 * column + (0.1 if protocol == "full" else 0)
            metrics = {"hit@1": base, "ndcg@1": base, "hit@10": base + 0.05, "ndcg@10": base + 0.02, "mrr": base + 0.01}
            methods[method][group] = {"users": users, **(metrics if users else {})}
    intervals = {
        method: {
            group: {name: [value - 0.0101, value + 0.0102] for name, value in values.items() if name != "users"}
            for group, values in found.items()
            if values["users"]
        }
        for method, found in methods.items()
    }
    beyond = {method: {"places": 10.0, "coverage": 0.31 + n / 100} for n, method in enumerate(METHODS)}
    return {
        "format": 2,
        "dataset": "toy",
        "split": "test",
        "protocol": protocol,
        "users": 100,
        "users_available": 230,
        "num_items": 50,
        "num_candidates": 20,
        "num_retrieved": 30 if protocol == "full" else None,
        "seed": 4,
        "candidates_sha256": "ab" * 32,
        "groups": {"warm": {"items": 17}, "cold": {"items": 18}, "never_seen": {"items": 2}},
        "methods": methods,
        "intervals": intervals,
        **({"beyond_accuracy": beyond} if protocol == "full" else {}),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a card and the stored reports that it was made from."""
    card = ALLMRecCard(
        name="toy",
        base_model="org/llm",
        base_model_parameters=1_234_567,
        cf_parameters=4_321,
        dataset_name="toy",
        counts={"users": 230, "items": 50, "interactions": 4_444},
        training={"align": {"learning_rate": 1e-4, "num_train_epochs": 10}},
        stage_results={"align": {"steps": 99, "epochs": 10, "seconds": 12.34, "device": "cpu", "processes": 1}},
        seeds={"align": 3},
        example_history=["I1", "I2"],
    )
    for name, protocol in (("evaluation.json", "candidates"), ("evaluation-full.json", "full")):
        (tmp_path / name).write_text(json.dumps(report(protocol)))
        card = card.with_report(report(protocol))
    write_card(card, tmp_path)
    return tmp_path


def check(folder: Path, *options: str) -> tuple[int, str]:
    done = command("card", folder, "--check", *options)
    return done.exit_code, done.stdout


def change(path: Path, old: str, new: str) -> int:
    """Change the first place of a text and return its line."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_a_card_of_stored_reports_is_right(folder):
    code, told = check(folder)
    assert (code, "in a stored report" in told) == (0, True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| hit@1 | 0.6000 [0.5899, 0.6102] |", "| hit@1 | 0.7000 [0.5899, 0.6102] |"),
        ("[0.5899, 0.6102]", "[0.5899, 0.6000]"),
        ("| 0.5111 [0.5010, 0.5213] |", "| 0.4111 [0.5010, 0.5213] |"),
        ("| overall | a-llmrec | 100 | 0.6000 |", "| overall | a-llmrec | 100 | 0.5111 |"),  # another method's
        ("| overall | a-llmrec | 100 |", "| overall | a-llmrec | 230 |"),
        ("1,234,567", "1,234,568"),
        ("| interactions | 4,444 |", "| interactions | 44,440 |"),
        ("| align | 99 | 10 | 12.3 |", "| align | 99 | 10 | 11.3 |"),
        ("| learning\\_rate | 0.0001 |", "| learning\\_rate | 0.001 |"),
        ("| coverage | 0.3100 |", "| coverage | 0.9100 |"),
    ],
)
def test_a_changed_number_of_a_table_is_found_with_its_line(folder, old, new):
    line = change(folder / "README.md", old, new)
    code, told = check(folder)
    assert code == 1
    assert f"README.md:{line}: the row" in told


def test_every_changed_place_is_listed(folder):
    lines = [change(folder / "README.md", "| hit@1 | 0.6", "| hit@1 | 0.7") for _ in range(3)]
    change(folder / EVAL_RESULTS_FILE, "value: 0.6", "value: 0.7")
    code, told = check(folder)
    assert code == 1
    assert all(f"README.md:{line}:" in told for line in lines)
    assert len(set(lines)) == 3
    assert f"{EVAL_RESULTS_FILE}: candidates_hit_at_1_overall of toy is 0.7, and 0.6 in the stored report" in told


def test_rows_of_two_groups_cannot_change_places(folder):
    page = folder / "README.md"
    text = page.read_text()
    warm, cold = re.search(r"\| hit@1 \| 0\.6012.*", text)[0], re.search(r"\| hit@1 \| 0\.6025.*", text)[0]
    page.write_text(text.replace(warm, "ROW").replace(cold, warm).replace("ROW", cold))
    assert check(folder)[1].count("the row") == 2


def test_a_table_by_hand_may_show_stored_numbers_only(folder):
    page = folder / "README.md"
    page.write_text(page.read_text() + "\nWe had 77 beers.\n\n| mine | value |\n| --- | --- |\n| hit | 0.60 |\n")
    assert check(folder)[0] == 0
    page.write_text(page.read_text() + "| hit | 0.61 |\n| more | 98.7 % |\n")
    code, told = check(folder)
    assert code == 1
    assert "no stored report holds the number 98.7" in told
    assert "the number 0.60" not in told


def test_a_changed_model_index_is_found(folder):
    change(folder / "README.md", "value: 0.6\n", "value: 0.66\n")
    code, told = check(folder)
    assert code == 1
    assert "model-index: toy / overall / test / hit@1 is 0.66, and 0.6 in the stored report" in told


def test_a_result_that_no_report_holds_is_found(folder):
    path = folder / EVAL_RESULTS_FILE
    path.write_text(
        path.read_text() + "- dataset:\n    id: toy\n    task_id: candidates_hit_at_99_warm\n  value: 1.0\n"
    )
    assert "no stored report holds candidates_hit_at_99_warm of toy (1.0)" in check(folder)[1]
    path.write_text("hello: [")
    assert "holds no evaluation results" in check(folder)[1]
    path.unlink()
    assert check(folder) == (1, f"{EVAL_RESULTS_FILE}: is missing; `allmrec card` writes it\n")


def test_page_results_and_data_changed_together_differ_from_the_stored_report(folder):
    values = json.loads((folder / "model_card.json").read_text())
    values["evaluation"]["methods"]["a-llmrec"]["overall"]["hit@1"] = 0.99
    write_card(ALLMRecCard.from_dict(values), folder)
    code, told = check(folder)
    assert code == 1
    assert "model_card.json: the report of toy, test split, protocol candidates has 0.99 at" in told
    assert "README.md:" in told
    assert EVAL_RESULTS_FILE in told


def test_a_report_that_is_stored_nowhere_is_found(folder):
    (folder / "evaluation-full.json").unlink()
    assert "protocol full is not among the stored reports" in check(folder)[1]


@pytest.mark.parametrize(
    "words",
    [
        "TODO",
        "{{ model }}",
        "[More Information Needed]",
        "path/to/this/folder",
        "ITEM-ID-1",
        "your-username/model",
        "ORG/NAME",
        "<YOUR_NAME>",
        "<your name>",
        "TBD",
    ],
)
def test_a_placeholder_is_found_with_its_line(folder, words):
    line = change(folder / "README.md", "## Licence", f"## Licence\n\nof {words} it is") + 2
    code, told = check(folder)
    assert code == 1
    assert f"README.md:{line}: the placeholder" in told


def test_what_the_template_says_is_no_placeholder(folder):
    bare = ALLMRecCard(name="bare")
    for card in (bare, replace(bare, backbone_only=True)):
        assert not PLACEHOLDER.search(card_files(card)["README.md"])
        assert check_card(card_files(card), card, []) == []


def test_the_card_of_a_model_without_a_run_holds_no_placeholder():
    for llm in (None, "org/llm", "/models/llm"):
        assert not PLACEHOLDER.search(generated_card(llm, "sasrec", 3))


def test_a_stored_report_of_another_method_is_about_another_card(folder):
    other = report("full")
    other["methods"] = {"gru4rec": other["methods"]["sasrec"]}
    (folder / "evaluation-validation-full.json").write_text(json.dumps({**other, "split": "validation"}))
    assert check(folder)[0] == 0


def test_no_card_and_no_report_are_one_line(folder, tmp_path):
    (folder / "evaluation.json").write_text("{}")
    done = command("card", folder, "--check")
    assert done.exit_code == 2
    assert "evaluation.json is no report of an evaluation" in " ".join(done.stderr.split())
    for source, words in ((tmp_path / "no", "there is no"), (tmp_path.parent, "holds no model_card.json")):
        done = command("card", source)
        assert done.exit_code == 2
        assert words in " ".join(done.stderr.split())


def test_the_check_answers_in_json(folder):
    change(folder / "README.md", "| coverage | 0.3100 |", "| coverage | 0.9100 |")
    done = command("card", folder, "--check", "--json")
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)["findings"]
    assert (found["file"], found["line"] > 0) == ("README.md", True)


def test_the_command_writes_what_is_said_and_leaves_the_rest_unknown(folder, tmp_path):
    target = tmp_path / "cards" / "toy.md"
    said = ("--license", "mit", "--llm-license", "other", "--dataset-id", "org/toy", "--repo", "org/model")
    done = command("card", folder, "--output", target, *said)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [str(target.with_suffix(suffix)) for suffix in (".md", ".yaml", ".json")]
    text = target.read_text()
    for words in (
        'model="org/model"',
        "| language model, org/llm | other |",
        "| data, toy | unknown |",
        "license: mit",
    ):
        assert words in text
    assert "id: org/toy" in target.with_suffix(".yaml").read_text()
    assert command("card", target, "--check").exit_code == 0
    assert command("card", target, "--check", "--report", folder).exit_code == 0
    change(target, "| hit@1 | 0.6000", "| hit@1 | 0.7000")
    assert command("card", target, "--check", "--report", folder).exit_code == 1


@pytest.mark.parametrize("option", ["--repo", "--dataset-id", "--llm-id", "--text-encoder-id"])
def test_an_id_that_is_none_is_refused(folder, option):
    done = command("card", folder, option, "/models/x")
    assert done.exit_code == 2
    assert f"{option} takes an id of the Hub" in " ".join(done.stderr.split())


def test_reports_of_a_folder_are_read_once_each(folder):
    assert [one["protocol"] for one in folder_reports(folder)] == ["full", "candidates"]


def test_the_whole_catalogue_inside_a_report_of_candidates_counts_as_a_report(folder):
    (folder / "evaluation-full.json").unlink()
    both = {**report(), "full_ranking": report("full")}
    (folder / "evaluation.json").write_text(json.dumps(both))
    assert command("card", folder).exit_code == 0
    assert check(folder)[0] == 0
    text = (folder / "README.md").read_text()
    assert "### From the whole catalogue, test split" in text
    assert "| coverage | 0.3100 | 0.3200 | 0.3300 |" in text
    change(folder / "README.md", "| coverage | 0.3100 |", "| coverage | 0.9100 |")
    assert check(folder)[0] == 1


def test_the_whole_catalogue_of_other_methods_only_is_left_out(folder):
    inner = report("full")
    del inner["methods"]["a-llmrec"]  # asks an LLM for each item
    card = ALLMRecCard(name="toy", evaluation={**report(), "full_ranking": inner})
    assert [one["protocol"] for one in card.reports] == ["candidates"]
    assert "whole catalogue, test" not in card_files(card)["README.md"]


def test_a_report_stored_by_itself_counts_before_the_one_inside_another():
    inner = {**report("full"), "users": 7}
    card = ALLMRecCard(name="toy", evaluation={**report(), "full_ranking": inner}, further_evaluations=[report("full")])
    assert [one["users"] for one in card.reports] == [100, 100]
