"""The demo checkpoint in the package, and the demo command on small parts."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import allmrec_hf
from tests.command_line import refused, succeeded

ROOT = Path(__file__).parents[1]
CHECKPOINT = Path(allmrec_hf.DEMO_CHECKPOINT)
FILES = [path for path in CHECKPOINT.rglob("*") if path.is_file()]


def default_pipeline(**environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import allmrec_hf; from transformers import pipeline; recommend = pipeline('recommendation')\n"
        "ids = recommend.processor.catalog.item_ids\n"
        "print([item['item_id'] in ids for item in recommend({'history': ids[:3]}, top_k=2)])"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_demo_checkpoint_is_self_contained_and_under_3_mb():
    assert sum(path.stat().st_size for path in FILES) < 3_000_000
    assert {"language_model", "text_encoder"} <= {path.name for path in CHECKPOINT.iterdir()}
    assert not any(path.suffix in {".bin", ".pkl", ".pt"} for path in FILES)


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".json"], ids=lambda path: path.name)
def test_no_path_of_a_machine_is_shipped(path):
    texts = strings(json.loads(path.read_text(encoding="utf-8")))
    assert [text for text in texts if len(text) > 1 and Path(text).is_absolute()] == []


def test_pipeline_without_a_model_loads_the_demo_checkpoint_offline():
    done = default_pipeline()
    assert done.stdout.strip() == "[True, True]", done.stderr[-2000:]


def test_an_environment_variable_names_another_default(tmp_path):
    done = default_pipeline(**{allmrec_hf.DEFAULT_MODEL_VARIABLE: str(tmp_path / "elsewhere")})
    assert done.returncode != 0
    assert "elsewhere" in done.stderr


def test_card_says_that_the_world_is_invented_and_shows_the_stored_numbers():
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert card == (ROOT / "model_cards" / "demo.md").read_text(encoding="utf-8")
    assert "are invented; it recommends nothing that exists" in card
    stored = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    assert json.loads((CHECKPOINT / "model_card.json").read_text(encoding="utf-8"))["evaluation"] == stored
    overall = stored["methods"]["a-llmrec"]["overall"]
    assert f"{overall['hit@1']:.4f}" in card
    assert f"value: {overall['hit@1']}" in card  # the model-index


def test_numbers_of_the_readme_are_those_of_the_stored_reports():
    stored = json.loads((ROOT / "docs" / "results" / "demo_seeds.json").read_text(encoding="utf-8"))
    shown = []
    for method in ("a-llmrec", "sasrec", "same vectors, no LM"):
        values = [report["methods"][method]["overall"]["ndcg@10"] for report in stored.values()]
        shown.append(f"{statistics.mean(values):.3f}".lstrip("0"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = "an NDCG@10 of {} and its backbone {}, but the same vectors without any LM {} "
    assert said.format(*shown) in readme


def test_demo_runs_the_whole_path_on_parts_of_ones_own(small_parts, tmp_path):
    options = [
        "--data",
        small_parts / "data",
        "--llm",
        small_parts / "llm",
        "--text-encoder",
        small_parts / "text_encoder",
    ]
    output = tmp_path / "demo"
    done = succeeded("demo", *options, "--output", output, "--max-users", 10, "--json")
    printed = json.loads(done.stdout)
    assert {"a-llmrec", "sasrec", "popularity", "LM alone", "text alone"} <= set(printed["evaluation"]["methods"])
    assert len(printed["recommendations"]) == 2
    assert "invented" not in (output / "README.md").read_text(encoding="utf-8")
    assert "is not empty" in refused("demo", *options, "--output", output)
