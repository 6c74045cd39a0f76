"""Estimate and log the cost of ranking with the LLM before it starts."""

from __future__ import annotations

import logging
import time

import numpy as np

from ..durations import duration
from ..ranker import TitleLikelihood
from .llm_ranker import ALLMRecRanker
from .protocol import EvaluationData, Ranker, TargetSplit
from .rows import Rows, select_rows

logger = logging.getLogger(__name__)

LONGEST_PROBE_S = 30.0
LONG_S = 300
PROBED_USERS = 16


def tell_evaluation_cost(
    ranker: Ranker,
    data: EvaluationData,
    protocol: str = "candidates",
    split: TargetSplit = "test",
    max_users: int | None = None,
    seed: int = 0,
) -> float:
    """Log how many prompts an evaluation reads, their tokens, the measured speed and the time; return the seconds.

    Of a ranker that puts its own questions to an LLM, the users and the time are logged.

    Args:
        ranker: The ranker; one batch of its users is measured, or one user where a batch takes long.
        data: As for `evaluator.evaluate`, and so the rest.
        protocol: The protocol.
        split: Whose targets.
        max_users: The sample.
        seed: Of the sample.
    """
    rows = select_rows(data, split, data.candidates(split), max_users, seed)
    users = len(rows.users)
    chosen = np.unique(np.linspace(0, users - 1, min(users, getattr(ranker, "batch_size", PROBED_USERS))).astype(int))
    count, seconds = 1, _measure(ranker, rows, chosen[:1], protocol)
    if seconds * len(chosen) < LONGEST_PROBE_S:  # then again, since the first pass of a process takes longer
        count, seconds = len(chosen), _measure(ranker, rows, chosen, protocol)
    whole = users * seconds / count
    if not isinstance(ranker, ALLMRecRanker) or not _reads_titles_behind_one_prompt(ranker):
        speed = users / max(whole, 1e-9)
        told = (ranker.name, f"{users:,}", speed, duration(whole))
        logger.info("%s: %s users to rank for, %.3g users/s: about %s", *told)
        return whole
    tokens, longest, answers = _tokens(ranker, rows, chosen)
    prompts = users * (1 if protocol == "paper" else ranker.num_permutations)
    read = tokens if protocol == "paper" else tokens + answers
    logger.info(
        "%s: %s prompts of %s tokens (longest %s) with %s tokens of titles to score, %s tokens/s on %s: about %s",
        ranker.name,
        f"{prompts:,}",
        f"{tokens:,.0f}",
        f"{longest:,}",
        f"{answers:,.0f}",
        f"{prompts * read / whole:,.0f}",
        ranker.model.device.type,
        duration(whole),
    )
    if whole > LONG_S:
        logger.info("the evaluation gets shorter with %s", "; ".join(_shorter(ranker, users)))
    return whole


def _reads_titles_behind_one_prompt(ranker: ALLMRecRanker) -> bool:
    """Tell whether a ranker scores titles by the LLM, and reads no second prompt to calibrate them."""
    return isinstance(ranker.ranker, TitleLikelihood) and ranker.ranker.context is None


def _measure(ranker: Ranker, rows: Rows, chosen: np.ndarray, protocol: str) -> float:
    histories = [rows.data.history(int(user), rows.split) for user in rows.users[chosen]]
    candidates = rows.items[chosen].copy()
    started = time.monotonic()
    if protocol == "paper" and isinstance(ranker, ALLMRecRanker):
        ranker.generate_titles(histories, candidates)
    elif protocol == "full" and isinstance(ranker, ALLMRecRanker):
        ranker.retrieve(histories, ranker.num_ranked)
    else:
        ranker.score(histories, candidates)
    return time.monotonic() - started


def _tokens(ranker: ALLMRecRanker, rows: Rows, chosen: np.ndarray) -> tuple[float, int, float]:
    """Return the mean and the longest prompt, and the mean of the answers' tokens of a user, over a few users."""
    histories = [rows.data.history(int(user), rows.split).tolist() for user in rows.users[chosen]]
    batch = ranker.processor(histories, rows.items[chosen].tolist())
    prompts, answers = batch["attention_mask"].sum(dim=1), batch["answer_mask"].sum(dim=(1, 2))
    return float(prompts.double().mean()), int(prompts.max()), float(answers.double().mean())


def _shorter(ranker: ALLMRecRanker, users: int) -> list[str]:
    ways = [f"a sample of users (--max-users, now {users:,})"]
    if ranker.num_permutations > 1:
        ways.append(f"fewer orders of the candidates (--num-permutations, now {ranker.num_permutations})")
    ways.append("data prepared with fewer candidates")
    if ranker.model.device.type == "cpu":
        ways.append("a GPU")
    return ways
