"""Checkpoints and lines by the clock: no death costs more than ten minutes, and nobody stares at silence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_task import ToyTask

from allmrec_hf.durations import duration
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training import checkpoint as ckpt
from allmrec_hf.training import loop
from allmrec_hf.training.checkpoint import module_state
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.presets import preset
from allmrec_hf.training.progress import EVERY_S, ProgressLines, Standing
from allmrec_hf.training.stage_arguments import PRESETS, STAGES, StageArguments

SLOW = StageArguments(num_train_epochs=3, learning_rate=1e-2, save_total_limit=99)  # 13 steps an epoch


class Stopped(Exception):
    pass


class Clock:
    """A clock that goes on where a task says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(loop, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def saved(monkeypatch, clock):
    """Return when checkpoints were written."""
    times, save = [], ckpt.save_checkpoint

    def watched(*arguments):
        times.append(clock.now)
        return save(*arguments)

    monkeypatch.setattr(ckpt, "save_checkpoint", watched)
    return times


def slow_task(clock, step_s, validation_s=0.0, stop_after=None, dropout=0.3):
    """Return a stage whose every batch and validation take their time."""
    task, calls = ToyTask(dropout=dropout), []
    collate, validate = task.collate, task.validate

    def slowly(examples, generator):
        calls.append(1)
        if stop_after is not None and len(calls) > stop_after:
            raise Stopped
        clock.now += step_s
        return collate(examples, generator)

    def validated(examples, device):
        task.collate = collate  # of the validation, which takes its own time
        values = validate(examples, device)
        task.collate = slowly
        clock.now += validation_s
        return values

    task.collate, task.validate, task.calls = slowly, validated, calls
    return task


# -- checkpoints


def test_every_preset_writes_a_checkpoint_every_ten_minutes():
    for name in PRESETS:
        for stage in STAGES:
            assert preset(name, stage).save_minutes <= 10


@pytest.mark.parametrize("step_s", [50.0, 170.0])
def test_no_checkpoint_is_older_than_ten_minutes_and_a_step(tmp_path, clock, saved, step_s):
    started = clock.now
    run_stage(slow_task(clock, step_s), SLOW, tmp_path)
    gaps = np.diff([started, *saved])
    assert gaps.max() <= 600 + step_s
    assert len(saved) <= 3 + 1 + 39 * step_s / 600  # and not one for every step


def test_without_the_setting_only_epochs_end_with_one(tmp_path, clock, saved):
    run_stage(slow_task(clock, 170.0), SLOW.replaced(save_minutes=None), tmp_path)
    assert len(saved) == 3
    with pytest.raises(ALLMRecError, match="save_minutes must be above 0"):
        SLOW.replaced(save_minutes=0)


def test_few_validations_are_no_reason_for_few_checkpoints(tmp_path, clock, saved):
    """Epochs of thirteen steps with a validation every third: the clock saves at epochs' ends too."""
    started = clock.now
    run_stage(slow_task(clock, 46.0), SLOW.replaced(num_train_epochs=6, eval_epochs=3), tmp_path)
    assert np.diff([started, *saved]).max() <= 600 + 46


def test_a_run_that_goes_on_from_a_checkpoint_of_the_clock_ends_with_the_same_weights(tmp_path, clock):
    with pytest.raises(Stopped):
        run_stage(slow_task(clock, 170.0, stop_after=18), SLOW, tmp_path / "parts")
    latest = ckpt.latest(tmp_path / "parts" / "checkpoints")
    assert json.loads((latest / "progress.json").read_text())["batch"] == 4  # within the second epoch
    resumed = slow_task(clock, 170.0)
    run_stage(resumed, SLOW.replaced(save_minutes=3), tmp_path / "parts", resume=True)
    assert len(resumed.calls) == 39 - 17
    whole = slow_task(clock, 170.0)
    run_stage(whole, SLOW, tmp_path / "whole")
    expected = module_state(whole.module)
    assert all(value.equal(expected[name]) for name, value in module_state(resumed.module).items())


@pytest.mark.parametrize("limit", [{}, {"max_steps": 13}, {"max_steps": 9}])
def test_what_was_trained_before_a_long_validation_is_not_lost_with_it(tmp_path, clock, limit):
    task = slow_task(clock, 40.0, validation_s=900.0)

    def dying(examples, device):
        raise Stopped

    task.validate = dying
    arguments = SLOW.replaced(num_train_epochs=1, **limit)
    with pytest.raises(Stopped):
        run_stage(task, arguments, tmp_path / "parts")
    again = slow_task(clock, 40.0)
    result = run_stage(again, arguments, tmp_path / "parts", resume=True)
    assert not again.calls  # nothing but the validation is left to do
    whole = slow_task(clock, 40.0)
    assert run_stage(whole, arguments, tmp_path / "whole").best == result.best


def test_processes_agree_on_checkpoints_and_on_what_is_not_finite(tmp_path):
    """Their clocks differ, and only one of them meets the broken example."""
    script = Path(__file__).with_name("two_clocks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    times = json.loads((tmp_path / "saved-0.json").read_text())
    assert len(times) > 3
    assert np.diff([0.0, *times]).max() <= 600 + 170
    for rank in (0, 1):
        assert "no longer finite in epoch 1 (step" in (tmp_path / f"refused-{rank}.txt").read_text()
    lines = [line for line in done.stderr.splitlines() if line.startswith("toy: step")]
    assert lines  # of the main process
    assert len(lines) == len(set(lines))


# -- lines


LINE = re.compile(
    r"toy: step \d+ of 39, loss \d+\.\d{4}, [\d.]+ items/s, (\d+ h )?(\d+ min )?(\d+ s )?left, \d+\.\d GB of memory"
)


def test_elsewhere_than_in_a_terminal_there_is_a_line_every_half_minute(tmp_path, clock, capsys):
    run_stage(slow_task(clock, 10.0), SLOW, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 39 * 10 // EVERY_S
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert lines[0].startswith("toy: step 3 of 39, ")
    assert ", 0.4 items/s, 6 min 00 s left, " in lines[0]  # four examples in ten seconds, 36 steps of ten seconds


def test_slow_steps_have_a_line_each(tmp_path, clock, capsys):
    run_stage(slow_task(clock, 90.0), SLOW.replaced(num_train_epochs=1), tmp_path)
    assert len(capsys.readouterr().err.splitlines()) >= 13


def test_a_validation_tells_how_far_it_is(tmp_path, clock, capsys):
    task = slow_task(clock, 1.0)

    def validate(examples, device):
        for done in range(len(examples)):
            clock.now += 20
            task.progressed(done + 1)
        return {"loss": np.zeros(len(examples))}

    task.validate = validate
    run_stage(task, SLOW.replaced(num_train_epochs=1), tmp_path)
    shown = capsys.readouterr().err
    assert "toy: step 13 of 13, validated 1 of 10, " in shown
    assert "validated 9 of 10" in shown


def test_a_terminal_has_its_bar_and_silence_can_be_asked_for(tmp_path, clock, capsys, monkeypatch):
    run_stage(slow_task(clock, 60.0), SLOW.replaced(num_train_epochs=1), tmp_path / "silent", progress=False)
    assert not capsys.readouterr().err
    run_stage(slow_task(clock, 60.0), SLOW.replaced(num_train_epochs=1), tmp_path / "bar", progress=True)
    assert "step 1 of" not in capsys.readouterr().err
    monkeypatch.setattr(loop, "shows_bar", lambda: True)
    run_stage(slow_task(clock, 60.0), SLOW.replaced(num_train_epochs=1), tmp_path / "terminal")
    assert "step 1 of" not in capsys.readouterr().err


def test_time_left_counts_from_where_a_resumed_run_began_and_ends_with_the_limit(capsys):
    lines = ProgressLines("project", now=100.0, step=50)
    assert not lines.due(100.0 + EVERY_S - 1)
    assert lines.due(100.0 + EVERY_S)
    lines.tell(200.0, Standing(step=60, total=110, loss=1.0, memory="2.0 GB"))
    assert "step 60 of 110, loss 1.0000, 0 items/s, 8 min 20 s left, 2.0 GB of memory" in capsys.readouterr().err
    lines.tell(300.0, Standing(step=70, total=110, loss=1.0, memory="2.0 GB", seconds_left=42.0))
    assert ", 42 s left, " in capsys.readouterr().err


def test_durations_are_told_in_two_units():
    assert [duration(s) for s in (0, 59.4, 60, 3599, 3600, 100_000)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "27 h 46 min",
    ]  # fmt: skip
