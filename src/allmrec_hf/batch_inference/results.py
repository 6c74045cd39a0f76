"""Recommendations of a part of the users as a table: one row a user, in the order of the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ..data.memory import HeapTrimmer
from ..errors import DataError
from ..item_lookup import NAMED
from ..pipeline_recommendation import KEYS, OPTION_KEYS, RecommendationPipeline, ResolvedRequest

RESULT_COLUMNS: dict[str, Any] = {
    "recommendations": pl.List(
        pl.Struct({"item_id": pl.String, "title": pl.String, "score": pl.Float64, "rank": pl.Int32})
    ),
    "unknown_history": pl.List(pl.String),
    "reason": pl.String,
}


@dataclass(frozen=True)
class BatchSettings:
    """What is recommended, and how.

    Attributes:
        top_k: Items for each user.
        ranker: What ranks; the checkpoint's own choice where None.
        num_permutations: Orders of the candidates whose scores are averaged.
        batch_size: Users that the LLM reads at once; it changes no recommendation but by rounding.
        max_tokens_per_batch: Tokens that the LLM reads at once, padding included; likewise.
    """

    top_k: int = 10
    ranker: str | None = None
    num_permutations: int = 1
    batch_size: int = 16
    max_tokens_per_batch: int | None = None

    @property
    def of_pipeline(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        return {
            "top_k": self.top_k,
            "ranker": self.ranker,
            "num_permutations": self.num_permutations,
            "max_tokens_per_batch": self.max_tokens_per_batch,
        }


class PartRecommender:
    """Recommend for the users of a table by a pipeline.

    Users with histories of similar length are read together, so a part's rows alone decide its batches: a run that
    was killed and continued, or shared between workers, has the scores of one that was not.

    Args:
        pipe: The pipeline.
        settings: What is recommended.
    """

    def __init__(self, pipe: RecommendationPipeline, settings: BatchSettings) -> None:
        self.pipe = pipe
        self.settings = settings
        self._trimmer = HeapTrimmer(pipe.model.device.type == "cpu")

    def table(self, users: pl.DataFrame, count: Callable[[int], None] | None = None) -> pl.DataFrame:
        """Return the own columns of users, and `recommendations`, `unknown_history` and `reason`.

        A row without recommendations says why under `reason`; one whose history holds unknown items says that there,
        and has the recommendations that the known items give.

        Args:
            users: The users.
            count: Called with numbers of users that are done.
        """
        keys = [name for name in users.columns if name in (*KEYS, *OPTION_KEYS)]
        requests = [self._resolved(request) for request in users.select(keys).to_dicts()]
        _, forward, after = self.pipe._sanitize_parameters(on_error="return", **self.settings.of_pipeline)
        results: list[Any] = [None] * len(requests)
        order = sorted(range(len(requests)), key=lambda row: len(requests[row].history))
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            batch = {"request": [requests[row] for row in rows]}
            served = self.pipe.forward(batch, **forward)["ranked"]
            for row, one in zip(rows, served, strict=True):
                results[row] = self.pipe.postprocess({"ranked": one}, **after)
            self._trimmer.tick()
            if count is not None:
                count(len(rows))
        columns = [_row(request, found) for request, found in zip(requests, results, strict=True)]
        made = pl.DataFrame(columns, schema=RESULT_COLUMNS, orient="row")
        return users.drop(keys).hstack(made) if users.width > len(keys) else made

    def _resolved(self, request: Mapping[str, Any]) -> ResolvedRequest:
        try:
            return self.pipe.resolve(request)
        except DataError as error:
            return ResolvedRequest([], None, error=str(error))


def _row(request: ResolvedRequest, found: Any) -> tuple[Any, ...]:
    """Return the result columns of a user."""
    unknown = request.unknown_history
    if isinstance(found, dict):
        return None, unknown, found["error"]
    ranked = [{key: item[key] for key in ("item_id", "title", "score", "rank")} for item in found]
    return ranked, unknown, _left_out(unknown)


def _left_out(unknown: Sequence[str]) -> str | None:
    if not unknown:
        return None
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"left out of the history, not in the catalogue: {', '.join(unknown[:NAMED])}{more}"
