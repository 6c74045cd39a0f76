import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_task import ToyTask

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.presets import preset
from allmrec_hf.training.stage_arguments import PRESETS, STAGES, StageArguments
from allmrec_hf.training.task import set_training_mode

SHORT = StageArguments(num_train_epochs=2, learning_rate=1e-2)


class Scripted(ToyTask):
    """A stage whose validation says what the test tells it to."""

    metric = "ndcg@10"

    def __init__(self, values, **options):
        super().__init__(**options)
        self.values, self.weights = list(values), []

    def validate(self, examples, device):
        self.weights.append(self.module.trained.weight.detach().clone())
        return {"ndcg@10": np.full(len(examples), self.values[len(self.weights) - 1])}


def test_training_lowers_the_loss_and_returns_what_it_did(tmp_path):
    task = ToyTask()
    result = run_stage(task, SHORT.replaced(num_train_epochs=8, learning_rate=0.05), tmp_path)
    losses = [entry["validation/loss"] for entry in result.history]
    assert losses[-1] < 0.6 * losses[0]
    assert (result.steps, result.epochs, result.stopped_by, result.stage) == (8 * 13, 8, "epochs", "toy")
    assert result.best == min(losses)
    assert not task.module.training


def test_first_step_moves_every_weight_by_the_learning_rate_of_adam(tmp_path):
    """Adam's first step is the learning rate times the gradient's sign, by its definition."""
    task = ToyTask(validation=0)
    before = task.module.trained.weight.detach().clone()
    run_stage(task, SHORT.replaced(max_steps=1), tmp_path)
    torch.testing.assert_close((task.module.trained.weight - before).abs(), torch.full((1, 4), 1e-2), rtol=1e-4, atol=0)


def test_two_half_batches_are_one_whole_batch(tmp_path):
    runs = []
    for name, batch_size, accumulation in (("whole", 8, 1), ("halves", 4, 2)):
        task = ToyTask(size=44, batch_size=batch_size, shuffled=False)
        result = run_stage(task, SHORT.replaced(gradient_accumulation_steps=accumulation), tmp_path / name)
        runs.append((task.module.trained.weight.detach(), result))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    assert runs[0][1].steps == runs[1][1].steps == 12
    assert runs[0][1].history[-1]["train/loss"] == pytest.approx(runs[1][1].history[-1]["train/loss"], rel=1e-5)


def test_the_best_weights_are_restored(tmp_path):
    task = Scripted([0.1, 0.4, 0.3])
    result = run_stage(task, SHORT.replaced(num_train_epochs=3), tmp_path)
    assert (result.best, result.best_epoch, result.metric) == (0.4, 2, "ndcg@10")
    assert task.module.trained.weight.equal(task.weights[1])


def test_training_stops_early_without_improvement(tmp_path):
    result = run_stage(
        Scripted([0.1, 0.4, 0.4, 0.3, 0.9]), SHORT.replaced(num_train_epochs=5, early_stopping_patience=2), tmp_path
    )
    assert (result.stopped_by, result.epochs, result.best) == ("early_stopping", 4, 0.4)


def test_validation_comes_every_so_many_epochs_and_at_the_end(tmp_path):
    result = run_stage(Scripted([0.1, 0.2, 0.3]), SHORT.replaced(num_train_epochs=5, eval_epochs=2), tmp_path)
    assert [entry["epoch"] for entry in result.history if "validation/ndcg@10" in entry] == [2, 4, 5]


def test_little_data_are_passed_until_the_steps_are_made(tmp_path):
    """Thirteen steps an epoch: three epochs come to 39, six to 78; the validations stay as many."""
    arguments = StageArguments(num_train_epochs=3, min_steps=40)
    result = run_stage(ToyTask(), arguments, tmp_path)
    assert (result.epochs, result.steps) == (6, 78)
    assert [entry["epoch"] for entry in result.history if "validation/loss" in entry] == [2, 4, 6]
    assert run_stage(ToyTask(), arguments, tmp_path, resume=True).steps == 78
    assert run_stage(ToyTask(), StageArguments(num_train_epochs=3, min_steps=39), tmp_path / "enough").steps == 39
    limited = StageArguments(num_train_epochs=3, min_steps=40, max_steps=20)
    assert run_stage(ToyTask(), limited, tmp_path / "limited").steps == 20


