import copy
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from allmrec_hf import retrieval
from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.retrieval import FaissIndex, build_index, exact_top_items

INFINITY = float("inf")
needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is optional")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole_numbers(*shape, highest=3, seed=0, dtype=torch.float32):
    """Small whole numbers: products are exact in every dtype and by every path, and equal scores abound."""
    return torch.randint(-highest, highest + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def histories(users, length, num_items, seed=0):
    return torch.randint(0, num_items + 1, (users, length), generator=torch.Generator().manual_seed(seed))


def top_items(users, table, k, exclude=None):
    return exact_top_items(lambda u, start, stop: u @ table[start:stop].T, users, len(table) - 1, k, exclude)


def naive_top_items(users, table, k, exclude=None):
    """Sort all scores, the earlier item first among equals."""
    scores = users @ table.T
    scores[:, 0] = -INFINITY
    if exclude is not None:
        scores = scores.scatter(1, exclude, -INFINITY)
    scores, items = scores[:, 1:].sort(dim=1, descending=True, stable=True)
    items, scores = items[:, :k] + 1, scores[:, :k]
    return items.masked_fill(scores == -INFINITY, 0), scores


@pytest.fixture
def narrow_slices(monkeypatch):
    """Slices so narrow that a small catalogue has many."""
    monkeypatch.setattr(retrieval, "_SLICE_SCORES", {"cpu": 1024})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize(
    ("num_items", "k"), [(1, 1), (31, 10), (192, 7), (193, 64), (1000, 1), (1000, 10), (1000, 500)]
)
@pytest.mark.usefixtures("narrow_slices")
def test_exact_equals_a_stable_sort_of_all_scores_with_ties(num_items, k, excluding, dtype):
    users, table = whole_numbers(17, 4, seed=1, dtype=dtype), whole_numbers(num_items + 1, 4, seed=2, dtype=dtype)
    exclude = histories(17, 12, num_items) if excluding else None
    items, scores = top_items(users, table, k, exclude)
    expected_items, expected_scores = naive_top_items(users, table, k, exclude)
    assert torch.equal(items, expected_items)
    assert torch.equal(scores, expected_scores)
    assert scores.dtype == dtype


@pytest.mark.parametrize("excluding", [False, True])
def test_exact_equals_a_sort_at_the_real_slice_width(excluding):
    users, table = random(64, 16, seed=1), random(80_001, 16, seed=2)
    exclude = histories(64, 50, 80_000) if excluding else None
    items, scores = top_items(users, table, 100, exclude)
    _, expected = naive_top_items(users, table, 100, exclude)
    torch.testing.assert_close(scores, expected)  # products of other shapes round otherwise
    torch.testing.assert_close((users.unsqueeze(1) * table[items]).sum(-1), expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "constant", "last slice only"])
@pytest.mark.usefixtures("narrow_slices")
def test_exact_holds_for_catalogues_in_an_unkind_order(order):
    values = {
        "ascending": torch.arange(1001.0),
        "descending": -torch.arange(1001.0),
        "constant": torch.ones(1001),
        "last slice only": (torch.arange(1001) > 990).float(),
    }[order]
    users, table = torch.ones(20, 1), values.unsqueeze(1)
    exclude = histories(20, 5, 1000)
    assert torch.equal(top_items(users, table, 30, exclude)[0], naive_top_items(users, table, 30, exclude)[0])


@pytest.mark.usefixtures("narrow_slices")
def test_a_user_of_zeros_gets_the_first_items_of_the_catalogue():
    items, scores = top_items(torch.zeros(3, 4), random(1001, 4), 5, torch.tensor([[2, 0], [0, 0], [1, 3]]))
    assert items.tolist() == [[1, 3, 4, 5, 6], [1, 2, 3, 4, 5], [2, 4, 5, 6, 7]]
    assert not scores.any()


