"""What every backbone keeps, for all of this package (the list is `BUILT_IN`) and for one from outside it.

Tests of one backbone's own formulas stand in `tests/test_cf_NAME.py`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from allmrec_hf import ALLMRecConfig, ALLMRecModel
from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_built_in import BUILT_IN, MODEL_TYPE_PREFIX
from allmrec_hf.cf_encoder import (
    CFEncoder,
    CFEncoderConfig,
    build_cf_encoder,
    cf_config_from_dict,
    cf_encoder_class,
    register_cf_encoder,
)
from allmrec_hf.errors import ALLMRecError, CheckpointError, DataError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.presets import preset
from allmrec_hf.training.pretrained_backbone import fit_to_catalog


class ForeignConfig(CFEncoderConfig):
    model_type = "contract-mean"


class ForeignModel(CFEncoder):
    """The mean of a history's item embeddings."""

    config_class = ForeignConfig

    def __init__(self, config: ForeignConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.post_init()

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        cut = max(0, item_ids.shape[1] - self.config.max_history_length)
        item_ids, real = self.recent_items(item_ids, attention_mask)
        keep = real.unsqueeze(-1).to(self.dtype)
        states = (self.item_embedding(item_ids) * keep).cumsum(1) / keep.cumsum(1).clamp(min=1) * keep
        return nn.functional.pad(states, (0, 0, cut, 0))


register_cf_encoder(ForeignConfig, ForeignModel)

BACKBONES = (*BUILT_IN, "contract-mean")
SETTINGS: dict[str, list[dict[str, Any]]] = {  # besides the defaults; a backbone need not be here
    "allmrec-sasrec": [{"attend_padding": True, "num_heads": 2}],
    "allmrec-ligr": [{"num_layers": 1, "feed_forward_multiplier": 3}],
    "allmrec-bsarec": [{"num_layers": 1, "num_heads": 4, "filter_weight": 0.3, "filter_width": 9}],
    "allmrec-hstu": [{"num_layers": 1, "num_heads": 4}],
    "allmrec-gru4rec": [{"gru_hidden_size": 16}, {"num_layers": 2, "gru_hidden_size": 10}],
    "allmrec-nextitnet": [{"dilations": [1]}, {"dilations": [2, 1, 1], "kernel_size": 2}],
    "allmrec-lightgcn": [{"own_vector": "zeros"}],
    "allmrec-recbole-sasrec": [{"hidden_act": "swish", "inner_size": 20}],
}
CASES = [(name, changes) for name in BACKBONES for changes in ({}, *SETTINGS.get(name, []))]
IDS = ["-".join([name, *map(str, changes.values())]) for name, changes in CASES]
WITH_SDPA = [case for case in CASES if cf_encoder_class(case[0])._supports_sdpa]
HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 11]]
USERS = torch.tensor([0, 0, 0, 0, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4])
ITEMS = torch.tensor([5, 9, 2, 7, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 4, 11])
COUNTS = {
    *("num_items", "hidden_size", "max_history_length", "num_negatives", "num_layers", "num_heads"),
    *("gru_hidden_size", "inner_size", "feed_forward_multiplier", "num_contrast_items", "filter_width"),
}
SERVED_FILES = ["config.json", "model.safetensors"]
EXPORTED = """
import sys
sys.modules["allmrec_hf"] = None  # the package is not there
import torch
from transformers import AutoModel
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    items = model.retrieve(torch.tensor([[0, 3, 5, 7]]), torch.tensor([[False, True, True, True]]), top_k=4)
    print(items.item_indices.tolist())
"""


def build(name: str, **changes: Any) -> CFEncoder:
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "max_history_length": 10, "initializer_range": 0.3}
    return build_cf_encoder({"model_type": name, **values, **changes})


