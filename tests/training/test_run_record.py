"""`run.json` holds what the stages that ran were trained with; a later stage may have settings of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training.projection import ProjectionTask
from allmrec_hf.training.run import train
from allmrec_hf.training.run_record import RUN_FILE
from allmrec_hf.training.settings import SETTINGS_OF_STAGE
from tests.small_run import STAGES, arguments, settings


class Stopped(Exception):
    pass


def record(folder):
    return json.loads((folder / RUN_FILE).read_text())


@pytest.fixture(scope="module")
def aligned(small_parts, small_data, tmp_path_factory):
    """Return the folder of a run of stages 0 and 1, whose settings of stage 2 were others than in the tests."""
    output = tmp_path_factory.mktemp("runs") / "aligned"
    chosen = settings(small_parts, llm=None, projector="linear", warm_start_steps=9)
    train(small_data, output, chosen, ("cf",), arguments())
    train(small_data, output, chosen, ("align",), arguments())
    return output


@pytest.fixture
def copied(aligned, tmp_path):
    return Path(shutil.copytree(aligned, tmp_path / "copied"))


@pytest.fixture
def half_way(copied, small_parts, small_data, monkeypatch):
    """Return the folder of a run that stopped after some steps of stage 2."""
    collate, calls = ProjectionTask.collate, []

    def stopping(self, examples, generator):
        calls.append(1)
        if len(calls) > 5:
            raise Stopped
        return collate(self, examples, generator)

    with monkeypatch.context() as patch:
        patch.setattr(ProjectionTask, "collate", stopping)
        with pytest.raises(Stopped):
            train(small_data, copied, settings(small_parts), ("project",), arguments())
    return copied


def test_only_what_stages_that_ran_were_trained_with_is_recorded(aligned, finished_run):
    assert set(record(aligned)["settings"]) == {*SETTINGS_OF_STAGE["cf"], *SETTINGS_OF_STAGE["align"]}
    assert list(record(aligned)["stages"]) == ["cf", "align"]
    assert set(record(finished_run)["settings"]) == {name for stage in STAGES for name in SETTINGS_OF_STAGE[stage]}


@pytest.mark.parametrize(("stages", "resume"), [(("project",), False), (STAGES, True)])
def test_a_later_stage_gets_settings_of_its_own_over_finished_earlier_ones(
    copied, small_parts, small_data, finished_run, stages, resume
):
    chosen = settings(small_parts, projector="resampler", projector_tokens=2)
    loops = arguments() | {"project": arguments(learning_rate=3e-3)["project"]}
    train(small_data, copied, chosen, stages, loops, resume=resume)
    assert record(copied)["settings"]["projector"] == "resampler"
    assert record(copied)["stages"]["project"]["learning_rate"] == 3e-3
    assert record(copied)["settings"]["llm"] == str(small_parts / "llm")


def test_what_has_begun_is_not_gone_on_with_otherwise(half_way, small_parts, small_data):
    assert record(half_way)["settings"]["projector"] == "mlp"
    for changes, message in (
        ({"projector": "linear"}, "projector 'mlp' -> 'linear'"),
        ({"alpha": 0.1}, "alpha 0.5 -> 0.1"),
        ({"llm_options": {"dtype": "bfloat16"}}, "llm_options .*bfloat16"),
    ):
        with pytest.raises(ALLMRecError, match=message):
            train(small_data, half_way, settings(small_parts, **changes), arguments=arguments(), resume=True)


def test_what_changes_no_weight_may_be_changed_half_way(half_way, small_parts, small_data):
    chosen = settings(small_parts, include_llm=True, checkpoint_activations=True)
    train(small_data, half_way, chosen, arguments=arguments(), resume=True)
    assert record(half_way)["settings"]["include_llm"]
    with pytest.raises(ALLMRecError, match="include_llm True -> False"):  # it is saved already
        train(small_data, half_way, settings(small_parts), arguments=arguments(), resume=True)


def test_a_run_of_an_earlier_version_that_recorded_all_stages_at_once_is_no_hindrance(copied, small_parts, small_data):
    noted = record(copied)
    noted["settings"] |= {"projector": "linear", "llm": None, "targets": "train"}
    noted["stages"]["project"] = noted["stages"]["align"]
    (copied / RUN_FILE).write_text(json.dumps(noted))
    train(small_data, copied, settings(small_parts), arguments=arguments(), resume=True)
    assert (copied / "project" / "done").exists()
