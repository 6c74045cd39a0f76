import logging
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from allmrec_hf.cf_lightgcn import LightGCNConfig, LightGCNModel
from allmrec_hf.errors import ALLMRecError, DataError

# Three users, three items, five edges: user 0 has seen items 1 and 2, user 1 item 2 and 3, user 2 item 3.
USERS, ITEMS = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 2, 2, 3, 3])


def in_training(users=USERS, items=ITEMS, num_users=3, **changes):
    torch.manual_seed(0)
    values = {"num_items": 3, "hidden_size": 4, "num_layers": 3, "initializer_range": 0.5}
    model = LightGCNModel(LightGCNConfig(**{**values, **changes})).eval()
    model.start_training(users, items, num_users)
    model.update_tables()
    return model


def dense_propagation(users, items, model):
    """The paper's equation 8 with a dense matrix, in double precision."""
    start = torch.cat([model.user_embedding.weight, model.initial_item_embedding.weight[1:]]).detach().double()
    num_users, size = len(model.user_embedding.weight), len(start)
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    adjacency[users, num_users + items - 1] = 1
    adjacency = adjacency + adjacency.T
    scale = adjacency.sum(1).pow(-0.5).nan_to_num(posinf=0.0)
    matrix = scale.unsqueeze(1) * adjacency * scale
    layers = [start]
    for _ in range(model.config.num_layers):
        layers.append(matrix @ layers[-1])
    return torch.stack(layers).mean(0).split([num_users, size - num_users])


def random_graph(num_users=30, num_items=20):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(num_users, (200,), generator=generator),
        torch.randint(1, num_items + 1, (200,), generator=generator),
    )


def test_one_step_over_five_edges_equals_the_fractions_by_hand():
    model = in_training(hidden_size=1, num_layers=1)
    model.user_embedding.weight.data = torch.tensor([[4.0], [8.0], [2.0]])
    model.initial_item_embedding.weight.data = torch.tensor([[0.0], [6.0], [10.0], [12.0]])
    model.update_tables()
    half, root = Fraction(1, 2), 2**-0.5  # degrees: users 2, 2, 1; items 1, 2, 2
    users = [(4 + 6 * root + 10 * half) / 2, (8 + 10 * half + 12 * half) / 2, (2 + 12 * root) / 2]
    items = [(6 + 4 * root) / 2, (10 + 4 * half + 8 * half) / 2, (12 + 8 * half + 2 * root) / 2]
    assert model.user_vectors().flatten().tolist() == pytest.approx([float(value) for value in users])
    assert model.item_embeddings[1:].flatten().tolist() == pytest.approx([float(value) for value in items])
    neighbours = model.neighbour_part(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    assert neighbours.item() == pytest.approx(float(users[0]) - 4 / 2)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_propagation_equals_a_dense_matrix(num_layers):
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20, num_layers=num_layers)
    expected_users, expected_items = dense_propagation(users, items, model)
    torch.testing.assert_close(model.user_vectors().double(), expected_users, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.item_embeddings[1:].double(), expected_items, rtol=1e-5, atol=1e-6)
    assert not model.item_embeddings[0].any()


def test_the_gradient_equals_that_of_a_dense_matrix():
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20, l2=0.0)
    batch = {"users": users[:8], "targets": items[:8], "negatives": items[100:108]}
    model.training_loss(batch).backward()
    layers = torch.cat([model.user_embedding.weight, model.initial_item_embedding.weight]).detach().requires_grad_()
    matrix = model._graph.matrix(layers.device).to_dense()
    total, layer = layers, layers
    for _ in range(3):
        layer = matrix @ layer
        total = total + layer
    user, item, other = (total[rows] / 4 for rows in (batch["users"], batch["targets"] + 30, batch["negatives"] + 30))
    F.softplus((user * (other - item)).sum(1)).mean().backward()
    torch.testing.assert_close(model.user_embedding.weight.grad, layers.grad[:30])
    torch.testing.assert_close(model.initial_item_embedding.weight.grad[1:], layers.grad[31:])


