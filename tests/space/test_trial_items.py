"""New items of a visitor rank as added ones do and leave the checkpoint as it is; their ranks by kind are counted."""

import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.errors import DataError
from allmrec_hf.ranker import CatalogueRanker, UserBatch
from allmrec_hf.space.page_model import PageModel
from allmrec_hf.space.ranked_lists import column_rankers, ranked_list
from allmrec_hf.space.trial_items import (
    MOST_TRIALS,
    TrialPipelines,
    catalogue_ranks,
    history_kinds,
    new_trial,
    ranks_by_kind,
)

ITEM = {"item_id": "new-1", "title": "The Dusty Saddle", "description": "A western film about horses."}
HISTORY = ["M0590", "M0638", "M0397"]


class FixedScores(CatalogueRanker):
    """Scores of items by hand, the same for every user but for the user's own sign."""

    kind = "fixed"
    table = torch.tensor([0.0, 5.0, 4.0, 4.0, 3.0, 9.0])  # row 0 is padding
    width = 1

    def vectors(self, users):
        return users.representations

    def score_range(self, vectors, start, stop):
        return vectors * self.table[start:stop]

    def score_items(self, vectors, items):
        return vectors * self.table[items]


@pytest.fixture
def by_hand():
    return FixedScores(None, None)


def users(*histories, signs=None):
    signs = signs or [1.0] * len(histories)
    return UserBatch([list(one) for one in histories], torch.tensor(signs).unsqueeze(1), torch.zeros(len(histories), 1))


@pytest.mark.parametrize("size", [2, 65536])
def test_a_rank_counts_the_better_items_that_the_history_does_not_hold(by_hand, size, monkeypatch):
    monkeypatch.setattr("allmrec_hf.space.trial_items.RANGE", size)
    asked = users([5], [1, 5], [4], signs=[1.0, 1.0, -1.0])
    assert catalogue_ranks(by_hand, asked, 2, 5) == [2, 1, 1]  # item 3 ties; negated, 4 alone is better and is held
    assert catalogue_ranks(by_hand, asked, 4, 5) == [4, 3, 1]
    assert catalogue_ranks(by_hand, users([2]), 5, 5) == [1]


def test_an_item_is_tried_out_as_it_would_be_added(pipe):
    tried = TrialPipelines(pipe).with_items([ITEM])
    added = load_pipeline("demo")
    added.add_items([ITEM])
    lists = [
        ranked_list(one, column_rankers(one, ["likelihood", "cf"]), HISTORY, "likelihood", top_k=20, among=["new-1"])
        for one in (tried, added)
    ]
    assert lists[0] == lists[1]
    assert "new-1" in lists[0].candidates


def test_the_checkpoint_and_other_visitors_do_not_change(pipe):
    before = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    trials = TrialPipelines(pipe, most_kept=2)
    first, second = trials.with_items([ITEM]), trials.with_items([{**ITEM, "title": "Another"}])
    assert first.processor.catalog.title(1001) == "The Dusty Saddle"
    assert second.processor.catalog.title(1001) == "Another"
    assert (first.processor.title(1001), second.processor.title(1001)) == ("The Dusty Saddle", "Another")
    assert first.model.language_model is pipe.model.language_model
    assert (
        len(pipe.processor.catalog) == pipe.model.cf_encoder.num_items == pipe.model.config.cf_config.num_items == 1000
    )
    after = pipe.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_few_pipelines_are_kept_and_the_same_items_take_the_same_one(pipe):
    trials = TrialPipelines(pipe, most_kept=1)
    first = trials.with_items([ITEM])
    assert trials.with_items([dict(ITEM)]) is first
    trials.with_items([{**ITEM, "title": "Another"}])
    assert len(trials) == 1
    assert trials.with_items([ITEM]) is not first
    assert trials.with_items([]) is pipe


def test_a_form_is_checked_and_its_id_is_a_new_one():
    catalog = ItemCatalog.from_records([{"item_id": "new-1", "title": "Taken"}])
    made = new_trial(catalog, [], "  A title ", None)
    assert made == {"item_id": "new-2", "title": "A title", "description": ""}
    assert new_trial(catalog, [made], "Another", "")["item_id"] == "new-3"
    with pytest.raises(DataError, match="no title"):
        new_trial(catalog, [], " \n", "text")
    with pytest.raises(DataError, match="shorten"):
        new_trial(catalog, [], "x" * 301, "")
    with pytest.raises(DataError, match="20 new items already"):
        new_trial(catalog, [made] * MOST_TRIALS, "One more", "")


def test_kinds_are_the_categories_with_histories_of_their_own_items(pipe):
    kinds = history_kinds(pipe)
    genres = pipe.processor.catalog.frame["genre"].to_list()
    assert {kind.name for kind in kinds} == set(genres)
    for kind in kinds:
        assert len(kind.histories) == 12
        assert all(genres[index - 1] == kind.name for history in kind.histories for index in history)
        assert all(len(set(history)) == 5 for history in kind.histories)
    assert history_kinds(pipe) == kinds


def test_without_categories_kinds_are_neighbourhoods_named_by_their_titles(pipe):
    plain = ItemCatalog(pipe.processor.catalog.frame.drop("genre", "topic"))
    kept, pipe.processor.catalog = pipe.processor.catalog, plain
    try:
        kinds = history_kinds(pipe)
        assert kinds == history_kinds(pipe)
    finally:
        pipe.processor.catalog = kept
    assert len(kinds) == 10
    assert all(kind.name.startswith("Like ") for kind in kinds)


def test_a_western_ranks_highest_by_text_for_histories_of_westerns(pipe):
    tried = TrialPipelines(pipe).with_items([ITEM])
    columns = column_rankers(tried, ["cf"])
    kinds = ranks_by_kind(tried, {"text": columns["text"]}, history_kinds(pipe), 1001)
    assert kinds[0].name == "Western"
    users_of = UserBatch.encode(tried.model, tried.processor, [kinds[0].best_history])
    assert catalogue_ranks(columns["text"], users_of, 1001, 1001) == [kinds[0].best["text"]]


def test_the_place_for_a_history_is_told_by_every_way_of_scoring(pipe, model):
    placement = model.place(HISTORY, [ITEM], "new-1")
    told = {place.ranker: place for place in placement.places}
    assert (told["likelihood"].of, told["likelihood"].whole) == (20, False)
    assert (told["cf"].of, told["cf"].whole) == (998, True)
    added = load_pipeline("demo")
    added.add_items([ITEM])
    ranked = added({"history": HISTORY}, ranker="cf", top_k=998, num_candidates=998)
    assert told["cf"].rank == next(row["rank"] for row in ranked if row["item_id"] == "new-1")
    assert model.place([], [ITEM], "new-1").places == []


def test_a_checkpoint_without_its_text_encoder_says_so(pipe, monkeypatch):
    from allmrec_hf.errors import CheckpointError

    def missing(self):
        raise CheckpointError("this checkpoint names no text encoder")

    monkeypatch.setattr(type(pipe.model), "text_encoder", property(missing))
    told = PageModel("demo", pipe)
    assert told.takes_no_items == "this checkpoint names no text encoder"
    with pytest.raises(Exception, match="names no text encoder"):
        told.place(HISTORY, [ITEM], "new-1")
