"""MRR as an `evaluate` module: the same numbers as `allmrec_hf.ranking`."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from allmrec_hf.evaluation.metrics import ranks_of
from allmrec_hf.ranking import reciprocal_rank

_DESCRIPTION = (
    "Mean reciprocal rank of the target among the candidates. Tied candidates: the mean over all their orders."
)

_INPUTS = """
Args:
    predictions: One list of scores per user, higher is better.
    references: For each user, the position of the target in that list, counted from 0.

Returns:
    A dictionary with the mean over users, keyed `mrr`.

Example:
    >>> metric = evaluate.load("./metrics/mrr")
    >>> metric.compute(predictions=[[0.1, 0.9], [0.3, 0.7]], references=[1, 0])
    {'mrr': 0.75}
"""


class MRR(evaluate.Metric):
    """Mean reciprocal rank of the target among the candidates."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[int]) -> dict[str, float]:
        return {"mrr": float(reciprocal_rank(ranks_of(predictions, references)).mean())}
