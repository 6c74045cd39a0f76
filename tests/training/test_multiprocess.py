import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask
from transformers import AutoModel

from allmrec_hf.training.checkpoint import module_state
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.stage_arguments import STAGES, StageArguments
from tests.command_line import each_stage


def in_two_processes(*arguments, cwd=None):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )


def test_two_processes_of_the_command_line_make_one_run(small_parts, tmp_path):
    done = in_two_processes(
        *("-m", "allmrec_hf.cli.main", "train", "--data", small_parts / "data", "--llm", small_parts / "llm"),
        *("--text-encoder", small_parts / "text_encoder", "--output", tmp_path / "run", "--json"),
        *("--align.joint-dim", 8, "--project.warm-start-steps", 2),
        *(*each_stage("max-steps", 2), *each_stage("per-device-train-batch-size", 16)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["stages"] == [*STAGES]  # printed once
    for stage in ("backbone", "align", "warm-start", "project"):
        record = json.loads((tmp_path / "run" / "checkpoints" / stage / "training.json").read_text())
        assert record["processes"] == 2
    assert AutoModel.from_pretrained(tmp_path / "run").language_model is not None


def test_a_refusal_ends_every_process_at_once(small_parts, tmp_path):
    """Only one process checks the run; the others must not wait for it."""
    script = tmp_path / "refused.py"
    script.write_text(
        "from pathlib import Path\n"
        "from allmrec_hf.errors import ALLMRecError\n"
        "from allmrec_hf.training.devices import process_state\n"
        "from allmrec_hf.training.arguments import ALLMRecTrainingArguments\n"
        "from allmrec_hf.training.trainer import ALLMRecTrainer\n"
        "args = ALLMRecTrainingArguments('run', backbone='unheard')\n"
        "try:\n"
        f"    ALLMRecTrainer(args=args, data={str(small_parts / 'data')!r}).train('backbone')\n"
        "except ALLMRecError as error:\n"
        "    Path(f'refused-{process_state().process_index}').write_text(str(error))\n"
        "assert process_state().num_processes == 2\n"
        "process_state().destroy_process_group()\n"
    )
    done = in_two_processes(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for process in range(2):  # a file each: what two processes print may come out interleaved
        assert "unknown backbone 'unheard'" in (tmp_path / f"refused-{process}").read_text()


def test_two_processes_train_what_one_process_trains(tmp_path):
    """Five examples a batch cannot be halved, and their losses have different weights."""
    done = in_two_processes(Path(__file__).with_name("toy_task.py"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    task = ToyTask(size=21, batch_size=5, shuffled=False)
    arguments = StageArguments(num_train_epochs=2, gradient_accumulation_steps=2, learning_rate=1e-2)
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
