"""The benchmark of the LLM side: its three ways do the same work, and its page says what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_processor

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
HISTORIES, CANDIDATES, TARGETS = [[1, 2, 3], [4]], [[5, 6, 7], [8, 9, 10]], [6, 8]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as when it is run as a script
    import llm_setup
    import llm_speed_page
    import llm_ways

    yield llm_setup, llm_ways, llm_speed_page
    for name in ("llm_setup", "llm_ways", "llm_speed_page"):
        sys.modules.pop(name, None)


def test_all_ways_of_stage_2_have_one_loss_and_ours_and_naive_one_gradient(benchmark):
    _, ways, _ = benchmark
    model, processor = tiny_model(), tiny_processor()
    losses, gradients = [], []
    for name, way in ways.stage2_ways(model, processor, HISTORIES, CANDIDATES, TARGETS).items():
        losses.append(way())
        if name in ("ours", "naive"):
            gradients.append(torch.cat([p.grad.flatten() for p in model.user_projector.parameters()]))
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-3)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-5)


def test_ours_and_naive_have_the_same_scores(benchmark):
    _, ways, _ = benchmark
    made, counts = ways.recommend_ways(tiny_model(), tiny_processor(), HISTORIES, CANDIDATES)
    torch.testing.assert_close(made["ours"](), made["naive"](), rtol=1e-4, atol=1e-3)
    assert counts["answer_tokens"] - counts["answer_tokens_read"] == 6  # of each candidate the last token is not read


def test_ratios_are_against_the_lower_floor(benchmark):
    setup, _, page = benchmark
    found = {name: {"median_s": s, "range_s": [s, s]} for name, s in (("ours", 2), ("floor", 4), ("floor, padded", 1))}
    assert setup.ratios(found)["ours_of_floor"] == 2.0
    report = {"llm": "x", "dtype": "float32", "stage2": {**setup.ratios(found), "naive_of_ours": 2.5}}
    assert "| stage 2: step at most 1.15 of the floor | 2 ✗ |" in page._goals([report])
    assert "| stage 2: naive at least 2 of ours | 2.5 ✓ |" in page._goals([report])
    assert "| stage2 | x, float32 | 2 (2-2) |  | 1 (1-1) | 2 | 2.5 |" in page._details([report])