def training_batch(model: CFEncoder) -> dict[str, Tensor]:
    """Return a batch of the kind that the backbone trains on."""
    if model.trains_on == "interactions":
        negatives = torch.tensor([[1, 3], [2, 2], [12, 11]])
        return {"users": torch.tensor([0, 1, 3]), "targets": torch.tensor([5, 3, 8]), "negatives": negatives}
    item_ids, mask = pad_histories([[1, 2, 3, 4], [5, 6], []], 10)
    targets = torch.tensor([[2, 3, 4, 7], [0, 0, 6, 8], [0, 0, 0, 0]])
    negatives = targets + (targets > 0) * 4
    return {"item_ids": item_ids, "attention_mask": mask, "targets": targets, "negatives": negatives}


def trained(model: CFEncoder, steps: int = 10, rate: float = 0.02) -> list[float]:
    """Train on one batch; return the losses. Every parameter has a gradient on the way, and none that is not finite."""
    model.train()
    model.start_training(USERS, ITEMS, 5)
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=rate)
    batch, losses, moved = training_batch(model), [], set()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.training_loss(batch)
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        assert all(value is not None and value.isfinite().all() for value in gradients.values())
        moved |= {name for name, value in gradients.items() if value.any()}
        optimizer.step()
        losses.append(loss.item())
    assert moved == set(gradients)
    model.update_tables()
    model.end_training()
    model.eval()
    return losses


def close(model: CFEncoder) -> dict[str, float]:
    """Return tolerances for float32; a fold-in solves a problem, to fewer digits than a sum in another order has."""
    tolerance = 1e-3 if model.trains_on == "interactions" else 1e-5
    return {"rtol": tolerance, "atol": tolerance}


@pytest.fixture(params=CASES, ids=IDS)
def model(request) -> CFEncoder:
    """A backbone as it is served; one with user vectors after a short training."""
    name, changes = request.param
    model = build(name, **changes)
    for key, parameter in model.named_parameters():
        if "bias" in key:  # which start as zeros, behind which an error would hide
            parameter.data.normal_(std=0.3)
    if model.trains_on == "interactions":
        trained(model, rate=0.05)
    return model.eval()


# -- histories


@torch.no_grad()
def test_a_batch_equals_one_by_one_whatever_the_padding(model):
    states, users = (
        model.sequence_states(*pad_histories(HISTORIES, 10)),
        model.encode_users(*pad_histories(HISTORIES, 10)),
    )
    for row, history in enumerate(HISTORIES):
        alone = pad_histories([history], 10)
        wider = torch.tensor([[0] * (8 - len(history)) + history]) if len(history) < 8 else alone[0]
        torch.testing.assert_close(states[row, -alone[0].shape[1] :], model.sequence_states(*alone)[0], **close(model))
        torch.testing.assert_close(users[row], model.encode_users(*alone)[0], **close(model))
        torch.testing.assert_close(users[row], model.encode_users(wider)[0], **close(model))
        assert not states[row, : 10 - len(history)].any()


@torch.no_grad()
def test_the_order_of_a_batch_does_not_change_a_state(model):
    item_ids, mask = pad_histories(HISTORIES, 10)
    order = [3, 0, 4, 2, 1]
    expected = model.sequence_states(item_ids, mask)[order]
    torch.testing.assert_close(model.sequence_states(item_ids[order], mask[order]), expected, **close(model))


@torch.no_grad()
def test_what_stands_behind_the_mask_does_not_change_a_state(model):
    item_ids, mask = pad_histories(HISTORIES, 10)
    dirty = item_ids.masked_fill(~mask, 11)
    torch.testing.assert_close(model.sequence_states(dirty, mask), model.sequence_states(item_ids), **close(model))
    torch.testing.assert_close(model.encode_users(dirty, mask), model.encode_users(item_ids), **close(model))


@torch.no_grad()
def test_a_state_depends_on_all_earlier_items_and_on_no_later_one(model):
    item_ids = torch.tensor([[0, 1, 2, 3, 4, 5]])
    before = model.sequence_states(item_ids)[0]
    reach = getattr(model.config, "receptive_field", 6)
    for changed in range(1, 6):
        other = item_ids.clone()
        other[0, changed] = 9
        moved = (model.sequence_states(other)[0] - before).abs().amax(-1)
        assert (moved[:changed] < 1e-6).all()
        assert (moved[changed : changed + reach] > 1e-5).all()


