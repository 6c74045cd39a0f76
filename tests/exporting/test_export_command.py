"""`allmrec export`: what it writes of the demo, and how it refuses."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from allmrec_hf import ALLMRecError, export_checkpoint
from allmrec_hf.exporting import export_checkpoint as exporting
from tests.command_line import refused, succeeded

DEMO = ("export", "--model", "demo", "--max-users", 5)


def test_the_demo_is_exported_and_told(tmp_path):
    told = succeeded(*DEMO, "--format", "pgvector", "--output", tmp_path / "sql").stdout
    assert "cf             top-10 overlap 1.0000 on 5 users" in told
    assert {path.name for path in (tmp_path / "sql").iterdir()} >= {"cf.copy", "cf.load.sql", "export.json"}
    assert "is not empty" in refused(*DEMO, "--format", "pgvector", "--output", tmp_path / "sql")
    again = succeeded(*DEMO, "--format", "pgvector", "--output", tmp_path / "sql", "--overwrite", "--json")
    assert json.loads(again.stdout)["parts"][0]["gate"]["overlap"] == 1


def test_prompts_are_exported_by_their_options(tmp_path):
    told = succeeded(
        *("export", "--model", "demo", "--max-users", 2, "--format", "vllm", "--output", tmp_path / "prompts"),
        *("--prompts", "generate", "--num-candidates", 3, "--json"),
    )
    [part] = json.loads(told.stdout)["parts"]
    assert (part["name"], part["prompts"]) == ("generate", 2)
    lines = (tmp_path / "prompts" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(json.loads(line)["candidates"]) for line in lines] == [3, 3]


def test_of_a_checkpoint_with_the_ranker_retrieval_both_tables_are_exported(world, tmp_path):
    world.model.save_pretrained(tmp_path / "checkpoint", include_llm=True)
    world.processor.save_pretrained(tmp_path / "checkpoint")
    ids = world.processor.catalog.item_ids
    rows = [json.dumps({"history": [ids[item - 1] for item in history]}) for history in world.histories]
    (tmp_path / "users.jsonl").write_text("\n".join(rows), encoding="utf-8")
    command = (
        "export",
        "--model",
        tmp_path / "checkpoint",
        "--users",
        tmp_path / "users.jsonl",
        "--format",
        "pgvector",
    )
    told = succeeded(*command, "--output", tmp_path / "both", "--json")
    assert [(part["name"], part["gate"]["overlap"]) for part in json.loads(told.stdout)["parts"]] == [
        ("cf", 1.0),
        ("retrieval", 1.0),
    ]
    shutil.rmtree(tmp_path / "checkpoint" / "language_model")  # the backbone's vectors need no LLM
    told = succeeded(*command, "--ranker", "cf", "--output", tmp_path / "one", "--json")
    assert [part["name"] for part in json.loads(told.stdout)["parts"]] == ["cf"]
    refused(*command, "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_unknown_is_named(tmp_path):
    assert "'tflite' is not one of" in refused(*DEMO, "--format", "tflite", "--output", tmp_path / "out")
    with pytest.raises(ALLMRecError, match="unknown format 'tflite' of an export; known are"):
        export_checkpoint("demo", "tflite", tmp_path / "out")
    told = refused(*DEMO, "--format", "pgvector", "--ranker", "letter", "--output", tmp_path / "out")
    assert "the ranker 'letter' has no vectors to export; those that have are cf, retrieval" in told
    told = refused(*DEMO, "--format", "pgvector", "--ranker", "retrieval", "--output", tmp_path / "out")
    assert "has no ranker 'retrieval' (its head is not trained" in told
    told = refused("export", "--model", tmp_path, "--format", "pgvector", "--output", tmp_path / "out")
    assert str(tmp_path) in told
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    assert "is a file; give a folder" in refused(*DEMO, "--format", "pgvector", "--output", tmp_path / "out")


@pytest.mark.parametrize("format", [name for name, needs in exporting.FORMATS.items() if needs.packages])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, format):
    needs = exporting.FORMATS[format]
    monkeypatch.setitem(sys.modules, needs.packages[0], None)
    told = refused(*DEMO, "--format", format, "--output", tmp_path / "out")
    assert f"pip install 'allmrec-hf[{needs.extra}]'" in told


def test_a_gate_that_is_not_passed_ends_with_the_number_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("allmrec_hf.exporting.rank_parity.LEAST_OVERLAP", 1.5)
    told = refused(*DEMO, "--format", "pgvector", "--output", tmp_path / "out")
    assert "refused, and nothing was written" in told
    assert "top-10 overlap 1.0000 on 5 users" in told
    assert list(tmp_path.iterdir()) == []


def test_users_of_other_data_are_refused(tmp_path):
    (tmp_path / "users.jsonl").write_text('{"history": ["no such item"]}', encoding="utf-8")
    told = refused(*DEMO, "--format", "pgvector", "--output", tmp_path / "out", "--users", tmp_path / "users.jsonl")
    assert "has no user with an item of this catalogue" in told
