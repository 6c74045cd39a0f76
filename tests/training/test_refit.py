"""A finished run trained again on more interactions: what it is trained on, for how long, and what it takes over."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, pipeline

from allmrec_hf import (
    ALLMRecConfig,
    ALLMRecError,
    ALLMRecProcessor,
    ALLMRecTrainer,
    CheckpointError,
    DataError,
    PreparedData,
)
from allmrec_hf.data.subsets import with_more_training
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.fair import fair_backbone
from allmrec_hf.training.refit import refit_arguments
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.stage_length import as_long_as_best
from tests import command_line, small_run

RETRIEVE = {
    "dim": 8,
    "llm_depths": "1,2",
    "num_train_epochs": 1,
    "max_steps": 8,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "per_device_train_batch_size": 16,
    "num_negatives": 8,
    "positions": 2,
    "max_validation_users": 40,
}


@pytest.fixture(scope="module")
def run(finished_run, small_parts, small_data, tmp_path_factory):
    """Return the folder of a run of every stage."""
    folder = tmp_path_factory.mktemp("refit") / "run"
    shutil.copytree(finished_run, folder)
    args = small_run.run_arguments(folder, small_run.settings(small_parts)).replaced(
        retrieve=RETRIEVE, rank={"num_candidates": 20, "max_validation_users": 60}
    )
    ALLMRecTrainer(args=args, data=small_data).train(("retrieve", "rank"))
    return folder


@pytest.fixture(scope="module")
def refitted(run, small_data):
    """Return the folders of the run's refits, by what they are trained on."""
    first = ALLMRecTrainer(args=ALLMRecTrainingArguments(run), data=small_data)
    places = {"train+validation": run.parent / "known", "all": run.parent / "all"}
    return {on: first.refit(folder, on).output_dir for on, folder in places.items()}


