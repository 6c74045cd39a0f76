"""Invented runs: ranks drawn around a strength, with no training behind them."""

import numpy as np
import polars as pl

from allmrec_hf.benchmark.runs import BenchmarkRun, RunKey
from allmrec_hf.ranking import Ranks, summarize_ranks

CANDIDATES = 20
CHANCE = summarize_ranks(Ranks(np.zeros(1), np.full(1, CANDIDATES - 1)), (1, 10))  # one score for all
METHODS = {  # label: (method, strength on warm targets, strength on cold ones)
    "a-llmrec": ("a-llmrec", 2.4, 1.6),
    "sasrec": ("sasrec", 1.9, 0.0),
    "popularity": ("popularity", 1.2, -3.0),
    "text-cosine": ("text-cosine", 1.2, 1.2),
    "no-llm": ("no-llm", 1.3, 0.8),
    "random-llm": ("random-llm", 1.3, 0.8),
    "fair-backbone": ("fair-backbone", 2.0, 0.1),
    "leak-alarm": ("leak-alarm", 0.0, 0.0),
}


def drawn_ranks(strength, seed):
    """Return ranks of targets whose score is higher than the others' by `strength (U,)` deviations."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(len(strength), CANDIDATES))
    scores[:, 0] += strength
    return 1.0 + (scores[:, 1:] > scores[:, :1]).sum(axis=1)


def run(
    label,
    ranks,
    *,
    method=None,
    dataset="toy",
    scenario="overall",
    seed=0,
    sha="f00",
    details=None,
    cold=None,
    tied=None,
):
    """Return a run whose users have these ranks."""
    ranks = np.asarray(ranks, dtype=float)
    cold = np.arange(len(ranks)) % 3 == 0 if cold is None else np.asarray(cold, dtype=bool)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(len(ranks))],
            "target": [f"i{number}" for number in range(len(ranks))],
            "warm": ~cold,
            "cold": cold,
            "never_seen": np.zeros(len(ranks), dtype=bool),
            "method": label,
            "rank": ranks,
            "tied": np.zeros(len(ranks), dtype=int) if tied is None else tied,
            "answer": pl.Series([None] * len(ranks), dtype=pl.String),
        }
    )
    metrics = {"users": len(ranks), **dict.fromkeys(("hit@1", "ndcg@1", "hit@10", "ndcg@10", "mrr"), 0.0)}
    report = {
        "dataset": dataset,
        "split": "test",
        "protocol": "candidates",
        "users": len(ranks),
        "users_available": len(ranks),
        "num_items": 1000,
        "num_candidates": CANDIDATES,
        "candidates_sha256": sha,
        "versions": {"python": "3.12"},
        "chance": dict.fromkeys(("overall", "warm", "cold", "never_seen"), CHANCE),
        "methods": {label: {"overall": metrics}},
    }
    key = RunKey(dataset, scenario, label, method or METHODS.get(label, (label,))[0], seed)
    return BenchmarkRun(key, report, frame, 12.5 + seed, {"backbone": "sasrec", **(details or {})})


def runs(num_users=300, scenario="overall", seeds=(0,), strengths=None, labels=None, dataset="toy"):
    """Return a run for each method of `METHODS` and each seed, with other strengths where given."""
    cold = np.arange(num_users) % 3 == 0
    found = []
    for number, (label, (method, warm_strength, cold_strength)) in enumerate(METHODS.items()):
        if labels is not None and label not in labels:
            continue
        warm_strength, cold_strength = (strengths or {}).get(label, (warm_strength, cold_strength))
        llm = {"llm": "tiny", "llm_parameters": 400_000} if "llm" in method else {}
        for seed in seeds:
            ranks = drawn_ranks(np.where(cold, cold_strength, warm_strength), [number, seed])
            found.append(
                run(label, ranks, method=method, dataset=dataset, scenario=scenario, seed=seed, details=llm, cold=cold)
            )
    return found
