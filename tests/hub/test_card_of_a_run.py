"""The card of a trained run: made from what the run stored, pushed in one commit with everything else, and runnable."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries
from yaml import safe_load

from allmrec_hf import ALLMRecModel, ALLMRecProcessor, RecommendationPipeline
from allmrec_hf.checkpoint_code import EVAL_RESULTS_FILE
from allmrec_hf.hub.card import read_card, render_card
from allmrec_hf.hub.card_check import check_card
from allmrec_hf.hub.publish import planned_upload, push_checkpoint
from allmrec_hf.hub.stored_reports import folder_reports
from tests.command_line import run as command
from tests.command_line import succeeded

pytestmark = pytest.mark.usefixtures("plain_transfer")


@pytest.fixture(scope="module")
def evaluated(finished_run: Path, small_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run with two reports and a card that has both."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished_run, run)
    for protocol in ("candidates", "full"):
        options = ("--protocol", protocol, "--max-users", 12, "--update-card")
        succeeded("evaluate", "--model", run, "--data", small_parts / "data", *options)
    return run


def test_the_reports_are_stored_and_the_card_has_both(evaluated):
    assert {path.name for path in evaluated.glob("evaluation*.json")} == {"evaluation.json", "evaluation-full.json"}
    text = (evaluated / "README.md").read_text()
    assert "### Among given candidates, test split" in text
    assert "### From the whole catalogue, test split" in text
    assert "| coverage |" in text.split("## Biases")[1]
    for report in read_card(evaluated).reports:
        overall = report["methods"]["a-llmrec"]["overall"]["hit@1"]
        low, high = report["intervals"]["a-llmrec"]["overall"]["hit@1"]
        assert low <= overall <= high
        backbone = report["methods"]["sasrec"]["overall"]["hit@1"]
        assert f"| hit@1 | {overall:.4f} [{low:.4f}, {high:.4f}] | {backbone:.4f} [" in text
    assert command("card", evaluated, "--check").exit_code == 0


def test_the_training_time_is_the_recorded_one(evaluated):
    text = (evaluated / "README.md").read_text()
    records = list((evaluated / "checkpoints").glob("*/training.json"))
    assert len(records) >= 3
    for path in records:
        result = json.loads(path.read_text())["result"]
        cells = (path.parent.name, f"{result['steps']:,}", result["epochs"], f"{result['seconds']:,.1f}", "cpu")
        assert f"\n| {' | '.join(map(str, cells))} |" in text, path


def test_the_example_of_the_card_runs_beside_it(evaluated, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (evaluated / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(evaluated)
    names: dict = {}
    exec(code.replace("recommend({", "found = recommend({"), names)
    assert [item["rank"] for item in names["found"]] == list(range(1, 11))
    assert {"item_id", "title", "score", "rank"} <= set(names["found"][0])


def test_the_example_without_a_known_history_runs_too(evaluated, tmp_path, monkeypatch):
    card = read_card(evaluated)
    card.example_history = []
    (code,) = re.findall(r"```python\n(.*?)```", render_card(card), re.DOTALL)
    monkeypatch.chdir(evaluated)
    exec(code, {})


def test_everything_goes_in_one_commit_and_the_card_names_the_repository(fake_hub, evaluated):
    before = (evaluated / "README.md").read_bytes()
    options = {"include_llm": True, "include_text_encoder": True}
    planned = planned_upload(evaluated, "me/toy", **options)
    push_checkpoint(evaluated, "me/toy", endpoint=fake_hub.endpoint, **options)
    files = fake_hub.files("me/toy")
    assert len(fake_hub.repos["model", "me/toy"].messages) == 2  # the first made the repository
    needed = {
        "README.md",
        "model_card.json",
        EVAL_RESULTS_FILE,
        "evaluation.json",
        "evaluation-full.json",
        "handler.py",
    }
    needed |= {"config.json", "model.safetensors", "items.parquet", "processor_config.json", "tokenizer.json"}
    assert needed <= set(files)
    assert any(name.startswith("text_encoder/") for name in files)
    assert planned == {name: len(content) for name, content in files.items()}
    text = files["README.md"].decode()
    assert 'model="me/toy"' in text
    assert (evaluated / "README.md").read_bytes() == before
    reports = [json.loads(files[name]) for name in ("evaluation.json", "evaluation-full.json")]
    entries = parse_eval_result_entries(safe_load(files[EVAL_RESULTS_FILE]))
    found = {entry.task_id: entry.value for entry in entries}
    assert found["candidates_mrr_overall"] == reports[0]["methods"]["a-llmrec"]["overall"]["mrr"]
    assert found["full_ndcg_at_10_overall"] == reports[1]["methods"]["a-llmrec"]["overall"]["ndcg@10"]
    index = {(one.dataset_config, one.metric_type): one.metric_value for one in ModelCard(text).data.eval_results}
    assert index["overall, full", "ndcg@10"] == found["full_ndcg_at_10_overall"]


def test_what_was_pulled_passes_the_check(fake_hub, evaluated, tmp_path):
    push_checkpoint(evaluated, "me/toy", endpoint=fake_hub.endpoint, include_llm=True, include_text_encoder=True)
    for name, content in fake_hub.files("me/toy").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    texts = {name: (tmp_path / name).read_text() for name in ("README.md", EVAL_RESULTS_FILE)}
    assert check_card(texts, read_card(tmp_path), folder_reports(tmp_path)) == []


def test_an_earlier_push_s_results_go_when_there_are_none(fake_hub, evaluated, tmp_path):
    options = {"endpoint": fake_hub.endpoint, "include_llm": True, "include_text_encoder": True}
    push_checkpoint(evaluated, "me/toy", **options)
    shutil.copytree(evaluated, tmp_path / "run")
    for path in (*(tmp_path / "run").glob("evaluation*.json"), tmp_path / "run" / EVAL_RESULTS_FILE):
        path.unlink()
    card = read_card(evaluated)
    card.evaluation, card.further_evaluations = None, []
    (tmp_path / "run" / "model_card.json").write_text(json.dumps(card.to_dict()))
    (tmp_path / "run" / "README.md").write_text(render_card(card))
    push_checkpoint(tmp_path / "run", "me/toy", **options)
    assert EVAL_RESULTS_FILE not in fake_hub.files("me/toy")


def test_the_pipeline_pushes_card_and_results_of_what_it_loaded(fake_hub, evaluated, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", fake_hub.endpoint)
    model, processor = ALLMRecModel.from_pretrained(evaluated), ALLMRecProcessor.from_pretrained(evaluated)
    model.config.text_encoder_included = True
    pipe = RecommendationPipeline(model=model, processor=processor)
    pipe.push_to_hub("me/piped", include_llm=True)
    files = fake_hub.files("me/piped")
    assert files[EVAL_RESULTS_FILE] == (evaluated / EVAL_RESULTS_FILE).read_bytes()
    assert b'model="me/piped"' in files["README.md"]
    assert json.loads(files["model_card.json"])["repo_id"] == "me/piped"
    assert len(fake_hub.repos["model", "me/piped"].messages) == 2
