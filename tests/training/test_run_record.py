"""`run.json` holds what the stages that ran were trained with; a later stage may have settings of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training.projection import ProjectionTask
from allmrec_hf.training.run_record import RUN_FILE
from allmrec_hf.training.section_arguments import SECTIONS
from allmrec_hf.training.stage_arguments import StageArguments
from tests.small_run import STAGES, arguments, settings, train


class Stopped(Exception):
    pass


def record(folder):
    return json.loads((folder / RUN_FILE).read_text())


@pytest.fixture(scope="module")
def aligned(small_parts, small_data, tmp_path_factory):
    """Return the folder of a run of stages 0 and 1, whose settings of stage 2 were others than in the tests."""
    output = tmp_path_factory.mktemp("runs") / "aligned"
    chosen = settings(small_parts, llm_name=None, projector="linear", warm_start_steps=9)
    train(small_data, output, chosen, ("backbone",), arguments())
    train(small_data, output, chosen, ("align",), arguments())
    return output


@pytest.fixture
def copied(aligned, tmp_path):
    return Path(shutil.copytree(aligned, tmp_path / "copied"))


@pytest.fixture
def half_way(copied, small_parts, small_data, monkeypatch):
    """Return the folder of a run that stopped after some steps of stage 2."""
    share, calls = ProjectionTask.share, []

    def stopping(self, examples, rows, generator):
        calls.append(1)
        if len(calls) > 5:
            raise Stopped
        return share(self, examples, rows, generator)

    with monkeypatch.context() as patch:
        patch.setattr(ProjectionTask, "share", stopping)
        with pytest.raises(Stopped):
            train(small_data, copied, settings(small_parts), ("project",), arguments())
    return copied


def test_only_what_stages_that_ran_were_trained_with_is_recorded(aligned, finished_run):
    assert list(record(aligned)["arguments"]) == ["backbone", "align"]
    assert list(record(finished_run)["arguments"]) == [*STAGES, "llm"]
    for name, section in record(finished_run)["arguments"].items():
        assert set(section) == set(SECTIONS[name].names())


@pytest.mark.parametrize(("stages", "resume"), [(("project",), False), (STAGES, True)])
def test_a_later_stage_gets_settings_of_its_own_over_finished_earlier_ones(
    copied, small_parts, small_data, finished_run, stages, resume
):
    chosen = settings(small_parts, projector="resampler", projector_tokens=2)
    loops = arguments() | {"project": arguments(learning_rate=3e-3)["project"]}
    train(small_data, copied, chosen, stages, loops, resume=resume)
    assert record(copied)["arguments"]["project"]["projector"] == "resampler"
    assert record(copied)["arguments"]["project"]["learning_rate"] == 3e-3
    assert record(copied)["arguments"]["llm"]["name"] == str(small_parts / "llm")


def test_what_has_begun_is_not_gone_on_with_otherwise(half_way, small_parts, small_data):
    assert record(half_way)["arguments"]["project"]["projector"] == "mlp"
    for changes, message in (
        ({"projector": "linear"}, "project.projector 'mlp' -> 'linear'"),
        ({"item_reconstruction_weight": 0.1}, "align.item_reconstruction_weight 0.5 -> 0.1"),
        ({"llm_options": {"dtype": "bfloat16"}}, "llm.options .*bfloat16"),
    ):
        with pytest.raises(ALLMRecError, match=message):
            train(small_data, half_way, settings(small_parts, **changes), loops=arguments(), resume=True)


def test_what_changes_no_weight_may_be_changed_half_way(half_way, small_parts, small_data):
    chosen = settings(small_parts, include_llm=True, gradient_checkpointing=True)
    train(small_data, half_way, chosen, loops=arguments(), resume=True)
    assert record(half_way)["arguments"]["llm"]["include_llm"]
    with pytest.raises(ALLMRecError, match=r"llm\.include_llm True -> False"):  # it is saved already
        train(small_data, half_way, settings(small_parts), loops=arguments(), resume=True)


def test_no_file_of_a_run_remembers_that_code_of_others_was_trusted(copied, small_parts, small_data):
    trusting = settings(small_parts, llm_options={"trust_remote_code": True, "attn_implementation": "eager"})
    train(small_data, copied, trusting, ("project",), arguments())
    assert record(copied)["arguments"]["llm"]["options"] == {"attn_implementation": "eager"}
    assert not [path for path in copied.rglob("*.json") if "trust_remote_code" in path.read_text()]
    plain = settings(small_parts, llm_options={"attn_implementation": "eager"})
    train(small_data, copied, plain, loops=arguments(), resume=True)  # it is given anew each time


def test_a_record_of_a_stage_that_has_not_begun_is_no_hindrance(copied, small_parts, small_data):
    noted = record(copied)
    loop = {name: value for name, value in noted["arguments"]["align"].items() if name in StageArguments.names()}
    noted["arguments"] |= {"project": loop | {"projector": "linear", "targets": "train"}, "llm": {"name": None}}
    (copied / RUN_FILE).write_text(json.dumps(noted))
    train(small_data, copied, settings(small_parts), loops=arguments(), resume=True)
    assert (copied / "project" / "done").exists()
    assert record(copied)["arguments"]["project"]["projector"] == "mlp"


def test_a_run_of_an_earlier_version_is_named_as_such_and_stays_as_it_was(copied, small_parts, small_data):
    old = {
        "data": {"name": "small"},
        "preset": "default",
        "settings": {"cf": "sasrec"},
        "stages": {"cf": {"epochs": 2}},
    }
    (copied / RUN_FILE).write_text(json.dumps(old))
    for stages, resume in ((STAGES, True), (("project",), False)):
        with pytest.raises(
            ALLMRecError, match=r"^[^(]*run.json was written by an earlier version, .* cannot be gone on with"
        ):
            train(small_data, copied, settings(small_parts), stages, arguments(), resume=resume)
    assert record(copied) == old
