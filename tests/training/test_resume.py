import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_task import LONG, ToyTask, train_long

from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.training.loop import run_stage


class Stopped(Exception):
    pass


def interrupted(directory, after):
    """Run the long toy stage, but let the data fail after some batches."""
    task, calls = ToyTask(size=120, dropout=0.3), [0]
    original = task.collate

    def collate(examples, generator):
        calls[0] += 1
        if calls[0] > after:
            raise Stopped
        return original(examples, generator)

    task.collate = collate
    with pytest.raises(Stopped):
        run_stage(task, LONG, directory)


def test_runs_killed_at_any_moment_end_with_the_same_weights_bit_for_bit(tmp_path):
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    verdict, kills = done.stdout.split()
    assert verdict == "equal"
    assert int(kills) >= 5


def test_resuming_goes_on_within_the_epoch(tmp_path, caplog):
    interrupted(tmp_path / "parts", after=47)
    caplog.set_level("INFO", "allmrec_hf.training.loop")
    weights, result = train_long(tmp_path / "parts", resume=True)
    assert "resumed at step 45" in caplog.text
    expected, whole = train_long(tmp_path / "whole")
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert result.history == whole.history
    assert len(result.history) == 6


def test_a_finished_stage_is_not_trained_again(tmp_path):
    weights, result = train_long(tmp_path)
    again, repeated = train_long(tmp_path, resume=True)
    assert all(again[name].equal(weights[name]) for name in weights)
    assert repeated == result


def test_an_earlier_run_is_not_overwritten_without_resume(tmp_path):
    interrupted(tmp_path, after=30)
    with pytest.raises(ALLMRecError, match="holds checkpoints of an earlier run of stage toy; resume it"):
        train_long(tmp_path)


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    interrupted(tmp_path, after=30)
    with pytest.raises(CheckpointError, match=r"other settings \(learning_rate 0.01 -> 0.5\)"):
        run_stage(ToyTask(size=120, dropout=0.3), LONG.replaced(learning_rate=0.5), tmp_path, resume=True)


def test_resuming_with_settings_that_train_the_same_is_allowed(tmp_path):
    interrupted(tmp_path / "parts", after=30)
    task = ToyTask(size=120, dropout=0.3)
    run_stage(task, LONG.replaced(save_steps=3, dataloader_num_workers=1), tmp_path / "parts", resume=True)
    expected, _ = train_long(tmp_path / "whole")
    assert task.module.trained.weight.equal(expected["trained.weight"])


def test_resuming_with_other_data_is_refused(tmp_path):
    interrupted(tmp_path, after=47)
    with pytest.raises(CheckpointError, match="30 batches in epoch 2, now there are 20"):
        run_stage(ToyTask(size=80, dropout=0.3), LONG, tmp_path, resume=True)


def test_resuming_another_model_is_refused(tmp_path):
    interrupted(tmp_path, after=30)
    task = ToyTask(size=120, dropout=0.3)
    task.module.norm.requires_grad_(False)
    with pytest.raises(CheckpointError, match="belongs to another model: 0 of 2 trained tensors are missing"):
        run_stage(task, LONG, tmp_path, resume=True)
