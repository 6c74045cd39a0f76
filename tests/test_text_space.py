"""The space in which texts are compared, and the ranker `text` in it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from allmrec_hf.item_table import ItemTable
from allmrec_hf.ranker import TextSimilarity, UserBatch
from allmrec_hf.text_space import SMALLEST_VARIANCE, TextSpace, text_vectors
from allmrec_hf.training.samples import Samples
from allmrec_hf.training.text_fitting import RECENCIES, WHITENINGS, fit_text
from tests.tiny import tiny_catalog, tiny_model, tiny_processor


def drawn(count=200, dim=6, seed=0):
    """Return embeddings with a mean of their own and directions of unlike strength."""
    scale = torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1, 0.03])[:dim]
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + 2.0


def test_a_space_that_is_not_fitted_changes_nothing_but_the_length():
    vectors = drawn()
    assert torch.allclose(TextSpace(6)(vectors), F.normalize(vectors, dim=1), atol=1e-6)


def test_power_0_takes_the_mean_off_and_0_5_evens_out_what_is_left():
    vectors, space = drawn(), TextSpace(6)
    space.fit(vectors, 0.0)
    unit = F.normalize(vectors, dim=1)
    assert torch.allclose(space(vectors), F.normalize(unit - unit.mean(dim=0), dim=1), atol=1e-5)
    space.fit(vectors, 0.5)
    centred = (unit - unit.mean(dim=0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(unit))
    whitened = (unit - space.mean).double() @ space.whitening.double()
    by_hand = variances / (variances + SMALLEST_VARIANCE * variances.mean())  # of each direction, afterwards
    assert torch.allclose((whitened @ directions).square().mean(dim=0), by_hand, atol=1e-3)


def test_items_without_a_text_neither_count_nor_get_a_direction():
    vectors = drawn()
    padded = torch.cat([vectors, torch.zeros(50, 6)])
    alone, beside = TextSpace(6), TextSpace(6)
    alone.fit(vectors, 0.25)
    beside.fit(padded, 0.25)
    assert torch.equal(alone.whitening, beside.whitening)
    assert not beside(padded)[200:].any()


def test_rows_read_some_at_once_give_the_space_of_all_at_once(monkeypatch):
    vectors = drawn()
    unit = F.normalize(vectors, dim=1).double()
    centred = unit - unit.mean(dim=0)
    monkeypatch.setattr("allmrec_hf.text_space.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("allmrec_hf.item_table.ROWS_AT_ONCE", 7)
    space = TextSpace(6)
    space.fit(vectors, 0.5)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(unit))
    whitening = (directions * (variances + SMALLEST_VARIANCE * variances.mean()).pow(-0.5)) @ directions.T
    assert torch.allclose(space.mean.double(), unit.mean(dim=0), atol=1e-6)
    assert torch.allclose(space.whitening.double(), whitening, atol=1e-4)
    table = ItemTable(200, 4, 6)
    table.keep_texts(torch.cat([torch.ones(1, 6), vectors]), 0.5)  # row 0 is padding, whatever it holds
    assert torch.equal(table.text_directions, torch.cat([torch.zeros(1, 6), space(vectors)]).half())


@pytest.mark.parametrize("embeddings", [torch.zeros(0, 6), torch.zeros(5, 6), torch.ones(5, 6), drawn(3)])
def test_few_texts_or_equal_ones_give_finite_directions(embeddings):
    for power in (0.0, 0.25, 0.5):
        space = TextSpace(6)
        space.fit(embeddings, power)
        assert space(drawn(4)).isfinite().all()


def test_the_space_is_fitted_on_items_with_interactions_and_added_items_come_into_it():
    texts = torch.cat([torch.zeros(1, 6), drawn(20)])
    table = ItemTable(20, 4, 6)
    table.interaction_counts[1:11] = 3
    table.keep_texts(texts, 0.25)
    by_hand = TextSpace(6)
    by_hand.fit(texts[1:11], 0.25)
    assert torch.equal(table.text_directions, by_hand(texts).half())
    assert not table.text_directions[0].any()
    new = drawn(2, seed=5)
    table.append(torch.ones(2, 4), new, ["", ""])
    assert torch.equal(table.text_directions[-2:], by_hand(new).half())
    table.keep_texts(texts, None)
    assert table.text_space is None
    assert torch.equal(table.text_directions, F.normalize(texts, dim=1).half())


def test_a_text_score_by_hand_and_the_checkpoint_loads_it_again(tmp_path):
    model = tiny_model("llama", 8)
    processor = tiny_processor(tiny_catalog(model.cf_encoder.num_items))
    texts = torch.cat([torch.zeros(1, 12), torch.randn(8, 12, generator=torch.Generator().manual_seed(1))])
    model.keep_text_embeddings(texts, recency=0.5, whitening=0.25)
    table = model.item_table.text_directions.float()
    users = UserBatch.encode(model, processor, [[3, 1, 7], [2]])
    scores = TextSimilarity(model, processor).score(users, [[4, 5], [4, 5]]).scores
    mean = (table[3] + 2 * table[1] + 4 * table[7]) / 7
    assert torch.allclose(scores, torch.stack([table[[4, 5]] @ mean, table[[4, 5]] @ table[2]]), atol=1e-6)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, language_model=None)
    assert again.config.rankers["text"] == {"recency": 0.5, "whitening": 0.25}
    assert torch.equal(again.item_table.text_space.whitening, model.item_table.text_space.whitening)
    new = torch.randn(1, 12, generator=torch.Generator().manual_seed(2))
    for one in (model, again):
        one.add_items(new)
    assert torch.equal(again.item_table.text_directions, model.item_table.text_directions)


def test_a_checkpoint_of_before_compares_with_its_last_items():
    model = tiny_model("llama", 8, rankers={"text": {"last_items": 2}})
    table = F.normalize(torch.randn(9, 12, generator=torch.Generator().manual_seed(1)), dim=1)
    model.item_table.text_directions = table
    processor = tiny_processor(tiny_catalog(model.cf_encoder.num_items))
    users = UserBatch.encode(model, processor, [[3, 1, 7]])
    scores = TextSimilarity(model, processor).score(users, [[4]]).scores
    assert torch.allclose(scores, table[[4]] @ ((table[1] + table[7]) / 2), atol=1e-6)


def test_what_ranks_validation_users_best_is_chosen():
    """The next item's text is the last item's but for what all texts share: only the last one counts, centred."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(20, 12, generator=generator)
    shared = 30 * torch.randn(40, 1, generator=generator).abs() * F.normalize(torch.ones(1, 12), dim=1)
    texts = torch.cat([torch.zeros(1, 12), own.repeat(2, 1) + shared])
    model = tiny_model("llama", 40)
    processor = tiny_processor(tiny_catalog(model.cf_encoder.num_items))
    targets = np.arange(21, 41)
    histories = [np.array([(target * 7) % 20 + 1, target - 20]) for target in targets]
    candidates = np.tile(np.arange(21, 41), (20, 1))
    fit_text(model, processor, texts, Samples(np.arange(20), histories, targets), candidates)
    settings = model.config.rankers["text"]
    assert settings["recency"] == RECENCIES[0]
    assert settings["whitening"] in WHITENINGS[1:]


def test_where_all_of_a_history_counts_alike_the_recency_is_1():
    generator = torch.Generator().manual_seed(0)
    own = F.normalize(torch.randn(40, 12, generator=generator), dim=1)
    histories = [np.random.default_rng(row).permutation(40)[:4] + 1 for row in range(30)]
    targets = np.arange(41, 71)
    mixed = torch.stack([own[history - 1].sum(dim=0) for history in histories])
    model = tiny_model("llama", 70)
    processor = tiny_processor(tiny_catalog(70))
    candidates = np.tile(targets, (30, 1))
    texts = torch.cat([torch.zeros(1, 12), own, mixed])
    fit_text(model, processor, texts, Samples(np.arange(30), histories, targets), candidates)
    assert model.config.rankers["text"]["recency"] == RECENCIES[-1]
    with pytest.raises(TypeError):
        model.keep_text_embeddings(texts, whitenings=0.25)


class Encoder:
    def encode(self, texts, **options):
        return torch.tensor([[1.0 + len(text), 2.0] for text in texts])


def test_an_empty_text_is_like_no_other():
    found = text_vectors(Encoder(), ["ab", "", "c", ""])
    assert found.tolist() == [[3.0, 2.0], [0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]
