"""All stages in one folder: what is left there, and that no way of getting there changes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

import allmrec_hf.training.stages as stages_module
from allmrec_hf import ALLMRecModel, SASRecModel
from allmrec_hf.cli.evaluate import load_rankers
from allmrec_hf.data.subsets import with_users
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.trained import load_target_counts
from tests.small_run import STAGES, arguments, settings, train, write_data


def weights(folder):
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def copied(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


@pytest.fixture(scope="module")
def backbone_run(small_parts, small_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "backbone"
    return train(small_data, output, settings(small_parts, llm_name=None), ("backbone",), arguments())


# -- what a run leaves


def test_items_count_as_trained_by_what_their_backbone_was_trained_on_not_by_the_data_at_hand(
    backbone_run, small_parts, small_data, tmp_path
):
    counts = load_target_counts(str(backbone_run / "backbone"), small_data.catalog)
    touched = torch.from_numpy(small_data.item_counts("train"))
    assert (counts <= touched).all()
    assert counts.sum() == touched.sum() - small_data.num_users  # the first item of a sequence is no target
    few = with_users(small_data, small_data.user_ids[:12])  # elsewhere fewer users touch fewer items, as often or less
    assert (counts[few.item_counts("train") == 0] > 0).any()
    own = settings(small_parts, llm_name=None, backbone_options=None, backbone_name=str(backbone_run / "backbone"))
    aligned = train(few, tmp_path / "run", own, ("align",), arguments(max_steps=1))
    model = AutoModel.from_pretrained(aligned / "align", language_model=None)
    assert model.item_table.interaction_counts.tolist() == counts.tolist()
    backbone = load_file(backbone_run / "backbone" / "model.safetensors")["item_embedding.weight"]
    kept = (model.cf_encoder.item_embeddings == backbone).all(dim=1)
    assert kept[counts > 0].all()
    assert not kept[1:][counts[1:] == 0].any()  # decoded from their texts


def test_run_folder_is_a_checkpoint_for_every_door(finished_run, small_data):
    model, processor = AutoModel.from_pretrained(finished_run), AutoProcessor.from_pretrained(finished_run)
    assert isinstance(model, ALLMRecModel)
    assert model.language_model is not None
    history = [small_data.catalog.item_id(index) for index in (1, 2)]
    by_parts = pipeline("recommendation", model=model, processor=processor)({"history": history})
    assert pipeline("recommendation", model=str(finished_run))({"history": history}) == by_parts
    assert len(by_parts) == 10


def test_run_folder_holds_no_llm_weight_and_no_pickle(finished_run):
    assert not any(name.startswith("language_model") for name in load_file(finished_run / "model.safetensors"))
    endings = {path.suffix for path in finished_run.rglob("*") if path.is_file()}
    assert not endings & {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tmp"}


def test_run_file_tells_data_settings_seeds_versions_and_commit(finished_run, small_data):
    record = json.loads((finished_run / "run.json").read_text())
    assert record["data"]["name"] == small_data.name
    assert record["arguments"]["align"]["joint_dim"] == 8
    assert [record["arguments"][stage]["seed"] for stage in STAGES] == [3, 3, 3]
    assert {"allmrec-hf", "torch", "transformers", "python"} <= set(record["versions"])
    assert "git_commit" in record
    for stage in STAGES:
        training = json.loads((finished_run / "checkpoints" / stage / "training.json").read_text())
        assert training["stage"] == stage
        assert training["result"]["steps"] == record["arguments"][stage]["max_steps"]
        assert training["versions"] == record["versions"]


def test_card_tells_what_was_trained(finished_run):
    card = (finished_run / "README.md").read_text()
    for text in ("A-LLMRec on small", "sasrec", "200", "120"):
        assert text in card


def test_frozen_parts_leave_a_run_as_they_came(finished_run, small_parts):
    trained = AutoModel.from_pretrained(finished_run)
    llm = load_file(small_parts / "llm" / "model.safetensors")
    state = dict(trained.language_model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in llm.items())
    backbone = load_file(finished_run / "backbone" / "model.safetensors")
    warm = trained.item_table.interaction_counts > 0
    for name, value in backbone.items():
        found = trained.cf_encoder.state_dict()[name]
        rows = warm if name == "item_embedding.weight" else slice(None)
        assert torch.equal(found[rows], value[rows]), name
    aligned = load_file(finished_run / "align" / "model.safetensors")
    final = load_file(finished_run / "model.safetensors")
    assert all(torch.equal(final[name], aligned[name]) for name in aligned)
    assert {name.split(".")[0] for name in set(final) - set(aligned)} == {"user_projector", "item_projector"}


def test_fine_tuned_text_encoder_travels_with_the_run(finished_run, small_parts, small_data):
    model = AutoModel.from_pretrained(finished_run)
    texts = small_data.catalog.texts()[:5]
    tuned = torch.as_tensor(model.text_encoder.encode(texts))
    with torch.no_grad():
        joint = model.aligner.encode_texts(tuned)
    torch.testing.assert_close(joint, model.item_table.text_joint_embeddings[1:6], rtol=1e-5, atol=1e-6)
    first = load_file(small_parts / "text_encoder" / "model.safetensors")
    after = load_file(finished_run / "text_encoder" / "model.safetensors")
    assert any(not torch.equal(first[name], after[name]) for name in first)


def test_backbone_alone_is_a_checkpoint_that_evaluation_accepts(backbone_run, small_data):
    assert isinstance(AutoModel.from_pretrained(backbone_run), SASRecModel)
    assert not (backbone_run / "align").exists()
    rankers = load_rankers(str(backbone_run), small_data, batch_size=8, num_permutations=1)
    methods = evaluate(rankers, small_data, max_users=20).to_dict()["methods"]
    assert list(methods) == ["sasrec", "popularity"]


def test_presets_differ_where_they_say():
    paper, quick, default = (ALLMRecTrainingArguments("run", preset=name) for name in ("paper", "quick", "default"))
    assert (paper.backbone.options["hidden_size"], paper.backbone.options["loss"]) == (50, "bce")
    assert (paper.project.targets, paper.project.item_embedding) == ("train", "cf")
    assert paper.align.fine_tune_text_encoder
    assert default.align.fine_tune_text_encoder
    assert not quick.align.fine_tune_text_encoder
    with pytest.raises(ALLMRecError, match="unknown preset 'fast'; known are"):
        ALLMRecTrainingArguments("run", preset="fast")


# -- every way there is the same


def test_stage_by_stage_equals_all_at_once(finished_run, backbone_run, small_parts, small_data, tmp_path):
    output = Path(shutil.copytree(backbone_run, tmp_path / "run"))
    chosen = settings(small_parts)
    # what is finished is taken from the folder
    other = settings(small_parts, backbone_options=None, item_reconstruction_weight=0.9)
    train(small_data, output, chosen, ("align",), arguments())
    train(small_data, output, other, ("project",), arguments())
    assert weights(output) == weights(finished_run)
    record, whole = (json.loads((folder / "run.json").read_text()) for folder in (output, finished_run))
    assert record["arguments"] == whole["arguments"]


def test_resuming_a_finished_run_trains_nothing_and_changes_nothing(copied, small_parts, small_data, monkeypatch):
    before = weights(copied)
    monkeypatch.setattr(stages_module, "run_stage", None)
    monkeypatch.setattr(stages_module, "train_backbone", None)
    train(small_data, copied, settings(small_parts), loops=arguments(), resume=True)
    assert weights(copied) == before


def test_a_run_killed_in_every_stage_ends_with_the_same_weights(finished_run, small_parts, tmp_path):
    script = Path(__file__).with_name("small_run_process.py")
    done = subprocess.run(
        [sys.executable, str(script), str(small_parts), str(tmp_path / "run"), "4"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3"]
    assert weights(tmp_path / "run") == weights(finished_run)


# -- what is refused, before anything is written


def test_changed_settings_are_refused_by_name_on_resume(copied, small_parts, small_data):
    changed = settings(small_parts, joint_dim=16, item_reconstruction_weight=0.1)
    with pytest.raises(
        ALLMRecError,
        match=r"these differ from .*: align.joint_dim 8 -> 16; align.item_reconstruction_weight 0.5 -> 0.1",
    ):
        train(small_data, copied, changed, loops=arguments(), resume=True)
    slower = {**arguments(), "align": arguments(learning_rate=1e-3)["align"]}
    with pytest.raises(ALLMRecError, match=r"align.learning_rate 0.01 -> 0.001"):
        train(small_data, copied, settings(small_parts), loops=slower, resume=True)


def test_settings_that_change_no_weight_may_differ_on_resume(copied, small_parts, small_data):
    before = weights(copied)
    train(small_data, copied, settings(small_parts), loops=arguments(logging_steps=1), resume=True)
    assert weights(copied) == before


def test_other_data_are_refused_on_resume(copied, small_parts, small_data, monkeypatch):
    monkeypatch.setitem(small_data.info, "name", "other")
    with pytest.raises(ALLMRecError, match=r"these differ from .*: name 'small' -> 'other'"):
        train(small_data, copied, settings(small_parts), loops=arguments(), resume=True)


@pytest.mark.parametrize(("stage", "needed"), [("align", "backbone"), ("project", "align")])
def test_an_unfinished_earlier_stage_is_named(small_parts, small_data, tmp_path, stage, needed):
    with pytest.raises(ALLMRecError, match=f"stage {stage} builds on stage {needed}, which .* does not hold"):
        train(small_data, tmp_path / "run", settings(small_parts), (stage,), arguments())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_refused_and_stays_as_it_was(small_parts, small_data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ALLMRecError, match="is not empty; choose another, or pass --resume"):
        train(small_data, tmp_path, settings(small_parts), loops=arguments())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ALLMRecError, match="is a file; give a folder"):
        train(small_data, tmp_path / "notes.txt", settings(small_parts), loops=arguments())


def test_a_stage_is_not_trained_twice_without_resume(copied, small_parts, small_data):
    record = (copied / "run.json").read_text()
    with pytest.raises(ALLMRecError, match="holds an earlier run of stage project; pass --resume"):
        train(small_data, copied, settings(small_parts), ("project",), arguments())
    assert (copied / "run.json").read_text() == record


def test_a_checkpoint_that_is_no_run_is_not_resumed(backbone_run, small_parts, small_data):
    with pytest.raises(ALLMRecError, match=r"has no run.json, so it is no run to go on with"):
        train(small_data, backbone_run / "backbone", settings(small_parts), loops=arguments(), resume=True)


def test_a_damaged_run_file_is_named(copied, small_parts, small_data):
    (copied / "run.json").write_text("{")
    with pytest.raises(ALLMRecError, match=r"run.json is damaged"):
        train(small_data, copied, settings(small_parts), loops=arguments(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_name": None}, "stage project needs an LLM"),
        ({"llm_name": "no/such-llm"}, "the LLM 'no/such-llm' cannot be loaded"),
        ({"llm_options": {"dtype": "banana"}}, "there is no dtype 'banana'"),
        ({"text_encoder": "/no/where"}, "the text encoder '/no/where' cannot be loaded"),
        ({"backbone_name": "unheard"}, "unknown backbone 'unheard'; known ones: .*sasrec"),
        ({"backbone_options": {"hiden_size": 8}}, r"sasrec has no options \['hiden_size'\]; it has .*hidden_size"),
        ({"backbone_options": {"num_items": 8}}, r"has no options \['num_items'\]"),
        ({"backbone_options": {"hidden_size": "wide"}}, "the config of the backbone .* is not valid"),
        ({"num_candidates": 110}, "lists 110 candidates .* but only 108 items of small are targets in training"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    small_parts, small_data, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ALLMRecError, match=message):
        train(small_data, tmp_path / "run", settings(small_parts, **changes), loops=arguments())
    assert not (tmp_path / "run").exists()


def test_a_later_stage_on_data_of_another_catalogue_is_refused(copied, small_parts, tmp_path):
    shutil.rmtree(copied / "checkpoints", ignore_errors=True)
    other = write_data(tmp_path / "data", keep_items="interacted")
    with pytest.raises(ALLMRecError, match="was trained on another catalogue than that of small"):
        train(other, copied, settings(small_parts), ("align",), arguments())


def test_data_of_a_domain_that_is_no_word_are_refused_before_training(small_parts, small_data, tmp_path, monkeypatch):
    monkeypatch.setitem(small_data.info, "domain", "{song}")
    with pytest.raises(ALLMRecError, match=r"a domain is a noun with two verbs.*got .'{song}'"):
        train(small_data, tmp_path / "run", settings(small_parts), loops=arguments())
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_names_no_folder_of_the_parts_it_carries(finished_run):
    config = json.loads((finished_run / "config.json").read_text())
    card = json.loads((finished_run / "model_card.json").read_text())
    assert not config["cf_config"].get("_name_or_path")
    assert card["text_encoder"] == config["text_encoder_name_or_path"]


def test_unknown_stages_are_named(small_parts, small_data, tmp_path):
    with pytest.raises(ALLMRecError, match=r"unknown stages \['tune'\]; known are backbone, align, project"):
        train(small_data, tmp_path / "run", settings(small_parts), ("backbone", "tune"), arguments())


def test_a_text_encoder_that_is_not_there_is_named_and_the_backbone_stays(
    backbone_run, small_parts, small_data, tmp_path
):
    output = Path(shutil.copytree(backbone_run, tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"the text encoder .*nowhere' cannot be loaded"):
        train(
            small_data,
            output,
            settings(small_parts, text_encoder=str(tmp_path / "nowhere")),
            ("align",),
            arguments(),
        )
    assert weights(output) == weights(backbone_run)