@pytest.mark.parametrize("k", [4, 9])
def test_what_is_left_over_is_index_0_with_minus_infinity(k):
    table = torch.arange(5.0).unsqueeze(1)  # N = 4
    items, scores = top_items(torch.ones(2, 1), table, k, torch.tensor([[4, 2, 2], [1, 2, 0]]))
    assert items.tolist() == [[3, 1, 0, 0], [4, 3, 0, 0]]
    assert scores.tolist() == [[3.0, 1.0, -INFINITY, -INFINITY], [4.0, 3.0, -INFINITY, -INFINITY]]


def test_no_users_give_no_rows():
    items, scores = top_items(torch.zeros(0, 4), random(101, 4), 10, torch.zeros(0, 3, dtype=torch.long))
    assert items.shape == scores.shape == (0, 10)
    assert items.dtype == torch.long


def test_an_empty_exclude_excludes_nothing():
    users, table = random(3, 4, seed=1), random(101, 4)
    empty = torch.zeros(3, 0, dtype=torch.long)
    assert torch.equal(top_items(users, table, 10, empty)[0], top_items(users, table, 10)[0])


def test_users_beyond_one_block_get_what_each_gets_alone(monkeypatch):
    monkeypatch.setattr(retrieval, "_MOST_USERS", 4)
    users, table, exclude = whole_numbers(11, 4, seed=1), whole_numbers(301, 4), histories(11, 6, 300)
    items, _ = top_items(users, table, 10, exclude)
    alone = [top_items(users[i : i + 1], table, 10, exclude[i : i + 1])[0] for i in range(11)]
    assert torch.equal(items, torch.cat(alone))


@pytest.mark.usefixtures("narrow_slices")
def test_padding_is_never_scored_and_the_slices_cover_every_item_once():
    asked = []

    def score_range(users, start, stop):
        asked.extend(range(start, stop))
        return users.new_zeros(len(users), stop - start)

    exact_top_items(score_range, torch.zeros(20, 1), 1000, 5)
    assert asked == list(range(1, 1001))


@pytest.mark.usefixtures("narrow_slices")
def test_the_scores_given_are_not_written_to():
    cached = random(20, 1001, seed=3)
    before = cached.clone()
    exact_top_items(lambda u, a, b: cached[:, a:b], torch.zeros(20, 1), 1000, 5, histories(20, 9, 1000))
    assert torch.equal(cached, before)


@pytest.mark.parametrize("bad_item", [1, 500, 1000])
@pytest.mark.usefixtures("narrow_slices")
def test_nan_raises_wherever_it_stands_unless_the_item_is_excluded(bad_item):
    users, table = random(20, 4, seed=1), random(1001, 4)
    table[bad_item] = float("nan")
    with pytest.raises(DataError, match="user 0 of the batch hold NaN"):
        top_items(users, table, 5)
    items, _ = top_items(users, table, 5, torch.full((20, 1), bad_item))
    assert (items > 0).all()


def test_requests_that_make_no_sense_are_refused():
    users, table = random(3, 4), random(101, 4)
    with pytest.raises(ALLMRecError, match="k >= 1, got 0"):
        top_items(users, table, 0)
    with pytest.raises(DataError, match=r"user representations \(B, d_cf\), got \(4,\)"):
        top_items(users[0], table, 5)
    with pytest.raises(DataError, match=r"B = 3 as for the users, got \(2, 7\)"):
        top_items(users, table, 5, histories(2, 7, 100))


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ALLMRecError, match=r"pip install 'allmrec-hf\[retrieval\]'"):
        FaissIndex(random(101, 4))


def test_a_backbone_that_does_not_score_by_dot_product_is_refused_before_faiss_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    encoder = SimpleNamespace(scores_by_dot_product=False, item_embeddings=random(101, 4))
    with pytest.raises(ALLMRecError, match="does not score by dot product"):
        build_index(encoder)


def test_an_index_that_looks_at_nothing_is_refused():
    with pytest.raises(ALLMRecError, match="the breadth of an index must be at least 1, got 0"):
        FaissIndex(random(101, 4), breadth=0)


