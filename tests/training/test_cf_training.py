import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_encoder import CFEncoder, CFEncoderConfig, build_cf_encoder
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.errors import CheckpointError, DataError
from allmrec_hf.training.backbone_training import CFEncoderTask, catalog_ranks, train_backbone
from allmrec_hf.training.pretrained_backbone import save_backbone
from allmrec_hf.training.samples import Samples, validation_targets
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.trained import load_target_counts, target_counts

N = 20
ARGUMENTS = StageArguments(num_train_epochs=12, per_device_train_batch_size=16, learning_rate=1e-2)


class CycleData:
    """Users who walk through the items in one fixed cycle, each from another start; the next item can be learned."""

    name, num_items, digests = "cycle", N, {"interactions": "cycle"}

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
    arguments = ARGUMENTS if loss == "cross_entropy" else ARGUMENTS.replaced(num_train_epochs=40)
    model = train_backbone(data, config(loss=loss, num_negatives=num_negatives), arguments, tmp_path)
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
    expected = []
    for sequence in data.sequences("train"):
        last, first = (
            sequence[-7:].tolist(),
            sequence[:-6].tolist(),
        )  # 6 targets at most behind 6 inputs, 9 items at most
        expected += [(part[:-1], part[1:]) for part in (last, first) if len(part) > 1]
    assert sorted(seen) == sorted(expected)
    assert any(len(sequence) > 7 for sequence in data.sequences("train"))


def test_every_item_of_a_long_history_but_its_first_is_a_target_once_an_epoch_behind_the_item_before_it():
    data = CycleData(num_users=3)
    data.whole = [np.arange(1, 21), np.arange(1, 6), np.array([20, 19, 18])]
    task = task_of(data, ARGUMENTS.replaced(per_device_train_batch_size=2))
    pairs = []
    for rows in task.batches(3):
        batch = task.collate(rows, np.random.default_rng(0))
        real = batch["attention_mask"]
        pairs += zip(batch["item_ids"][real].tolist(), batch["targets"][real].tolist(), strict=True)
        assert real.sum(dim=1).max() <= 6
    assert sorted(pairs) == sorted(
        [(i, i + 1) for i in range(1, 18)] + [(1, 2), (2, 3)]
    )  # two are held out, of 3 users


def test_the_evaluated_items_are_no_target_and_no_input_of_training():
    data = CycleData(num_users=1)
    data.whole = [np.arange(1, 21)]
    for split, held_out in (("train", {19, 20}), ("train+validation", {20})):
        for loss in ("cross_entropy", "sampled_softmax"):
            task = task_of(data, split=split, loss=loss)
            seen = set()
            for rows in task.batches(0):
                batch = task.collate(rows, np.random.default_rng(0))
                seen |= {
                    int(item) for name, items in batch.items() if name != "log_weights" for item in items.flatten()
                }
            assert not seen & held_out


def test_items_that_are_never_a_target_are_no_sampled_negatives():
    data = CycleData(num_users=3)
    data.whole = [np.array([1, 2, 3, 5, 6]), np.array([7, 3, 4, 9, 8]), np.array([8, 4, 2, 1, 1])]  # 1, 7, 8: never
    for loss in ("bce", "gbce", "bpr", "sampled_softmax"):
        task = task_of(data, loss=loss, num_negatives=50)
        assert sorted(set(task.examples.targets.tolist())) == [2, 3, 4]
        batch = task.collate(np.arange(len(task.examples.users)), np.random.default_rng(0))
        assert set(batch["negatives"].flatten().tolist()) - {0} <= {2, 3, 4}


@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "gbce", "bpr"])
def test_a_row_that_training_never_meets_stays_as_it_was_drawn(tmp_path, loss):
    data = CycleData(num_users=3)
    data.whole = [np.array([1, 2, 3, 5, 6]), np.array([7, 3, 4, 9, 8]), np.array([8, 4, 2, 1, 1])]
    touched = {1, 2, 3, 4, 7, 8}  # 5, 6 and 9 are held-out items, the others are nobody's
    torch.manual_seed(ARGUMENTS.seed)
    fresh = build_cf_encoder(config(loss=loss)).item_embeddings.detach().clone()
    model = train_backbone(data, config(loss=loss), ARGUMENTS.replaced(num_train_epochs=3), tmp_path)
    changed = (model.item_embeddings != fresh).any(dim=1).nonzero().flatten().tolist()
    assert set(changed) == touched
    assert model.target_counts.nonzero().flatten().tolist() == [2, 3, 4]