@torch.no_grad()
def test_a_user_representation_is_the_last_state(model):
    item_ids, mask = pad_histories([history for history in HISTORIES if history], 10)
    expected = model.sequence_states(item_ids, mask)[:, -1]
    torch.testing.assert_close(model.encode_users(item_ids, mask), expected, **close(model))


@torch.no_grad()
def test_states_at_some_places_are_those_of_the_sequence(model):
    item_ids, mask = pad_histories(HISTORIES, 10)
    wanted = torch.zeros_like(mask)
    wanted[0, 7] = wanted[3, 4] = wanted[1, 0] = True  # the last one is padding
    expected = model.sequence_states(item_ids, mask)[wanted]
    torch.testing.assert_close(model.states_at(item_ids, mask, wanted), expected, **close(model))


@torch.no_grad()
def test_an_empty_history_gives_a_neutral_user_and_an_empty_batch_none(model):
    nothing = torch.zeros(2, 4, dtype=torch.long)
    users = model.encode_users(nothing)
    assert users.shape == (2, 16)
    assert users[0].equal(users[1])
    assert model.score(users)[:, 1:].isfinite().all()
    assert not model.sequence_states(nothing).any()
    assert not (model.scores_by_dot_product and users.any())
    assert model.encode_users(nothing[:0]).shape == (0, 16)


@torch.no_grad()
def test_a_history_longer_than_the_model_is_cut_to_its_most_recent_items(model, monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, text: warned.append(text), raising=False)
    name, values = model.config.model_type, model.config.to_dict()
    short = build(name, **{**{key: values[key] for key in _own_fields(model)}, "max_history_length": 4})
    by_position = ("position_embedding", "distance_bias")
    short.load_state_dict(
        {
            key: value[-4:] if any(name in key for name in by_position) else value
            for key, value in model.state_dict().items()
        }
    )
    long, last = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 8]]), torch.tensor([[3, 4, 5, 6], [0, 0, 0, 8]])
    states = short.eval().sequence_states(long)
    assert states.shape == (2, 6, 16)
    assert not states[:, :2].any()
    torch.testing.assert_close(states[:, 2:], short.sequence_states(last), **close(model))
    torch.testing.assert_close(short.encode_users(long), short.encode_users(last), **close(model))
    assert any("cut to the 4 most recent" in text and "max_history_length" in text for text in warned)


def test_histories_out_of_range_are_refused(model):
    with pytest.raises(DataError, match=r"catalogue index 13; indices must be 0 \(padding\) to 12"):
        model.encode_users(torch.tensor([[1, 13]]))
    with pytest.raises(DataError, match="catalogue index -1"):
        model.sequence_states(torch.tensor([[-1, 3]]))


@pytest.mark.parametrize(("name", "changes"), WITH_SDPA)
@torch.no_grad()
def test_eager_attention_equals_sdpa(name, changes):
    models = [build(name, attn_implementation=how, **changes).eval() for how in ("sdpa", "eager")]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(*(model.sequence_states(*batch) for model in models), **close(models[0]))


# -- scores and items


@torch.no_grad()
def test_whole_catalogue_scores_equal_candidate_scores_and_hide_padding(model):
    users = model.encode_users(*pad_histories(HISTORIES, 10))
    items = torch.tensor([[1, 12, 0], [7, 7, 2], [0, 0, 9], [3, 4, 5], [6, 6, 6]])
    scores = model.score(users)
    torch.testing.assert_close(model.score(users, items), scores.gather(1, items))
    assert torch.isneginf(scores[:, 0]).all()
    table = model.item_embeddings[1:]
    torch.testing.assert_close(scores[:, 1:], model.score_vectors(users.unsqueeze(1), table))
    if model.scores_by_dot_product:
        torch.testing.assert_close(scores[:, 1:], users @ table.T)


