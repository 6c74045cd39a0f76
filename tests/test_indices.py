"""Catalogue indices: what is no index of the catalogue is refused where it enters, with the range."""

import numpy as np
import pytest
import torch

from allmrec_hf import DataError, SASRecConfig
from allmrec_hf.cf_encoder import BUILT_IN, build_cf_encoder
from allmrec_hf.evaluation.llm_ranker import ALLMRecRanker
from allmrec_hf.evaluation.rankers import BackboneRanker, PopularityRanker, TextCosineRanker, best_unseen
from allmrec_hf.explaining.contributions import contributions
from allmrec_hf.explaining.tasks import TASKS, answer_scores, generate_answers
from allmrec_hf.histories import pad_histories, seen_items
from allmrec_hf.indices import checked_index, checked_indices
from allmrec_hf.methods.item_knn import ItemKNNRanker, item_similarities
from allmrec_hf.methods.llm_parts import VectorRanker
from allmrec_hf.retrieval import FaissIndex, exact_top_items
from tests.tiny import tiny_catalog, tiny_model, tiny_processor

NONE_OF_40 = [0, -1, -3, 41, 10**6, True, 1.0, np.float64(2), np.True_, torch.tensor(True), "I1", None, [1]]
OUT_OF_40 = [0, -1, 41]  # in lists without padding
RANGE = "must be 1 to 40"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def refuses(call, match):
    with pytest.raises(DataError, match=match):
        call()


@pytest.mark.parametrize("index", [7, np.int64(7), np.uint8(7), torch.tensor(7)])
def test_whole_numbers_of_every_library_are_indices(index):
    assert checked_index(index, 40) == 7
    assert type(checked_index(index, 40)) is int
    assert tiny_catalog().item_id(index) == "I7"


@pytest.mark.parametrize("index", NONE_OF_40, ids=repr)
def test_catalogue_and_processor_refuse_what_is_no_index(index, processor):
    catalog = processor.catalog
    processor.title(1)  # kept, and True == 1.0 == 1
    for call in (catalog.item_id, catalog.title, catalog.text, catalog.has_title, processor.title):
        with pytest.raises(DataError, match=RANGE):
            call(index)
    with pytest.raises(DataError, match=RANGE):
        processor.answer_tokens(index)


@pytest.mark.parametrize("index", NONE_OF_40, ids=repr)
def test_every_call_of_the_processor_refuses_what_is_no_index(index, processor):
    calls = [
        lambda: processor([[3, index]], [[1, 2]]),
        lambda: processor([[3]], [[index, 2]]),
        lambda: processor.history_tensors([[index, 3]]),
        lambda: processor.encode_prompt([index], [1, 2]),
        lambda: processor.encode_prompt([1], [index, 2]),
        lambda: processor.training_batch([[index]], [[1, 2]], [1]),
        lambda: processor.training_batch([[3]], [[1, index]], [1]),
        lambda: processor.training_batch([[3]], [[1, 2]], [index]),
    ]
    for call in calls:
        with pytest.raises(DataError, match=RANGE):
            call()


def test_an_old_item_that_no_prompt_names_is_checked_too(processor):
    with pytest.raises(DataError, match="a history has the catalogue index 0; indices must be 1 to 40"):
        processor([[0, *range(1, 20)]], [[30, 31]])


@pytest.mark.parametrize("history", [[0.5], [True, False], ["7"], np.array([1.0]), 7, "7"], ids=repr)
def test_histories_are_never_rounded(history):
    with pytest.raises(DataError):
        pad_histories([history], 5, num_items=40)
    with pytest.raises(DataError):
        checked_indices(history, 40)


def test_padding_keeps_arrays_lists_and_empty_histories():
    item_ids, _ = pad_histories([np.array([3, 4], dtype=np.int32), [], [5]], 5, num_items=40)
    assert item_ids.tolist() == [[3, 4], [0, 0], [0, 5]]
    assert seen_items([np.array([9, 2, 9]), []]).tolist() == [[2, 9], [0, 0]]
    with pytest.raises(DataError, match=RANGE):
        pad_histories([[3], [0]], 5, num_items=40)


