"""`allmrec explain`, as a command of its own."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from allmrec_hf.cli.explain import explain

app = typer.Typer()
app.command()(explain)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_an_explanation_is_printed_as_tables_and_as_json_and_written(finished_run, small_data, tmp_path):
    ids = small_data.catalog.item_ids
    request = ["--model", finished_run, "--history", ",".join(ids[:3]), "--item", ids[7]]
    written = run(*request, "--output", tmp_path / "why.json")
    assert f"Written to {tmp_path / 'why.json'}." in written.stderr
    shown = written.stdout
    assert "user vector" in shown
    assert "Nearest tokens" in shown
    found = json.loads(run(*request, "--json").stdout)
    token = found["nearest_tokens"][0]["tokens"][0]
    assert f'"{token["text"]}" {token["cosine"]:.2f}' in shown
    assert found == json.loads((tmp_path / "why.json").read_text())
    assert [one["source"] for one in found["contributions"]] == ["user", "history", "history", "history"]


def test_every_written_file_is_named(finished_run, small_data, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `benchmark` is not installed")
    ids, files = small_data.catalog.item_ids, [tmp_path / "why.json", tmp_path / "why.svg"]
    request = ["--model", finished_run, "--history", ids[0], "--item", ids[7], "--gradient-steps", 1]
    result = run(*request, "--output", files[0], "--picture", files[1], "--json")
    assert f"Written to {files[0]}, {files[1]}." in result.stderr
    assert json.loads(result.stdout)
    assert all(file.is_file() for file in files)


def test_tasks_are_answered(finished_run, small_data):
    history = ["--model", finished_run, "--history", small_data.catalog.item_ids[0]]
    answer = json.loads(run(*history, "--task", "favourite-category", "--json").stdout)
    assert set(answer) == {"task", "answer"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--item", "M0001"], "the history is empty"),
        (["--history", "M0001"], "give --item"),
        (["--history", "M0001", "--item", "nothing"], "not in the catalogue of 120 items"),
        (["--history", "M0001", "--item", "M0002", "--picture", "a.gif"], "must end in .svg"),
        (["--history", "M0001", "--task", "poem"], "unknown task 'poem'"),
    ],
)
def test_bad_requests_end_with_two_and_one_sentence(finished_run, arguments, message):
    result = run("--model", finished_run, *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_checkpoints_without_an_llm_are_refused(finished_run):
    result = run("--model", finished_run / "backbone", "--history", "M0001", "--item", "M0002", code=2)
    assert "only an A-LLMRec model" in " ".join(result.stderr.split())
