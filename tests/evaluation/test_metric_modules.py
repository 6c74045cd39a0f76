"""The `evaluate` modules load by path, offline, and give the numbers of `ranking`."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.evaluation import metrics as metrics_module
from allmrec_hf.evaluation import rankers, warmth
from allmrec_hf.evaluation.metrics import ranks_of
from allmrec_hf.ranking import summarize_ranks, target_ranks

METRICS = Path(__file__).resolve().parents[2] / "metrics"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a loader that keeps the copied modules in a folder of its own and never asks the network."""
    evaluate = pytest.importorskip("evaluate")
    import datasets
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        cache = str(tmp_path_factory.mktemp("metrics"))
        yield lambda name: evaluate.load(str(METRICS / name), cache_dir=cache)


@pytest.fixture(scope="module")
def scored() -> tuple[list[list[float]], list[int]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 30, (40, 20)).astype(float).tolist(), generator.integers(0, 20, 40).tolist()


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize(("name", "key"), [("hit_at_k", "hit@{k}"), ("ndcg_at_k", "ndcg@{k}")])
def test_modules_with_a_cutoff_give_the_numbers_of_ranking(load, scored, name, key, k):
    summary = summarize_ranks(target_ranks(*scored), cutoffs=(k,))
    result = load(name).compute(predictions=scored[0], references=scored[1], k=k)
    assert result == {key.format(k=k): summary[key.format(k=k)]}


def test_mrr_gives_the_number_of_ranking(load, scored):
    result = load("mrr").compute(predictions=scored[0], references=scored[1])
    assert result == {"mrr": summarize_ranks(target_ranks(*scored))["mrr"]}


@pytest.mark.parametrize(("name", "arguments"), [("hit_at_k", {"k": 1}), ("ndcg_at_k", {"k": 1}), ("mrr", {})])
def test_the_readme_states_what_the_module_returns(load, name, arguments):
    result = load(name).compute(predictions=[[0.1, 0.9], [0.3, 0.7]], references=[1, 0], **arguments)
    assert f"# {result}" in (METRICS / name / "README.md").read_text()
    assert f"\n    {result}" in load(name).inputs_description


def test_lists_of_different_length_and_batches_are_accepted(load):
    metric = load("mrr")
    metric.add_batch(predictions=[[0.1, 0.9]], references=[0])
    metric.add_batch(predictions=[[0.1, 0.9, 0.4, 0.3]], references=[1])
    assert metric.compute() == {"mrr": 0.75}


def test_a_cutoff_below_one_is_refused(load):
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        load("hit_at_k").compute(predictions=[[0.1]], references=[0], k=0)


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_outside_the_list_is_refused(position):
    with pytest.raises(ALLMRecError, match=f"row 0: the target's position is {position}, its list holds 2"):
        ranks_of([[0.1, 0.2]], [position])


def test_nan_names_the_row():
    with pytest.raises(ALLMRecError, match="row 1 holds NaN"):
        ranks_of([[0.1, 0.2], [0.1, float("nan")]], [0, 0])


@pytest.mark.parametrize("module", [metrics_module, rankers, warmth])
def test_docstring_examples_run(module):
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0
