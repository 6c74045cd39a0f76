"""Run a model of `implicit` for the quality benchmark; `cf_quality.py` starts this script.

The Python that runs it needs `pip install implicit==0.7.3` (NumPy and SciPy come with it).

Models: `bprmf` (BayesianPersonalizedRanking), `als` (AlternatingLeastSquares; test users are folded in from their whole
history), `itemknn` (cosine, TF-IDF or BM25 neighbours; kind and number of neighbours selected on validation) and
`popularity` (a check). BPR and ALS stop early and keep the factors of the best validation; BPR's users are the trained
ones, because the library cannot fold a user into it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from exchange import Problem, TimeIsUp, Watch, read_arguments, seed_python, write_result
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

Score = Callable[[np.ndarray], np.ndarray]
KNN = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
NEIGHBOURS = (20, 50, 100, 200, 500)


def matrix(problem: Problem, histories: list[np.ndarray]) -> sp.csr_matrix:
    """Return users x items, column c for item c + 1; an item met twice counts once."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = np.concatenate(histories) - 1
    found = sp.csr_matrix(
        (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(histories), problem.num_items)
    )
    found.data[:] = 1.0
    return found


def run_factors(problem: Problem, settings: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """Train BPR or ALS and return the scores of test users."""
    train = matrix(problem, problem.train)
    is_bpr = settings["model"] == "bprmf"
    common = {"factors": settings["hidden_size"], "num_threads": 1, "random_state": settings["seed"]}
    options = {"iterations": 5000} if is_bpr else {"iterations": 100}
    options |= settings.get("options", {})
    kind = BayesianPersonalizedRanking if is_bpr else AlternatingLeastSquares
    model = kind(**common, **options)
    every = 10 if is_bpr else 1
    kept: dict[str, np.ndarray] = {}
    watch = Watch(problem, settings["time_limit_s"], settings["patience"])

    def after_epoch(epoch: int, *_: object) -> None:
        out_of_time = watch.seconds > watch.time_limit_s
        if (epoch + 1) % every and not out_of_time:
            return
        if watch.validate(lambda users: model.user_factors[users] @ model.item_factors.T, epoch + 1):
            kept.update(users=model.user_factors.copy(), items=model.item_factors.copy())
        if watch.exhausted:
            raise TimeIsUp
        watch.check()

    with contextlib.suppress(TimeIsUp):
        model.fit(train, show_progress=False, callback=after_epoch)
    facts = watch.facts() | {"settings": {**common, **options}}
    user_factors = kept["users"]
    if not is_bpr:  # fold in: the validation item is known at the test
        model.user_factors, model.item_factors = kept["users"], kept["items"]
        model._YtY = None  # it was cached for other factors
        everyone = np.arange(problem.num_users)
        user_factors = model.recalculate_user(everyone, matrix(problem, problem.test_histories))
    return (lambda users: user_factors[users] @ kept["items"].T), facts


def run_neighbours(problem: Problem, settings: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """Pick the item neighbours with the best validation and return the scores of test users."""
    train, test = matrix(problem, problem.train), matrix(problem, problem.test_histories)
    watch = Watch(problem, settings["time_limit_s"], patience=10**6)
    best, chosen = None, {}
    for name, kind in KNN.items():
        for neighbours in NEIGHBOURS:
            model = kind(K=neighbours, num_threads=1)
            model.fit(train, show_progress=False)
            similarity = model.similarity
            if watch.validate(lambda users, similarity=similarity: (train[users] @ similarity).toarray(), 1):
                best, chosen = similarity, {"similarity": name, "neighbours": neighbours}
    facts = watch.facts() | {"settings": chosen, "epochs": None, "best_epoch": None, "seconds_per_epoch": None}
    return (lambda users: (test[users] @ best).toarray()), facts


def main() -> None:
    """Run one model."""
    problem, settings, output = read_arguments()
    seed_python(settings["seed"])
    if settings["model"] == "popularity":
        counts = np.bincount(np.concatenate(problem.train), minlength=problem.num_items + 1)[1:]
        score: Score = lambda users: np.tile(counts, (len(users), 1))  # noqa: E731
        facts: dict[str, Any] = {}
    elif settings["model"] == "itemknn":
        score, facts = run_neighbours(problem, settings)
    else:
        score, facts = run_factors(problem, settings)
    write_result(output, problem.ranks(score, "test"), facts, ["implicit", "numpy", "scipy"])


if __name__ == "__main__":
    main()
