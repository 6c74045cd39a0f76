import math

import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_bprmf import BPRMFConfig, BPRMFModel
from allmrec_hf.cf_lightgcn import LightGCNConfig, LightGCNModel
from allmrec_hf.cf_ncf import NCFConfig, NCFModel
from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.pretrained_backbone import fit_to_catalog

BACKBONES = [(BPRMFConfig, BPRMFModel), (NCFConfig, NCFModel), (LightGCNConfig, LightGCNModel)]
HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 11]]
USERS = torch.tensor([0, 0, 0, 0, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4])
ITEMS = torch.tensor([5, 9, 2, 7, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 4, 11])
# Single precision; the tower's rectifiers have corners, at which the last digits of a fold-in depend on rounding.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
BATCH = {
    "users": torch.tensor([0, 1, 3]),
    "targets": torch.tensor([5, 3, 8]),
    "negatives": torch.tensor([[1, 3], [2, 2], [12, 11]]),
}


def tiny(config_class, model_class, **changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "max_history_length": 10, "initializer_range": 0.3}
    return model_class(config_class(**{**values, **changes})).eval()


@pytest.fixture(params=BACKBONES, ids=lambda pair: pair[1].__name__)
def backbone(request):
    return request.param


@pytest.fixture
def model(backbone):
    """A model whose tables come from a (very short) training."""
    model = tiny(*backbone)
    model.start_training(USERS, ITEMS, 5)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        model.training_loss(BATCH).backward()
        optimizer.step()
    model.update_tables()
    return model


def test_many_chunks_equal_one(model, monkeypatch):
    batch = pad_histories(HISTORIES, 10)
    expected = model.encode_users(*batch)
    monkeypatch.setattr("allmrec_hf.cf_user_vectors._CACHED_VALUES", 1)
    torch.testing.assert_close(model.encode_users(*batch), expected, **CLOSE)


def test_the_order_of_a_history_does_not_matter(model):
    users = model.encode_users(torch.tensor([[1, 2, 3, 4], [4, 2, 1, 3]]))
    torch.testing.assert_close(users[0], users[1], rtol=1e-6, atol=1e-6)


