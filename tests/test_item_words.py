"""The words of item texts, and the ranker `words` by them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from allmrec_hf import RecommendationPipeline
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.item_words import WORDS_OF_ITEM, ItemWords
from allmrec_hf.ranker import UserBatch
from allmrec_hf.ranker_built_in import rankers_of
from allmrec_hf.ranker_words import SharedWords
from allmrec_hf.training.fusion_fitting import take_rankers
from allmrec_hf.training.samples import Samples
from allmrec_hf.training.text_fitting import RECENCIES, fit_words
from tests.tiny import tiny_catalog, tiny_model, tiny_processor

TEXTS = ["Red pen, red ink", "red_ink pen", "Blue pen", "Blue stapler 2000", "unique"]


def dense(words):
    """Return `(N + 1, V)` the table of an `ItemWords` with its words side by side."""
    table = torch.zeros(len(words.places), len(words.keys))
    return table.scatter_add_(1, words.places.long(), words.weights.float())


def test_weights_by_hand():
    words = ItemWords.of(TEXTS, np.array([True, True, True, False, False]))
    # of three items that count: red in 2, ink in 2, pen in 3, blue in 1; stapler, 2000, unique are in one item alone
    red, ink, pen, blue = (max(math.log(4 / (count + 1)), 1e-3) for count in (2, 2, 3, 1))
    rows = [
        [(1 + math.log(2)) * red, ink, pen],
        [red, ink, pen],
        [blue, pen],
        [blue, math.log(4), math.log(4)],  # the last two are not in the vocabulary but make the text longer
    ]
    unit = [[weight / math.hypot(*row) for weight in row] for row in rows]
    products = dense(words) @ dense(words).T
    assert len(words.keys) == 4
    by_hand = sum(a * b for a, b in zip(unit[0], unit[1], strict=True))
    assert products[1, 2].item() == pytest.approx(by_hand, abs=1e-3)
    assert products[3, 4].item() == pytest.approx(unit[2][0] * unit[3][0], abs=1e-3)
    assert products[1, 1].item() == pytest.approx(1, abs=2e-3)
    assert products[4, 4].item() == pytest.approx(unit[3][0] ** 2, abs=1e-3)
    assert not products[5].any()
    assert not words.weights[0].any()


def test_case_and_punctuation_do_not_count_and_any_script_does():
    words = ItemWords.of(["Über-Café №7", "ÜBER café", "книга_7", "КНИГА", "हिन्दी किताब", "हिन्दी", "तीन दिन"])
    products = dense(words) @ dense(words).T
    assert products[5, 6] > 0.3
    assert products[5, 7] == 0  # they share letters, and no word
    assert products[1, 2] > 0.5
    assert products[3, 4] > 0.5
    assert products[1, 4] == 0


def test_the_heaviest_words_of_an_item_are_kept():
    rare = " ".join(f"rare{number}" for number in range(WORDS_OF_ITEM))
    texts = [f"common {rare}", f"common {rare}", *["common"] * 20]
    words = ItemWords.of(texts)
    common = int(np.argmin(words.rarities.numpy()))
    assert dense(words)[1, common] == 0
    assert (dense(words)[1] > 0).sum() == WORDS_OF_ITEM
    assert dense(words)[3, common] == 1


def test_the_commonest_words_make_the_vocabulary_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr("allmrec_hf.item_words.MOST_WORDS", 2)
    words = ItemWords.of(["a b c", "a b c", "a b", "a"])
    assert len(words.keys) == 2
    assert dense(words)[4].sum() == 1  # a is one of them
    assert (dense(words)[1] > 0).sum() == 2


def test_an_added_item_gets_the_row_of_one_with_the_same_text():
    words = ItemWords.of(TEXTS)
    words.append(["never heard", TEXTS[0], ""])
    assert not words.weights[6].any()
    assert torch.equal(dense(words)[7], dense(words)[1])
    assert not words.weights[8].any()


@pytest.mark.parametrize("texts", [["", ""], ["a", "b"], []])
def test_items_that_share_no_word_score_0(texts):
    words = ItemWords.of(texts)
    words.append(["a"])
    profile = words.profile([1], torch.ones(1)).unsqueeze(0)
    assert words.score_rows(profile, slice(1, None)).abs().max() == 0


def test_a_range_scores_as_a_list_and_as_the_dense_product():
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.zipf(1.5, 12) % 50) for _ in range(40)]
    words = ItemWords.of(texts)
    profiles = torch.stack([words.profile([1, 2], torch.tensor([0.25, 0.75])), words.profile([9], torch.ones(1))])
    naive = profiles @ dense(words).T
    mixed = 0.25 * dense(words)[1] + 0.75 * dense(words)[2]
    assert torch.allclose(profiles[0], mixed, atol=1e-6)
    assert torch.allclose(words.score_rows(profiles, slice(3, 41)), naive[:, 3:41], atol=1e-6)
    items = torch.tensor([[4, 0, 7], [40, 1, 1]])
    assert torch.allclose(words.score_items(profiles, items), naive.gather(1, items), atol=1e-6)


def pipeline_with_words(recency=0.5):
    model = tiny_model("llama", 8)
    processor = tiny_processor(tiny_catalog(8))
    model.keep_words(processor.catalog.texts(), recency)
    return model, processor


def test_a_score_by_hand_and_the_checkpoint_loads_it_again(tmp_path):
    model, processor = pipeline_with_words()
    table = dense(model.item_table.words)
    users = UserBatch.encode(model, processor, [[3, 1, 7], [2]])
    ranker = SharedWords(model, processor)
    scores = ranker.score(users, [[4, 5], [4]])
    mean = (table[3] + 2 * table[1] + 4 * table[7]) / 7
    assert torch.allclose(scores.scores[0], table[[4, 5]] @ mean, atol=1e-6)
    assert scores.scores[1, 0].item() == pytest.approx((table[4] @ table[2]).item(), abs=1e-6)
    assert scores.scores[1, 1] == float("-inf")
    assert list(scores.parts) == ["words"]
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, language_model=None)
    assert again.config.rankers["words"] == {"recency": 0.5, "vocabulary": len(model.item_table.words.keys)}
    for name, value in model.item_table.words.state_dict().items():
        assert torch.equal(again.item_table.words.state_dict()[name], value), name
    new = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    for one in (model, again):
        one.add_items(new, [processor.catalog.text(3), "something else"])
    assert torch.equal(dense(model.item_table.words), dense(again.item_table.words))
    assert torch.equal(dense(again.item_table.words)[9], table[3])
    again.save_pretrained(tmp_path)
    grown = AutoModel.from_pretrained(tmp_path, language_model=None)
    assert torch.equal(dense(grown.item_table.words), dense(again.item_table.words))


def test_added_items_without_texts_have_no_words_and_another_number_of_them_is_refused(monkeypatch):
    model, processor = pipeline_with_words()
    told = []
    monkeypatch.setattr("allmrec_hf.modeling_allmrec.logger.warning", lambda text, *_: told.append(text))
    model.add_items(torch.randn(1, 12), ["one"])
    assert not told
    model.add_items(torch.randn(1, 12))
    assert "without their texts" in told[0]
    assert not model.item_table.words.weights[10].any()
    with pytest.raises(ALLMRecError, match="there are 1 texts for 2 text embeddings"):
        model.add_items(torch.randn(2, 12), ["one"])
    assert model.cf_encoder.num_items == 10
    assert len(model.item_table.words.weights) == 11
    with pytest.raises(ALLMRecError, match="there are 8 texts for 10 items"):
        model.keep_words(processor.catalog.texts())


def test_items_added_to_a_pipeline_rank_by_their_words_at_once():
    model, processor = pipeline_with_words()
    model._text_encoder = SimpleNamespace(encode=lambda texts, **_: torch.ones(len(texts), 12))
    pipe = RecommendationPipeline(model=model, processor=processor)
    known = processor.catalog
    pipe.add_items([{**known.frame.row(2, named=True), "item_id": "new"}])
    answer = pipe({"history": [known.item_id(3)]}, ranker="words", top_k=3)
    first = [item["item_id"] for item in answer[:2]]
    assert first == ["I7", "new"]  # both have its words but for a number of their own
    assert answer[0]["score"] == answer[1]["score"] > answer[2]["score"]


@pytest.mark.parametrize("words", [{"recency": 0.7, "vocabulary": 3}, None])
def test_a_refit_takes_the_words_of_its_run_where_that_has_them(words):
    model, processor = tiny_model("llama", 8), tiny_processor(tiny_catalog(8))
    part = {"text": [1.0, 1.0]}
    weights = {"parts": part, "popularity": 0.0}
    fusion = {"parts": ["text"], "pivot": 1.0, "gated": weights, "sum": weights}
    rankers = {"text": {"recency": 0.5, "whitening": None}, "fusion": fusion}
    fitted = SimpleNamespace(rankers=rankers if words is None else {**rankers, "words": words}, ranker="fusion")
    take_rankers(model, processor, torch.randn(9, 12), fitted)
    assert ("words" in model.config.rankers) == ("words" in rankers_of(model.config)) == (words is not None)
    if words:
        assert model.config.rankers["words"]["recency"] == 0.7


@pytest.mark.parametrize(("telling", "recency"), [(1, RECENCIES[0]), (0, RECENCIES[-1])])
def test_the_recency_of_the_least_loss_is_chosen(telling, recency):
    """The next item shares its word with the last item of the history alone, or with the first alone."""
    model, processor = tiny_model("llama", 40), tiny_processor(tiny_catalog(40))
    titles = [f"word{number % 20}" for number in range(40)]
    processor.catalog = type(processor.catalog).from_records(
        [{"item_id": str(number), "title": title} for number, title in enumerate(titles)]
    )
    targets = np.arange(21, 41)
    pairs = [((target * 7) % 20 + 1, target - 20) for target in targets]
    histories = [np.array(pair if telling else pair[::-1]) for pair in pairs]
    candidates = np.tile(targets, (20, 1))
    fit_words(model, processor, Samples(np.arange(20), histories, targets), candidates)
    assert model.config.rankers["words"]["recency"] == recency
