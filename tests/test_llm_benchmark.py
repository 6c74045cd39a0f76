"""The benchmark of the LLM side: its three ways do the same work, and its page says what was measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from allmrec_hf.training import projection
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
    for name in ("llm_setup", "llm_ways", "llm_speed_page", "llm_compile", "ranker_speed"):
        sys.modules.pop(name, None)


def test_all_ways_of_stage_2_have_one_loss_and_ours_and_naive_one_gradient(benchmark, small_data, monkeypatch):
    """Ours in two parts, as the loop takes a batch that is longer."""
    _, ways, _ = benchmark
    model, processor = tiny_model(), tiny_processor()
    monkeypatch.setattr(projection, "TOKENS_ON_CPU", 1)
    losses, gradients = [], []
    for name, way in ways.stage2_ways(model, processor, small_data, HISTORIES, CANDIDATES, TARGETS).items():
        losses.append(way())
        if name in ("ours", "naive"):
            gradients.append(torch.cat([p.grad.flatten() for p in model.user_projector.parameters()]))
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-3)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-5)


def test_ours_and_naive_have_the_same_scores(benchmark):
    _, ways, _ = benchmark
    processor = tiny_processor()
    made, counts = ways.recommend_ways(tiny_model(), processor, HISTORIES, CANDIDATES)
    torch.testing.assert_close(made["ours"](), made["naive"](), rtol=1e-4, atol=1e-3)
    beginnings = [  # of each candidate the last token is not read, and what candidates begin with alike once
        {tuple(answer[:end]) for answer in map(processor.answer_tokens, row) for end in range(1, len(answer))}
        for row in CANDIDATES
    ]
    assert counts["answer_tokens_read"] == sum(map(len, beginnings)) < counts["answer_tokens"] - 6


def test_ratios_are_medians_of_rounds_against_the_lower_floor(benchmark):
    setup, _, page = benchmark
    rounds = {"ours": [2, 4, 2], "floor": [4, 4, 4], "floor, padded": [1, 2, 2]}  # quotients 2, 2, 1
    found = {
        name: {"median_s": sorted(s)[1], "range_s": [min(s), max(s)], "wall_s": 9, "rounds_s": s}
        for name, s in rounds.items()
    }
    assert setup.ratios(found)["ours_of_floor"] == 2.0
    report = {
        "llm": "x",
        "dtype": "float32",
        "stage2": {**setup.ratios(found), "naive_of_ours": 2.5, "naive_of_ours_by_flops": 1.5},
    }
    assert "| stage 2: step at most 1.15 of the floor | 2 ✗ |" in page._goals([report])
    assert "| stage 2: naive at least 2 of ours | 2.5 ✓ |" in page._goals([report])
    assert "| stage2 | x, float32 | 2 (2-4) |  | 2 (1-2) | 2 |  | 2.5 | 1.5 |" in page._details([report])


def test_what_is_saved_is_counted_while_it_is_and_once_a_storage(benchmark):
    """The exponential of 1,000 numbers is kept once, by two products; passes one after the other keep no more."""
    setup, _, _ = benchmark
    weight = torch.nn.Linear(1, 1)

    def passes(count):
        for _ in range(count):
            found = (torch.ones(1_000, requires_grad=True) * 1).exp()
            (found * found).sum().backward()

    once = setup.most_saved(lambda: passes(1), weight)
    assert once == setup.most_saved(lambda: passes(3), weight) == 4_000


def test_every_part_of_the_plan_is_measured_once(benchmark, tmp_path, monkeypatch, capsys):
    import llm_speed

    asked = []
    monkeypatch.setattr(llm_speed.subprocess, "run", lambda command, check: asked.append(command[2:]))
    known = tmp_path / "out" / "the_demo_s_lm_float32.json"
    known.parent.mkdir()
    known.write_text(json.dumps({part: {} for part in llm_speed.PARTS[1:]}))
    options = argparse.Namespace(every=tmp_path, output=known.parent, minutes=None)
    llm_speed.every(options)
    count = sum(len(parts) for *_, parts in llm_speed.PLAN)
    assert len(asked) == count - len(llm_speed.PARTS) + 1
    assert asked[0][:3] == ["stage1", "--shape", "tiny"]
    assert {tuple(command[:3]) for command in asked} >= {("memory", "--shape", "opt-125m")}
    options.minutes = -1
    llm_speed.every(options)
    assert "time is over" in capsys.readouterr().out
    sys.modules.pop("llm_speed")


def run_gpu(*arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )


def test_the_gpu_script_without_a_gpu_says_so_and_ends():
    done = run_gpu()
    assert (done.returncode, done.stdout.strip()) == (0, "no GPU here: nothing was measured"), done.stderr[-2000:]


def test_the_gpu_script_measures_every_figure(tmp_path):
    done = run_gpu("--shape", "tiny", "--device", "cpu", "--batch-size", 2, "--repeats", 1, "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "gpu_cpu_tiny.json").read_text())
    assert written == json.loads(done.stdout)
    assert (written["card"], written["dtype"], written["goal_share_of_matmul"]) == ("CPU", "bfloat16", 0.5)
    assert written["matmul_tflops"] > 0
    for part in ("stage2", "recommend"):
        assert written[part]["users"] == 2
        assert written[part]["peak_gib"] is None
        assert min(written[part][name] for name in ("seconds", "tokens_per_second", "share_of_matmul")) > 0
    assert written["recommend"]["generated_tokens"] == 12


def test_flops_are_those_of_the_layers_the_attention_and_the_logits_that_are_read(monkeypatch):
    """One layer of width 4: 12 d^2 weights with biases and norms, 4 d FLOPs of attention a token and token seen."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import llm_setup

    config = OPTConfig(vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16)
    llm = AutoModelForCausalLM.from_config(config)
    layer = 4 * (16 + 4) + 2 * 64 + 16 + 4 + 2 * 8
    assert llm_setup.layer_parameters(llm) == layer
    forward = 6 * (2 * layer + 4 * 4 * 3) + 2 * 2 * 10 * 4
    assert llm_setup.flops(llm, tokens=6, length=3, read=2, backward=False) == forward
    assert llm_setup.flops(llm, tokens=6, length=3, read=2, backward=True) == 2 * forward
    sys.modules.pop("llm_setup", None)