def test_the_mask_hides_items(model):
    item_ids = torch.tensor([[1, 2, 3]])
    hidden = model.encode_users(item_ids, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(hidden, model.encode_users(torch.tensor([[1, 3]])), **CLOSE)


def test_states_are_the_users_of_every_prefix(model):
    item_ids, mask = pad_histories(HISTORIES, 10)
    states = model.sequence_states(item_ids, mask)
    assert states.shape == (5, 10, 16)
    assert not states[~mask].any()
    torch.testing.assert_close(states[0, 7], model.encode_users(torch.tensor([[5, 9]]))[0], **CLOSE)
    full = [row for row, history in enumerate(HISTORIES) if history]
    users = model.encode_users(item_ids, mask)
    torch.testing.assert_close(states[full, -1], users[full], **CLOSE)


def test_wanted_states_are_those_of_the_sequence_and_no_others_are_worked_out(model, monkeypatch):
    item_ids, mask = pad_histories(HISTORIES, 10)
    wanted = torch.zeros_like(mask)
    wanted[0, 7] = wanted[3, 4] = wanted[1, 0] = True  # the last one is padding
    expected = model.sequence_states(item_ids, mask)[wanted]
    folded = []
    fold_in = type(model).fold_in
    monkeypatch.setattr(type(model), "fold_in", lambda *args: folded.append(len(args[1])) or fold_in(*args))
    torch.testing.assert_close(model.states_at(item_ids, mask, wanted), expected, **CLOSE)
    assert sum(folded) == 3


def test_an_empty_history_gives_one_neutral_user(model):
    users = model.encode_users(torch.zeros(2, 4, dtype=torch.long))
    torch.testing.assert_close(users[0], users[1])
    assert model.score(users)[:, 1:].isfinite().all()
    if model.scores_by_dot_product:
        assert not users.any()
    else:
        torch.testing.assert_close(users[0], model.user_vectors().mean(0))


def test_an_empty_batch_has_no_user(model):
    assert model.encode_users(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 16)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert model.states_at(torch.ones(2, 3, dtype=torch.long), None, nothing).shape == (0, 16)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_users_are_served_in_every_gradient_mode_and_carry_no_gradient(model, mode):
    expected = model.encode_users(torch.tensor([[1, 2, 3]]))
    with mode():
        users = model.encode_users(torch.tensor([[1, 2, 3]]))
    assert not users.requires_grad
    assert torch.equal(users, expected)


def test_mixed_precision_leaves_fold_in_alone(model):
    batch = pad_histories(HISTORIES, 10)
    expected = model.encode_users(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_users(*batch), expected)
        model.training_loss(BATCH).backward()


def test_a_checkpoint_holds_no_user_and_serves_alike(model, backbone, tmp_path):
    batch = pad_histories(HISTORIES, 10)
    expected = model.encode_users(*batch)
    model.save_pretrained(tmp_path / "while_training")
    model.end_training()
    model.save_pretrained(tmp_path / "trained")
    for name in ("while_training", "trained"):
        again = backbone[1].from_pretrained(tmp_path / name).eval()
        assert again.user_embedding is None
        assert not [key for key in again.state_dict() if "user_embedding" in key or "initial" in key]
        torch.testing.assert_close(again.encode_users(*batch), expected, rtol=0, atol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("while_training", "trained")]
    assert sizes[0] == sizes[1]


def test_end_training_leaves_the_served_users_alone(model):
    batch = pad_histories(HISTORIES, 10)
    expected = model.encode_users(*batch)
    model.end_training()
    assert torch.equal(model.encode_users(*batch), expected)
    with pytest.raises(ALLMRecError, match="has no user vectors: call start_training"):
        model.training_loss(BATCH)


@pytest.mark.parametrize("kept", [[11, 2, 5], [12]])
def test_a_smaller_catalogue_contrasts_users_with_what_is_left(model, kept):
    model.end_training()
    catalog = ItemCatalog.from_records([{"item_id": f"i{index}"} for index in [*kept, 99]])
    fitted = fit_to_catalog(model, [f"i{index}" for index in range(1, 13)], catalog, "zeros").cf_encoder
    contrast = fitted.contrast_items[fitted.contrast_items > 0]
    assert sorted(contrast.tolist()) == list(range(1, len(kept) + 1))  # item 12 was in no contrast; it is all there is
    assert fitted.encode_users(torch.tensor([[0, 1]])).isfinite().all()


def test_gradients_reach_the_vectors_of_the_batch(model):
    model.zero_grad()
    model.training_loss(BATCH).backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    users = model.user_embedding.weight.grad.abs().sum(1) > 0
    assert users[[0, 1, 3]].all()
    assert not users[2]
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_the_penalty_is_half_the_squared_norms_of_a_sample(backbone):
    losses = []
    for l2 in (0.0, 0.5):  # in LightGCN of the vectors before propagation, which at the start are the item table
        model = tiny(*backbone, l2=l2)
        model.start_training(USERS, ITEMS, 5)
        losses.append(model.training_loss(BATCH))
    table = model.item_embeddings
    user = model.user_embedding.weight[BATCH["users"]].square().sum(1)
    target, negatives = (table[BATCH[name]].square().sum(-1) for name in ("targets", "negatives"))
    penalty = 0.25 * (user + target + negatives.mean(1)).mean()
    torch.testing.assert_close(losses[1] - losses[0], penalty)


def test_a_batch_may_hold_one_negative_without_an_axis(model):
    one = {**BATCH, "negatives": BATCH["negatives"][:, 0]}
    torch.testing.assert_close(
        model.training_loss(one), model.training_loss({**one, "negatives": one["negatives"].unsqueeze(1)})
    )
    with pytest.raises(DataError, match=r"the batch lacks \['negatives'\]"):
        model.training_loss({"users": one["users"], "targets": one["targets"]})


def test_training_refuses_interactions_out_of_range(backbone):
    model = tiny(*backbone)
    with pytest.raises(DataError, match="user number 4; it must be between 0 and 3"):
        model.start_training(USERS, ITEMS, 4)
    with pytest.raises(DataError, match="catalogue index 13; it must be between 1 and 12"):
        model.start_training(USERS, ITEMS + 2, 5)
    with pytest.raises(DataError, match="no training interaction"):
        model.start_training(USERS[:0], ITEMS[:0], 5)
    with pytest.raises(DataError, match=r"one length E, got \(17,\) and \(16,\)"):
        model.start_training(USERS, ITEMS[1:], 5)


@pytest.mark.parametrize("l2", [-0.1, math.inf, math.nan])
def test_an_impossible_penalty_is_refused(backbone, l2):
    with pytest.raises(ALLMRecError, match="l2 must be a finite number of 0 or more"):
        backbone[0](num_items=5, l2=l2)
