"""The evaluator with rankers whose right answer is known by hand."""

from __future__ import annotations

import json
from math import log2

import numpy as np
import polars as pl
import pytest

from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.evaluation.evaluator import candidates_digest, evaluate
from allmrec_hf.evaluation.rankers import PopularityRanker, best_unseen
from allmrec_hf.ranking import Ranks, hit_at_k, ndcg_at_k, reciprocal_rank, summarize_ranks


class TableRanker:
    """Scores every item by a fixed table and remembers what it was asked."""

    def __init__(self, table, name="table"):
        self.table, self.name = np.asarray(table, dtype=float), name
        self.seen_histories, self.seen_candidates = [], []

    def score(self, histories, candidates):
        self.seen_histories += [history.tolist() for history in histories]
        self.seen_candidates += candidates.tolist()
        return self.table[candidates]

    def retrieve(self, histories, top_k):
        tables = np.repeat(self.table[None], len(histories), axis=0)
        return best_unseen(tables, histories, top_k)


class WritingRanker(TableRanker):
    """Answers with given texts."""

    def __init__(self, answers, name="writer"):
        super().__init__(np.zeros(11), name)
        self.answers = answers

    def generate_titles(self, histories, candidates):
        start = getattr(self, "position", 0)
        self.position = start + len(histories)
        return self.answers[start : self.position]


def by_index(sign: int) -> np.ndarray:
    return sign * np.arange(11.0)


def test_ranks_of_known_scores(toy_data):
    result = evaluate([TableRanker(by_index(1)), TableRanker(by_index(-1), "reverse")], toy_data)
    # candidates [5 7 (2)], [(3) 8 5], [6 9 (10)], [9 2 (5)]
    assert result.ranks["table"].expected.tolist() == [3, 3, 1, 2]
    assert result.ranks["reverse"].expected.tolist() == [1, 1, 3, 2]
    assert list(result.to_dict()["methods"]["table"]["overall"]) == ["users", "hit@1", "ndcg@1", "mrr"]
    result = evaluate([TableRanker(by_index(1))], toy_data, cutoffs=(1, 3))
    overall = result.to_dict()["methods"]["table"]["overall"]
    assert overall["users"] == 4
    assert overall["hit@1"] == 0.25
    assert overall["ndcg@3"] == pytest.approx((0.5 + 0.5 + 1 + 1 / log2(3)) / 4)
    assert overall["mrr"] == pytest.approx((1 / 3 + 1 / 3 + 1 + 1 / 2) / 4)


def test_groups_follow_the_warmth_of_the_target(toy_data):
    # training counts 3 2 2 1 0 0 0 0 0 0: three of ten items are warm (1, 2, 3), all without interactions are cold
    result = evaluate([TableRanker(by_index(1))], toy_data)
    assert result.members["warm"].tolist() == [True, True, False, False]
    assert result.members["cold"].tolist() == [False, False, True, True]
    assert result.members["never_seen"].tolist() == [False, False, True, False]  # item 5 is in the validation part
    methods = result.to_dict()["methods"]["table"]
    assert [methods[group]["users"] for group in ("overall", "warm", "cold", "never_seen")] == [4, 2, 2, 1]
    assert methods["warm"]["mrr"] == pytest.approx(1 / 3)
    assert methods["never_seen"]["hit@1"] == 1
    assert result.to_dict()["groups"]["cold"] == {"items": 6, "max_interactions": 0}


def test_the_validation_split_asks_for_the_validation_item(toy_data):
    toy_data.candidate_items = [[5, 7, 8], [5, 8, 9], [6, 9, 10], [9, 2, 5]]
    ranker = TableRanker(by_index(1))
    result = evaluate([ranker], toy_data, split="validation")
    assert result.target_ids == ["i5", "i5", "i6", "i2"]
    assert ranker.seen_histories == [[1, 3], [1, 2], [1, 2], [3, 4]]
    assert result.members["never_seen"].tolist() == [True, True, True, False]


