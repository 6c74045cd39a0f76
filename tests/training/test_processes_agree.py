"""Two processes train, evaluate and benchmark what one does; with a sharded LLM too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from loss_curves import EVALUATED_AT_ONCE, OF_STAGES, evaluated, losses, main, trainer_of
from safetensors.torch import load_file
from toy_task import ToyTask

from allmrec_hf.training.batches import BatchShares
from allmrec_hf.training.devices import process_state
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask
from allmrec_hf.training.sharded_llm import is_asked_for
from allmrec_hf.training.stage_arguments import StageArguments
from tests.tiny import tiny_model, tiny_processor

SCRIPT = Path(__file__).with_name("loss_curves.py")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "accelerate"
TRAINED = "backbone,align,project,retrieve"


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def in_two_processes(*arguments, launcher=TORCHRUN, seconds=280, **variables):
    launch = [sys.executable, "-m", *launcher]
    path = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **own, **variables},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def alone(small_parts, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "run"
    main(small_parts, output, 16, TRAINED.split(","))
    return output


@pytest.fixture(scope="module")
def together(small_parts, tmp_path_factory):
    output = tmp_path_factory.mktemp("together") / "run"
    in_two_processes(SCRIPT, small_parts, output, 16, f"{TRAINED},evaluate")
    return output


def assert_same_curves(one, other):
    assert sorted(one) == sorted(other) == sorted(OF_STAGES)
    for stage, history in one.items():
        assert len(history) == len(other[stage]) > 0, stage
        for ours, theirs in zip(history, other[stage], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5), stage


def test_two_processes_have_the_loss_curves_of_one_at_equal_global_batch(alone, together):
    """Backbone, alignment with text recommendation, warm start, projection, and retrieval with its uniformity."""
    assert_same_curves(losses(alone), losses(together))
    one, other = (load_file(folder / "model.safetensors") for folder in (alone, together))
    assert sorted(one) == sorted(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=5e-2, atol=2e-3, msg=name)


def test_two_processes_write_the_reports_of_one(small_parts, together, tmp_path):
    evaluated(trainer_of(small_parts, together, 16), tmp_path)
    assert len(json.loads((tmp_path / "full.json").read_text())["methods"]) == 2
    for protocol in ("candidates", "full", "paper"):
        assert (together / f"{protocol}.json").read_text() == (tmp_path / f"{protocol}.json").read_text()
        ours, theirs = (pl.read_parquet(folder / f"{protocol}.parquet") for folder in (tmp_path, together))
        assert ours.equals(theirs)
        assert len(ours) == 200 > 2 * EVALUATED_AT_ONCE  # several batches for each process, and two methods


def test_the_command_evaluates_in_two_processes_and_one_tells(small_parts, together, tmp_path):
    command = ["-m", "allmrec_hf.cli.main", "evaluate", "--model", together, "--data", small_parts / "data"]
    done = in_two_processes(*command, "--ranker", "likelihood", "--json", "--output", tmp_path / "report.json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "report.json").read_text())


def test_an_error_of_one_process_ends_all(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "from pathlib import Path\n"
        "from allmrec_hf.errors import ALLMRecError\n"
        "from allmrec_hf.evaluation.shares import leave, rank_and_world, shared_out\n"
        "def compute(number):\n"
        "    if number == 3:\n"
        "        raise ALLMRecError('scores are NaN')\n"
        "    return number\n"
        "assert shared_out(5, lambda number: number ** 2) == [0, 1, 4, 9, 16]\n"
        "try:\n"
        "    shared_out(5, compute)\n"
        "except ALLMRecError as error:\n"
        f"    (Path({str(tmp_path)!r}) / f'told-{{rank_and_world()[0]}}').write_text(str(error))\n"
        "leave()\n"
    )
    in_two_processes(script)
    assert (tmp_path / "told-1").read_text() == "scores are NaN"
    assert "another process could not go on" in (tmp_path / "told-0").read_text()
    assert "scores are NaN" in (tmp_path / "told-0").read_text()


def test_two_processes_share_the_runs_of_a_benchmark(small_parts, tmp_path):
    stages = {"backbone": {"max_steps": 3, "per_device_train_batch_size": 16, "min_steps": None}}
    suite = {
        "title": "Two",
        "datasets": [{"name": "small", "prepared": str(small_parts / "data")}],
        "scenarios": ["overall"],
        "methods": ["popularity", "sasrec"],
        "seeds": [0, 1, 2],
        "budget": stages,
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    command = ["-m", "allmrec_hf.cli.main", "benchmark", "--suite", tmp_path / "suite.yaml", "--json", "--output"]
    done = in_two_processes(*command, tmp_path / "two")
    told = json.loads(done.stdout)  # printed once
    assert (told["runs"], told["done"], told["computed"], told["failed"]) == (4, 4, 4, [])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *map(str, command), tmp_path / "one"], check=True, env=environment, timeout=200)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "runs").rglob("result.json"))
    assert len(files) == 4
    for file in files:
        one, two = (json.loads((tmp_path / folder / file).read_text()) for folder in ("one", "two"))
        assert one["report"] == two["report"]
        ranks = (pl.read_parquet((tmp_path / folder / file).with_name("per_user.parquet")) for folder in ("one", "two"))
        assert next(ranks).equals(next(ranks))


def test_a_sharded_llm_is_trained_for_as_a_whole_one_is(small_parts, alone, tmp_path):
    """As `accelerate launch --config_file examples/accelerate/fsdp.yaml` starts it; the parts add up to the LLM."""
    in_two_processes(
        *(SCRIPT, small_parts, tmp_path / "run", 16, TRAINED),
        **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
    )
    assert_same_curves(losses(alone), losses(tmp_path / "run"))
    for stage in ("project", "retrieve"):
        record = json.loads((tmp_path / "run" / "checkpoints" / stage / "training.json").read_text())
        assert record["sharded_parameters"] == 2 * 9  # of two layers of Llama: seven matrices and two norms each


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_configuration_of_deepspeed_shards_as_one_of_fsdp_does(small_parts, alone, tmp_path):
    pytest.importorskip("deepspeed", reason="accelerate launch takes DeepSpeed's configuration where it is installed")
    launcher = ("accelerate.commands.launch", "--config_file", str(EXAMPLES / "deepspeed_zero3.yaml"))
    in_two_processes(
        *(SCRIPT, small_parts, tmp_path / "run", 16, TRAINED),
        launcher=launcher,
        seconds=1000,
        ACCELERATE_USE_CPU="true",
    )
    assert_same_curves(losses(alone), losses(tmp_path / "run"))
    for stage in ("project", "retrieve"):
        record = json.loads((tmp_path / "run" / "checkpoints" / stage / "training.json").read_text())
        assert record["sharded_parameters"] == 2 * 9


def test_a_validation_with_a_sharded_llm_is_shared_out(tmp_path):
    """Five users for two processes, then one user for both: they make different numbers of passes."""
    in_two_processes(SCRIPT.with_name("sharded_validation.py"), tmp_path, ACCELERATE_USE_FSDP="true")
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for frees_layers in ("true", "false"):
        first, second = (one[frees_layers] for one in found)
        assert (first["sharded"], second["sharded"]) == (True, True)
        assert (first["mine"], second["mine"]) == ([[0, 2, 4], [0]], [[1, 3]])
        assert first["means"] == second["means"]
        assert first["means"] == pytest.approx([np.mean(first["expected"]), first["expected"][0]], abs=1e-6)


def test_configurations_of_several_devices_are_those_of_accelerate():
    config = pytest.importorskip("accelerate.commands.config.config_args")
    kinds = {}
    for file in sorted(EXAMPLES.glob("*.yaml")):
        loaded = config.load_config_from_file(str(file))
        kinds[file.stem] = str(loaded.distributed_type.value)
        assert loaded.num_processes == 2
    assert kinds == {"deepspeed_zero3": "DEEPSPEED", "fsdp": "FSDP", "two_gpus": "MULTI_GPU"}


def test_one_process_shards_nothing(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not is_asked_for()
    assert process_state().num_processes == 1


# -- what is drawn


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_the_shares_of_a_batch_are_the_batch_whatever_the_number_of_processes(small_data, world, loss):
    module = ProjectionModule(tiny_model("llama", small_data.num_items), loss)
    processor = tiny_processor(small_data.catalog)
    task = ProjectionTask(module, processor, small_data, "train", 5, StageArguments(per_device_train_batch_size=5))
    batches = task.batches(0)[:2]
    (whole, weight, count), _ = BatchShares(task, batches, (3, 0), 0, (0, 1))
    shares = [BatchShares(task, batches, (3, 0), 0, (rank, world))[0] for rank in range(world)]
    assert sum(share[1] for share in shares) == weight
    assert sum(share[2] for share in shares) == count == 5
    name = "candidate_ids" if loss == "listwise" else "labels"
    kept = [row[row > 0].tolist() for row in whole[name]]
    found = [[row[row > 0].tolist() for row in share[0][name]] if share[1] else [] for share in shares]
    assert [row for rank in range(world) for row in found[rank]] == [
        kept[row] for rank in range(world) for row in range(rank, 5, world)
    ]


def test_no_prompt_of_another_process_is_made(small_data, monkeypatch):
    module, processor = ProjectionModule(tiny_model("llama", small_data.num_items)), tiny_processor(small_data.catalog)
    task = ProjectionTask(module, processor, small_data, "train", 5, StageArguments(per_device_train_batch_size=6))
    made, make = [], processor.training_batch
    monkeypatch.setattr(processor, "training_batch", lambda *a, **k: (made.append(len(a[0])), make(*a, **k))[1])
    BatchShares(task, task.batches(0), (3, 0), 0, (1, 3))[0]
    assert made == [2]


def test_what_a_batch_holds_once_is_on_every_process():
    task = ToyTask(size=8, batch_size=4)
    task.of_batch = ("shared",)
    batch = {"x": torch.arange(4), "shared": torch.arange(4), "seed": torch.tensor(5)}
    found = task.some_rows(batch, np.array([1, 3]), 4)
    assert {name: value.tolist() for name, value in found.items()} == {"x": [1, 3], "shared": [0, 1, 2, 3], "seed": 5}
