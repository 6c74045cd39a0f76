"""The gate: what counts as the same ten items, and what is refused."""

from __future__ import annotations

import pytest
import torch

from allmrec_hf import ALLMRecError, DataError
from allmrec_hf.exporting.rank_parity import best_items, rank_parity


def scores_of(table):
    scores = torch.tensor(table)
    return lambda items: scores[items].masked_fill(items == 0, float("-inf"))


NO_TIES = scores_of([0.0, 5.0, 4.0, 3.0, 2.0, 1.0])


def test_overlap_is_the_mean_share_of_our_items_that_are_found():
    ours = torch.tensor([[1, 2], [1, 2], [1, 2]])
    found = torch.tensor([[2, 1], [1, 3], [4, 5]])
    parity = rank_parity(ours, found, NO_TIES, top_k=2)
    assert parity.overlap == pytest.approx((1 + 0.5 + 0) / 3)
    assert (parity.users, parity.differing_users, parity.ties) == (3, 2, 0)


def test_an_item_of_the_same_score_as_our_last_counts_and_is_told():
    ours, tied = torch.tensor([[1, 2]]), scores_of([0.0, 5.0, 4.0, 4.0, 2.0])
    assert rank_parity(ours, torch.tensor([[1, 3]]), tied, 2).overlap == 1
    assert rank_parity(ours, torch.tensor([[1, 3]]), tied, 2).ties == 1
    assert rank_parity(ours, torch.tensor([[1, 4]]), tied, 2).overlap == 0.5


def test_a_part_that_scores_all_items_alike_gains_nothing():
    ours = torch.tensor([[1, 2]])
    found = best_items(torch.zeros(1, 6), torch.tensor([[1]]), 2)
    assert found.tolist() == [[2, 3]]
    assert rank_parity(ours, found, NO_TIES, 2).overlap == 0.5


def test_an_item_that_is_named_twice_counts_once():
    tied = scores_of([0.0, 5.0, 4.0, 4.0])
    assert rank_parity(torch.tensor([[1, 2]]), torch.tensor([[1, 1]]), NO_TIES, 2).overlap == 0.5
    assert rank_parity(torch.tensor([[1, 2]]), torch.tensor([[3, 3]]), tied, 2).overlap == 0.5


def test_where_fewer_items_are_left_those_are_compared_and_users_without_any_are_left_out():
    ours = torch.tensor([[3, 0], [0, 0]])
    parity = rank_parity(ours, torch.tensor([[3, 0], [0, 0]]), NO_TIES, 2)
    assert (parity.overlap, parity.users) == (1.0, 1)
    with pytest.raises(DataError, match="no user with items left"):
        rank_parity(ours[1:], ours[1:], NO_TIES, 2)


def test_below_the_limit_the_number_is_told():
    parity = rank_parity(torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), NO_TIES, 2)
    with pytest.raises(ALLMRecError, match=r"refused, and nothing was written: the part: top-2 overlap 0\.5000 on 1"):
        parity.require("the part")


def test_the_best_items_go_by_score_then_catalogue_and_leave_out_what_was_seen():
    scores = torch.tensor([[9.0, 1.0, 2.0, 2.0, 3.0]])
    assert best_items(scores, torch.tensor([[4, 0]]), 3).tolist() == [[2, 3, 1]]
    assert best_items(scores, torch.tensor([[4, 3, 2]]), 3).tolist() == [[1, 0, 0]]
    with pytest.raises(ALLMRecError, match="NaN"):
        best_items(torch.tensor([[0.0, float("nan")]]), torch.tensor([[0]]), 1)
