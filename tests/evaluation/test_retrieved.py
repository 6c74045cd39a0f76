"""Ranks from retrieved lists against those from the scores of the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from allmrec_hf.evaluation import retrieved
from allmrec_hf.evaluation.rankers import best_unseen
from allmrec_hf.ranking import hit_at_k, ndcg_at_k, reciprocal_rank, target_ranks

NUM_ITEMS, USERS = 40, 60


class Scored:
    """Scores of user u are row u, however the evaluator groups users; histories begin with the user's number."""

    name = "scored"

    def __init__(self, scores, histories):
        self.scores, self.rows = scores, {tuple(history.tolist()): row for row, history in enumerate(histories)}

    def retrieve(self, histories, top_k):
        rows = [self.rows[tuple(history.tolist())] for history in histories]
        return best_unseen(self.scores[rows], histories, top_k)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("num_retrieved", [1, 3, 10, 36, 40, 100])
def test_ranks_from_lists_are_those_of_the_whole_catalogue(levels, num_retrieved, monkeypatch):
    monkeypatch.setattr(retrieved, "_SCORES_AT_ONCE", 200)  # several chunks of longer lists
    generator = np.random.default_rng([levels, num_retrieved])
    scores = generator.integers(0, levels, (USERS, NUM_ITEMS + 1)).astype(float)
    histories = [generator.permutation(NUM_ITEMS)[:4] + 1 for _ in range(USERS)]
    targets = np.array([generator.choice(np.setdiff1d(np.arange(1, NUM_ITEMS + 1), history)) for history in histories])
    found = retrieved.retrieved_ranks(Scored(scores, histories), histories, targets, num_retrieved, NUM_ITEMS).ranks
    unseen = scores.copy()
    unseen[:, 0] = -np.inf
    for row, history in zip(unseen, histories, strict=True):
        row[history] = -np.inf
    whole = target_ranks(unseen, targets)
    for k in (1, 2, 10):
        np.testing.assert_array_equal(hit_at_k(found, k), hit_at_k(whole, min(k, num_retrieved)))
        np.testing.assert_allclose(ndcg_at_k(found, k), ndcg_at_k(whole, min(k, num_retrieved)), rtol=1e-12)
    if num_retrieved >= NUM_ITEMS:
        np.testing.assert_allclose(reciprocal_rank(found), reciprocal_rank(whole), rtol=1e-12)
    within = whole.better < num_retrieved
    np.testing.assert_array_equal(found.better, np.where(within, whole.better, np.inf))
    np.testing.assert_array_equal(found.tied, np.where(within, whole.tied, 0))


def test_nothing_retrieved_is_a_miss_for_everybody():
    class Nothing:
        name = "nothing"

        def retrieve(self, histories, top_k):
            return np.zeros((len(histories), 0), dtype=int), np.zeros((len(histories), 0))

    ranks = retrieved.retrieved_ranks(Nothing(), [np.array([1])] * 3, np.array([2, 3, 4]), 5, NUM_ITEMS).ranks
    assert ranks.expected.tolist() == [np.inf] * 3
