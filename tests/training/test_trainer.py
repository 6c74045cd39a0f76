"""`ALLMRecTrainer`: names, folders and loaded objects, what it returns, and what it refuses."""

from __future__ import annotations

import json

import pandas as pd
import polars as pl
import pytest
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from allmrec_hf import ALLMRecError, CheckpointError, DataError
from allmrec_hf.data.prepare import prepare
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.pretrained_backbone import load_backbone
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests.small_run import arguments, run_arguments, settings, text_encoder


def bytes_of(folder):
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


def test_names_and_loaded_objects_end_with_the_same(finished_run, small_parts, small_data, tmp_path):
    args = run_arguments(tmp_path / "run", settings(small_parts, llm_name=None, text_encoder="unused"))
    trainer = ALLMRecTrainer(
        llm=AutoModelForCausalLM.from_pretrained(small_parts / "llm"),
        tokenizer=AutoTokenizer.from_pretrained(small_parts / "llm"),
        text_encoder=text_encoder(),
        args=args,
        data=small_data,
    )
    assert trainer.train() is trainer
    assert bytes_of(tmp_path / "run") == bytes_of(finished_run)
    report = trainer.evaluate(max_users=10).to_dict()
    assert list(report["methods"]) == ["a-llmrec", "sasrec", "popularity"]
    history = small_data.catalog.item_ids[:2]
    assert len(trainer.pipeline()({"history": history}, top_k=3)) == 3


def test_a_loaded_backbone_is_taken_as_it_is(finished_run, small_parts, small_data, tmp_path):
    backbone = load_backbone(finished_run / "backbone")
    chosen = settings(small_parts, backbone_options=None)
    trainer = ALLMRecTrainer(backbone=backbone, args=run_arguments(tmp_path / "run", chosen), data=small_data)
    trainer.train("align")
    assert bytes_of(tmp_path / "run" / "backbone") == bytes_of(finished_run / "backbone")
    assert not (tmp_path / "run" / "checkpoints" / "backbone").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model_type"] == "sasrec"
    few = prepare(small_data.interactions.drop("split"), output=tmp_path / "few", filter="none", num_candidates=5)
    with pytest.raises(DataError, match=r"the backbone given has 120 items and frames has \d+"):
        ALLMRecTrainer(backbone=backbone, args=run_arguments(tmp_path / "b", chosen), data=few).train("align")


def test_a_trainer_of_a_folder_resumes_and_gives_a_later_stage_new_options(
    finished_run, small_parts, small_data, tmp_path
):
    output = tmp_path / "run"
    first = ALLMRecTrainer(args=run_arguments(output, settings(small_parts)), data=small_parts / "data")
    first.train(("backbone", "align"))
    changed = settings(small_parts, history_in_prompt=3, projector="linear")
    second = ALLMRecTrainer(args=run_arguments(output, changed), data=small_data)
    second.train("project")
    used = json.loads((output / "run.json").read_text())["arguments"]["project"]
    assert (used["history_in_prompt"], used["projector"]) == (3, "linear")
    with pytest.raises(ALLMRecError, match=r"project.history_in_prompt 3 -> 10; project.projector 'linear' -> 'mlp'"):
        first.train(resume_from_checkpoint=True)


class Counts(TrainerCallback):
    def __init__(self):
        self.stages = []

    def on_train_begin(self, args, state, control, **more):
        self.stages.append(args.stage)