@torch.no_grad()
def test_top_items_are_the_best_of_the_whole_catalogue(model):
    users = model.encode_users(*pad_histories([[5, 9, 2, 7], [3], [4, 11]], 10))
    exclude = torch.tensor([[5, 9, 2, 7], [3, 0, 0, 0], [4, 11, 0, 0]])
    items, scores = model.top_items(users, 6, exclude)
    expected = model.score(users).scatter(1, exclude, float("-inf"))
    torch.testing.assert_close(scores, expected.topk(6)[0])
    torch.testing.assert_close(expected.gather(1, items), scores)


@torch.no_grad()
def test_appended_items_are_candidates_and_histories_and_survive_saving(model, tmp_path):
    batch = pad_histories(HISTORIES, 10)
    before = model.encode_users(*batch)
    model.append_items(model.item_embeddings[[3, 5]].detach() * 0.9)
    assert model.config.num_items == model.num_items == 14
    torch.testing.assert_close(model.encode_users(*batch), before)  # new items move no user
    users = model.encode_users(torch.tensor([[13, 14]]))
    assert users.any()
    assert model.score(users).shape == (1, 15)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode_users(torch.tensor([[13, 14]])), users)
    with pytest.raises(DataError, match=r"d_cf = 16, got \(2, 5\)"):
        model.append_items(torch.randn(2, 5))