@needs_faiss
class TestFaissIndex:
    def test_a_search_of_every_cluster_equals_the_exact_result(self):
        users, table, exclude = random(30, 8, seed=1), random(2001, 8), histories(30, 40, 2000)
        items, scores = FaissIndex(table, breadth=10_000).search(users, 20, exclude)
        expected_items, expected_scores = top_items(users, table, 20, exclude)
        assert torch.equal(items, expected_items)
        torch.testing.assert_close(scores, expected_scores)

    def test_an_index_keeps_the_rules_and_finds_most(self):
        users, table, exclude = random(30, 8, seed=1), random(3001, 8), histories(30, 40, 3000)
        index = build_index(SimpleNamespace(scores_by_dot_product=True, item_embeddings=table))
        items, scores = index.search(users, 20, exclude)
        assert items.shape == scores.shape == (30, 20)
        assert (items > 0).all()
        assert not (items.unsqueeze(2) == exclude.unsqueeze(1)).any()
        assert (scores[:, 1:] <= scores[:, :-1]).all()
        assert all(len(set(row)) == 20 for row in items.tolist())
        assert index.recall_against_exact(users, 20, exclude) > 0.8

    def test_rows_with_too_few_left_are_exact(self):
        table = torch.arange(1.0, 6.0).unsqueeze(1)  # N = 4
        items, scores = FaissIndex(table).search(torch.ones(2, 1), 9, torch.tensor([[4, 2, 2], [1, 2, 0]]))
        assert items.tolist() == [[3, 1, 0, 0], [4, 3, 0, 0]]
        assert scores[0].tolist() == [4.0, 2.0, -INFINITY, -INFINITY]

    def test_recall_counts_the_share_of_the_exact_items_found(self, monkeypatch):
        table = torch.arange(11.0).unsqueeze(1)
        index = FaissIndex(table)
        half = torch.tensor([[10, 9, 1, 2]])
        monkeypatch.setattr(index, "search", lambda users, k, exclude: (half, None))
        assert index.recall_against_exact(torch.ones(1, 1), 4) == 0.5

    def test_more_breadth_finds_no_less(self):
        users, table = random(50, 16, seed=1), random(5001, 16)
        recall = [FaissIndex(table, breadth).recall_against_exact(users, 10) for breadth in (10, 200)]
        assert recall[0] <= recall[1]
        assert recall[1] > 0.95

    def test_the_same_seed_gives_the_same_clusters(self):
        users, table = random(30, 8, seed=1), random(3001, 8)
        found = [FaissIndex(table, 1, seed).search(users, 20)[0] for seed in (3, 3, 4)]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_the_dtype_of_the_users_is_kept_and_no_users_give_no_rows(self):
        index = FaissIndex(random(101, 4, dtype=torch.bfloat16))
        assert index.search(random(3, 4, dtype=torch.bfloat16), 5)[1].dtype == torch.bfloat16
        assert index.search(torch.zeros(0, 4), 5)[0].shape == (0, 5)

    def test_an_index_of_another_table_is_refused(self):
        table = random(101, 4)
        index = FaissIndex(table)
        index.check(table)
        index.check(table.bfloat16())
        with pytest.raises(DataError, match="holds 100 items of width 4, the item table 103"):
            index.check(random(104, 4))
        with pytest.raises(DataError, match="other item embeddings"):
            index.check(random(101, 4, seed=9))

    def test_training_the_table_after_building_is_noticed(self):
        table = random(101, 4)
        index = FaissIndex(table)
        table += 0.5
        with pytest.raises(DataError, match="build the index again"):
            index.check(table)

    def test_values_that_are_not_finite_are_refused(self):
        table = random(101, 4)
        with pytest.raises(DataError, match=r"user representations \(1, 4\) must be finite"):
            FaissIndex(table).search(torch.full((1, 4), float("nan")), 5)
        table[7] = float("nan")
        with pytest.raises(DataError, match=r"item table .* must be finite"):
            FaissIndex(table)

    def test_users_of_another_width_are_refused(self):
        with pytest.raises(DataError, match=r"needs users \(B, 4\), got \(2, 5\)"):
            FaissIndex(random(101, 4)).search(random(2, 5), 3)

    def test_a_copy_answers_as_the_original(self):
        users, index = random(5, 4, seed=1), FaissIndex(random(101, 4))
        assert torch.equal(copy.deepcopy(index).search(users, 5)[0], index.search(users, 5)[0])