def test_callbacks_hear_of_every_stage_and_one_that_raises_leaves_a_run_to_go_on_with(
    finished_run, small_parts, small_data, tmp_path
):
    class Raises(TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            if args.stage == "align" and state.global_step == 5:
                raise KeyError("mine")

    args, heard = run_arguments(tmp_path / "run", settings(small_parts)), Counts()
    with pytest.raises(ALLMRecError, match="a callback raised in on_step_end of stage align at step 5"):
        ALLMRecTrainer(args=args, data=small_data, callbacks=[heard, Raises]).train()
    ALLMRecTrainer(args=args, data=small_data, callbacks=[heard]).train(resume_from_checkpoint=True)
    assert heard.stages == ["backbone", "align", "align", "project"]
    assert bytes_of(tmp_path / "run") == bytes_of(finished_run)


def test_a_second_trainer_on_one_folder_is_refused_while_the_first_is_at_work(small_parts, small_data, tmp_path):
    trainer = ALLMRecTrainer(args=run_arguments(tmp_path / "run", settings(small_parts)), data=small_data)
    with FileLock(tmp_path / ".run.training"), pytest.raises(ALLMRecError, match="another trainer is at work in"):
        trainer.train("backbone")
    trainer.train("backbone")
    assert not (tmp_path / ".run.training").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"data": pd.DataFrame({"user_id": [1]})},
            DataError,
            r"got DataFrame: call prepare\(interactions, items\) first",
        ),
        ({"args": None}, ALLMRecError, "args must be ALLMRecTrainingArguments"),
        ({"llm": 7}, ALLMRecError, "llm must be a name, a folder or a loaded object; got int"),
        ({"backbone": 7}, ALLMRecError, "backbone must be a name, a folder or a loaded object"),
        ({"text_encoder": 7}, ALLMRecError, "text_encoder must be a name, a folder or a loaded object"),
        ({"backbone": "sasrek"}, ALLMRecError, "unknown backbone 'sasrek'; known ones: .*sasrec"),
    ],
)
def test_what_is_of_another_kind_is_named(small_data, small_parts, tmp_path, changes, kind, message):
    given = {"args": run_arguments(tmp_path / "run", settings(small_parts, backbone_options=None)), "data": small_data}
    with pytest.raises(kind, match=message):
        ALLMRecTrainer(**{**given, **changes}).train("backbone")
    assert not (tmp_path / "run").exists()


# -- from frames


def frames(small_data):
    log = small_data.interactions.drop("split").rename({"user_id": "customer"})
    items = small_data.catalog.frame
    return log, items


@pytest.mark.parametrize("kind", ["polars", "pandas", "pandas index", "arrow", "datasets", "records"])
def test_every_kind_of_frame_is_prepared_alike(small_data, tmp_path, kind):
    log, items = frames(small_data)
    make = {
        "polars": lambda frame: frame,
        "pandas": lambda frame: frame.to_pandas(),
        "pandas index": lambda frame: frame.to_pandas().set_index("item_id"),
        "arrow": lambda frame: frame.to_arrow(),
        "datasets": lambda frame: __import__("datasets").Dataset(frame.to_arrow()),
        "records": lambda frame: frame.to_dicts(),
    }[kind]
    options = {"columns": {"user_id": "customer"}, "filter": "none", "keep_items": "all", "num_candidates": 5}
    data = prepare(make(log), make(items), **options)
    assert data.digests == prepare(log, items, output=tmp_path / "whole", **options).digests
    assert data.directory.is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.drop("item_id"), r"the interactions.*item_id"),
        (lambda log: log.with_columns(timestamp=pl.lit(True)), "column timestamp of the interactions"),
        (
            lambda log: pd.concat([log.to_pandas(), log.to_pandas()[["item_id"]]], axis=1),
            "several columns of the name item_id",
        ),
        (
            lambda log: log.to_pandas().set_index("item_id", drop=False),
            r"\['item_id'\] are names of the index and of columns",
        ),
        (lambda log: 3, "int is no table"),
    ],
)
def test_frames_that_cannot_be_prepared_say_why(small_data, change, message):
    log, items = frames(small_data)
    with pytest.raises(DataError, match=message):
        prepare(change(log), items, columns={"user_id": "customer"}, filter="none")


def test_any_domain_has_its_words_in_the_prompt(small_data, small_parts, tmp_path):
    log, items = frames(small_data)
    options = {"columns": {"user_id": "customer"}, "filter": "none", "keep_items": "all", "num_candidates": 5}
    data = prepare(log, items, domain="book", verbs=("read", "read"), **options)
    assert (data.domain, data.verbs) == ("book", ("read", "read"))
    trainer = ALLMRecTrainer(args=run_arguments(tmp_path / "run", settings(small_parts)), data=data).train()
    prompt = trainer.processor.prompt["prompt"]
    assert "This user has read {history} in the previous. Recommend one next book for this user to read next" in prompt
    with pytest.raises(DataError, match="a domain is a noun with two verbs"):
        prepare(log, items, domain="bo{ok}", **options)


# -- arguments


def test_arguments_merge_preset_recipe_and_what_is_given():
    args = ALLMRecTrainingArguments("runs/x", "quick", backbone="bprmf", project={"learning_rate": "1e-4"}, seed=7)
    assert (args.backbone.name, args.backbone.per_device_train_batch_size) == ("bprmf", 1024)
    assert (args.project.learning_rate, args.project.max_seconds) == (1e-4, 90)
    assert [loop.seed for loop in args.stages.values()] == [7] * len(args.stages)
    again = args.replaced(backbone={"name": "sasrec"}, seed=8, project={"seed": 9})
    assert again.backbone.per_device_train_batch_size == 128  # another backbone, another recipe
    assert [loop.seed for loop in again.stages.values()] == [8, 8, 9, 8]
    assert again.project.learning_rate == 1e-4