@torch.no_grad()
def test_a_replaced_item_changes_the_users_that_hold_it(model):
    held, other = torch.tensor([[2, 12]]), torch.tensor([[2, 4]])
    before = model.encode_users(held), model.encode_users(other)
    vector = -model.item_embeddings[4].detach().clone()
    model.replace_items(torch.tensor([12]), vector.unsqueeze(0))
    torch.testing.assert_close(model.item_embeddings[12], vector)
    assert (model.encode_users(held) - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(model.encode_users(other), before[1])  # 12 is in no training batch, so in no contrast


@torch.no_grad()
def test_another_order_of_the_catalogue_moves_no_user(model):
    order = [12, 3, 7, 1, 10, 5, 2, 11, 4, 9, 6, 8]
    catalog = ItemCatalog.from_records([{"item_id": f"i{index}"} for index in order])
    fitted = fit_to_catalog(model, [f"i{index}" for index in range(1, 13)], catalog).cf_encoder.eval()
    moved = [[order.index(index) + 1 for index in history] for history in HISTORIES]
    users, others = model.encode_users(*pad_histories(HISTORIES, 10)), fitted.encode_users(*pad_histories(moved, 10))
    torch.testing.assert_close(others, users, **close(model))


# -- training


@pytest.mark.parametrize(("name", "changes"), CASES, ids=IDS)
def test_training_lowers_the_loss_moves_every_parameter_and_leaves_padding_at_zero(name, changes):
    plain = cf_encoder_class(name).config_class()
    quiet = {key: 0.1 for key in vars(plain) if "dropout" in key}
    model = build(name, initializer_range=0.1, **quiet, **changes)
    losses = trained(model, 40, 0.02)
    assert losses[-1] < 0.6 * losses[0]
    assert not model.item_embeddings[0].any()


@torch.no_grad()
def test_what_is_served_does_not_depend_on_chance(model):
    batch = pad_histories(HISTORIES, 10)
    assert model.encode_users(*batch).equal(model.encode_users(*batch))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_training_recipe_is_that_of_the_presets(name):
    recipe = cf_encoder_class(name).training_recipe
    default = preset("default", "backbone", name.removeprefix(MODEL_TYPE_PREFIX))
    assert {key: getattr(default, key) for key in recipe} == dict(recipe)


# -- config and files


def _own_fields(model: CFEncoder) -> list[str]:
    """Return the config's fields that transformers does not know."""
    return sorted(set(model.config.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_a_saved_model_loads_by_auto_model_with_equal_users_and_scores(model, tmp_path, dtype, tolerance):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert type(again) is type(model)
    assert {name: getattr(again.config, name) for name in _own_fields(model)} == {
        name: getattr(model.config, name) for name in _own_fields(model)
    }
    batch = pad_histories(HISTORIES, 10)
    users, expected = again.encode_users(*batch), model.score(model.encode_users(*batch))[:, 1:]
    assert users.dtype == dtype
    atol = tolerance * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(again.score(users)[:, 1:].float(), expected, rtol=tolerance, atol=atol)
    assert sorted(path.name for path in tmp_path.iterdir()) == SERVED_FILES


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_found_by_its_short_and_its_full_name(name):
    short = name.removeprefix(MODEL_TYPE_PREFIX)
    config = cf_config_from_dict({"model_type": short, "num_items": 5})
    assert cf_encoder_class(short) is cf_encoder_class(name)
    assert config.model_type == name
    assert cf_config_from_dict(config) is config
    assert cf_config_from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_config_that_makes_no_sense_is_refused(name):
    config_class = cf_encoder_class(name).config_class
    plain = vars(config_class())
    for field in plain.keys() & COUNTS:
        with pytest.raises(ALLMRecError, match=rf"{field} must .*got 0"):
            config_class(**{"num_items": 5, field: 0})
    for field in [key for key in plain if "dropout" in key]:
        for value in (1.0, -0.5, float("nan")):
            with pytest.raises(ALLMRecError, match=f"{field} must be a share of 0 or more and below 1, got {value}"):
                config_class(**{"num_items": 5, field: value})
    if "layer_norm_eps" in plain:
        with pytest.raises(ALLMRecError, match=r"layer_norm_eps must be above 0, got 0\.0"):
            config_class(num_items=5, layer_norm_eps=0.0)
    if "num_heads" in plain:
        with pytest.raises(ALLMRecError, match=r"num_heads must divide hidden_size 16 \(d_cf\), got 3"):
            config_class(num_items=5, hidden_size=16, num_heads=3)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_config_value_of_the_wrong_type_is_refused(name):
    model = build(name)
    for field in _own_fields(model):
        with pytest.raises(CheckpointError, match=field):
            cf_config_from_dict({"model_type": name, "num_items": 5, field: {"no": "value"}})


# -- under A-LLMRec


def model_around(name: str) -> ALLMRecModel:
    torch.manual_seed(0)
    backbone = build_cf_encoder({"model_type": name, "num_items": 30, "hidden_size": 8, "max_history_length": 6})
    for parameter in backbone.parameters():
        parameter.data.mul_(5)  # fresh weights are so small that scores would be equal but for rounding
    config = ALLMRecConfig(cf_config=backbone.config, joint_dim=4, text_dim=6)
    model = ALLMRecModel(config)
    model.cf_encoder.load_state_dict(backbone.state_dict())
    return model.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_on_any_backbone_survives_saving_and_takes_new_items(name, tmp_path):
    model = model_around(name)
    item_ids, mask = pad_histories([[3, 5, 7], [9]], 6)
    before = model.retrieve(item_ids, mask, top_k=5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded.cf_encoder) is type(model.cf_encoder)
    after = loaded.retrieve(item_ids, mask, top_k=5)
    assert after.item_indices.equal(before.item_indices)
    loaded.cf_encoder.append_items(torch.randn(2, 8))
    users = loaded.cf_encoder.encode_users(*pad_histories([[31, 32]], 6))  # a history of new items alone
    assert users.isfinite().all()
    assert loaded.cf_encoder.score(users).shape == (1, 33)


def test_exported_code_of_every_backbone_works_without_the_package(tmp_path):
    expected = []
    for name in BUILT_IN:
        model = model_around(name)
        model.save_pretrained(tmp_path / name, export_code=True)
        items = model.retrieve(torch.tensor([[0, 3, 5, 7]]), torch.tensor([[False, True, True, True]]), top_k=4)
        expected.append(str(items.item_indices.tolist()))
    result = subprocess.run(
        [sys.executable, "-c", EXPORTED, *(str(tmp_path / name) for name in BUILT_IN)],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert [line for line in result.stdout.splitlines() if line.startswith("[[")] == expected
