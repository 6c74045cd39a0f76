"""Impossible options are refused by every command with exit code 2, and before any data are read."""

from __future__ import annotations

import pytest

from tests.command_line import refused

NOWHERE = "/nonexistent/folder"
COMMANDS = {
    "train": ("--data", NOWHERE, "--output", NOWHERE, "--llm", "demo"),
    "evaluate": ("--model", NOWHERE, "--data", NOWHERE),
    "benchmark": ("--data", NOWHERE, "--methods", "popularity", "--output", NOWHERE),
    "recommend": ("--model", NOWHERE, "--history", "1"),
    "demo": ("--output", NOWHERE),
    "prepare": ("--interactions", NOWHERE, "--output", NOWHERE),
    "explain": ("--model", NOWHERE, "--history", "1", "--item", "2"),
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("train", "seed", "-1"),
        ("train", "seed", str(2**32)),
        ("train", "align.per-device-train-batch-size", "0"),
        ("train", "backbone.num-train-epochs", "0"),
        ("train", "project.max-steps", "-3"),
        ("train", "align.min-steps", "0"),
        ("train", "project.num-candidates", "1"),
        ("train", "project.history-in-prompt", "0"),
        ("train", "align.joint-dim", "0"),
        ("train", "project.gradient-accumulation-steps", "0"),
        ("evaluate", "max-users", "0"),
        ("evaluate", "seed", "-1"),
        ("evaluate", "batch-size", "0"),
        ("evaluate", "num-permutations", "0"),
        ("benchmark", "max-users", "0"),
        ("benchmark", "seeds", str(2**32)),
        ("benchmark", "jobs", "0"),
        ("recommend", "top-k", "0"),
        ("recommend", "num-permutations", "-2"),
        ("demo", "max-users", "0"),
        ("demo", "seed", "-1"),
        ("prepare", "k-core", "0"),
        ("prepare", "num-candidates", "1"),
        ("prepare", "seed", "-1"),
        ("prepare", "max-bad-lines", "1.5"),
        ("explain", "removal", "all"),
        ("explain", "category-column", "genre"),
    ],
)
def test_impossible_numbers_are_refused_by_name(command, option, value):
    message = refused(command, *COMMANDS[command], f"--{option}", value)
    assert f"--{option}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--project.learning-rate", "-1"), "section project: learning_rate must be above 0"),
        (("--align.max-seconds", "0"), "section align: max_seconds must be above 0"),
        (("--align.learning-rate", "nan"), "learning_rate must be a finite number"),
        (("--train-share", "2"), "share is 2.0"),
        (("--align.min-steps", "9", "--align.max-steps", "3"), "--align.min-steps 9 is above --align.max-steps 3"),
        (("--project.no-user-representation", "--project.no-joint-embedding"), "stage 2 has nothing to train"),
        (("--project.projector-tokens", "3"), "--project.projector-tokens is for --project.projector resampler"),
        (("--align.matching-temperature", "0.5"), "--align.matching-temperature is for --align.matching-loss infonce"),
        (("--project.listwise-temperature", "2"), "is for --project.projection-loss listwise"),
        (("--rank.cold-weight", "2"), "--rank.cold-weight is for the ranker fusion, which is not trained"),
        (("--rank.cold-weight", "0"), "section rank: cold_weight must be above 0"),
        (("--align.bf16", "--align.fp16"), "bf16 and fp16 are both given"),
        (("--prompt", "/no/such.yaml"), "--prompt /no/such.yaml cannot be read"),
        (
            ("--backbone.missing-items", "zeros"),
            "--backbone.missing-items says what happens",
        ),
        (
            ("--backbone", "some/where", "--backbone.options", "hidden_size=8"),
            "has its own config; leave out ['hidden_size']",
        ),
        (("--stage", "backbone", "--include-llm"), "--include-llm"),
        (("--align.item-reconstruction-weight", "nan"), "--align.item-reconstruction-weight"),
    ],
)
def test_training_options_that_cannot_work_are_refused_before_data_are_read(options, message):
    assert message in refused("train", *COMMANDS["train"], *options)


def test_an_llm_is_asked_for_before_data_are_read():
    assert "stage project needs an LLM" in refused("train", "--data", NOWHERE, "--output", NOWHERE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "paper", "--num-permutations", "2"), "--num-permutations averages scores"),
        (("--output", "a.json", "--per-user", "a.json"), "name the same file"),
        (("--output", "/"), "is a folder"),
        (("--output", "/dev/null/report.json"), "cannot be written"),
    ],
)
def test_evaluation_options_that_cannot_work_are_refused_before_data_are_read(options, message):
    assert message in refused("evaluate", *COMMANDS["evaluate"], *options)


def test_a_rating_that_only_counts_for_one_filter_is_refused_with_another():
    message = refused("prepare", *COMMANDS["prepare"], "--count-min-rating", "3")
    assert "count_min_rating belongs to filter 'a-llmrec', not to 'k-core'" in message


def test_a_picture_of_a_text_task_is_refused_before_a_model_is_loaded():
    message = refused("explain", *COMMANDS["explain"], "--task", "why-this", "--picture", "why.svg")
    assert "leave them out with --task" in message
