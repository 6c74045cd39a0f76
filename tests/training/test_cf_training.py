from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from allmrec_hf.cf_encoder import CFEncoder, CFEncoderConfig, build_cf_encoder
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.errors import DataError
from allmrec_hf.training.arguments import StageArguments
from allmrec_hf.training.cf_encoder import CFEncoderTask, train_cf_encoder

N = 20
ARGUMENTS = StageArguments(epochs=12, batch_size=16, learning_rate=1e-2)


class CycleData:
    """Users who walk through the items in one fixed cycle, each from another start; the next item can be learned."""

    name, num_items = "cycle", N

    def __init__(self, num_users=60):
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 12, num_users)
        starts = generator.integers(0, N, num_users)
        self.whole = [(start + np.arange(length)) % N + 1 for start, length in zip(starts, lengths, strict=True)]
        self.user_ids = [f"u{user}" for user in range(num_users)]
        self.catalog = SimpleNamespace(frame=pl.DataFrame({"title": [f"item {i}" for i in range(N)]}))

    def history(self, user, split):
        return self.whole[user] if len(self.whole[user]) < 3 else self.whole[user][: -1 if split == "test" else -2]

    def sequences(self, split):
        return [self.history(user, "train" if split == "train" else "test") for user in range(len(self.whole))]

    def candidates(self, split):
        users = np.array([user for user, items in enumerate(self.whole) if len(items) >= 3])
        column = -2 if split == "validation" else -1
        targets = np.array([self.whole[user][column] for user in users])
        return SimpleNamespace(users=users, targets=targets, items=targets[:, None])


@pytest.fixture(scope="module")
def data():
    return CycleData()


def config(**changes):
    values = {"num_items": N, "hidden_size": 16, "max_history_length": 6, "num_layers": 1, "dropout": 0.0}
    return SASRecConfig(**{**values, **changes})


def task_of(data, arguments=ARGUMENTS, split="train", **changes):
    torch.manual_seed(0)
    return CFEncoderTask(build_cf_encoder(config(**changes)), data, arguments, split)


@pytest.mark.parametrize(
    ("loss", "num_negatives"), [("cross_entropy", 1), ("sampled_softmax", 4), ("bce", 1), ("gbce", 4), ("bpr", 2)]
)
def test_a_trained_backbone_knows_the_next_item(data, tmp_path, loss, num_negatives):
    # a few negatives a position are a weak signal: they get more epochs
    arguments = ARGUMENTS if loss == "cross_entropy" else ARGUMENTS.replaced(epochs=40)
    model = train_cf_encoder(data, config(loss=loss, num_negatives=num_negatives), arguments, tmp_path)
    task = CFEncoderTask(model, data, arguments)
    metrics = task.validate(np.arange(task.num_validation_examples), torch.device("cpu"))
    assert metrics["ndcg@10"].mean() > 0.8
    assert not model.training
    assert not model.item_embeddings[0].any()


def test_batches_hold_each_position_of_each_user_once(data):
    task = task_of(data)
    seen = []
    for rows in task.batches(0):
        batch = task.collate(rows, np.random.default_rng(0))
        assert batch["targets"].gt(0).equal(batch["attention_mask"])
        for items, targets, real in zip(batch["item_ids"], batch["targets"], batch["attention_mask"], strict=True):
            seen.append((items[real].tolist(), targets[real].tolist()))
    expected = [s[-7:].tolist() for s in data.sequences("train") if len(s) > 1]
    assert sorted(seen) == sorted((sequence[:-1], sequence[1:]) for sequence in expected)


def test_batches_are_a_function_of_seed_and_epoch(data):
    orders = [np.concatenate(task_of(data).batches(epoch)).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize("loss", ["bce", "gbce", "bpr"])
def test_negatives_are_items_the_user_never_had(data, loss):
    task = task_of(data, loss=loss, num_negatives=2)
    for rows in task.batches(0):
        batch = task.collate(rows, np.random.default_rng(1))
        assert batch["negatives"].gt(0).all(dim=2).equal(batch["attention_mask"])
        for row, negatives, real in zip(rows, batch["negatives"], batch["attention_mask"], strict=True):
            user = task.examples.users[row]
            assert not set(negatives[real].flatten().tolist()) & set(data.sequences("train")[user].tolist())


def test_shared_negatives_hold_the_batch_and_uniform_items_with_their_expected_counts(data):
    task = task_of(data, loss="sampled_softmax", num_negatives=500)
    rows = task.batches(0)[0]
    batch = task.collate(rows, np.random.default_rng(1))
    negatives, targets = batch["negatives"], batch["targets"][batch["attention_mask"]]
    assert set(targets.tolist()) <= set(negatives.tolist())
    assert len(set(negatives.tolist())) == len(negatives)
    everything = np.concatenate(data.sequences("train"))
    share = (everything == int(negatives[0])).mean()
    expected = len(targets) * share + 500 / len(np.unique(everything))
    drawn = np.exp(batch["log_weights"].double()[0].item()) * expected  # the count that the weight was made of
    assert drawn == pytest.approx(round(drawn), abs=1e-3)
    weights = batch["log_weights"].double().exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=0.15)  # counts are near what is expected


