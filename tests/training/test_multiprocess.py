import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask

from allmrec_hf.training.arguments import StageArguments
from allmrec_hf.training.checkpoint import module_state
from allmrec_hf.training.loop import run_stage


def test_two_processes_train_what_one_process_trains(tmp_path):
    """Five examples a batch cannot be halved, and their losses have different weights."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("toy_task.py")
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    task = ToyTask(size=21, batch_size=5, shuffled=False)
    arguments = StageArguments(epochs=2, gradient_accumulation_steps=2, learning_rate=1e-2)
    result = run_stage(task, arguments, tmp_path / "single")
    found = load_file(tmp_path / "weights.safetensors")
    for name, value in module_state(task.module).items():
        torch.testing.assert_close(found[name], value.cpu(), rtol=1e-5, atol=1e-6)
    history = ast.literal_eval((tmp_path / "history.txt").read_text())
    assert len(history) == 2
    for ours, theirs in zip(history, result.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
        assert ours["validation/loss"] == pytest.approx(theirs["validation/loss"], rel=1e-5)
    written = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert written == sorted(path.name for path in (tmp_path / "single" / "checkpoints").iterdir())