def test_whoever_names_the_epochs_gets_them():
    assert preset("quick", "align").min_steps == 1_000
    assert preset("quick", "align").replaced(num_train_epochs=2).stretched(1).num_train_epochs == 2
    assert preset("quick", "align").replaced(num_train_epochs=2, min_steps=6).stretched(1).num_train_epochs == 6
    of_recipe = preset("quick", "backbone", "bprmf")  # its 200 epochs are no wish of the user's
    assert of_recipe.stretched(1).num_train_epochs == 400


def test_without_validation_the_last_weights_stay(tmp_path):
    task = ToyTask(validation=0)
    result = run_stage(task, SHORT, tmp_path)
    assert result.best is None
    assert result.best_epoch == 2
    assert not list((tmp_path / "checkpoints").glob("best-*"))


@pytest.mark.parametrize(("change", "reason"), [({"max_steps": 5}, "max_steps"), ({"max_seconds": 1e-6}, "time_limit")])
def test_limits_end_a_stage_with_a_validation(tmp_path, change, reason):
    result = run_stage(ToyTask(), SHORT.replaced(**change), tmp_path)
    assert result.stopped_by == reason
    assert result.steps == change.get("max_steps", 1)
    assert result.best is not None


def test_frozen_parts_receive_no_gradient_and_stay_in_eval_mode(tmp_path):
    task = ToyTask(dropout=0.5, validation=0)
    modes, before = [], {name: value.clone() for name, value in task.module.state_dict().items()}
    task.module.frozen.register_forward_pre_hook(lambda part, _: modes.append((part.training, part[1].training)))
    run_stage(task, SHORT, tmp_path)
    assert set(modes) == {(False, False)}
    after = task.module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if not name.startswith("frozen.")}
    assert all(value.grad is None for value in task.module.frozen.parameters())


def test_training_mode_reaches_only_what_is_trained():
    module = nn.ModuleDict({"frozen": nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "trained": nn.Linear(2, 2)})
    module["frozen"].requires_grad_(False)
    set_training_mode(module)
    assert module.training
    assert module["trained"].training
    assert not any(part.training for part in module["frozen"].modules())


def test_the_order_of_global_random_numbers_is_left_alone(tmp_path):
    torch.manual_seed(9)
    expected = torch.rand(2)
    task = ToyTask(dropout=0.5)
    torch.manual_seed(9)
    run_stage(task, SHORT, tmp_path)
    assert torch.rand(2).equal(expected)


def test_workers_do_not_change_the_outcome(tmp_path):
    weights = []
    for workers in (0, 1):
        task = ToyTask(dropout=0.5)
        run_stage(task, SHORT.replaced(num_train_epochs=1, dataloader_num_workers=workers), tmp_path / str(workers))
        weights.append(task.module.trained.weight.detach())
    assert weights[0].equal(weights[1])


def test_bfloat16_autocast_trains_float32_weights(tmp_path):
    task, plain = ToyTask(), ToyTask()
    run_stage(task, SHORT.replaced(bf16=True), tmp_path / "bf16")
    run_stage(plain, SHORT, tmp_path / "no")
    assert task.module.trained.weight.dtype == torch.float32
    assert not task.module.trained.weight.equal(plain.module.trained.weight)
    torch.testing.assert_close(task.module.trained.weight, plain.module.trained.weight, rtol=0.1, atol=0.02)