def test_a_backbone_says_how_often_each_item_was_a_target(data, tmp_path):
    model = train_backbone(data, config(), ARGUMENTS.replaced(num_train_epochs=2), tmp_path / "whole")
    targets = np.concatenate([sequence[1:] for sequence in data.sequences("train")])
    assert model.target_counts.tolist() == np.bincount(targets, minlength=N + 1).tolist()
    users = TasteModel(TasteConfig(num_items=N, hidden_size=4, loss="bpr", num_negatives=2))
    train_backbone(data, users, ARGUMENTS.replaced(num_train_epochs=1), tmp_path / "users")
    touched = np.concatenate(data.sequences("train"))
    assert users.target_counts.tolist() == np.bincount(touched, minlength=N + 1).tolist()


def test_a_first_epoch_that_was_cut_short_counts_what_it_trained(data, tmp_path):
    short = ARGUMENTS.replaced(max_steps=2, per_device_train_batch_size=4)
    model = train_backbone(data, config(), short, tmp_path)
    task = task_of(data, short)
    rows = np.concatenate(task.batches(0)[:2])
    batch = task.collate(rows, np.random.default_rng(0))
    targets = batch["targets"][batch["attention_mask"]].numpy()
    assert model.target_counts.tolist() == np.bincount(targets, minlength=N + 1).tolist()
    assert 0 < int(model.target_counts.sum()) < len(task.examples.targets)


def test_a_backbone_of_unknown_training_counts_what_every_program_trains(data):
    model = build_cf_encoder(config())  # sequences, 6 items long
    found = target_counts(model, data)
    expected = np.concatenate([sequence[1:][-6:] for sequence in data.sequences("train")])
    assert found.tolist() == np.bincount(expected, minlength=N + 1).tolist()
    model.item_embedding.weight.data[3] = 0  # an item that it lacks
    assert target_counts(model, data)[3] == 0 < found[3]
    touched = target_counts(TasteModel(TasteConfig(num_items=N, hidden_size=4)), data)
    assert touched.tolist() == np.bincount(np.concatenate(data.sequences("train")), minlength=N + 1).tolist()


def test_target_counts_are_saved_with_a_backbone_and_matched_by_id(tmp_path):
    model = build_cf_encoder(config(num_items=3))
    catalog, other = (
        ItemCatalog.from_records({"item_id": i} for i in ids) for ids in (("a", "b", "c"), ("c", "x", "a"))
    )
    save_backbone(model, catalog, tmp_path / "unknown")
    assert load_target_counts(str(tmp_path / "unknown"), catalog) is None
    model.target_counts = torch.tensor([0, 5, 0, 7])
    save_backbone(model, catalog, tmp_path / "known")
    assert load_target_counts(str(tmp_path / "known"), catalog).tolist() == [0, 5, 0, 7]
    assert load_target_counts(str(tmp_path / "known"), other).tolist() == [0, 7, 0, 5]
    (tmp_path / "known" / "targets.parquet").write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match="no readable list of item_id and targets"):
        load_target_counts(str(tmp_path / "known"), catalog)


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
    everything = np.concatenate([sequence[1:] for sequence in data.sequences("train")])  # no first item is a target
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
    train_backbone(data, model, ARGUMENTS.replaced(num_train_epochs=2), tmp_path)
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


def ranks_by_hand(model, samples):
    """Count user by user, over the whole row of scores."""
    better, tied = [], []
    for history, target in zip(samples.histories, samples.targets, strict=True):
        scores = model.score(model.encode_users(torch.from_numpy(history)[None]))[0].tolist()
        others = [s for i, s in enumerate(scores) if i not in {0, target, *history.tolist()}]
        better.append(sum(s > scores[target] for s in others))
        tied.append(sum(s == scores[target] for s in others))
    return better, tied