def test_every_ranker_gets_the_same_candidates_even_after_one_spoils_its_own(toy_data):
    class Spoiler(TableRanker):
        def score(self, histories, candidates):
            scores = super().score(histories, candidates)
            candidates[:] = 1
            return scores

    spoiler, honest = Spoiler(by_index(1), "spoiler"), TableRanker(by_index(1), "honest")
    result = evaluate([spoiler, honest], toy_data)
    assert spoiler.seen_candidates == honest.seen_candidates == toy_data.candidate_items
    assert result.ranks["spoiler"].expected.tolist() == result.ranks["honest"].expected.tolist()


def test_rankers_never_see_the_target_in_the_history(toy_data):
    ranker = TableRanker(by_index(1))
    evaluate([ranker], toy_data)
    assert ranker.seen_histories == [[1, 3, 5], [1, 2, 5], [1, 2, 6], [3, 4, 2]]


@pytest.mark.parametrize("protocol", ["candidates", "full"])
def test_the_batch_size_changes_nothing(toy_data, protocol):
    rankers = [PopularityRanker(toy_data.item_counts("train+validation")), TableRanker(by_index(1))]
    whole = evaluate(rankers, toy_data, protocol, cutoffs=(1, 2), num_retrieved=5)
    single = evaluate(rankers, toy_data, protocol, cutoffs=(1, 2), num_retrieved=5, batch_size=1)
    assert whole.to_dict() == single.to_dict()


