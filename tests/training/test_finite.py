"""What is not a number is seen at once, never saved, and never the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_task import ToyTask

from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.errors import ALLMRecError, CheckpointError
from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.methods.model_selection import best_on_validation, validation_ndcg
from allmrec_hf.ranking import target_ranks
from allmrec_hf.training import checkpoint as ckpt
from allmrec_hf.training.finite import FiniteWatch, gradient_norm
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.pretrained_backbone import load_trained_backbone, save_backbone
from allmrec_hf.training.stage_arguments import StageArguments

SHORT = StageArguments(num_train_epochs=3, learning_rate=1e-2, save_steps=4)
NAN = float("nan")


class Scripted(ToyTask):
    """A stage whose validation says what the test tells it to."""

    metric = "ndcg@10"

    def __init__(self, values, metric="ndcg@10"):
        super().__init__()
        self.values, self.metric, self.weights = list(values), metric, []

    def validate(self, examples, device):
        self.weights.append(self.module.trained.weight.detach().clone())
        return {self.metric: np.full(len(examples), self.values[len(self.weights) - 1])}


class BrokenAt(ToyTask):
    """A stage whose loss, or the gradient of a finite loss, is not a number from one batch on."""

    def __init__(self, batch, what):
        super().__init__(shuffled=False, validation=0)
        forward, calls = self.module.forward, []

        def broken(inputs):
            calls.append(1)
            outputs = forward(inputs)
            if len(calls) < batch:
                return outputs
            if what == "loss":
                return {"loss": outputs["loss"] * NAN}
            if what == "infinite":
                return {"loss": outputs["loss"] * math.inf}
            square_root_at_zero = (self.module.trained.weight * 0.0).abs().sum().sqrt()  # its derivative is 0 / 0
            return {"loss": outputs["loss"] + square_root_at_zero}

        self.module.forward = broken


@pytest.mark.parametrize("what", ["loss", "infinite", "gradient"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_training_ends_at_the_first_step_that_is_not_finite_and_keeps_its_checkpoint(tmp_path, what, max_grad_norm):
    with pytest.raises(
        ALLMRecError,
        match=r"no longer finite in epoch 1 \(step 7\); lower learning_rate, .*; its last checkpoint, .*step-00000004",
    ):
        run_stage(BrokenAt(7, what), SHORT.replaced(max_grad_norm=max_grad_norm), tmp_path)
    (kept,) = ckpt.checkpoints(tmp_path / "checkpoints")
    tensors, progress = ckpt.load_checkpoint(kept)
    assert progress["step"] == 4
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


def test_without_a_checkpoint_it_says_so(tmp_path):
    task = ToyTask()
    task.y[7] = np.nan
    with pytest.raises(ALLMRecError, match=r"no longer finite in epoch 1 \(step \d+\); .*; there is no checkpoint yet"):
        run_stage(task, SHORT.replaced(save_steps=None), tmp_path)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """A row that no batch reads keeps every loss finite."""
    task = ToyTask(validation=0)
    task.module.unread = torch.nn.Parameter(torch.zeros(3))
    forward = task.module.forward

    def spoiling(batch):
        with torch.no_grad():
            task.module.unread[1] = NAN
        return forward(batch)

    task.module.forward = spoiling
    with pytest.raises(ALLMRecError, match=r"no longer finite in epoch 1 \(step 4\)"):
        run_stage(task, SHORT, tmp_path)
    assert not ckpt.checkpoints(tmp_path / "checkpoints")


def test_a_batch_without_any_term_is_passed_over(tmp_path):
    """A mean over nothing is 0 / 0."""
    task = ToyTask(shuffled=False, validation=0)
    task.wanted[:8] = 0
    result = run_stage(task, SHORT, tmp_path)
    assert result.epochs == 3
    assert torch.isfinite(task.module.trained.weight).all()
    assert math.isfinite(result.history[0]["train/loss"])


@pytest.mark.parametrize(("metric", "values"), [("ndcg@10", [NAN, 0.5, 0.25]), ("loss", [NAN, 0.25, 0.5])])
def test_a_first_validation_that_is_not_a_number_is_not_the_best(tmp_path, metric, values):
    task = Scripted(values, metric)
    result = run_stage(task, SHORT, tmp_path)
    assert (result.best, result.best_epoch) == (values[1], 2)
    assert task.module.trained.weight.equal(task.weights[1])


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_validation_that_is_not_finite_counts_as_no_improvement(tmp_path, bad, caplog):
    result = run_stage(
        Scripted([0.25, bad, bad]), SHORT.replaced(num_train_epochs=9, early_stopping_patience=2), tmp_path
    )
    assert (result.best, result.best_epoch, result.stopped_by, result.epochs) == (0.25, 1, "early_stopping", 3)
    assert "validation of epoch 2 gave ndcg@10" in caplog.text


def test_validations_that_are_never_finite_name_no_best_weights(tmp_path):
    with pytest.raises(ALLMRecError, match=r"no validation of its weights was finite \(ndcg@10 is nan\)"):
        run_stage(Scripted([NAN, NAN, NAN]), SHORT, tmp_path)


class ScoresNaN(Scripted):
    """A stage whose scores are NaN in its first validation."""

    def validate(self, examples, device):
        found = super().validate(examples, device)
        if len(self.weights) == 1:
            target_ranks([[NAN, 0.0]], [0])
        return found


def test_scores_that_are_not_numbers_are_a_validation_that_is_never_the_best(tmp_path, caplog):
    result = run_stage(ScoresNaN([0.9, 0.2, 0.1]), SHORT, tmp_path)
    assert (result.best, result.best_epoch) == (0.2, 2)
    assert "gave ndcg@10 nan" in caplog.text


def test_the_watch_keeps_the_first_step():
    watch = FiniteWatch(torch.device("cpu"))
    for step, value in enumerate([1.0, 2.0, NAN, 1.0, math.inf], start=1):
        watch.see(step, [torch.tensor(value), torch.tensor(0.5)])
    assert watch.first() == 3


def test_the_norm_of_a_gradient_is_over_all_parameters():
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.ones(9)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(gradient_norm(parameters)) == 5


# -- what is picked


class Constant(PopularityRanker):
    def __init__(self, name, scores):
        super().__init__(np.ones(len(scores)), name)
        self.item_counts = np.asarray(scores, dtype=np.float64)


def test_a_ranker_whose_scores_are_not_numbers_is_never_picked(small_data):
    size = small_data.num_items + 1
    broken, sound = Constant("broken", np.full(size, NAN)), Constant("sound", np.arange(size))
    assert math.isnan(validation_ndcg(broken, small_data))
    for order in ([broken, sound], [sound, broken]):
        assert best_on_validation(order, small_data, None, 0) is sound
    with pytest.raises(ALLMRecError, match=r"no ranker to select from: the scores of broken are not numbers"):
        best_on_validation([broken], small_data, None, 0)


def test_a_backbone_with_values_that_are_not_finite_is_refused(small_data, tmp_path):
    model = SASRecModel(SASRecConfig(num_items=small_data.num_items, hidden_size=16, num_layers=1))
    with torch.no_grad():
        model.item_embedding.weight[5, 2] = NAN
    save_backbone(model, small_data.catalog, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds values that are not finite, in item_embedding.weight"):
        load_trained_backbone(str(tmp_path))
