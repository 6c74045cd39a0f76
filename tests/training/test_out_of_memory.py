"""Where the device's memory does not hold a training batch, the step is taken in halves, with the same gradient."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from toy_task import ToyTask

from allmrec_hf import ALLMRecError
from allmrec_hf.training import loop
from allmrec_hf.training.checkpoint import module_state
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask
from allmrec_hf.training.stage_arguments import StageArguments
from tests.tiny import tiny_model, tiny_processor

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"


def short_of_memory(module, most, error=torch.OutOfMemoryError, when="forward"):
    """Have a module fail for batches of more than some rows; return the rows of every pass."""
    passes = []

    def fail(*_):
        raise error(FULL)

    def before(_, arguments):
        rows = len(next(iter(arguments[0].values())))
        passes.append(rows)
        if rows > most and when == "forward":
            fail()

    def after(_, arguments, outputs):
        if passes[-1] > most and when == "backward":
            outputs["loss"].register_hook(fail)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    return passes


def trained(folder, arguments, most=None, **failure):
    task = ToyTask(size=24, batch_size=8, shuffled=False)
    passes = [] if most is None else short_of_memory(task.module, most, **failure)
    result = run_stage(task, arguments, folder)
    return module_state(task.module), result, passes


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_is_halved_until_it_fits_said_once(tmp_path, caplog, error, when):
    arguments = StageArguments(num_train_epochs=2, learning_rate=1e-2, gradient_accumulation_steps=2)
    expected, result, _ = trained(tmp_path / "whole", arguments)
    with caplog.at_level(logging.WARNING):
        found, halved, passes = trained(tmp_path / "halves", arguments, most=3, error=error, when=when)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert passes[:4] == [8, 4, 2, 2]  # 8 and 4 fail; nothing larger than 2 is tried from then on
    assert set(passes[2:]) == {2}
    for ours, theirs in zip(halved.history, result.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)  # no failed pass is counted
    told = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(told) == 1
    assert "stage toy: the device's memory does not hold 8 rows at once: 4 or fewer from here on" in told[0]


def test_what_failed_after_a_first_batch_of_a_step_is_not_counted_twice(tmp_path):
    """The second of two accumulated batches is too large: the first one's gradient is made anew."""
    arguments = StageArguments(num_train_epochs=1, learning_rate=1e-2, gradient_accumulation_steps=2)
    sizes = (2, 8, 2, 8)

    def task():
        made = ToyTask(size=20, batch_size=8, shuffled=False)
        edges = np.cumsum((0, *sizes))
        made.batches = lambda epoch: [np.arange(first, last) for first, last in itertools.pairwise(edges)]
        return made

    whole, halves = task(), task()
    run_stage(whole, arguments, tmp_path / "whole")
    passes = short_of_memory(halves.module, 4)
    run_stage(halves, arguments, tmp_path / "halves")
    assert passes == [2, 8, 2, 4, 4, 2, 4, 4]
    for name, value in module_state(whole.module).items():
        torch.testing.assert_close(module_state(halves.module)[name], value, rtol=1e-5, atol=1e-6)


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ALLMRecError, match=r"stage toy: .* does not hold one row .*--toy.per-device-train-batch-size"):
        trained(tmp_path, StageArguments(num_train_epochs=1), most=0)


def test_another_error_goes_through(tmp_path):
    def fail(*_):
        raise RuntimeError("shapes do not fit")

    task = ToyTask(size=24, batch_size=8)
    task.module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_stage(task, StageArguments(num_train_epochs=1), tmp_path)


def test_a_loss_that_tells_rows_apart_is_not_cut(tmp_path):
    task = ToyTask(size=24, batch_size=8)
    task.rows_add_up = False
    short_of_memory(task.module, 4)
    with pytest.raises(ALLMRecError, match="a batch of 8 rows, which this loss does not let be cut"):
        run_stage(task, StageArguments(num_train_epochs=1), tmp_path)


@pytest.mark.parametrize("loss", ["lm", "listwise"])
def test_gradients_of_stage_2_are_those_of_the_whole_batch(small_data, loss):
    model, processor = tiny_model("llama", small_data.num_items), tiny_processor(small_data.catalog)
    module = ProjectionModule(model, loss)
    arguments = StageArguments(per_device_train_batch_size=6)
    task = ProjectionTask(module, processor, small_data, "train", 5, arguments)
    batch = task.collate(task.batches(0)[0], np.random.default_rng(0))
    gradients = []
    for most in (6, 4, 1):
        module.zero_grad()
        parts = task.smaller(batch, most)
        assert [len(part["attention_mask"]) for part in parts] == {6: [6], 4: [4, 2], 1: [1] * 6}[most]
        whole = sum(task.loss_weight(part) for part in parts)
        assert whole == task.loss_weight(batch)
        for part in parts:
            (module(part)["loss"] * task.loss_weight(part) / whole).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in module.parameters() if value.requires_grad]))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-6)


def test_the_memory_of_a_failed_pass_is_let_go(tmp_path, monkeypatch):
    cleared = []
    monkeypatch.setattr(loop, "clear_device_cache", lambda **options: cleared.append(options))
    trained(tmp_path, StageArguments(num_train_epochs=1), most=4)
    assert cleared == [{"garbage_collection": True}]
