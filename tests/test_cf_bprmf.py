import math

import pytest
import torch
import torch.nn.functional as F

from allmrec_hf.cf_bprmf import BPRMFConfig, BPRMFModel
from allmrec_hf.cf_encoder import cf_config_from_dict
from allmrec_hf.errors import CheckpointError


def model_with(table, **changes):
    table = torch.cat([torch.zeros(1, table.shape[1]), table])
    model = BPRMFModel(BPRMFConfig(num_items=len(table) - 1, hidden_size=table.shape[1], **changes)).eval()
    model.item_embedding.weight.data = table
    return model


def objective(user, model, history, contrast):
    """The training loss of one user, summed over the history, in double precision and written without the model."""
    table = model.item_embeddings.detach().double()
    rival = [item for item in contrast if item not in history]
    margins = (table[history] @ user).unsqueeze(1) - (table[rival] @ user).unsqueeze(0)
    return F.softplus(-margins).mean(1).sum() + len(history) * model.config.l2 / 2 * user.square().sum()


def test_bpr_of_equal_scores_is_log_two():
    model = model_with(torch.ones(4, 3), l2=0.0)
    model.start_training(torch.tensor([0, 1]), torch.tensor([1, 2]), 2)
    batch = {
        "users": torch.tensor([0, 1, 1]),
        "targets": torch.tensor([1, 2, 2]),
        "negatives": torch.tensor([[3, 4], [4, 1], [3, 3]]),
    }
    assert model.training_loss(batch).item() == pytest.approx(math.log(2), rel=1e-6)


def test_bpr_of_one_triple_equals_the_value_by_hand():
    model = model_with(torch.tensor([[2.0], [-1.0]]), l2=0.1)
    model.start_training(torch.tensor([0]), torch.tensor([1]), 1)
    model.user_embedding.weight.data.fill_(0.5)
    batch = {"users": torch.tensor([0]), "targets": torch.tensor([1]), "negatives": torch.tensor([[2]])}
    expected = math.log(1 + math.exp(-1.5)) + 0.05 * (0.25 + 4 + 1)  # margin 0.5 * 2 - 0.5 * (-1)
    assert model.training_loss(batch).item() == pytest.approx(expected, rel=1e-6)


def test_fold_in_of_one_item_against_one_solves_its_equation():
    model = model_with(torch.tensor([[1.0], [-1.0]]), l2=0.1)
    user = model.encode_users(torch.tensor([[1]])).item()
    low, high = 0.0, 10.0
    for _ in range(60):  # the root of 2 sigmoid(-2 u) = 0.1 u
        middle = (low + high) / 2
        low, high = (middle, high) if 2 / (1 + math.exp(2 * middle)) > 0.1 * middle else (low, middle)
    assert user == pytest.approx(low, rel=1e-5)


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1e-1])
def test_fold_in_is_the_minimum_of_the_training_loss(l2):
    torch.manual_seed(0)
    model = model_with(torch.randn(300, 16) * 0.5, l2=l2, num_contrast_items=50)
    histories = torch.stack([torch.randperm(300)[:12] + 1 for _ in range(5)])
    users = model.encode_users(histories)
    contrast = model.contrast_items.tolist()
    for user, history in zip(users, histories.tolist(), strict=True):
        point = user.double().requires_grad_()
        value = objective(point, model, history, contrast)
        value.backward()
        start = objective(torch.zeros(16, dtype=torch.float64), model, history, contrast)
        assert point.grad.norm() < 1e-3 * start
        assert value < start


def test_fold_in_recovers_the_vectors_of_trained_users():
    torch.manual_seed(0)
    seen = torch.stack([torch.randperm(10)[:5] + 1 + 10 * (user % 2) for user in range(16)])  # two tastes
    rivals = torch.tensor([[item for item in range(1, 21) if item not in row] for row in seen.tolist()])
    users = torch.arange(16).repeat_interleave(5)
    model = BPRMFModel(BPRMFConfig(num_items=20, hidden_size=8, l2=0.02, initializer_range=0.1))
    model.start_training(users, seen.flatten(), 16)
    batch = {"users": users, "targets": seen.flatten(), "negatives": rivals[users]}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    trained = model.user_vectors().detach()
    folded = model.encode_users(seen)
    assert torch.cosine_similarity(folded, trained, dim=1).min() > 0.99
    best = [model.score(vectors)[:, 1:].topk(5, dim=1).indices.sort(dim=1).values for vectors in (folded, trained)]
    assert (best[0] == best[1]).float().mean() > 0.9


def test_a_history_against_nothing_stays_finite():
    model = model_with(torch.randn(3, 4), l2=0.0)
    everything = model.encode_users(torch.tensor([[1, 2, 3]]))
    assert not everything.any()  # no item is left to rank the history above
    assert model.encode_users(torch.tensor([[1, 1, 1]])).isfinite().all()


def test_an_item_seen_twice_counts_twice():
    torch.manual_seed(0)
    model = model_with(torch.randn(40, 8), l2=0.05)
    twice = model.encode_users(torch.tensor([[3, 3, 7]]))[0].double().requires_grad_()
    objective(twice, model, [3, 3, 7], model.contrast_items[model.contrast_items > 0].tolist()).backward()
    assert twice.grad.norm() < 1e-4
    once = model.encode_users(torch.tensor([[0, 3, 7]]))[0]
    assert (once - twice.float()).norm() > 1e-2


def test_the_contrast_is_spread_over_the_items_seen_in_training():
    model = BPRMFModel(BPRMFConfig(num_items=100, num_contrast_items=4))
    assert model.contrast_items.tolist() == [1, 26, 51, 76]
    model.start_training(torch.zeros(3, dtype=torch.long), torch.tensor([9, 40, 9]), 1)
    assert model.contrast_items.tolist() == [9, 40, 0, 0]


@pytest.mark.parametrize("values", [{"loss": "bce"}, {"l2": "much"}, {"num_contrast_items": 0}])
def test_a_config_value_that_makes_no_sense_is_refused(values):
    with pytest.raises((CheckpointError, ValueError), match=next(iter(values))):
        cf_config_from_dict({"model_type": "allmrec-bprmf", **values})
