"""Callbacks of transformers: what they hear, what they decide, and that a run can be resumed whatever they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.stage_arguments import StageArguments
from tests.training.test_loop import Scripted
from tests.training.toy_task import LONG, ToyTask

SHORT = StageArguments(num_train_epochs=2, learning_rate=1e-2)  # 13 steps an epoch


class Heard(TrainerCallback):
    def __init__(self):
        self.events, self.logs, self.metrics, self.args = [], [], [], None

    def on_train_begin(self, args, state, control, **more):
        self.args = args
        self.events.append("train begin")

    def on_epoch_begin(self, args, state, control, **more):
        self.events.append("epoch begin")

    def on_epoch_end(self, args, state, control, **more):
        self.events.append(("epoch end", state.global_step))

    def on_step_end(self, args, state, control, **more):
        self.events.append(state.global_step)

    def on_log(self, args, state, control, logs=None, **more):
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics=None, **more):
        self.metrics.append(metrics)

    def on_train_end(self, args, state, control, model=None, **more):
        self.events.append("train end")
        self.model = model


class Stops(TrainerCallback):
    def __init__(self, at, what="should_training_stop"):
        self.at, self.what = at, what

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.at:
            setattr(control, self.what, True)


def test_a_callback_hears_of_every_step_log_and_validation(tmp_path):
    heard, task = Heard(), ToyTask()
    result = run_stage(task, SHORT.replaced(logging_steps=10), tmp_path, callbacks=[heard])
    steps = ["epoch begin", *range(1, 14), ("epoch end", 13), "epoch begin", *range(14, 27), ("epoch end", 26)]
    assert heard.events == ["train begin", *steps, "train end"]
    assert [round(entry["epoch"], 2) for entry in heard.logs if "loss" in entry] == [0.77, 1.54]
    assert [list(entry) for entry in heard.metrics] == [["eval_" + task.metric]] * 2
    assert (heard.args.stage, heard.args.learning_rate, heard.args.logging_steps) == ("toy", 1e-2, 10)
    assert heard.model is task.module
    assert result.stopped_by == "epochs"


def test_callbacks_change_nothing_that_is_trained(tmp_path):
    plain, heard = ToyTask(), ToyTask()
    run_stage(plain, SHORT, tmp_path / "plain")
    run_stage(heard, SHORT, tmp_path / "heard", callbacks=[Heard, EarlyStoppingCallback(9)])
    assert all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), heard.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("what", "steps", "why"), [("should_training_stop", 5, "callback"), ("should_epoch_stop", 18, "epochs")]
)
def test_a_callback_may_end_the_training_or_an_epoch(tmp_path, what, steps, why):
    result = run_stage(ToyTask(), SHORT, tmp_path, callbacks=[Stops(5, what)])
    assert (result.steps, result.stopped_by) == (steps, why)


def test_a_callback_may_ask_for_a_checkpoint_and_a_validation(tmp_path):
    heard = Heard()
    run_stage(ToyTask(), SHORT.replaced(save_total_limit=9), tmp_path, callbacks=[Stops(3, "should_evaluate"), heard])
    assert len(heard.metrics) == 3
    run_stage(ToyTask(), SHORT.replaced(save_total_limit=9), tmp_path / "b", callbacks=[Stops(3, "should_save")])
    assert (tmp_path / "b" / "checkpoints" / "step-00000003-epoch-00000").exists()


class Asks(TrainerCallback):
    def __init__(self, what):
        self.what = what

    def on_epoch_end(self, args, state, control, **more):
        setattr(control, self.what, True)


def test_what_a_callback_asks_for_at_an_epochs_end_is_done(tmp_path):
    settings = SHORT.replaced(save_total_limit=9, eval_strategy="no", save_steps=None)
    run_stage(ToyTask(), settings, tmp_path, callbacks=[Asks("should_save")])
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == ["step-00000013-epoch-00001", "step-00000026-epoch-00002"]
    heard = Heard()
    run_stage(ToyTask(), settings, tmp_path / "b", callbacks=[Asks("should_evaluate"), heard])
    assert len(heard.metrics) == 2
    run_stage(ToyTask(), settings, tmp_path / "c", callbacks=[Stops(13, "should_save")])
    last = sorted(path.name for path in (tmp_path / "c" / "checkpoints").glob("step-*"))
    assert last == saved  # asked for at the last step of an epoch


def test_transformers_own_early_stopping_stops(tmp_path):
    task = Scripted([0.1, 0.4, 0.4, 0.3, 0.9])
    result = run_stage(task, SHORT.replaced(num_train_epochs=5), tmp_path, callbacks=[EarlyStoppingCallback(2)])
    assert (result.stopped_by, result.epochs, result.best) == ("callback", 4, 0.4)


class Breaks(Stops):
    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.at:
            raise RuntimeError("mine")


def test_a_callback_that_raises_is_named_and_the_run_is_resumed_to_the_same_weights(tmp_path):
    whole, broken = ToyTask(), ToyTask()
    run_stage(whole, LONG, tmp_path / "whole")
    with pytest.raises(ALLMRecError, match=r"a callback raised in on_step_end of stage toy at step 32: .*mine"):
        run_stage(broken, LONG, tmp_path / "parts", callbacks=[Breaks(32)])
    again = ToyTask()
    run_stage(again, LONG, tmp_path / "parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))


def test_a_resumed_run_gives_callbacks_their_states_again(tmp_path):
    values = [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
    with pytest.raises(ALLMRecError, match="a callback raised"):
        run_stage(Scripted(values), LONG, tmp_path, callbacks=[EarlyStoppingCallback(3), Breaks(2 * 13 + 6)])
    stopping = EarlyStoppingCallback(3)
    result = run_stage(Scripted(values[2:]), LONG, tmp_path, resume=True, callbacks=[stopping])
    assert (result.epochs, stopping.early_stopping_patience_counter) == (4, 3)


def test_something_else_is_no_callback(tmp_path):
    with pytest.raises(
        ALLMRecError, match=r"must be transformers.TrainerCallback objects; got \[<built-in function print"
    ):
        run_stage(ToyTask(), SHORT, tmp_path, callbacks=[print])


# -- when a stage is validated


def test_validation_every_some_steps(tmp_path):
    heard = Heard()
    arguments = SHORT.replaced(eval_strategy="steps", eval_steps=5)
    result = run_stage(ToyTask(), arguments, tmp_path, callbacks=[heard])
    assert [entry["step"] for entry in result.history if any(name.startswith("validation/") for name in entry)] == [
        5, 10, 15, 20, 25, 26,
    ]  # fmt: skip
    assert len(heard.metrics) == 6


def test_early_stopping_counts_validations_between_steps(tmp_path):
    arguments = SHORT.replaced(eval_strategy="steps", eval_steps=3, early_stopping_patience=2)
    result = run_stage(Scripted([0.5, 0.4, 0.3, 0.2]), arguments, tmp_path)
    assert (result.steps, result.stopped_by, result.best) == (9, "early_stopping", 0.5)


def test_no_validation_keeps_the_last_weights(tmp_path):
    result = run_stage(ToyTask(), SHORT.replaced(eval_strategy="no"), tmp_path)
    assert (result.best, result.metric, result.steps) == (None, None, 26)


def test_validation_between_steps_changes_nothing_that_is_trained_and_resumes_bit_for_bit(tmp_path):
    """The best weights may differ; those of the last step do not, so the last validation alone decides here."""
    arguments = LONG.replaced(eval_strategy="steps", eval_steps=4)
    whole, parts = ToyTask(), ToyTask()
    run_stage(whole, arguments, tmp_path / "whole")
    with pytest.raises(ALLMRecError, match="a callback raised"):
        run_stage(parts, arguments, tmp_path / "parts", callbacks=[Breaks(31)])
    again = ToyTask()
    run_stage(again, arguments, tmp_path / "parts", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_batches_in_parts_are_counted_as_batches(tmp_path, accumulated):
    """Validations come when they are due, and a resumed run leaves no batch of the epoch out."""

    class InParts(ToyTask):
        def parts(self, batch):
            rows = np.arange(len(batch["y"]))
            return [self.some_rows(batch, half, len(rows)) for half in (rows[:2], rows[2:]) if len(half)]

    class HeardEpochs(TrainerCallback):
        def __init__(self):
            self.epochs = []

        def on_log(self, args, state, control, **more):
            self.epochs.append(state.epoch)

    options = {"eval_strategy": "steps", "eval_steps": 4, "gradient_accumulation_steps": accumulated}
    arguments = LONG.replaced(**options, logging_steps=1)
    whole, parts, again, heard = InParts(), InParts(), InParts(), HeardEpochs()
    result = run_stage(whole, arguments, tmp_path / "whole", callbacks=[heard])
    validated = [entry["step"] for entry in result.history if any(name.startswith("validation/") for name in entry)]
    assert validated == sorted({*range(4, result.steps + 1, 4), result.steps})
    assert heard.epochs == sorted(heard.epochs)
    assert heard.epochs[-1] == LONG.num_train_epochs
    with pytest.raises(ALLMRecError, match="a callback raised"):
        run_stage(parts, arguments, tmp_path / "parts", callbacks=[Breaks(11)])
    resumed = run_stage(again, arguments, tmp_path / "parts", resume=True)
    assert resumed.steps == result.steps
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))
