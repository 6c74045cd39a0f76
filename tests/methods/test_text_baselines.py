import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.losses import symmetric_info_nce
from allmrec_hf.methods.backbone_alone import PAPERS
from allmrec_hf.methods.ctrl import prompt_texts
from allmrec_hf.methods.item_knn import ItemKNNRanker, item_similarities
from allmrec_hf.methods.model_selection import best_on_validation, validation_ndcg
from allmrec_hf.methods.recformer import KEY_TYPE, SPECIAL, VALUE_TYPE, Recformer, RecformerConfig, flattened_items
from allmrec_hf.methods.registry import METHODS, method
from allmrec_hf.training.samples import Samples
from tests.methods.world import CHANCE, metrics_on_test, small_setting, small_world

SMALL = {"recformer": {"history": 4, "item_tokens": 6}}
EPOCHS = {"morec": 12, "recformer": 8, "ctrl": 8, "sasrec": 10}
TRAINED = [*EPOCHS]
METHOD_NAMES = ["popularity", "text-cosine", "item-knn", *TRAINED]
ONE_STEP = {
    stage: {"num_train_epochs": 1, "max_steps": 1, "max_validation_users": 20} for stage in ("backbone", "align")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module")
def data(folder):
    return small_world(folder)


def setting_of(folder, name, **changes):
    loop = {"num_train_epochs": EPOCHS.get(name, 1), "eval_epochs": 4}
    values = {
        "folder": folder / name,
        "options": SMALL.get(name, {}),
        "budget": {"backbone": loop, "align": {"num_train_epochs": 6}},
    }
    return small_setting(folder, **{**values, **changes})


@pytest.fixture(scope="module")
def rankers(data, folder):
    return {name: method(name).fit(data, setting_of(folder, name)) for name in METHOD_NAMES}


@pytest.fixture(scope="module")
def test_metrics(rankers, data):
    groups = ("overall", "never_seen")
    return {group: metrics_on_test(list(rankers.values()), data, group) for group in groups}


def rows_of(data, count=12):
    candidates = data.candidates("test")
    return [data.history(int(user), "test") for user in candidates.users[:count]], candidates.items[:count]


@pytest.mark.parametrize("name", ["text-cosine", "item-knn", *TRAINED])
def test_the_method_learns(test_metrics, name):
    found = test_metrics["overall"]
    assert found[name]["ndcg@10"] > found["popularity"]["ndcg@10"] + 0.03


@pytest.mark.parametrize("name", ["text-cosine", "morec", "recformer"])
def test_text_finds_items_never_seen_in_training(test_metrics, name):
    assert test_metrics["never_seen"][name]["ndcg@10"] > CHANCE["ndcg@10"] + 0.1


@pytest.mark.parametrize("name", ["popularity", "item-knn", "sasrec", "ctrl"])
def test_without_text_an_item_never_seen_is_lost(test_metrics, name):
    assert test_metrics["never_seen"][name]["ndcg@10"] < CHANCE["ndcg@10"]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_scores_depend_neither_on_the_order_of_candidates_nor_on_the_batch(rankers, data, name):
    histories, items = rows_of(data)
    scores = rankers[name].score(histories, items)
    order = np.random.default_rng(0).permutation(items.shape[1])
    np.testing.assert_allclose(rankers[name].score(histories, items[:, order]), scores[:, order], atol=1e-4)
    alone = [rankers[name].score([history], row[None])[0] for history, row in zip(histories, items, strict=True)]
    np.testing.assert_allclose(alone, scores, atol=1e-4)  # sums in another order


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_what_is_retrieved_is_unseen_and_scored_alike(rankers, data, name):
    histories, _ = rows_of(data, 4)
    items, scores = rankers[name].retrieve(histories, 5)
    assert not any(np.isin(row, history).any() for row, history in zip(items, histories, strict=True))
    np.testing.assert_allclose(rankers[name].score(histories, items), scores, atol=1e-4)


@pytest.mark.parametrize("name", ["morec", "recformer", "ctrl"])
def test_a_finished_method_is_loaded_and_not_trained_again(rankers, data, folder, name):
    saved = {path: path.stat().st_mtime_ns for path in (folder / name).rglob("*.safetensors")}
    again = method(name).fit(data, setting_of(folder, name))
    histories, items = rows_of(data)
    np.testing.assert_array_equal(again.score(histories, items), rankers[name].score(histories, items))
    assert saved
    assert saved == {path: path.stat().st_mtime_ns for path in (folder / name).rglob("*.safetensors")}


@pytest.mark.parametrize("name", ["morec", "recformer", "ctrl"])
def test_the_same_seed_gives_the_same_scores_and_another_seed_others(data, tmp_path, name):
    histories, items = rows_of(data)
    scores = []
    for number, seed in enumerate((0, 0, 1)):
        setting = setting_of(tmp_path / str(number), name, seed=seed, budget=ONE_STEP)
        scores.append(method(name).fit(data, setting).score(histories, items))
        torch.rand(1)  # what the caller draws meanwhile does not matter
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_an_unknown_option_is_refused(data, tmp_path, name):
    with pytest.raises(ALLMRecError, match=r"has no options \['depht'\]"):
        method(name).fit(data, setting_of(tmp_path, name, options={"depht": 3}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("text-cosine", {"last_items": 0}),
        ("item-knn", {"neighbors": 2.5}),
        ("morec", {"fine_tune": "yes"}),
        ("morec", {"hidden_size": 0}),
        ("ctrl", {"temperature": 0}),
        ("ctrl", {"joint_dim": 0.5}),
        ("recformer", {"history": 0}),
        ("recformer", {"num_heads": 3}),
    ],
)
def test_an_impossible_option_is_refused(data, tmp_path, name, options):
    with pytest.raises(ALLMRecError, match="must"):
        method(name).fit(data, setting_of(tmp_path, name, options=options))


def test_ctrl_refuses_a_backbone_without_sequences(data, tmp_path):
    with pytest.raises(ALLMRecError, match="needs a backbone that reads sequences, which bprmf does not"):
        method("ctrl").fit(data, setting_of(tmp_path, "ctrl", backbone="bprmf"))


@pytest.mark.parametrize("name", ["item-knn", "morec", "ctrl", "recformer", *PAPERS])
def test_a_published_method_cites_its_paper_and_says_what_is_simplified(name):
    assert method(name).name == name
    assert any(word in method(name).paper for word in ("arXiv", "ACM"))
    assert method(name).simplified


def test_every_built_in_backbone_has_a_citation():
    from allmrec_hf.cf_encoder import BUILT_IN, MODEL_TYPE_PREFIX

    assert set(PAPERS) == {name.removeprefix(MODEL_TYPE_PREFIX) for name in BUILT_IN}
    assert not set(PAPERS) & set(METHODS)


def test_item_similarities_are_those_of_three_users_by_hand():
    users = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    items = np.array([1, 2, 1, 2, 3, 3, 3, 1])  # user 2 has seen item 3 twice, which counts once
    table = item_similarities(users, items, num_items=4, neighbors=4, shrinkage=0).toarray()
    one_two, one_three, two_three = 2 / math.sqrt(3 * 2), 2 / math.sqrt(3 * 2), 1 / 2
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[2, 1] = one_two
    expected[1, 3] = expected[3, 1] = one_three
    expected[2, 3] = expected[3, 2] = two_three
    np.testing.assert_allclose(table, expected)
    shrunk = item_similarities(users, items, num_items=4, neighbors=4, shrinkage=2).toarray()
    assert shrunk[2, 3] == pytest.approx(1 / (2 + 2))


def test_only_the_nearest_neighbours_are_kept_and_only_the_last_items_count():
    users = np.array([0, 0, 1, 1, 1, 2, 2])
    items = np.array([1, 2, 1, 2, 3, 3, 1])
    nearest = item_similarities(users, items, num_items=3, neighbors=1, shrinkage=0)
    assert nearest.toarray().nonzero()[1].tolist() == [2, 1, 1]  # of equal ones the earlier: item 2 for item 1
    table = item_similarities(users, items, num_items=3, neighbors=3, shrinkage=0)
    both, last = (ItemKNNRanker(table, last_items) for last_items in (0, 1))
    histories, candidates = [np.array([1, 2]), np.array([], dtype=np.int64)], np.array([[3, 2], [3, 2]])
    dense = table.toarray()
    np.testing.assert_allclose(both.score(histories, candidates)[0], [dense[1, 3] + dense[2, 3], dense[1, 2]])
    np.testing.assert_allclose(last.score(histories, candidates), [[dense[2, 3], 0], [0, 0]])


class Constant:
    def __init__(self, name, item):
        self.name, self.item = name, item

    def score(self, histories, candidates):
        return (candidates == self.item).astype(float)


def test_the_best_on_validation_is_selected_and_the_earlier_of_equals(data):
    common = int(np.bincount(data.candidates("validation").targets).argmax())
    rankers = [Constant("never", -1), Constant("good", common), Constant("as good", common)]
    assert best_on_validation(rankers, data, max_users=None, seed=0).name == "good"
    constant = validation_ndcg(rankers[0], data)
    assert constant == pytest.approx(sum(1 / np.log2(1 + place) for place in range(1, 11)) / 20)  # all of 20 tied
    with pytest.raises(ALLMRecError, match="no ranker"):
        best_on_validation([], data, max_users=None, seed=0)


def test_morec_trains_the_text_encoder_where_it_is_asked_to(data, tmp_path):
    budget = {"backbone": {"max_steps": 2, "max_validation_users": 20}}
    setting = setting_of(tmp_path, "morec", options={"fine_tune": True, "hidden_size": 16}, budget=budget)
    model = method("morec").fit(data, setting).cf_encoder
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    assert any("encoder" in name for name in names)
    assert model.item_embeddings.shape == (data.num_items + 1, 16)
    assert not model.item_embeddings[0].any()
    assert not model.item_embeddings.requires_grad
    assert len(json.loads((setting.folder / "training.json").read_text())["result"]["history"]) == 1


def test_morec_never_takes_an_unknown_item_for_a_negative(rankers, data):
    model = rankers["morec"].cf_encoder
    cold = int(np.flatnonzero(data.item_counts("train")[1:] == 0)[0]) + 1
    known = torch.from_numpy(np.flatnonzero(data.item_counts("train")))[:3]
    table = torch.randn(data.num_items + 1, 64)
    states, batch = torch.randn(3, 64), {}
    model.item_embedding.weight = table.clone()
    before = model._loss_of_states(states, known, batch, torch.ones(3, dtype=torch.bool))
    model.item_embedding.weight[cold] += 100
    assert model._loss_of_states(states, known, batch, torch.ones(3, dtype=torch.bool)) == before
    model.update_tables()


def test_symmetric_info_nce_of_random_directions_is_that_of_both_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    cosines = [[float(torch.cosine_similarity(a, b, dim=0)) / 0.5 for b in right] for a in left]
    rows = [math.log(sum(math.exp(v) for v in cosines[i])) - cosines[i][i] for i in range(5)]
    columns = [math.log(sum(math.exp(row[i]) for row in cosines)) - cosines[i][i] for i in range(5)]
    expected = (sum(rows) + sum(columns)) / 10
    assert float(symmetric_info_nce(left * 7, right, 0.5)) == pytest.approx(expected, abs=1e-5)


def test_a_ctrl_prompt_names_history_and_candidate_in_the_words_of_the_domain():
    catalog = ItemCatalog.from_records([{"item_id": "a", "title": 'Lost "Harbor"'}, {"item_id": "b", "title": "Moon"}])
    samples = Samples(np.array([0]), [np.array([1])], np.array([2]))
    assert prompt_texts(samples, catalog, "movie") == [
        'The user watched "Lost \'Harbor\'". Will the user watch the movie "Moon"?'
    ]
    assert prompt_texts(samples, catalog, "cheese")[0].startswith("The user bought")


def test_recformer_flattens_attributes_to_keys_and_values():
    catalog = ItemCatalog.from_records([{"item_id": "a", "title": "Lost Harbor", "description": "Lost!"}])
    tokens, types, words = flattened_items(catalog, item_tokens=6)
    assert words == ["lost", "description", "harbor", "title"]
    number = {word: place for place, word in enumerate(words, start=SPECIAL)}
    assert tokens[1].tolist() == [*(number[word] for word in ("title", "lost", "harbor", "description", "lost")), 0]
    assert types[1].tolist() == [KEY_TYPE, VALUE_TYPE, VALUE_TYPE, KEY_TYPE, VALUE_TYPE, 0]
    assert not tokens[0].any()


@pytest.fixture(scope="module")
def recformer():
    titles = ["Red Boat", "Green", "Blue Night Train", "White Owl"]
    catalog = ItemCatalog.from_records({"item_id": str(i), "title": title} for i, title in enumerate(titles))
    tokens, types, words = flattened_items(catalog, item_tokens=4)
    config = RecformerConfig(
        num_items=4,
        hidden_size=8,
        num_heads=2,
        max_history_length=3,
        vocabulary_size=SPECIAL + len(words),
        item_tokens=4,
        loss="sampled_softmax",
        dropout=0.0,
    )
    torch.manual_seed(0)
    return Recformer(config, tokens, types, torch.randn(len(words), 5)).eval()


def test_recformer_reads_only_the_last_items_and_in_their_order(recformer):
    users = recformer.encode_users(torch.tensor([[4, 1, 2, 3], [0, 1, 2, 3], [0, 3, 2, 1], [0, 0, 0, 0]]))
    torch.testing.assert_close(users[0], users[1])
    assert not torch.allclose(users[0], users[2], atol=1e-3)
    assert not users[3].any()


def test_recformer_encodes_a_user_of_one_item_as_that_item(recformer):
    recformer.update_tables()
    users = recformer.encode_users(torch.tensor([[0, 0, 3]])) * recformer.config.temperature
    torch.testing.assert_close(users[0], recformer.item_embeddings[3])


def test_recformer_predicts_the_item_after_the_history_it_kept(recformer, monkeypatch):
    batch = {
        "item_ids": torch.tensor([[1, 2, 3], [0, 0, 2]]),
        "targets": torch.tensor([[2, 3, 4], [0, 0, 1]]),
        "negatives": torch.tensor([1, 2, 3, 4]),
        "log_weights": torch.zeros(4),
    }
    recformer.update_tables()
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor([0.5, 0.9]))  # the first leaves one of three out
    users = recformer.encode_users(torch.tensor([[0, 1, 2], [0, 0, 2]]))
    logits = users @ recformer.item_embeddings[1:].T
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]))
    torch.testing.assert_close(recformer.training_loss(batch), expected)


def test_validation_without_users_scores_nothing():
    nobody = SimpleNamespace(candidates=lambda split: [])
    assert validation_ndcg(Constant("any", 1), nobody) == 0