def test_a_constant_score_is_no_better_than_chance(toy_data):
    result = evaluate([TableRanker(np.zeros(11))], toy_data)
    assert result.ranks["table"].expected.tolist() == [2, 2, 2, 2]
    assert result.to_dict()["methods"]["table"]["overall"]["hit@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("protocol", ["candidates", "paper", "full"])
@pytest.mark.parametrize("num_retrieved", [3, 6, 100])
def test_a_constant_score_has_exactly_chance_in_every_metric_and_group(toy_data, protocol, num_retrieved):
    toy_data.sequences[0] = [1, 3, 5, 3]  # under `full` a target that was seen is a miss for every method
    toy_data.candidate_items[0] = [5, 7, 3]
    cutoffs = {"candidates": (1, 2, 3), "paper": (1,), "full": (1, 3)}[protocol]
    report = evaluate(
        [TableRanker(np.zeros(11))], toy_data, protocol, cutoffs=cutoffs, num_retrieved=num_retrieved
    ).to_dict()
    assert report["methods"]["table"] == report["chance"]
    unseen = [8, 7, 7, 7]  # of ten items, user 0's target is none of the unseen
    expected = sum(1 / count for count in unseen[1:]) / 4 if protocol == "full" else 1 / 3
    assert report["chance"]["overall"]["hit@1"] == pytest.approx(expected)


def test_full_ranks_the_unseen_catalogue_and_counts_misses(toy_data):
    result = evaluate([TableRanker(by_index(1))], toy_data, "full", cutoffs=(1, 3), num_retrieved=7)
    # user 0 saw 1 3 5: unseen from the best 10 9 8 7 6 4 (2); user 1 saw 1 2 5: 10 9 8 7 6 4 (3); user 3 saw 3 4 2
    assert result.ranks["table"].expected.tolist() == [7, 7, 1, 6]
    result = evaluate([TableRanker(by_index(1))], toy_data, "full", cutoffs=(1, 3), num_retrieved=6)
    assert result.ranks["table"].expected.tolist() == [np.inf, np.inf, 1, 6]
    overall = result.to_dict()["methods"]["table"]["overall"]
    assert overall["mrr"] == pytest.approx((1 + 1 / 6) / 4)
    assert overall["hit@3"] == 0.25
    assert result.to_dict()["targets_already_seen"] == 0


def test_beside_candidates_the_whole_catalogue_is_ranked_by_all_that_can(toy_data):
    costly = TableRanker(by_index(-1), "asks the LLM for each item")
    costly.ranks_catalogue = False
    result = evaluate([TableRanker(by_index(1)), costly], toy_data, max_users=3, seed=2, full_ranking=True)
    alone = evaluate([TableRanker(by_index(1))], toy_data, "full", max_users=3, seed=2)
    assert result.report["full_ranking"] == alone.report
    assert set(result.report["methods"]) == {"table", "asks the LLM for each item"}
    assert result.to_table().endswith(alone.to_table())
    assert result.to_markdown().endswith(alone.to_markdown())
    assert "full_ranking" not in evaluate([costly], toy_data, full_ranking=True).report


def test_full_ranks_ties_by_expectation(toy_data):
    result = evaluate([TableRanker(np.zeros(11))], toy_data, "full", cutoffs=(1,), num_retrieved=100)
    assert result.ranks["table"].expected.tolist() == [4, 4, 4, 4]  # seven unseen items of equal score
    assert result.to_dict()["methods"]["table"]["overall"]["hit@1"] == pytest.approx(1 / 7)


@pytest.mark.parametrize("num_retrieved", range(1, 12))
def test_a_tie_that_crosses_the_end_of_the_list_is_counted_whole(toy_data, num_retrieved):
    """User 0 has the unseen items 2 4 6 7 8 9 10, target 2, tied with 4 6 7 behind 8 9 10: places 4 to 7."""
    table = [0, 0, 1, 0, 1, 0, 1, 1, 2, 2, 2]
    lengths = []

    class Asked(TableRanker):
        def retrieve(self, histories, top_k):
            lengths.append((len(histories), top_k))
            return super().retrieve(histories, top_k)

    result = evaluate([Asked(table)], toy_data, "full", cutoffs=(1,), num_retrieved=num_retrieved)
    user = result.ranks["table"][:1]
    within = [place for place in (4, 5, 6, 7) if place <= num_retrieved]
    assert hit_at_k(user, num_retrieved)[0] == pytest.approx(len(within) / 4)
    assert reciprocal_rank(user)[0] == pytest.approx(sum(1 / place for place in within) / 4)
    assert ndcg_at_k(user, 6)[0] == pytest.approx(sum(1 / log2(1 + place) for place in within if place <= 6) / 4)
    assert (user.better[0], user.tied[0]) == ((3, 3) if within else (np.inf, 0))
    assert lengths[0] == (4, num_retrieved + 1)


def test_a_list_that_ends_above_other_items_asks_no_further(toy_data):
    class Asked(TableRanker):
        calls = 0

        def retrieve(self, histories, top_k):
            self.calls += 1
            return super().retrieve(histories, top_k)

    ranker = Asked(by_index(1))
    evaluate([ranker], toy_data, "full", cutoffs=(1,), num_retrieved=3)
    assert ranker.calls == 1


def test_a_ranker_that_retrieves_fewer_items_than_asked_for_has_no_others(toy_data):
    class Short(TableRanker):
        def retrieve(self, histories, top_k):
            items, scores = super().retrieve(histories, 2)
            return items, np.zeros(scores.shape)

    result = evaluate([Short(by_index(1))], toy_data, "full", cutoffs=(1,), num_retrieved=5)
    assert result.ranks["table"].expected.tolist() == [np.inf, np.inf, 1.5, np.inf]  # user 2's target 10 is of 10 and 9


def test_a_target_that_the_user_had_seen_is_a_miss_and_is_counted(toy_data):
    toy_data.sequences[0] = [1, 2, 5, 2]
    report = evaluate([TableRanker(by_index(1))], toy_data, "full", cutoffs=(1,)).to_dict()
    assert report["targets_already_seen"] == 1


def test_paper_counts_only_exact_titles(toy_data):
    writer = WritingRanker(["Title 2", "Title 3 and more", "itle 10", " Title  5\n"])
    result = evaluate([writer], toy_data, "paper")
    assert result.ranks["writer"].expected.tolist() == [1, np.inf, np.inf, 1]
    overall = result.to_dict()["methods"]["writer"]["overall"]
    assert overall == {"hit@1": 0.5, "users": 4, "valid": 0.5}
    assert result.answers["writer"][1] == "Title 3 and more"


def test_paper_takes_the_top_candidate_of_a_ranker_that_writes_nothing(toy_data):
    result = evaluate([TableRanker(by_index(-1)), WritingRanker(["Title 9"] * 4)], toy_data, "paper")
    assert result.ranks["table"].expected.tolist() == [1, 1, np.inf, np.inf]
    methods = result.to_dict()["methods"]
    assert methods["table"]["overall"] == {"hit@1": 0.5, "users": 4}
    assert methods["writer"]["overall"] == {"hit@1": 0.0, "users": 4, "valid": 0.5}  # Title 9 is a candidate of two


def test_paper_shares_the_hit_among_candidates_tied_for_the_first_place(toy_data):
    # candidates [5 7 (2)], [(3) 8 5], [6 9 (10)], [9 2 (5)]
    table = [0, 0, 4, 1, 0, 4, 0, 3, 1, 4, 4]
    result = evaluate([TableRanker(table)], toy_data, "paper")
    assert result.to_dict()["methods"]["table"]["overall"]["hit@1"] == pytest.approx((1 / 2 + 0 + 1 / 2 + 1 / 3) / 4)


def test_paper_compares_with_the_form_of_the_title_in_the_prompt(toy_data):
    writer = WritingRanker(["2", "2", "2", "2"])
    writer.prompt_title = str
    assert evaluate([writer], toy_data, "paper").ranks["writer"].expected.tolist() == [1, np.inf, np.inf, np.inf]


def test_a_sample_is_seeded_and_said_in_the_report(toy_data):
    first = evaluate([TableRanker(by_index(1))], toy_data, max_users=2, seed=5)
    again = evaluate([TableRanker(by_index(1))], toy_data, max_users=2, seed=5)
    assert first.user_ids == again.user_ids
    assert len(first.user_ids) == 2
    seen = {tuple(evaluate([TableRanker(by_index(1))], toy_data, max_users=2, seed=s).user_ids) for s in range(20)}
    assert len(seen) > 1
    report = first.to_dict()
    assert (report["users"], report["users_available"], report["seed"]) == (2, 4, 5)
    assert "sample of 2 of 4 users (seed 5)" in first.to_table()
    assert report["candidates_sha256"] == evaluate([TableRanker(by_index(1))], toy_data).to_dict()["candidates_sha256"]


def test_a_sample_larger_than_the_split_takes_everybody(toy_data):
    assert evaluate([TableRanker(by_index(1))], toy_data, max_users=99).to_dict()["users"] == 4


def test_the_digest_changes_with_any_candidate(toy_data):
    before = candidates_digest(toy_data, "test")
    assert before == candidates_digest(toy_data, "test")
    toy_data.candidate_items[3][0] = 8
    assert candidates_digest(toy_data, "test") != before


def test_the_report_is_json_and_says_where_it_comes_from(toy_data, tmp_path):
    result = evaluate([TableRanker(by_index(1))], toy_data)
    stored = json.loads(result.write_json(tmp_path / "report.json").read_text())
    assert stored == result.to_dict()
    assert stored["dataset"] == "toy"
    assert (stored["protocol"], stored["split"], stored["num_candidates"]) == ("candidates", "test", 3)
    assert stored["candidates_seed"] == 3
    assert {"python", "allmrec-hf", "numpy", "torch"} <= set(stored["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_empty_group_shows_a_dash_and_zero_users(toy_data):
    toy_data.sequences = [[1, 3, 5, 2], [1, 2, 5, 3]]
    toy_data.candidate_items = toy_data.candidate_items[:2]
    result = evaluate([TableRanker(by_index(1))], toy_data, cutoffs=(1, 3))
    assert result.to_dict()["methods"]["table"]["never_seen"] == {"users": 0}
    line = result.to_table().splitlines()[-1]
    assert line.split() == ["never", "seen", "table", "0", "-", "-", "-", "-"]
    assert "| never seen | table | 0 | - | - | - | - |" in result.to_markdown()


def test_the_table_shows_the_numbers_of_the_report(toy_data):
    rankers = [TableRanker(by_index(1)), TableRanker(by_index(-1), "a-longer-name")]
    result = evaluate(rankers, toy_data, cutoffs=(1, 2, 3))
    lines = result.to_table().splitlines()
    assert lines[2].split() == ["targets", "method", "users", "hit@1", "hit@2", "ndcg@2", "hit@3", "ndcg@3", "mrr"]
    row = result.to_dict()["methods"]["a-longer-name"]["overall"]
    assert lines[5].split()[:4] == ["overall", "a-longer-name", "4", f"{row['hit@1']:.4f}"]
    widths = {len(line) for line in lines[2:] if not line.endswith("-")}
    assert len(widths) == 1
    assert result.to_markdown().splitlines()[1].startswith("| --- | --- | ---: |")


def test_every_rank_is_kept_per_user(toy_data, tmp_path):
    result = evaluate([TableRanker(by_index(1)), WritingRanker(["Title 2"] * 4)], toy_data, "paper")
    frame = pl.read_parquet(result.write_per_user(tmp_path / "ranks.parquet"))
    assert frame.columns == ["user_id", "target", "warm", "cold", "never_seen", "method", "rank", "tied", "answer"]
    assert frame.height == 8
    table = frame.filter(method="table")
    assert table["target"].to_list() == ["i2", "i3", "i10", "i5"]
    assert table["answer"].null_count() == 4
    assert frame.filter(method="writer")["answer"].to_list() == ["Title 2"] * 4


def test_the_report_can_be_made_again_from_the_ranks(toy_data):
    result = evaluate([TableRanker(by_index(1))], toy_data)
    stored = result.per_user().filter(pl.col("cold"))
    ranks = Ranks.of_expected(stored["rank"].to_numpy(), stored["tied"].to_numpy())
    assert result.to_dict()["methods"]["table"]["cold"] == summarize_ranks(ranks, (1,))


def test_nan_scores_name_the_ranker(toy_data):
    table = by_index(1)
    table[7] = np.nan
    with pytest.raises(ALLMRecError, match="ranker 'broken' returned NaN scores for 1 of 4"):
        evaluate([TableRanker(by_index(1)), TableRanker(table, "broken")], toy_data)


def test_a_wrong_shape_names_the_ranker(toy_data):
    ranker = TableRanker(by_index(1), "short")
    ranker.score = lambda histories, candidates: np.zeros((len(histories), 2))
    with pytest.raises(ALLMRecError, match=r"ranker 'short' returned scores \(4, 2\) for \(4, 3\) items"):
        evaluate([ranker], toy_data)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([[1, 4], [4, 6], [4, 5], [1, 5]], "has seen"),
        ([[4, 4], [4, 6], [4, 5], [1, 5]], "twice"),
        ([[4, 11], [4, 6], [4, 5], [1, 5]], "outside a catalogue of 10 items"),
        ([[4, 6, 7, 8, 9]] * 4, r"expected \(4, at most 4\)"),
        ([[4, 6]], r"expected \(4, at most 4\)"),
    ],
)
def test_a_retrieval_against_the_rules_names_the_ranker(toy_data, items, message):
    ranker = TableRanker(by_index(1), "rogue")
    ranker.retrieve = lambda histories, top_k: (np.array(items), np.zeros(np.shape(items)))
    with pytest.raises(ALLMRecError, match=f"ranker 'rogue' retrieved.*{message}"):
        evaluate([ranker], toy_data, "full", cutoffs=(1,), num_retrieved=3)


def test_a_missing_answer_names_the_ranker(toy_data):
    with pytest.raises(ALLMRecError, match="'writer' generated 1 titles for 4 users"):
        evaluate([WritingRanker(["Title 2"])], toy_data, "paper")


def test_candidates_without_their_target_name_the_user(toy_data):
    toy_data.candidate_items[1] = [8, 9, 7]
    with pytest.raises(DataError, match=r"1 of 4 candidate rows.*'u1'"):
        evaluate([TableRanker(by_index(1))], toy_data)


def test_warm_cold_and_never_seen_are_counted_in_the_data_the_methods_know(toy_data):
    known = type(toy_data)(sequences=[[10, 10, 10, 1], [5, 10, 3, 1]], candidate_items=[])
    result = evaluate([TableRanker(by_index(1))], toy_data, known=known)
    # known in training: item 5 once, 10 three times; in validation 10 and 3; the targets are 2, 3, 10, 5
    assert result.members["warm"].tolist() == [False, False, True, True]
    assert result.members["never_seen"].tolist() == [True, False, False, False]
    assert result.to_dict()["groups"]["never_seen"] == {"items": 7}
    known.num_items = 9
    with pytest.raises(DataError, match="toy have 9 items, the evaluated data toy 10; both must share one catalogue"):
        evaluate([TableRanker(by_index(1))], toy_data, known=known)


def test_users_are_grouped_by_what_is_known_of_them(toy_data):
    toy_data.sequences[1] = [1, 4, 4, 6, 2, 5, 3]
    result = evaluate([TableRanker(by_index(1))], toy_data, history_buckets=(2, 3, 5))
    names = [name for name in result.members if name.startswith("history")]
    assert names == ["history 1-2", "history 3", "history 4-5", "history 6+"]
    assert [result.members[name].tolist() for name in names] == [
        [False, False, False, False],
        [True, False, True, True],
        [False, False, False, False],
        [False, True, False, False],
    ]
    groups = result.to_dict()["methods"]["table"]
    assert (groups["history 1-2"], groups["history 3"]["users"]) == ({"users": 0}, 3)
    assert result.to_table().splitlines()[-1].split()[:4] == ["history", "6+", "table", "1"]
    assert result.per_user().columns[5:9] == names


def test_a_group_of_the_callers_own_follows_a_sample(toy_data):
    mine = [True, False, True, False]
    whole = evaluate([TableRanker(by_index(1))], toy_data, groups={"mine": mine})
    assert whole.to_dict()["methods"]["table"]["mine"] == summarize_ranks([3, 1], (1,)) | {"users": 2}
    sample = evaluate([TableRanker(by_index(1))], toy_data, groups={"mine": mine}, max_users=2, seed=1)
    assert sample.members["mine"].tolist() == [mine[toy_data.user_ids.index(user)] for user in sample.user_ids]
    assert whole.to_table().splitlines()[-1].split()[:3] == ["mine", "table", "2"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"warm": [True] * 4}, "cannot be called 'warm'"),
        ({"rank": [True] * 4}, "cannot be called 'rank'"),
        ({"history 9": [True] * 4}, "cannot be called 'history 9'"),
        ({"a\nb": [True] * 4}, "not printable"),
        ({"mine": [True] * 3}, r"group 'mine' is bool \(3,\); expected booleans \(4,\)"),
        ({"mine": [1, 0, 1, 0]}, r"group 'mine' is int64 \(4,\)"),
    ],
)
def test_groups_that_cannot_be_shown_are_refused(toy_data, groups, message):
    with pytest.raises(ALLMRecError, match=message):
        evaluate([TableRanker(by_index(1))], toy_data, groups=groups)


