"""The cards of `model_cards/`: their numbers are those of stored reports, and no path of a machine shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allmrec_hf.hub.card import card_files, read_card
from allmrec_hf.sharing import machine_paths
from scripts.make_office_card import DATASET, LLM, SEED
from tests.command_line import run as command

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "model_cards"
CHECKPOINT = ROOT / "src" / "allmrec_hf" / "demo" / "checkpoint"
REPORT = json.loads((ROOT / "docs" / "results" / "real_rankers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--report", ROOT / "docs" / "results" / "demo.json"),
        (CARDS / "office.md",),
    ],
    ids=["demo", "office"],
)
def test_a_card_holds_no_placeholder_and_no_number_of_its_own(arguments):
    done = command("card", *arguments, "--check")
    assert done.exit_code == 0, done.stdout


def test_one_way_writes_all_cards():
    assert card_files(read_card(CHECKPOINT))["README.md"] == (CARDS / "demo.md").read_text(encoding="utf-8")
    files = card_files(read_card(CARDS / "office.json"))
    assert files["README.md"] == (CARDS / "office.md").read_text(encoding="utf-8")
    assert files[".eval_results/allmrec-hf.yaml"] == (CARDS / "office.yaml").read_text(encoding="utf-8")


def test_the_real_card_s_numbers_are_those_of_the_report_of_real_data():
    card = read_card(CARDS / "office.json")
    run = next(one for one in REPORT["runs"] if (one["dataset"], one["llm"], one["seed"]) == (DATASET, LLM, SEED))
    assert card.method == run["default_ranker"]
    stored = REPORT["datasets"][DATASET]["methods"]
    compared = 0
    for name, of_report in ((card.method, f"{card.method}, {LLM}"), ("backbone", "backbone")):
        for report in card.reports:
            for group, row in stored[of_report][report["protocol"]].items():
                metrics = {metric: found for metric, found in row.items() if isinstance(found, dict)}
                for metric, found in metrics.items():
                    place = found["seeds"][row["seeds"].index(SEED)]
                    assert report["methods"][name][group][metric] == pytest.approx(place, abs=1e-9)
                    compared += 1
                    if row["seeds"] == [SEED]:
                        ends = report["intervals"][name][group][metric]
                        assert ends == pytest.approx([found["low"], found["high"]], abs=1e-9)
    assert compared == 2 * 2 * 4 * 2
    (whole,) = [report for report in card.reports if report["protocol"] == "full"]
    assert whole["beyond_accuracy"] == run["beyond_accuracy"]


def test_the_real_card_names_its_parts_and_no_folder():
    assert machine_paths(CARDS, ["office.md", "office.json", "office.yaml", "demo.md"]) == []
    text = (CARDS / "office.md").read_text(encoding="utf-8")
    for words in (
        f"HuggingFaceTB/{LLM}",
        "sentence-transformers/all-MiniLM-L6-v2",
        "| data, Amazon Office Products 2018 |",
    ):
        assert words in text
    assert "| retrieve | 200 |" in text
    assert "| num\\_llm\\_layers | 4 |" in text