class TasteConfig(CFEncoderConfig):
    model_type = "test-taste"


class TasteModel(CFEncoder):
    """Learns one vector for each user, and serves the mean of the history."""

    config_class = TasteConfig
    trains_on = "interactions"

    def __init__(self, config):
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.updates = 0

    def start_training(self, users, items, num_users):
        self.seen = set(zip(users.tolist(), items.tolist(), strict=True))
        self.user_embedding = nn.Embedding(num_users, self.config.hidden_size)

    def sequence_states(self, item_ids, attention_mask=None):
        return self.item_embedding(item_ids).cumsum(1)

    def training_loss(self, batch):
        users, table = self.user_embedding(batch["users"]), self.item_embeddings
        positive = self.score_vectors(users, table[batch["targets"]])
        negative = self.score_vectors(users.unsqueeze(1), table[batch["negatives"]])
        return self.sampled_loss(positive, negative).mean()

    def update_tables(self):
        self.updates += 1

    def end_training(self):
        del self.user_embedding


def test_a_backbone_with_user_vectors_trains_on_interactions_and_drops_them(data, tmp_path):
    model = TasteModel(TasteConfig(num_items=N, hidden_size=4, loss="bpr", num_negatives=2))
    before = model.item_embeddings.detach().clone()
    train_cf_encoder(data, model, ARGUMENTS.replaced(epochs=2), tmp_path)
    assert model.seen == {(user, item) for user, items in enumerate(data.sequences("train")) for item in items.tolist()}
    assert not model.item_embeddings.equal(before)
    assert not hasattr(model, "user_embedding")
    assert model.updates == 3  # before both validations, and at the end


def test_interaction_batches_hold_each_interaction_once_with_items_the_user_never_had(data):
    model = TasteModel(TasteConfig(num_items=N, hidden_size=4, loss="bpr", num_negatives=3))
    task = CFEncoderTask(model, data, ARGUMENTS)
    found = []
    for rows in task.batches(1):
        batch = task.collate(rows, np.random.default_rng(0))
        assert task.loss_weight(batch) == len(rows)
        found += zip(batch["users"].tolist(), batch["targets"].tolist(), strict=True)
        for user, negatives in zip(batch["users"].tolist(), batch["negatives"].tolist(), strict=True):
            assert not set(negatives) & set(data.sequences("train")[user].tolist())
    expected = [(user, item) for user, items in enumerate(data.sequences("train")) for item in items.tolist()]
    assert sorted(found) == sorted(expected)


def test_an_untrained_constant_backbone_is_validated_at_chance(data):
    task = task_of(data)
    task.cf_encoder.item_embedding.weight.data.zero_()
    rows = np.arange(task.num_validation_examples)
    found = task.validate(rows, torch.device("cpu"))
    left = np.array([N - len(history) for history in task.validation.histories])
    np.testing.assert_allclose(found["hit@10"], np.minimum(10 / left, 1))
    gains = [sum(1 / np.log2(1 + place) for place in range(1, min(count, 10) + 1)) / count for count in left]
    np.testing.assert_allclose(found["ndcg@10"], gains)


def test_validation_in_slices_equals_validation_at_once(data, monkeypatch):
    task = task_of(data)
    rows = np.arange(task.num_validation_examples)
    expected = task.validate(rows, torch.device("cpu"))
    monkeypatch.setattr("allmrec_hf.training.cf_encoder.VALIDATION_SCORES", 3 * (N + 1))
    found = task.validate(rows, torch.device("cpu"))
    assert found["ndcg@10"].tolist() == expected["ndcg@10"].tolist()


def test_training_with_the_validation_items_validates_on_nothing(data):
    task = task_of(data, split="train+validation")
    assert task.num_validation_examples == 0
    assert task.examples.lengths.sum() > task_of(data).examples.lengths.sum()


def test_validation_users_are_limited_by_the_seed(data):
    few = [task_of(data, ARGUMENTS.replaced(max_validation_users=7)).validation.users.tolist() for _ in range(2)]
    assert few[0] == few[1]
    assert len(few[0]) == 7


def test_the_same_seed_gives_the_same_backbone(data, tmp_path):
    short = ARGUMENTS.replaced(epochs=2)
    models = [train_cf_encoder(data, config(dropout=0.3), short, tmp_path / str(i)) for i in range(2)]
    states = [model.state_dict() for model in models]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_a_backbone_given_as_a_model_is_trained_further(data, tmp_path):
    torch.manual_seed(0)
    model = SASRecModel(config())
    before = model.item_embeddings.detach().clone()
    assert train_cf_encoder(data, model, ARGUMENTS.replaced(epochs=1), tmp_path) is model
    assert not model.item_embeddings.equal(before)


def test_a_backbone_of_another_catalogue_is_refused(data):
    with pytest.raises(DataError, match="has 19 items, the data cycle have 20"):
        task_of(data, num_items=19)


def test_data_without_sequences_are_refused(data):
    lonely = CycleData()
    lonely.whole = [items[:1] for items in lonely.whole]
    with pytest.raises(DataError, match="no user has two training interactions"):
        task_of(lonely)