def test_a_cut_off_above_the_candidates_is_refused_with_both_numbers(toy_data):
    with pytest.raises(DataError, match="toy: the cut-off 5 is above the 3 candidates of each user"):
        evaluate([TableRanker(by_index(1))], toy_data, cutoffs=(1, 5))
    assert "hit@5" in evaluate([TableRanker(by_index(1))], toy_data, "full").to_dict()["methods"]["table"]["overall"]
    evaluate([TableRanker(by_index(1))], toy_data, "paper", cutoffs=(1, 5))  # shows Hit@1 whatever is asked


def test_a_split_without_users_is_an_error(toy_data):
    toy_data.sequences, toy_data.candidate_items = [], np.zeros((0, 3), dtype=int)
    with pytest.raises(DataError, match="no users"):
        evaluate([TableRanker(by_index(1))], toy_data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "half"}, "candidates, full, paper"),
        ({"split": "train"}, "validation, test"),
        ({"max_users": 0}, "max_users must be at least 1"),
        ({"max_users": 2.5}, "max_users must be at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"cutoffs": ()}, "positive integers"),
        ({"cutoffs": (0, 5)}, "positive integers"),
        ({"protocol": "full", "num_retrieved": 5}, "cannot show Hit@10"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_arguments_out_of_range_say_what_is_allowed(toy_data, arguments, message):
    with pytest.raises(ALLMRecError, match=message):
        evaluate([TableRanker(by_index(1))], toy_data, **arguments)


def test_two_rankers_cannot_share_a_name(toy_data):
    with pytest.raises(ALLMRecError, match="names of their own"):
        evaluate([TableRanker(by_index(1)), TableRanker(by_index(-1))], toy_data)


def test_the_full_ranking_beside_candidates_has_their_cut_offs_too(small_data):
    popularity = PopularityRanker(small_data.item_counts("train"))
    found = evaluate([popularity], small_data, cutoffs=(1, 3), full_ranking=True).report
    for report, expected in ((found, [1, 3]), (found["full_ranking"], [1, 3, 5, 10])):
        shown = report["methods"]["popularity"]["overall"]
        assert [name for name in shown if name.startswith("hit@")] == [f"hit@{k}" for k in expected]
