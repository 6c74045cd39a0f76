"""NDCG@k as an `evaluate` module: the same numbers as `allmrec_hf.ranking`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from allmrec_hf.evaluation.metrics import ranks_of
from allmrec_hf.ranking import ndcg_at_k

_DESCRIPTION = (
    "Normalised discounted cumulative gain of the one target within the first k candidates. "
    "Tied candidates: the mean over all their orders."
)

_INPUTS = """
Args:
    predictions: One list of scores per user, higher is better.
    references: For each user, the position of the target in that list, counted from 0.
    k: How many of the first candidates count.

Returns:
    A dictionary with the mean over users, keyed `ndcg@{k}`.

Example:
    >>> metric = evaluate.load("./metrics/ndcg_at_k")
    >>> metric.compute(predictions=[[0.1, 0.9], [0.3, 0.7]], references=[1, 0], k=1)
    {'ndcg@1': 0.5}
"""


class NDCGAtK(evaluate.Metric):
    """Normalised discounted cumulative gain of the one target within the first k candidates."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int], k: int = 10
    ) -> dict[str, float]:
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        return {f"ndcg@{k}": float(ndcg_at_k(ranks_of(predictions, references), k).mean())}