def test_a_trained_user_is_the_part_of_the_neighbours_and_the_own_vector():
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20)
    for user in range(30):
        history = items[users == user].unsqueeze(0)
        neighbours = model.neighbour_part(history, torch.ones_like(history, dtype=torch.bool))[0]
        expected = neighbours + model.user_embedding.weight[user] / 4
        torch.testing.assert_close(model.user_vectors()[user], expected, rtol=1e-5, atol=1e-6)


def test_without_own_vector_the_neighbours_are_the_user():
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20, own_vector="zeros")
    history = torch.tensor([[0, 3, 4, 9], [1, 1, 4, 2]])
    torch.testing.assert_close(model.encode_users(history), model.neighbour_part(history, history > 0))


def test_the_own_vector_minimises_the_training_loss():
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20, l2=1e-2)
    history = torch.tensor([[3, 4, 9, 11]])
    table = model.item_embeddings.detach().double()
    neighbours = model.neighbour_part(history, history > 0)[0].double()
    own = ((model.encode_users(history)[0].double() - neighbours) * 4).requires_grad_()  # before propagation
    rival = [item for item in range(1, 21) if item not in (3, 4, 9, 11)]
    scores = table @ (neighbours + own / 4)
    margins = scores[history[0]].unsqueeze(1) - scores[rival].unsqueeze(0)
    (F.softplus(-margins).mean(1).sum() + 4 * 1e-2 / 2 * own.square().sum()).backward()
    assert own.grad.norm() < 1e-4
    assert own.norm() > 0.1


def test_an_item_seen_twice_is_one_edge():
    once, twice = in_training(), in_training(torch.cat([USERS, USERS]), torch.cat([ITEMS, ITEMS]))
    torch.testing.assert_close(once.user_vectors(), twice.user_vectors())
    real = torch.ones(1, 3, dtype=torch.bool)
    expected = once.neighbour_part(torch.tensor([[0, 1, 3]]), torch.tensor([[False, True, True]]))
    torch.testing.assert_close(once.neighbour_part(torch.tensor([[3, 1, 3]]), real), expected)


def test_lonely_items_and_users_stay_finite_and_are_counted(caplog):
    with caplog.at_level(logging.WARNING, logger="allmrec_hf.cf_lightgcn"):
        logging.getLogger("allmrec_hf.cf_lightgcn").addHandler(caplog.handler)
        model = in_training(num_users=5, num_items=7)
    assert "2 of 5 users and 4 of 7 items have no training interaction" in caplog.text
    assert model.user_vectors().isfinite().all()
    assert model.item_embeddings.isfinite().all()
    assert model.encode_users(torch.tensor([[6, 7]])).isfinite().all()
    batch = {"users": torch.tensor([4]), "targets": torch.tensor([7]), "negatives": torch.tensor([[6]])}
    model.training_loss(batch).backward()
    assert model.user_embedding.weight.grad.isfinite().all()


def test_a_graph_without_edges_is_refused():
    with pytest.raises(DataError, match="no training interaction"):
        in_training(USERS[:0], ITEMS[:0])


def test_only_vectors_before_propagation_are_trained():
    model = in_training()
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert sorted(trained) == ["initial_item_embedding.weight", "user_embedding.weight"]
    model.end_training()
    assert model.item_embedding.weight.requires_grad
    model.update_tables()  # nothing to do, and nothing lost
    assert model.item_embeddings[1:].any()


def test_a_cold_item_counts_in_histories_like_a_trained_one_of_its_vector():
    users, items = random_graph()
    model = in_training(users, items, 30, num_items=20, own_vector="zeros")
    model.end_training()
    model.replace_items(torch.tensor([20]), model.item_embeddings[3:4].detach().clone())
    model.append_items(model.item_embeddings[3:4].detach().clone())
    both = model.encode_users(torch.tensor([[20], [21]]))
    torch.testing.assert_close(both[0], both[1], rtol=0.05, atol=0.0)  # the first one moved the scale a little
    scale = (model.item_embeddings * model.history_embedding.weight).sum() / model.item_embeddings.square().sum()
    torch.testing.assert_close(both[1], model.item_embeddings[3] * scale, rtol=0.2, atol=0.0)
    assert model.history_embedding.weight.shape == (22, 4)


def test_a_graph_without_layers_is_refused():
    with pytest.raises(ALLMRecError, match="num_layers must be at least 1, got 0"):
        LightGCNConfig(num_items=5, num_layers=0)