@pytest.mark.parametrize("index", [-1, 41])
def test_the_model_refuses_tensors_out_of_range(index, model, processor):
    batch = dict(processor([[3, 4]], [[1, 2]]))
    history = {name: batch[name] for name in ("history_ids", "history_mask")}
    wrong_history = {**history, "history_ids": torch.tensor([[3, index]])}
    slots = batch["slot_ids"].clone()
    slots[slots > 0] = index if index > 0 else -2
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    calls = [
        lambda: model.score(**{**batch, "candidate_ids": torch.tensor([[1, index]])}),
        lambda: model.score(**{**batch, **wrong_history}),
        lambda: model.score(**{**batch, "slot_ids": slots}),
        lambda: model.generate(**{**batch, **wrong_history}),
        lambda: model.generate(**{**batch, "slot_ids": slots}),
        lambda: model(**prompt, **history, slot_ids=slots),
        lambda: model.retrieve(**wrong_history),
        lambda: model.retrieve(**history, exclude=torch.tensor([[index]])),
        lambda: model.retrieve(**history, seen_ids=torch.tensor([[index]])),
        lambda: model.item_vectors(torch.tensor([3, index])),
        lambda: model.embed_prompts(batch["input_ids"], slots, **history),
        lambda: model.embed_prompts(batch["input_ids"], batch["slot_ids"], **wrong_history),
    ]
    for call in calls:
        refuses(call, "to 40")


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.uint8, torch.int16])
def test_the_model_refuses_tensors_of_other_types(kind, model):
    history = torch.tensor([[3, 4]]).to(kind)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for call in (lambda: model.retrieve(history, mask), lambda: model.item_vectors(history)):
        with pytest.raises(DataError, match="whole numbers"):
            call()


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("index", [-1, 41])
def test_every_backbone_refuses_indices_out_of_range(name, index):
    torch.manual_seed(0)
    encoder = build_cf_encoder({"model_type": name, "num_items": 40, "hidden_size": 8}).eval()
    wrong, right = torch.tensor([[3, index]]), torch.tensor([[3, 4]])
    users = encoder.encode_users(right)
    calls = [
        lambda: encoder.encode_users(wrong),
        lambda: encoder.encode_users(wrong, torch.ones(1, 2, dtype=torch.bool)),
        lambda: encoder.sequence_states(wrong),
        lambda: encoder.states_at(wrong, None, torch.ones(1, 2, dtype=torch.bool)),
        lambda: encoder.score(users, wrong),
        lambda: encoder.top_items(users, 5, exclude=wrong),
        lambda: encoder.replace_items(torch.tensor([index]), torch.zeros(1, 8)),
    ]
    encoder.start_training(torch.tensor([0, 1]), torch.tensor([3, 4]), 2)
    batch = {"item_ids": right, "attention_mask": right > 0, "targets": right, "negatives": torch.tensor([[5], [6]])}
    if encoder.trains_on == "interactions":
        batch |= {"users": torch.tensor([0, 1]), "targets": torch.tensor([3, 4])}
    encoder.training_loss(batch)
    calls.append(lambda: encoder.training_loss({**batch, "negatives": torch.tensor([[5], [index]])}))
    if index > 0:  # a target of -1 stands for none
        calls.append(lambda: encoder.training_loss({**batch, "targets": batch["targets"].clone().fill_(index)}))
    for call in calls:
        refuses(call, "to 40")
    with pytest.raises(DataError, match="whole numbers"):
        encoder.encode_users(right.float())
    assert encoder.score(users, torch.tensor([[0, 3]]))[0, 0] == float("-inf")  # padding stays padding


def test_retrieval_alone_refuses_excluded_indices_out_of_range():
    table = torch.arange(41.0).unsqueeze(1)
    users = torch.ones(1, 1)
    for index in (-1, 41):
        with pytest.raises(DataError, match="exclude has the catalogue index"):
            exact_top_items(lambda u, a, b: u @ table[a:b].T, users, 40, 3, torch.tensor([[index]]))
    pytest.importorskip("faiss")
    with pytest.raises(DataError, match="exclude has the catalogue index"):
        FaissIndex(table).search(users, 3, torch.tensor([[41]]))


@pytest.mark.parametrize("index", [-1, 41])
def test_every_ranker_refuses_indices_out_of_range(index, model, processor):
    encoder = build_cf_encoder(SASRecConfig(num_items=40, hidden_size=8))
    counts, vectors = np.arange(41), torch.eye(41)
    pairs = np.array([0, 0, 1]), np.array([1, 2, 40])
    rankers = [
        PopularityRanker(counts),
        BackboneRanker(encoder),
        TextCosineRanker(vectors),
        ALLMRecRanker(model, processor),
        VectorRanker(encoder, lambda histories: torch.zeros(len(histories), 41), vectors, "vectors"),
        ItemKNNRanker(item_similarities(*pairs, 40, neighbors=2, shrinkage=0)),
    ]
    for ranker in rankers:
        with pytest.raises(DataError, match="to 40"):
            ranker.score([np.array([3])], np.array([[1, index]]))
        for wrong in (index, 0):
            with pytest.raises(DataError, match=RANGE):
                ranker.retrieve([np.array([3, wrong])], 5)
    with pytest.raises(DataError, match=RANGE):
        best_unseen(np.zeros((1, 41)), [np.array([index])], 3)


@pytest.mark.parametrize("index", OUT_OF_40)
def test_explanations_and_tasks_refuse_indices_out_of_range(index, model, processor):
    task = TASKS["why-this"]
    calls = [
        lambda: contributions(model, processor, [index, 3], 5, [5, 6]),
        lambda: contributions(model, processor, [3], index, [5, 6]),
        lambda: contributions(model, processor, [3], 5, [5, index]),
        lambda: answer_scores(model, processor, task, [[index]], ["good"], items=[5]),
        lambda: answer_scores(model, processor, task, [[3]], ["good"], items=[index]),
        lambda: generate_answers(model, processor, task, [[3]], items=[index]),
    ]
    for call in calls:
        with pytest.raises(DataError, match=RANGE):
            call()


@pytest.mark.parametrize("indices", [[[3]], (3,), None])
def test_what_is_no_tensor_is_refused_by_name(indices, model):
    with pytest.raises(DataError, match="expected a tensor of catalogue indices"):
        model.item_vectors(indices)


@pytest.mark.parametrize("index", [torch.tensor([3]), np.array([3])])
def test_a_vector_of_one_is_no_index(index, processor):
    refuses(lambda: processor.catalog.title(index), "no catalogue index")