@torch.no_grad()
def test_ranks_in_the_catalogue_equal_those_counted_user_by_user_whatever_is_held_at_once(data, monkeypatch):
    model = build_cf_encoder(config()).eval()
    model.item_embedding.weight.copy_(torch.randint(-2, 3, model.item_embedding.weight.shape))  # exact products, ties
    model.item_embedding.weight[[5, 9, 12]] = model.item_embedding.weight[4].clone()
    samples = validation_targets(data)
    samples = Samples(samples.users, [history[-1:] for history in samples.histories], samples.targets)
    monkeypatch.setattr(model.config, "max_history_length", 16)
    monkeypatch.setattr(
        model, "encode_users", lambda ids, mask=None: F.pad(ids, (16 - ids.shape[1], 0)).float() % 3 - 1
    )
    expected = ranks_by_hand(model, samples)
    assert sum(expected[1]) > 10
    for users, scores in ((1024, 2**21), (7, 14), (1, 1), (5, 1000), (64, 3)):
        monkeypatch.setattr("allmrec_hf.training.backbone_training.VALIDATION_USERS", users)
        monkeypatch.setattr("allmrec_hf.training.backbone_training.VALIDATION_SCORES", scores)
        found = catalog_ranks(model, samples, torch.device("cpu"))
        assert [found.better.tolist(), found.tied.tolist()] == [list(counts) for counts in expected]


def test_validation_scores_many_users_at_once_and_never_more_than_its_bound(data, monkeypatch):
    task, held, encoded = task_of(data), [], []
    score_range, encode_users = task.cf_encoder.score_range, task.cf_encoder.encode_users
    monkeypatch.setattr(
        task.cf_encoder, "score_range", lambda u, a, b: (held.append(len(u) * (b - a)), score_range(u, a, b))[1]
    )
    monkeypatch.setattr(task.cf_encoder, "encode_users", lambda i, m: (encoded.append(len(i)), encode_users(i, m))[1])
    monkeypatch.setattr("allmrec_hf.training.backbone_training.VALIDATION_SCORES", 200)
    task.validate(np.arange(task.num_validation_examples), torch.device("cpu"))
    users = task.num_validation_examples
    assert encoded == [users]
    assert max(held) <= 200
    assert len(held) <= 2 * math.ceil(N / (200 // users))  # each slice twice at most, whoever the user


def test_a_score_that_is_not_a_number_is_refused(data):
    task = task_of(data)
    task.cf_encoder.item_embedding.weight.data[7] = float("nan")
    with pytest.raises(ValueError, match="rows hold NaN scores"):
        task.validate(np.arange(task.num_validation_examples), torch.device("cpu"))


def test_training_with_the_validation_items_validates_on_nothing(data):
    task = task_of(data, split="train+validation")
    assert task.num_validation_examples == 0
    assert task.examples.lengths.sum() > task_of(data).examples.lengths.sum()


def test_validation_users_are_limited_by_the_seed(data):
    few = [task_of(data, ARGUMENTS.replaced(max_validation_users=7)).validation.users.tolist() for _ in range(2)]
    assert few[0] == few[1]
    assert len(few[0]) == 7


def test_the_same_seed_gives_the_same_backbone(data, tmp_path):
    short = ARGUMENTS.replaced(num_train_epochs=2)
    models = [train_backbone(data, config(dropout=0.3), short, tmp_path / str(i)) for i in range(2)]
    states = [model.state_dict() for model in models]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_a_backbone_given_as_a_model_is_trained_further(data, tmp_path):
    torch.manual_seed(0)
    model = SASRecModel(config())
    before = model.item_embeddings.detach().clone()
    assert train_backbone(data, model, ARGUMENTS.replaced(num_train_epochs=1), tmp_path) is model
    assert not model.item_embeddings.equal(before)


def test_a_backbone_of_another_catalogue_is_refused(data):
    with pytest.raises(DataError, match="has 19 items, the data cycle have 20"):
        task_of(data, num_items=19)


def test_data_without_sequences_are_refused(data):
    lonely = CycleData()
    lonely.whole = [items[:1] for items in lonely.whole]
    with pytest.raises(DataError, match="no user has two training interactions"):
        task_of(lonely)
