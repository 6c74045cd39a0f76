"""Select the best of several rankers by NDCG@10 on the validation part."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.protocol import Ranker
from ..ranking import Ranks, ndcg_at_k, target_ranks
from ..training.samples import drawn_rows

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Ranker)
BATCH = 256  # users scored at a time


def validation_ndcg(ranker: Ranker, data: PreparedData, max_users: int | None = None, seed: int = 0) -> float:
    """Return the mean NDCG@10 of the validation items among their stored candidates.

    Args:
        ranker: The method.
        data: Prepared data; 0 is returned where no user has a validation item, and NaN where a score is NaN.
        max_users: A seeded sample of this many users; None takes all.
        seed: Draws the sample.
    """
    candidates = data.candidates("validation")
    if max_users is not None and max_users < len(candidates):
        candidates = candidates.take(drawn_rows(len(candidates), max_users, seed))
    ranks = []
    for start in range(0, len(candidates), BATCH):
        part = candidates.take(np.arange(start, min(start + BATCH, len(candidates))))
        histories = [data.history(int(user), "validation") for user in part.users]
        scores = np.asarray(ranker.score(histories, part.items), dtype=np.float64)
        if np.isnan(scores).any():
            return math.nan
        ranks.append(target_ranks(scores, part.target_columns))
    return float(ndcg_at_k(Ranks.concatenate(ranks), 10).mean()) if ranks else 0.0


def best_on_validation(rankers: Iterable[R], data: PreparedData, max_users: int | None, seed: int) -> R:
    """Return the ranker with the highest `validation_ndcg`, the earlier one of equals; never one that scores NaN.

    Raises:
        ALLMRecError: when there is none.
    """
    best: tuple[float, R] | None = None
    broken = []
    for ranker in rankers:
        value = validation_ndcg(ranker, data, max_users, seed)
        if math.isnan(value):
            logger.warning("%s: left out, for it scores candidates with NaN", ranker.name)
            broken.append(ranker.name)
            continue
        if best is None or value > best[0]:
            best = value, ranker
    if best is None:
        why = f": the scores of {', '.join(broken)} are not numbers" if broken else ""
        raise ALLMRecError(f"there is no ranker to select from{why}")
    logger.info("%s: selected on validation with NDCG@10 %.4f", best[1].name, best[0])
    return best[1]


def grid_of(method: str, options: Mapping[str, Any], grid: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the values to try of each name: the one an option gives, or the grid's.

    Args:
        method: The method's name, for the error.
        options: The options given.
        grid: The values to try of each name; every option must be a whole number of at least the smallest of them.

    Raises:
        ALLMRecError: when an option is another value.
    """
    chosen = dict(grid)
    for name, values in grid.items():
        given = options.get(name)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int) or given < min(values[0], 1):
            raise ALLMRecError(
                f"the option {name} of {method} must be a whole number of at least {min(values[0], 1)}, got {given!r}; "
                "leave it out to have it selected on the validation part"
            )
        chosen[name] = (given,)
    return chosen