def test_options_of_a_stage_that_no_ranker_trains_are_named_in_a_warning(small_data, tmp_path, caplog):
    given = {"seed": 7, "retrieve": {"dim": 8}, "project": {"learning_rate": 1e-4, "projector": "linear"}}
    trainer = ALLMRecTrainer(args=ALLMRecTrainingArguments(tmp_path / "run", "quick", **given), data=small_data)
    trainer._warn_of_unused_options(trainer.args.rank.steps())
    (warning,) = caplog.messages
    assert warning.startswith("project.learning_rate: no effect, since the rankers of this run (retrieval,fusion)")
    caplog.clear()
    trainer._warn_of_unused_options(trainer.args.replaced(rank="likelihood,retrieval").rank.steps())
    assert not caplog.messages


def test_arguments_of_yaml_and_of_python_are_the_same(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "preset: quick\nbackbone: ligr\nalign:\n  joint_dim: 64\nproject: {learning_rate: 1e-4}\nllm: demo\n"
    )
    read = ALLMRecTrainingArguments.from_yaml(tmp_path / "run.yaml", output_dir="runs/x")
    given = {"backbone": "ligr", "align": {"joint_dim": 64}, "project": {"learning_rate": 1e-4}, "llm": "demo"}
    assert read == ALLMRecTrainingArguments("runs/x", "quick", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "fast"}, "unknown preset 'fast'; known are default, paper, quick, demo"),
        ({"align": {"joint_dims": 3}}, r"the section align has no options \['joint_dims'\]; did you mean joint_dim"),
        ({"project": {"joint_dim": 3}}, r"the section project has no options \['joint_dim'\]"),
        ({"align": 3}, "the section align must be a mapping"),
        ({"align": {"joint_dim": 0}}, "section align: joint_dim must be at least 1, got 0"),
        ({"project": {"projector": "cubic"}}, "projector must be one of mlp, linear, resampler"),
    ],
)
def test_impossible_arguments_are_refused_with_their_section(given, message):
    with pytest.raises(ALLMRecError, match=message):
        ALLMRecTrainingArguments("runs/x", **given)


def test_a_setting_by_its_name_alone_finds_its_section():
    args = ALLMRecTrainingArguments("runs/x").with_flat(joint_dim=64, llm_name="demo", projector="linear")
    assert (args.align.joint_dim, args.llm.name, args.project.projector) == (64, "demo", "linear")
    with pytest.raises(ALLMRecError, match=r"learning_rate belongs to a stage: backbone\.learning_rate, align"):
        args.with_flat(learning_rate=1e-3)
    with pytest.raises(ALLMRecError, match="did you mean joint_dim"):
        args.with_flat(joint_dims=3)


def test_loops_of_small_runs_are_whole():
    assert set(arguments()) == {"backbone", "align", "project"}


def test_an_unfinished_run_says_what_it_lacks(small_parts, small_data, tmp_path):
    trainer = ALLMRecTrainer(args=run_arguments(tmp_path / "run", settings(small_parts)), data=small_data)
    for stage in ("backbone", "align"):
        trainer.train(stage)
        for call in (trainer.evaluate, trainer.pipeline):
            with pytest.raises(CheckpointError, match=r"not trained to the end: .* align, project; call train"):
                call()
    for wrong in ("run/checkpoints", "false", 1):
        with pytest.raises(ALLMRecError, match="resume_from_checkpoint is True or False"):
            trainer.train(resume_from_checkpoint=wrong)


@pytest.mark.parametrize(("given", "found"), [("1e2", 100), ("3.0", 3), (7.0, 7)])
def test_a_whole_number_may_be_written_with_an_exponent_or_a_point(given, found):
    assert ALLMRecTrainingArguments("x", backbone={"max_steps": given}).backbone.max_steps == found


def test_a_huge_number_and_a_file_without_a_folder_are_refused(tmp_path):
    with pytest.raises(ALLMRecError, match="max_steps"):
        ALLMRecTrainingArguments("x", backbone={"max_steps": 10**400})
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    with pytest.raises(ALLMRecError, match="names no output_dir"):
        ALLMRecTrainingArguments.from_yaml(tmp_path / "x.yaml")
