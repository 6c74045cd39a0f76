import math

import pytest
import torch
import torch.nn.functional as F

from allmrec_hf.cf_ncf import NCFConfig, NCFModel
from allmrec_hf.errors import ALLMRecError


def by_hand():
    """Product half 1 wide, tower 2 -> 1, so that everything can be redone on paper."""
    model = NCFModel(NCFConfig(num_items=2, hidden_size=2, num_layers=1)).eval()
    model.item_embedding.weight.data = torch.tensor([[0.0, 0.0], [2.0, 3.0], [-1.0, 0.5]])
    model.tower[0].weight.data = torch.tensor([[0.5, 2.0]])
    model.tower[0].bias.data = torch.tensor([-1.0])
    model.prediction.weight.data = torch.tensor([[4.0, 0.25]])
    model.prediction.bias.data = torch.tensor([0.125])
    return model


def random_model(**changes):
    torch.manual_seed(0)
    values = {"num_items": 30, "hidden_size": 16, "initializer_range": 0.5, "num_contrast_items": 20}
    return NCFModel(NCFConfig(**{**values, **changes})).eval()


def two_tastes():
    torch.manual_seed(0)
    seen = torch.stack([torch.randperm(10)[:5] + 1 + 10 * (user % 2) for user in range(16)])
    rivals = torch.tensor([[item for item in range(1, 21) if item not in row] for row in seen.tolist()])
    return seen, rivals, torch.arange(16).repeat_interleave(5)


def test_scores_equal_the_values_by_hand():
    model = by_hand()
    users = torch.tensor([[0.5, 1.0]])
    # item 1: 4 * 0.5 * 2 + 0.25 * relu(0.5 * 1 + 2 * 3 - 1) + 0.125; item 2: the tower is at 0.5 + 1 - 1
    expected = [4 * 1.0 + 0.25 * 5.5 + 0.125, 4 * -0.5 + 0.25 * 0.5 + 0.125]
    assert model.score(users)[0, 1:].tolist() == pytest.approx(expected)
    assert model.score_vectors(users, model.item_embeddings[1:]).tolist() == pytest.approx(expected)


def test_the_loss_equals_the_value_by_hand():
    model = by_hand()
    model.start_training(torch.tensor([0]), torch.tensor([1]), 1)
    model.user_embedding.weight.data = torch.tensor([[0.5, 1.0]])
    batch = {"users": torch.tensor([0]), "targets": torch.tensor([1]), "negatives": torch.tensor([[2, 2]])}
    expected = math.log(1 + math.exp(-5.5)) + 2 * math.log(1 + math.exp(-1.75))
    model.config.l2 = 0.0
    assert model.training_loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_tower_halves_from_layer_to_layer():
    model = random_model()
    assert [tuple(layer.weight.shape) for layer in model.tower] == [(8, 16), (4, 8), (2, 4)]
    assert model.prediction.weight.shape == (1, 8 + 2)


def test_whole_catalogue_scores_do_not_depend_on_slices(monkeypatch):
    model = random_model()
    users = torch.randn(5, 16)
    expected = model.score(users)
    monkeypatch.setattr("allmrec_hf.cf_ncf._CACHED_VALUES", 1)
    torch.testing.assert_close(model.score(users), expected)
    assert model.score(users[:0]).shape == (0, 31)


def test_fold_in_lowers_the_training_loss_to_a_minimum():
    model = random_model(l2=0.02)
    model.mean_user.normal_()
    histories = torch.stack([torch.randperm(30)[:6] + 1 for _ in range(4)])
    contrast = model.contrast_items.tolist()
    for user, history in zip(model.encode_users(histories), histories.tolist(), strict=True):
        rival = [item for item in contrast if item not in history]

        def value(point, history=history, rival=rival):
            positive, negative = (
                model.score_vectors(point, model.item_embeddings[items].detach()) for items in (history, rival)
            )
            loss = F.softplus(-positive).sum() + len(history) * 4 * F.softplus(negative).mean()
            return loss + len(history) * 0.01 * (point - model.mean_user).square().sum()

        found = value(user)
        assert found < 0.9 * value(model.mean_user)
        for _ in range(50):  # no step around it leads lower, beyond what six steps leave to do
            assert value(user + 0.05 * torch.randn(16)) > 0.97 * found


def test_folded_users_score_as_trained_users_do():
    seen, rivals, users = two_tastes()
    model = NCFModel(NCFConfig(num_items=20, hidden_size=16, num_negatives=15, l2=0.01, initializer_range=0.1))
    model.start_training(users, seen.flatten(), 16)
    batch = {"users": users, "targets": seen.flatten(), "negatives": rivals[users]}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    model.update_tables()
    model.eval()
    both = (model.user_vectors().detach(), model.encode_users(seen))
    trained, folded = (model.score(vectors)[:, 1:].detach() for vectors in both)
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(trained, folded, strict=True)]
    assert sum(correlations) / 16 > 0.9  # the tower has more than one minimum, so not each of them
    best = [scores.topk(5, dim=1).indices for scores in (trained, folded)]
    shared = sum(len(set(a) & set(b)) for a, b in zip(best[0].tolist(), best[1].tolist(), strict=True))
    assert shared > 0.8 * best[0].numel()


def test_the_average_trained_user_is_kept():
    model = random_model()
    model.start_training(torch.tensor([0, 1]), torch.tensor([3, 4]), 3)
    model.update_tables()
    torch.testing.assert_close(model.mean_user, model.user_vectors().mean(0))
    kept = model.mean_user.clone()
    model.end_training()
    model.update_tables()
    assert torch.equal(model.mean_user, kept)


def test_users_cannot_be_compared_by_dot_product():
    assert not NCFModel.scores_by_dot_product


def test_a_tower_that_cannot_halve_is_refused():
    with pytest.raises(ALLMRecError, match="hidden_size must be a multiple of 8 for a tower of num_layers 3, got 20"):
        NCFConfig(num_items=5, hidden_size=20)
    with pytest.raises(ALLMRecError, match="num_layers must be at least 1, got 0"):
        NCFConfig(num_items=5, num_layers=0)
