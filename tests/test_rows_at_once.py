"""Budgets of tokens, and memory that does not hold a batch."""

from __future__ import annotations

import logging

import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.rows_at_once import RowsAtOnce, rows_within


def test_groups_keep_within_the_budget_padding_included():
    lengths = [30, 10, 11, 29, 12, 30, 9]
    groups = rows_within(lengths, 60)
    assert groups == [[6, 1, 2, 4], [3, 0], [5]]
    assert all(len(rows) * max(lengths[row] for row in rows) <= 60 for rows in groups)


def test_without_a_budget_rows_stay_together_in_their_order():
    assert rows_within([3, 1, 2], None) == [[0, 1, 2]]
    assert rows_within([], None) == rows_within([], 5) == []
    assert rows_within([0, 0], 1) == [[0, 1]]


def test_one_row_beyond_the_budget_is_an_error_with_the_budget_it_needs():
    assert rows_within([7], 7) == [[0]]
    with pytest.raises(ALLMRecError, match=r"has 8 tokens, more than the 7 .* give at least 8"):
        rows_within([3, 8], 7)


def memory_for(rows_that_fit, calls):
    def call(rows):
        calls.append(list(rows))
        if len(rows) > rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [row * 10 for row in rows]

    return call


def test_a_batch_too_large_for_the_memory_is_halved_once_and_said_once(caplog):
    calls: list[list[int]] = []
    at_once = RowsAtOnce()
    with caplog.at_level(logging.WARNING, logger="allmrec_hf"):
        done = at_once.run([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10]], memory_for(2, calls))
    assert [rows for rows, _ in done] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert [value for _, found in done for value in found] == [10 * row for row in range(11)]
    assert calls[:3] == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1]]  # and no large one ever again
    assert max(len(rows) for rows in calls[2:]) == 2
    assert len(caplog.records) == 1
    assert "does not hold 8 users at once: 4 or fewer" in caplog.text


def test_one_row_too_large_for_the_memory_is_an_error_of_the_user():
    with pytest.raises(ALLMRecError, match="does not hold the LLM and one prompt"):
        RowsAtOnce().run([[0, 1]], memory_for(0, []))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        RowsAtOnce().run([[0, 1]], broken)
