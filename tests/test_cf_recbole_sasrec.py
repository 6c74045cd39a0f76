"""RecBole's SASRec: what RecBole computes, for any padding, without looking ahead."""

import json
from pathlib import Path

import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_recbole_sasrec import RecBoleSASRecConfig, RecBoleSASRecModel
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.histories import pad_histories
from allmrec_hf.training.importing import import_backbone

PARITY = Path(__file__).parent / "parity"
HISTORIES = [[5, 9, 2, 7], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4]]


def tiny(**changes):
    torch.manual_seed(0)
    values = {"num_items": 12, "hidden_size": 16, "inner_size": 20, "max_history_length": 10, "initializer_range": 0.3}
    return RecBoleSASRecModel(RecBoleSASRecConfig(**{**values, **changes})).eval()


@torch.no_grad()
def test_users_and_scores_equal_those_of_recbole(tmp_path):
    """The checkpoint and the numbers are RecBole 1.2.1's own; see scripts/make_recbole_fixture.py."""
    computed = json.loads((PARITY / "recbole_sasrec.json").read_text())
    (tmp_path / "ids.json").write_text(json.dumps(computed["tokens"]))
    catalog = ItemCatalog.from_records([{"item_id": token} for token in computed["tokens"][1:]])
    model = import_backbone("recbole", PARITY / "recbole_sasrec.pth", catalog, tmp_path / "ids.json").cf_encoder
    users = model.encode_users(*pad_histories(computed["histories"], 8))
    torch.testing.assert_close(users, torch.tensor(computed["users"]), rtol=1e-5, atol=1e-5)
    expected = torch.tensor(computed["scores"])[:, 1:]  # row 0 is padding, which RecBole scores too
    torch.testing.assert_close(model.score(users)[:, 1:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_batch_equals_one_by_one_whatever_the_padding(attention):
    model = tiny(attn_implementation=attention)
    together = model.encode_users(*pad_histories(HISTORIES, 10))
    for row, history in enumerate(HISTORIES):
        alone = model.encode_users(*pad_histories([history], 10))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)
    assert not together[2].any()


@torch.no_grad()
def test_eager_attention_equals_sdpa_and_long_histories_keep_their_latest_items():
    models = [tiny(attn_implementation=name) for name in ("sdpa", "eager")]
    long = torch.arange(1, 13).unsqueeze(0)
    states = [model.sequence_states(long) for model in models]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
    assert not states[0][:, :2].any()
    torch.testing.assert_close(states[0][:, 2:], models[0].sequence_states(long[:, 2:]))


def test_a_state_does_not_depend_on_later_items():
    model = tiny()
    model.sequence_states(torch.tensor([[0, 1, 2, 3, 4]]))[0, 2].pow(3).sum().backward()
    moved = model.item_embedding.weight.grad.abs().sum(-1)
    assert (moved[[1, 2]] > 0).all()
    assert not moved[[0, 3, 4]].any()


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    model = tiny(hidden_act="swish")
    model.save_pretrained(tmp_path)
    loaded = RecBoleSASRecModel.from_pretrained(tmp_path).eval()
    batch = pad_histories(HISTORIES, 10)
    torch.testing.assert_close(loaded.sequence_states(*batch), model.sequence_states(*batch), rtol=0, atol=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(ALLMRecError, match="num_heads must divide hidden_size 16"):
        tiny(num_heads=3)
    with pytest.raises(ALLMRecError, match="inner_size must be at least 1, got 0"):
        tiny(inner_size=0)