def test_the_record_names_arguments_versions_and_outcome(tmp_path):
    result = run_stage(ToyTask(), SHORT, tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["arguments"] == SHORT.to_dict()
    assert {"allmrec-hf", "python", "torch", "transformers", "accelerate"} <= set(record["versions"])
    assert {"git_commit", "processes", "device", "trained_parameters"} <= set(record)
    assert record["result"] == result.to_dict()


def test_tensorboard_gets_losses_and_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    run_stage(ToyTask(), SHORT.replaced(report_to="tensorboard", logging_steps=5), tmp_path)
    events = [path.read_bytes() for path in tmp_path.rglob("events.out.tfevents.*")]
    assert any(b"train/loss" in event and b"validation/loss" in event for event in events)


def test_the_progress_bar_shows_loss_and_examples_on_standard_error(tmp_path, capsys):
    run_stage(ToyTask(), SHORT.replaced(logging_steps=1), tmp_path / "shown", progress=True)
    shown = capsys.readouterr()
    assert "toy 1/2" in shown.err
    assert "example" in shown.err
    assert "loss=" in shown.err
    assert not shown.out
    run_stage(ToyTask(), SHORT, tmp_path / "hidden", progress=False)
    assert "toy" not in capsys.readouterr().err


def test_nothing_to_train_is_refused(tmp_path):
    task = ToyTask()
    task.module.requires_grad_(False)
    with pytest.raises(ALLMRecError, match="every parameter of its module is frozen"):
        run_stage(task, SHORT, tmp_path)
    with pytest.raises(ALLMRecError, match="no training examples"):
        run_stage(ToyTask(size=0, validation=0), SHORT, tmp_path)


def test_a_missing_metric_is_named(tmp_path):
    task = ToyTask()
    task.metric = "hit@1"
    with pytest.raises(ALLMRecError, match=r"judged by 'hit@1', but its validation gave \['loss'\]"):
        run_stage(task, SHORT, tmp_path)


def test_a_missing_tracker_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ALLMRecError, match="pip install wandb"):
        run_stage(ToyTask(), SHORT.replaced(report_to="wandb"), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is possible here")
def test_fp16_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ALLMRecError, match="fp16 needs a CUDA device"):
        run_stage(ToyTask(), SHORT.replaced(fp16=True), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs must be at least 1, got 0"),
        ({"min_steps": 0}, "min_steps must be at least 1, got 0"),
        ({"per_device_train_batch_size": 2.5}, "per_device_train_batch_size must be a whole number"),
        ({"batch_size": 2}, r"no options \['batch_size'\]; did you mean per_device_train_batch_size"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": True}, "learning_rate must be of type float"),
        ({"seed": None}, "seed must be of type int"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be below 1"),
        ({"adam_epsilon": 0}, "adam_epsilon must be above 0"),
        ({"bf16": "yes"}, "bf16 must be true or false, got 'yes'"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both given"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type must be one of constant, linear, cosine"),
        ({"eval_strategy": "steps"}, "eval_steps and eval_strategy steps go together"),
        ({"eval_steps": 5}, "eval_steps and eval_strategy steps go together"),
        ({"eval_strategy": "no", "early_stopping_patience": 1}, "early_stopping_patience counts validations"),
        ({"lr": 1}, r"no options \['lr'\]; did you mean lr_scheduler_type\? it has adam_beta1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ALLMRecError, match=message):
        StageArguments.from_dict(values)


def test_settings_survive_json_and_the_text_numbers_of_yaml():
    arguments = StageArguments.from_dict({"learning_rate": "1e-4", "adam_beta2": "0.9", "max_steps": None})
    assert arguments.learning_rate == 1e-4
    assert StageArguments.from_dict(json.loads(json.dumps(arguments.to_dict()))) == arguments


def test_learning_rate_warms_up_and_decays():
    arguments = StageArguments(learning_rate=1.0, warmup_steps=0.2, lr_scheduler_type="linear")
    rates = [arguments.learning_rate_at(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert StageArguments(learning_rate=1.0, lr_scheduler_type="cosine").learning_rate_at(5, 10) == pytest.approx(0.5)
    assert StageArguments(learning_rate=1.0, warmup_steps=4).learning_rate_at(0, 10) == 0.25


def test_every_preset_has_every_stage_and_paper_has_the_papers_values():
    assert all(isinstance(preset(name, stage), StageArguments) for name in PRESETS for stage in STAGES)
    values = {stage: preset("paper", stage) for stage in STAGES}
    assert [(v.num_train_epochs, v.per_device_train_batch_size, v.learning_rate) for v in values.values()] == [
        (200, 128, 1e-3), (10, 32, 1e-4), (5, 4, 1e-4),
    ]  # fmt: skip
    assert all((value.adam_beta1, value.adam_beta2) == (0.9, 0.98) for value in values.values())
    with pytest.raises(ALLMRecError, match="no preset 'fast' of stage 'backbone'; presets: default, paper, quick"):
        preset("fast", "backbone")