def record(folder, stage):
    return json.loads((folder / "checkpoints" / stage / "training.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_what_is_held_out_becomes_training_and_the_rest_stays(split, small_data, tmp_path):
    data = small_data if split == "leave-one-out" else small_run.write_data(tmp_path / "time", split="time")
    more = with_more_training(data, ("validation",))
    for mine, theirs in zip(more.sequences("train"), data.sequences("train+validation"), strict=True):
        assert np.array_equal(mine, theirs)
    assert len(more.candidates("validation")) == 0
    for part in ("users", "targets", "items"):
        assert np.array_equal(getattr(more.candidates("test"), part), getattr(data.candidates("test"), part))
    user = int(data.candidates("test").users[0])
    assert np.array_equal(more.history(user, "test"), data.history(user, "test"))
    everything = with_more_training(data, ("validation", "test"))
    assert sum(map(len, everything.sequences("train"))) == data.interactions.height
    assert not len(everything.candidates("test"))
    loaded = PreparedData.load(more.save(tmp_path / "saved"))
    assert loaded.in_training == ["validation"]
    assert loaded.digests == more.digests != data.digests


def test_data_with_a_gap_or_a_damaged_note_are_refused(small_data, tmp_path):
    with pytest.raises(DataError, match="no gap"):
        with_more_training(small_data, ("test",))
    folder = with_more_training(small_data, ("validation",)).save(tmp_path / "data")
    info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for damaged in ("validation", ["train"], {"test": 1}):
        (folder / "dataset.json").write_text(json.dumps({**info, "in_training": damaged}), encoding="utf-8")
        with pytest.raises(DataError, match="in_training"):
            PreparedData.load(folder)
    (folder / "dataset.json").write_text(json.dumps({**info, "in_training": []}), encoding="utf-8")
    with pytest.raises(DataError, match="leave-one-out"):
        PreparedData.load(folder)


def test_the_backbone_is_the_fair_one(run, refitted, small_data):
    fair = fair_backbone(run, small_data).state_dict()
    own = AutoModel.from_pretrained(refitted["train+validation"] / "backbone").state_dict()
    assert all(torch.equal(own[name], value) for name, value in fair.items())


@pytest.mark.parametrize("on", ["train+validation", "all"])
def test_every_stage_is_as_long_as_was_best_and_the_fusion_stays(run, refitted, on):
    before, after = (ALLMRecConfig.from_pretrained(folder) for folder in (run, refitted[on]))
    depth = before.rankers["retrieval"]["num_llm_layers"]
    for stage in ("backbone", "align", "project"):
        was, now = record(run, stage)["result"], record(refitted[on], stage)["result"]
        assert now["best"] is None
        best = next(entry for entry in was["history"] if entry[f"validation/{was['metric']}"] == was["best"])
        if best["step"] < was["steps"]:
            assert now["epochs"] == best["epoch"]
        else:  # ended by its steps within an epoch
            assert (was["stopped_by"], now["steps"]) == ("max_steps", best["step"])
    was = json.loads((run / "checkpoints" / "retrieve" / f"layers-{depth}" / "training.json").read_text())["result"]
    best = next(entry for entry in was["history"] if entry["validation/ndcg@10"] == was["best"])
    assert record(refitted[on], "retrieve")["result"]["steps"] == best["step"]
    for name in ("fusion", "text", "words"):
        assert after.rankers[name] == before.rankers[name]
    assert after.rankers["retrieval"]["num_llm_layers"] == depth
    assert after.ranker == before.ranker
    assert after.in_training == (["validation"] if on == "train+validation" else ["validation", "test"])
    assert json.loads((refitted[on] / "run.json").read_text())["arguments"]["project"]["targets"] == "train"
    card = (refitted[on] / "README.md").read_text(encoding="utf-8")
    assert "Trained on the validation" in card
    recommend = pipeline("recommendation", model=str(refitted[on]), ranker="fusion")
    history = recommend.processor.catalog.item_ids[:2]
    assert len(recommend({"history": history}, top_k=3)) == 3


def test_what_a_refit_learnt_is_no_test_of_it(refitted, small_parts, tmp_path):
    data = str(small_parts / "data")
    known, everything = refitted["train+validation"], refitted["all"]
    alone = tmp_path / "pushed"  # without run.json the configuration tells it
    shutil.copytree(everything, alone, ignore=shutil.ignore_patterns("run.json", "checkpoints"))
    for folder, split in (
        (known, "validation"),
        (everything, "validation"),
        (everything, "test"),
        (alone, "test"),
        (alone / "backbone", "test"),
    ):
        done = command_line.run("evaluate", "--model", folder, "--data", data, "--split", split)
        assert done.exit_code == 2
        assert f"was trained on the {split} targets" in done.stderr.replace("\n", " ")
    done = command_line.run("evaluate", "--model", known, "--data", data, "--max-users", "20", "--json")
    assert done.exit_code == 0, done.stderr
    assert "fusion" in done.stdout
    said = command_line.refused("evaluate", "--model", known, "--data", data, "--fair-backbone")
    assert "its backbone has seen these data" in said
    command_line.succeeded("card", alone, "--warning", "Prices are not shown.")
    card = (alone / "README.md").read_text(encoding="utf-8")
    assert "Trained on the validation" in card
    assert "Prices are not shown" in card


def test_a_backbone_alone_is_refitted_and_its_trainer_has_nothing_to_test_on(small_parts, small_data, tmp_path):
    settings = small_run.settings(small_parts)
    folder = small_run.train(small_data, tmp_path / "run", settings, ["backbone"])
    again = ALLMRecTrainer(args=ALLMRecTrainingArguments(folder), data=small_data).refit(tmp_path / "all")
    done = command_line.run("evaluate", "--model", again.output_dir, "--data", small_parts / "data")
    assert done.exit_code == 2
    assert "was trained on the test targets" in done.stderr.replace("\n", " ")
    for split in ("validation", "test"):
        with pytest.raises(DataError, match="trained on"):
            again.evaluate([PopularityRanker(again.data.item_counts("train"))], split=split)


def test_the_command_line_refits_and_resumes(run, refitted, small_parts, tmp_path):
    given = ("refit", "--run", run, "--data", small_parts / "data", "--on", "train+validation")
    done = command_line.run(*given, "--output", tmp_path / "again", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["in_training"] == ["validation"]
    same = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert same == (refitted["train+validation"] / "model.safetensors").read_bytes()
    (tmp_path / "again" / "rank" / "done").unlink()  # as if it had been killed before the last stage
    done = command_line.run(*given, "--output", tmp_path / "again", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "train and validation" in done.stdout
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == same


def few_steps(small_parts, folder, rankers, **sections):
    """Return the arguments of a run of some rankers."""
    settings = {**small_run.settings(small_parts), "rank_rankers": rankers}
    return small_run.run_arguments(folder, settings).replaced(**sections)


@pytest.mark.parametrize(
    ("rankers", "sections"),
    [
        (
            "retrieval",
            {
                "retrieve": {**RETRIEVE, "llm_depths": "2"},
                "project": {"item_embedding": "cf", "history_in_prompt": 3, "max_title_tokens": 4},
            },
        ),
        ("letter,likelihood_mean", {"project": {"item_embedding": "cf", "score_normalization": "calibrated"}}),
        ("zero_shot", {"project": {"history_in_prompt": 3, "item_embedding": "text"}}),
    ],
    ids=["retrieval", "letter", "zero_shot"],
)
def test_settings_of_stages_that_did_not_run_are_taken_over(rankers, sections, small_parts, small_data, tmp_path):
    """A ranker reads some of them, and another process has nothing but the folder."""
    args = few_steps(small_parts, tmp_path / "run", rankers, **sections)
    ALLMRecTrainer(args=args, data=small_data).train()
    done = command_line.run(
        "refit", "--run", tmp_path / "run", "--data", small_parts / "data", "--output", tmp_path / "all"
    )
    assert done.exit_code == 0, done.stderr
    before, after = (ALLMRecConfig.from_pretrained(tmp_path / name) for name in ("run", "all"))
    trained = ("item_embedding", "item_embedding_seed", "score_normalization", "projector", "ranker", "rankers")
    assert {name: getattr(after, name) for name in trained} == {name: getattr(before, name) for name in trained}
    was, now = (ALLMRecProcessor.from_pretrained(tmp_path / name) for name in ("run", "all"))
    assert (now.history_in_prompt, now.max_title_tokens) == (was.history_in_prompt, was.max_title_tokens)


def test_a_loaded_text_encoder_stays_as_it_is_and_is_asked_for_again(small_parts, small_data, tmp_path):
    encoder = small_run.text_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    args = few_steps(small_parts, tmp_path / "run", "likelihood", align={"fine_tune_text_encoder": True})
    first = ALLMRecTrainer(args=args, data=small_data, text_encoder=encoder)
    first.train(["backbone", "align"])
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ALLMRecError, match="give it again"):
        ALLMRecTrainer(args=ALLMRecTrainingArguments(tmp_path / "run"), data=small_data).refit(tmp_path / "lost")
    again = first.refit(tmp_path / "all").model.text_encoder.state_dict()
    same = ALLMRecTrainer(
        args=ALLMRecTrainingArguments(tmp_path / "run"), data=small_data, text_encoder=small_run.text_encoder()
    ).refit(tmp_path / "same")
    assert all(torch.equal(value, again[name]) for name, value in same.model.text_encoder.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in again.items())


def test_a_moved_llm_is_named(run, small_parts, small_data, tmp_path):
    shutil.copytree(small_parts / "llm", tmp_path / "llm")
    first = ALLMRecTrainer(str(tmp_path / "llm"), args=ALLMRecTrainingArguments(run), data=small_data)
    args = refit_arguments(run, tmp_path / "all", first.args)
    assert args.llm.name == str(tmp_path / "llm")
    assert args.align.text_encoder == str(small_parts / "text_encoder")


RESULT = {"metric": "ndcg@10", "best": 0.5, "steps": 40, "epochs": 4, "stopped_by": "epochs"}
BY_EPOCH = [
    {"epoch": n, "step": 10 * n, "train/loss": 1.0, "validation/ndcg@10": 0.2 + 0.1 * min(n, 3)} for n in (1, 2, 3, 4)
]


@pytest.mark.parametrize(
    ("changes", "by_steps", "expected"),
    [
        ({"history": BY_EPOCH}, False, (3, None)),
        ({"history": BY_EPOCH}, True, (4, 30)),
        ({"history": [*BY_EPOCH[:2], {"epoch": 2, "step": 27, "validation/ndcg@10": 0.5}]}, False, (4, 27)),
        ({"history": [{"epoch": 0, "step": 4, "validation/ndcg@10": 0.5}, BY_EPOCH[0]]}, False, (4, 4)),
        ({"history": [BY_EPOCH[0]], "best": 0.3, "steps": 10, "epochs": 1, "stopped_by": "time_limit"}, False, (1, 10)),
        ({"history": [BY_EPOCH[0]], "best": 0.3, "steps": 10, "epochs": 1}, False, (1, None)),
        ({"history": [{"epoch": 4, "step": 40, "train/loss": 1.0}], "metric": None, "best": None}, False, (4, None)),
        (
            {"history": [], "metric": None, "best": None, "stopped_by": "max_steps"},
            False,
            (4, 40),
        ),
    ],
    ids=["epoch", "stage 2", "within", "within the first", "time", "last epoch", "not validated", "max_steps"],
)
def test_a_stage_is_as_long_as_its_best_validation_was_late(changes, by_steps, expected, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"result": {**RESULT, **changes}}), encoding="utf-8")
    length = as_long_as_best(tmp_path / "training.json", by_steps)
    assert (length["num_train_epochs"], length["max_steps"]) == expected
    assert StageArguments().replaced(**length).eval_strategy == "no"


def test_what_cannot_be_refitted_is_refused(run, refitted, small_parts, small_data, tmp_path):
    def refit(folder, data=small_data, **options):
        ALLMRecTrainer(args=ALLMRecTrainingArguments(folder), data=data).refit(tmp_path / "output", **options)

    with pytest.raises(ALLMRecError, match="no run"):
        refit(tmp_path)
    with pytest.raises(ALLMRecError, match=r"train\+validation, all"):
        refit(run, on="test")
    with pytest.raises(ALLMRecError, match="trained by refit"):
        refit(refitted["all"])
    with pytest.raises(ALLMRecError, match="the run itself"):
        ALLMRecTrainer(args=ALLMRecTrainingArguments(run), data=small_data).refit(run)
    with pytest.raises(ALLMRecError, match="other interactions than all"):
        ALLMRecTrainer(args=ALLMRecTrainingArguments(run), data=small_data).refit(refitted["train+validation"])
    alone = tmp_path / "two"
    shutil.copytree(run, alone)
    (alone / "run.json").write_text(
        (run / "run.json").read_text(encoding="utf-8").replace('"processes": 1', '"processes": 2'), encoding="utf-8"
    )
    with pytest.raises(ALLMRecError, match="start refit with as many"):
        refit(alone)
    with pytest.raises(ALLMRecError, match="other data"):
        refit(run, small_run.write_data(tmp_path / "other", seed=5))
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    (begun / "rank" / "done").unlink()
    with pytest.raises(ALLMRecError, match="not finished"):
        refit(begun)
    given = small_run.train(
        small_data,
        tmp_path / "given",
        small_run.settings(small_parts, backbone_options=None, backbone_name=str(run / "backbone")),
        ["backbone", "align"],
    )
    with pytest.raises(ALLMRecError, match="not trained there"):
        refit(given)
    (begun / "rank" / "done").touch()
    path = begun / "checkpoints" / "align" / "training.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"history"', '"other"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not tell how the stage went"):
        refit_arguments(begun, tmp_path / "output", ALLMRecTrainingArguments(begun))
    assert not (tmp_path / "output").exists()
