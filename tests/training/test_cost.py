"""What stage 2 and an evaluation will cost: counted by hand, measured without a trace, and said where it matters."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation.evaluation_cost import tell_evaluation_cost
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.training.cost import ProjectionCost, projection_cost, tell_projection_cost, warn_of_few_steps
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask
from allmrec_hf.training.stage_arguments import StageArguments
from tests.tiny import tiny_model, tiny_processor

CPU = torch.device("cpu")
ARGUMENTS = StageArguments(
    num_train_epochs=3, per_device_train_batch_size=6, gradient_accumulation_steps=2, max_validation_users=12, seed=7
)
COST = ProjectionCost(
    steps=100, prompts=400, tokens=500.0, longest=800, tokens_per_second=1_000.0, validations=2, validation_users=50,
    validation_users_per_second=5.0, device="cpu",
)  # fmt: skip


@pytest.fixture
def task(small_data):
    processor = tiny_processor(small_data.catalog, history_in_prompt=3)
    model = tiny_model("llama", num_items=small_data.num_items)
    return ProjectionTask(ProjectionModule(model, "lm"), processor, small_data, "train", 4, ARGUMENTS)


def test_time_is_tokens_over_speed_and_users_over_rate():
    assert COST.step_seconds == 2.0
    assert COST.validation_seconds == 20.0
    assert COST.seconds == 220.0
    assert COST.steps_within(None) == 100
    assert COST.steps_within(31) == 16


def test_steps_and_prompts_are_those_of_the_loop(task, tmp_path):
    cost = projection_cost(task, ARGUMENTS, CPU)
    result = run_stage(task, ARGUMENTS, tmp_path)
    assert cost.steps == result.steps
    assert cost.prompts == 3 * len(task.samples)
    assert cost.validation_users == 12
    assert cost.validations == sum("validation/ndcg@10" in entry for entry in result.history)


def test_steps_end_at_max_steps(task):
    cost = projection_cost(task, replace(ARGUMENTS, max_steps=5), CPU)
    assert (cost.steps, cost.prompts, cost.validations) == (5, 60, 1)


def test_validations_are_those_of_the_loop(task, tmp_path):
    for number, changes in enumerate(({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 7})):
        arguments = replace(ARGUMENTS, **changes)
        cost = projection_cost(task, arguments, CPU)
        history = run_stage(task, arguments, tmp_path / str(number)).history
        assert cost.validations == sum("validation/ndcg@10" in entry for entry in history)


def test_tokens_are_those_of_the_prompts(task):
    cost = projection_cost(task, ARGUMENTS, CPU)
    everything = task.collate(np.arange(len(task.samples)), np.random.default_rng(0))["attention_mask"].sum(dim=1)
    assert int(everything.min()) <= cost.tokens <= cost.longest
    assert cost.tokens == pytest.approx(float(everything.double().mean()), rel=0.2)
    assert cost.tokens_per_second > 0
    assert cost.validation_users_per_second > 0


def test_measuring_changes_neither_weights_nor_gradients_nor_random_states(task):
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    projection_cost(task, ARGUMENTS, CPU)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in task.module.state_dict().items())
    assert all(parameter.grad is None for parameter in task.module.parameters())


def test_few_steps_are_warned_of_with_the_steps_that_would_do_and_their_time(task, caplog):
    with caplog.at_level(logging.INFO):
        tell_projection_cost(COST, task, replace(ARGUMENTS, min_steps=300, max_seconds=31))
    assert "400 prompts in 100 steps, 500 tokens a prompt (longest 800), 1,000 tokens/s" in caplog.text
    assert "about 3 min 20 s, and 20 s for 2 validations of 50 users" in caplog.text
    assert "time limit of 31 s ends it after about 16 steps" in caplog.text
    warning = next(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "stage 2 with 16 steps of 12 prompts" in warning
    assert "300 steps or more, which take about 10 min 00 s here (--project.max-seconds is 31 now)" in warning


def test_enough_steps_are_not_warned_of(caplog):
    warn_of_few_steps(300, replace(ARGUMENTS, min_steps=300))
    assert not caplog.records


def test_ways_to_make_it_shorter_are_named_where_it_is_long(task, caplog):
    with caplog.at_level(logging.INFO):
        tell_projection_cost(COST, task, ARGUMENTS)
    assert "gets shorter" not in caplog.text
    with caplog.at_level(logging.INFO):
        tell_projection_cost(replace(COST, steps=10_000, prompts=40_000), task, ARGUMENTS)
    assert "--project.num-candidates, now 4" in caplog.text
    assert "--project.history-in-prompt, now 3" in caplog.text


@pytest.mark.parametrize("protocol", ["candidates", "full", "paper"])
def test_an_evaluation_says_prompts_tokens_speed_and_time(small_data, caplog, protocol):
    model = tiny_model("llama", num_items=small_data.num_items).eval()
    ranker = ALLMRecRanker(model, tiny_processor(small_data.catalog), num_permutations=2, batch_size=8)
    with caplog.at_level(logging.INFO):
        seconds = tell_evaluation_cost(ranker, small_data, protocol, max_users=20)
    assert seconds > 0
    prompts = 20 if protocol == "paper" else 40
    assert f"a-llmrec: {prompts} prompts of" in caplog.text
    assert "tokens/s on cpu" in caplog.text


@pytest.mark.parametrize("name", ["batch_size", "num_permutations", "num_ranked"])
def test_a_ranker_refuses_numbers_below_one(small_data, name):
    model = tiny_model("llama", num_items=small_data.num_items)
    with pytest.raises(ALLMRecError, match=f"{name} must be at least 1, got 0"):
        ALLMRecRanker(model, tiny_processor(small_data.catalog), **{name: 0})
