"""The page's list is the pipeline's own, with the ranks of every way of scoring beside it."""

import pytest
import torch

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.space.ranked_lists import TextFit, column_rankers, ranked_list, shared_ranks, usable_rankers

HISTORY = ["M0011", "M0012", "M0013", "M0014"]


def test_equal_scores_share_the_best_of_their_ranks():
    assert shared_ranks([3.0, 1.0, 3.0, 2.0]) == [1, 4, 1, 3]


def test_the_columns_of_the_demo(pipe):
    assert usable_rankers(pipe) == ["likelihood", "cf"]
    assert list(column_rankers(pipe, ["likelihood", "cf"])) == ["likelihood", "cf", "text"]


@pytest.mark.parametrize("ranker", ["likelihood", "cf"])
def test_the_list_is_that_of_the_pipeline(pipe, ranker):
    columns = column_rankers(pipe, usable_rankers(pipe))
    found = ranked_list(pipe, columns, HISTORY, ranker, top_k=10)
    told = pipe.respond({"history": HISTORY, "ranker": ranker, "top_k": 10})["recommendations"]
    assert [item.item_id for item in found.items] == [row["item_id"] for row in told]
    assert [item.score for item in found.items] == pytest.approx([row["score"] for row in told], abs=1e-4)
    assert [item.parts[ranker] for item in found.items] == pytest.approx(
        [row["parts"][ranker] for row in told], abs=1e-4
    )
    assert len(found.candidates) == 20
    assert [item.ranks[ranker] for item in found.items] == list(range(1, 11))


def test_ranks_are_those_of_the_columns_values_among_all_candidates(pipe):
    columns = column_rankers(pipe, usable_rankers(pipe))
    found = ranked_list(pipe, columns, HISTORY, "cf", top_k=20)
    for name in columns:
        values = [item.values[name] for item in found.items]
        assert [item.ranks[name] for item in found.items] == shared_ranks(values)


def test_text_compares_joint_vectors_with_those_of_the_history_the_later_the_more(pipe):
    ranker = TextFit(pipe.model, pipe.processor)
    table = torch.nn.functional.normalize(pipe.model.item_table.text_joint_embeddings.float(), dim=-1)
    indices = pipe.processor.catalog.indices([f"M{number:04}" for number in range(1, 8)])
    found = ranked_list(pipe, {"text": ranker}, [f"M{number:04}" for number in range(1, 8)], "cf", top_k=3)
    for item in found.items:
        index = pipe.processor.catalog.index(item.item_id)
        weights = torch.tensor([0.85**age for age in range(6, -1, -1)])
        mean = (weights @ (table[indices] @ table[index])) / weights.sum()
        assert item.values["text"] == pytest.approx(float(mean), abs=1e-5)


def test_unknown_items_are_told_and_none_known_is_an_error(pipe):
    columns = column_rankers(pipe, ["cf"])
    assert ranked_list(pipe, columns, [*HISTORY, "gone"], "cf").unknown_history == ["gone"]
    with pytest.raises(ALLMRecError, match="none of the 1 history items"):
        ranked_list(pipe, columns, ["gone"], "cf")