def test_compiled_and_plain_are_compared_on_the_same_weights(benchmark, monkeypatch, tmp_path):
    """The compiler itself takes half a minute: here it gives back what it gets, or something wrong."""
    import llm_compile

    options = argparse.Namespace(shape="tiny", llm=None, dtype="float32", batch_size=2, repeats=1)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    report = llm_compile.measured(options)
    assert len(compiled) == 3  # the layers of one of the two models
    assert report["request"]["largest_difference"] == report["stage2"]["largest_difference"] == 0.0
    stored = json.loads((BENCHMARKS / "results" / "llm_compile.json").read_text(encoding="utf-8"))
    assert set(stored) == set(report)
    shown = (BENCHMARKS.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    for part in ("request", "stage2"):
        assert f"{1 - stored[part]['compiled_of_plain']:.0%}".replace("%", " %") in shown

    def doubled(function, **_):
        return lambda *args, **kwargs: function(2 * args[0], *args[1:], **kwargs)

    monkeypatch.setattr(torch, "compile", doubled)
    with pytest.raises(SystemExit, match="differ"):
        llm_compile.measured(options)


def test_rankers_of_one_llm_are_timed_on_the_same_users(benchmark):
    import ranker_speed

    report = ranker_speed.measured(argparse.Namespace(shape="tiny", llm=None, users=2, repeats=1))
    stored = json.loads((BENCHMARKS / "results" / "ranker_speed.json").read_text(encoding="utf-8"))
    assert set(report) == set(stored)
    assert list(report["ways"]) == list(stored["ways"]) == [ranker_speed.LISTED, ranker_speed.ALL, *ranker_speed.WAYS]
    listed, whole, *ways = [way["tokens_of_a_user"] for way in report["ways"].values()]
    assert whole > listed > ways[0] == ways[2] > ways[1] == ways[3]
