"""`allmrec train` on backbones by name, on trained ones, and `allmrec import-backbone`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from allmrec_hf.cf_encoder import BUILT_IN, MODEL_TYPE_PREFIX
from allmrec_hf.cf_recbole_sasrec import RecBoleSASRecConfig, RecBoleSASRecModel
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from tests.command_line import each_stage, refused, run, succeeded
from tests.small_run import write_data

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def backbone(small_parts, tmp_path_factory) -> Path:
    """Return the folder of a trained SASRec with d_cf 16."""
    output = tmp_path_factory.mktemp("backbones") / "sasrec"
    options = ("--backbone.options", "hidden_size=16", "--backbone.max-steps", 3)
    succeeded("train", "--data", small_parts / "data", "--stage", "backbone", *options, "--output", output)
    return output / "backbone"


def stage(small_parts, output, *changes, name="backbone", data=None):
    parts = ("--llm", small_parts / "llm", "--text-encoder", small_parts / "text_encoder", "--align.joint-dim", 8)
    small = ("--stage", name, *each_stage("max-steps", 3), "--project.warm-start-steps", 2)
    return "train", "--data", data or small_parts / "data", *parts, *small, "--output", output, *changes


def weights(folder):
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


def test_help_lists_the_known_backbones():
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("train", "--help").stdout).split())
    for name in BUILT_IN:
        assert name.removeprefix(MODEL_TYPE_PREFIX) in shown.replace("- ", "-")


@pytest.mark.parametrize("preset", ["default", "paper", "quick"])
def test_any_backbone_takes_any_preset(small_parts, tmp_path, preset):
    output = tmp_path / "run"
    succeeded(
        *stage(
            small_parts,
            output,
            "--backbone",
            "recbole-sasrec",
            "--preset",
            preset,
            "--backbone.options",
            "num_layers=1",
        )
    )
    assert type(AutoModel.from_pretrained(output / "backbone")) is RecBoleSASRecModel
    record = json.loads((output / "run.json").read_text())
    used = record["arguments"]["backbone"]
    assert used["name"] == "recbole-sasrec"
    assert used["options"].get("hidden_size") == (50 if preset == "paper" else None)


def test_the_recipe_of_a_backbone_is_taken_but_options_win(small_parts, tmp_path, monkeypatch):
    recipe = {"per_device_train_batch_size": 64, "learning_rate": 5e-3, "weight_decay": 0.1}
    monkeypatch.setattr(RecBoleSASRecModel, "training_recipe", recipe)
    for preset, learning_rate, weight_decay in (("default", 2e-3, 0.1), ("paper", 2e-3, 0.0)):
        output = tmp_path / preset
        command = stage(
            small_parts, output, "--backbone", "recbole-sasrec", "--backbone.learning-rate", 2e-3, "--preset", preset
        )
        found = succeeded("--verbose", *command)
        used = json.loads((output / "run.json").read_text())["arguments"]["backbone"]
        assert (used["learning_rate"], used["weight_decay"]) == (learning_rate, weight_decay)
        told = (
            "stage backbone takes what suits recbole-sasrec: per_device_train_batch_size 64, weight_decay 0.1"
            in found.stderr
        )
        assert told == (preset == "default")


# -- a trained backbone in place of stage backbone


def test_a_trained_backbone_takes_the_place_of_stage_backbone(small_parts, backbone, tmp_path):
    output = tmp_path / "run"
    command = stage(small_parts, output, "--backbone", backbone, name="align")
    assert json.loads(succeeded(*command, "--json").stdout)["stages"] == ["align"]
    assert weights(output / "backbone") == weights(backbone)
    assert not (output / "checkpoints" / "backbone").exists()
    record = json.loads((output / "run.json").read_text())
    assert (record["model_type"], record["arguments"]["backbone"]["name"]) == ("sasrec", str(backbone))
    card = (output / "README.md").read_text()
    assert "trained backbone" in card
    assert str(backbone) not in card
    succeeded(*command, "--resume")
    succeeded(*stage(small_parts, output, name="project"))  # a later stage takes the backbone from the folder
    assert AutoModel.from_pretrained(output, language_model=None).cf_encoder.config.hidden_size == 16


def test_an_interrupted_run_on_a_trained_backbone_is_resumed(small_parts, backbone, tmp_path):
    output = tmp_path / "run"
    given = ("--backbone", backbone)
    succeeded(*stage(small_parts, output, *given))
    refusal = refused(*stage(small_parts, output, "--backbone", backbone.parent, "--resume", name="all"))
    assert "these differ from" in refusal
    succeeded(*stage(small_parts, output, *given, "--resume", name="all"))
    assert AutoModel.from_pretrained(output).language_model is not None


def test_items_of_a_trained_backbone_are_matched_by_id(small_parts, backbone, tmp_path):
    data = PreparedData.load(small_parts / "data")
    interactions = pl.concat(
        [
            pl.DataFrame({"user_id": str(user), "item_id": [data.catalog.item_id(int(i)) for i in data.sequence(user)]})
            for user in range(60)
        ]
    ).with_columns(timestamp=pl.int_range(pl.len()))
    backwards = data.catalog.frame.reverse()
    other = prepare(interactions, backwards, output=tmp_path / "data", filter="none", keep_items="all", name="x")
    assert other.catalog.item_ids == data.catalog.item_ids[::-1]
    succeeded(*stage(small_parts, tmp_path / "run", "--backbone", backbone, data=tmp_path / "data"))
    old, new = (AutoModel.from_pretrained(path).item_embeddings for path in (backbone, tmp_path / "run" / "backbone"))
    torch.testing.assert_close(new[1:], old[1:].flip(0), rtol=0, atol=0)


def test_a_catalogue_that_the_checkpoint_does_not_cover_is_refused_or_its_items_are_cold(small_parts, tmp_path):
    few = write_data(tmp_path / "few", keep_items="interacted")
    succeeded(*stage(small_parts, tmp_path / "small", data=tmp_path / "few"))
    given = ("--backbone", tmp_path / "small" / "backbone")
    told = refused(*stage(small_parts, tmp_path / "run", *given))
    missing = 120 - few.num_items
    assert f"has {few.num_items} items and the data's catalogue 120, of which {missing} are missing there: [" in told
    assert len(re.search(r"missing there: \[(.*?)\]", told)[1].split(",")) == min(5, missing)
    assert not (tmp_path / "run").exists()
    done = succeeded(*stage(small_parts, tmp_path / "run", *given, "--backbone.missing-items", "zeros"))
    assert done.stderr.count("they are cold") == 1
    table = AutoModel.from_pretrained(tmp_path / "run" / "backbone").item_embeddings
    assert (table == 0).all(dim=1).sum() == 1 + missing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--backbone.options", "num_layers=3"), r"has its own config; leave out \['num_layers'\]"),
        (("--backbone", "/no/such"), "there is no backbone at /no/such"),
    ],
)
def test_options_that_contradict_a_trained_backbone_are_refused(small_parts, backbone, tmp_path, changes, message):
    told = refused(*stage(small_parts, tmp_path / "run", "--backbone", backbone, *changes))
    assert re.search(message, told), told
    assert not (tmp_path / "run").exists()


def test_a_backbone_under_the_config_of_another_is_refused(small_parts, backbone, tmp_path):
    mixed = Path(shutil.copytree(backbone, tmp_path / "mixed"))
    RecBoleSASRecConfig(num_items=120, hidden_size=16).save_pretrained(mixed)
    told = refused(*stage(small_parts, tmp_path / "run", "--backbone", mixed))
    wrong = r"mixed are not those of its config.json: \d+ missing keys, first .*; 6 mismatched keys"
    assert re.search(wrong, told), told
    evaluation = ("evaluate", "--model", mixed, "--data", small_parts / "data")
    assert re.search(wrong, refused(*evaluation))
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps({**config, "model_type": "unheard"}))
    told = refused(*stage(small_parts, tmp_path / "run", "--backbone", mixed))
    assert re.search("the model_type 'unheard', which is no known backbone; known ones: .*sasrec", told), told
    told = refused(*evaluation)
    assert re.search("is an unheard model, neither A-LLMRec nor a backbone; known ones: .*sasrec", told), told


def test_a_whole_model_and_a_backbone_without_catalogue_are_refused(small_parts, finished_run, backbone, tmp_path):
    told = refused(*stage(small_parts, tmp_path / "run", "--backbone", finished_run))
    assert "is a whole A-LLMRec model, not a backbone; of a run, give the folder backbone/" in told
    bare = Path(shutil.copytree(backbone, tmp_path / "bare"))
    (bare / "items.parquet").unlink()
    assert "no catalogue at" in refused(*stage(small_parts, tmp_path / "run", "--backbone", bare))


def test_another_backbone_under_a_trained_aligner_is_refused_with_both_widths(small_parts, backbone, tmp_path):
    other, output = tmp_path / "wide", tmp_path / "run"
    succeeded(*stage(small_parts, other, "--backbone.options", "hidden_size=24"))
    succeeded(*stage(small_parts, output, "--backbone", backbone, name="align"))
    told = refused(*stage(small_parts, output, "--backbone", other / "backbone", name="project"))
    assert "its aligner was trained for d_cf 16 where" in told
    assert "has d_cf 24" in told
    told = refused(*stage(small_parts, output, "--backbone", "recbole-sasrec", name="project"))
    assert "holds a sasrec backbone, but recbole-sasrec was asked for (--backbone)" in told


# -- import


def test_imported_weights_become_a_backbone_that_everything_accepts(small_parts, tmp_path):
    data = PreparedData.load(small_parts / "data")
    (tmp_path / "ids.json").write_text(json.dumps(["[PAD]", *data.catalog.item_ids[:28], "X1", "X2"]))
    command = ("import-backbone", "--source", "recbole", "--checkpoint", PARITY / "recbole_sasrec.pth")
    command = (*command, "--data", small_parts / "data", "--output", tmp_path / "imported")
    assert "write them with" in refused(*command)
    command = (*command, "--item-ids", tmp_path / "ids.json")
    told = refused(*command)
    assert "has 30 items and the data's catalogue 120, of which 92 are missing there" in told
    assert not (tmp_path / "imported").exists()
    found = json.loads(succeeded(*command, "--missing-items", "zeros", "--json").stdout)
    assert (found["items"], found["missing"], found["dropped"]) == (120, 92, 2)
    assert sorted(path.name for path in (tmp_path / "imported").iterdir()) == [
        "config.json",
        "items.parquet",
        "model.safetensors",
    ]
    assert "is not empty" in refused(*command, "--missing-items", "zeros")
    succeeded("evaluate", "--model", tmp_path / "imported", "--data", small_parts / "data", "--max-users", 5)
    succeeded(*stage(small_parts, tmp_path / "run", "--backbone", tmp_path / "imported", name="align"))
    model = AutoModel.from_pretrained(tmp_path / "run", language_model=None)
    assert model.cf_encoder.item_embeddings[1:].any(dim=1).all()  # what was missing is decoded from text
    assert not model.item_table.interaction_counts[29:].any()
    shutil.rmtree(tmp_path / "imported")
    assert "2 others were dropped" in succeeded(*command, "--missing-items", "zeros").stdout
