"""Tables of items grow at their end: rows that are there are not copied, and no table sees another's new rows."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from allmrec_hf import ALLMRecModel
from allmrec_hf.cf_encoder import build_cf_encoder
from allmrec_hf.growing_table import appended, appended_embedding
from allmrec_hf.prompt import HistoryTemplate
from allmrec_hf.ranker_retrieval import RetrievalRanker, add_retrieval_head
from tests.tiny import tiny_model, tiny_processor


class Written(TorchDispatchMode):
    """Count the numbers that operations return in memory of their own, or write."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        views = func.is_view or "detach" in func.__name__ or "empty" in func.__name__
        for value in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(value, torch.Tensor) and not views:
                self.numbers += value.numel()
        return found


def numbers_written(call):
    with Written() as written:
        call()
    return written.numbers


def test_rows_one_by_one_are_what_cat_gives():
    table = expected = torch.arange(6.0).view(3, 2)
    for number in range(40):
        rows = torch.full((number % 3, 2), float(number))
        table, expected = appended(table, rows), torch.cat([expected, rows])
        assert table.is_contiguous()
        assert torch.equal(table, expected)


def test_the_rows_that_are_there_are_copied_a_few_times_only():
    table, places = torch.zeros(1000, 2), set()
    for _ in range(1000):
        table = appended(table, torch.ones(1, 2))
        places.add(table.data_ptr())
    assert len(places) <= 3  # 1,000 rows become 1,501, 2,253 and more


def test_two_tables_grown_from_one_do_not_see_each_other():
    start = appended(torch.zeros(2, 1), torch.ones(1, 1))
    one, other = appended(start, torch.full((1, 1), 5.0)), appended(start, torch.full((1, 1), 7.0))
    assert one.flatten().tolist() == [0, 0, 1, 5]
    assert other.flatten().tolist() == [0, 0, 1, 7]


@pytest.mark.parametrize("change", [torch.clone, copy.deepcopy, torch.Tensor.double, lambda table: table[:2]])
def test_a_changed_table_has_a_memory_of_its_own(change):
    grown = appended(torch.zeros(2, 1), torch.ones(1, 1))
    other = change(grown)
    wanted = [*other.flatten().tolist(), 9.0]
    other.add_(0)
    assert appended(other, torch.full((1, 1), 9.0)).flatten().tolist() == wanted
    assert appended(grown, torch.full((1, 1), 4.0)).flatten().tolist() == [0, 0, 1, 4]


def test_rows_added_in_inference_mode_are_followed_by_others():
    with torch.inference_mode():
        grown = appended(torch.zeros(2, 1), torch.ones(1, 1))
    assert appended(grown, torch.full((1, 1), 4.0)).flatten().tolist() == [0, 0, 1, 4]


def test_an_embedding_keeps_whether_it_is_trained():
    for trained in (True, False):
        table = nn.Embedding(3, 2, padding_idx=0)
        table.weight.requires_grad_(trained)
        for _ in range(3):
            table = appended_embedding(table, torch.ones(1, 2))
        assert (len(table.weight), table.num_embeddings, table.weight.requires_grad) == (6, 6, trained)


def with_head(num_items=40):
    rankers = {"text": {"recency": 0.5, "whitening": 0.25}, "words": {"recency": 0.5, "vocabulary": 7}}
    model = tiny_model("llama", num_items, rankers=rankers)
    prompt = asdict(HistoryTemplate.for_domain("movie"))
    add_retrieval_head(model, {"dim": 8, "num_llm_layers": 1, "prompt": prompt, "history_in_prompt": 5})
    return model.eval()


def test_an_item_is_written_into_every_table_whatever_their_size():
    """The second item of two models of other sizes costs the same; the first gave the tables room."""
    found = []
    for size in (40, 400):
        model = with_head(size)
        model.add_items(torch.ones(1, 12))
        model.retrieval_head.store_items(model.retrieval_head.missing_items(), torch.ones(size + 1, 8))
        places = [table.data_ptr() for table in model.buffers() if len(table) == size + 2]
        found.append(numbers_written(lambda model=model: model.add_items(torch.ones(1, 12))))
        assert places == [table.data_ptr() for table in model.buffers() if table.ndim and len(table) == size + 3]
        assert len(places) == 6
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("backbone", ["lightgcn", "sasrec", "bprmf"])
def test_every_backbone_writes_new_rows_alone(backbone):
    found = []
    for size in (40, 400):
        encoder = build_cf_encoder({"model_type": backbone, "num_items": size, "hidden_size": 8})
        encoder.append_items(torch.ones(1, 8))
        found.append(numbers_written(lambda encoder=encoder: encoder.append_items(torch.ones(2, 8))))
        assert encoder.num_items == encoder.config.num_items == size + 3
    assert found[0] == found[1] > 0


def test_lightgcn_takes_the_scale_of_tables_that_were_changed_since():
    encoder = build_cf_encoder({"model_type": "lightgcn", "num_items": 4, "hidden_size": 2})
    with torch.no_grad():
        encoder.item_embedding.weight.fill_(1)
        encoder.history_embedding.weight.fill_(3)
    encoder.append_items(torch.full((1, 2), 2.0))
    assert encoder.history_embedding.weight[-1].tolist() == [6, 6]
    with torch.no_grad():
        encoder.history_embedding.weight.fill_(0.5)
        encoder.item_embedding.weight.fill_(1)
    encoder.append_items(torch.full((1, 2), 2.0))
    assert encoder.history_embedding.weight[-1].tolist() == [1, 1]


def test_a_model_that_grew_is_saved_and_loaded_as_it_is(tmp_path):
    model = with_head()
    other = copy.deepcopy(model)
    texts = torch.rand(7, 12, generator=torch.Generator().manual_seed(3))
    for row in texts:
        model.add_items(row.unsqueeze(0))
    other.add_items(texts)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, equal_nan=True, msg=name)
    model.save_pretrained(tmp_path / "one")
    for name, value in other.state_dict().items():  # each in a memory of its size
        value.copy_(model.state_dict()[name])
    for module in other.modules():
        for tensors in (module._buffers, module._parameters):
            for value in filter(lambda value: value is not None, tensors.values()):
                value.data = value.data.clone()
    other.save_pretrained(tmp_path / "other")
    saved = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "other")]
    assert saved[0] == saved[1]  # no byte of the spare room
    assert load_file(tmp_path / "one" / "model.safetensors")["item_table.interaction_counts"].shape == (48,)
    again = ALLMRecModel.from_pretrained(tmp_path / "one", language_model=None)
    assert again.add_items(texts[:1]) == [48]
    assert len(model.item_table.interaction_counts) == 48  # the first model is as it was


def test_vectors_of_retrieval_are_looked_for_once(monkeypatch):
    """Ranking the catalogue in parts does not look through the whole table for each part."""
    model = with_head()
    ranker = RetrievalRanker(model, tiny_processor())
    table = ranker.item_table()
    assert table.isfinite().all()
    looked = []
    monkeypatch.setattr(torch.Tensor, "isnan", lambda self: looked.append(len(self)) or torch.isnan(self))
    for start in range(0, 40, 10):
        ranker.score_range(torch.ones(2, 8), start, start + 10)
    assert looked == []
    model.retrieval_head.append_items(1)
    assert model.retrieval_head.missing_items() == [41]
    assert looked == []
    model.retrieval_head.load_state_dict(model.retrieval_head.state_dict())
    assert model.retrieval_head.missing_items() == [41]
    assert looked == [42]
