"""The benchmark that orders the interactions of one day otherwise."""

import importlib
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel


@pytest.fixture
def beauty_gap(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("beauty_gap")
    sys.modules.pop("beauty_gap", None)


@pytest.fixture
def data_root(tmp_path, beauty_gap):
    """Return two users: one with two days, and one of whom a day is unknown."""
    folder = tmp_path / "given" / beauty_gap.SOURCE
    folder.mkdir(parents=True)
    rows = [("u", "A", 1, 10), ("u", "C", 2, 20), ("u", "D", 3, 20), ("v", "A", 1, None), ("v", "B", 2, 30)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "unix_time"], orient="row")
    table.write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": list("ABCD"), "title": list("abcd")}).write_parquet(folder / "items.parquet")
    return tmp_path / "given"


def test_only_interactions_of_one_day_change_places(beauty_gap, data_root, tmp_path):
    root = beauty_gap.reordered(data_root, tmp_path, "descending")
    found = pl.read_parquet(root / beauty_gap.SOURCE / "interactions.parquet").sort("user_id", "timestamp")
    orders = {user: rows["item_id"].to_list() for (user,), rows in found.group_by("user_id", maintain_order=True)}
    assert orders == {"u": ["A", "D", "C"], "v": ["A", "B"]}
    assert beauty_gap.days(data_root) == {
        "users": 2,
        "last two on one day": 1,
        "neighbours of one day": 1,
        "ascending": 1,
    }


def test_published_weights_are_drawn_in_the_published_scale(beauty_gap):
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=500, hidden_size=64))
    beauty_gap.draw_as_published(model)
    assert not model.item_embedding.weight[0].any()
    assert float(model.item_embedding.weight.detach().std()) == pytest.approx((2 / 565) ** 0.5, rel=0.05)
    assert float(model.layers[0].attention.query.weight.detach().abs().max()) == pytest.approx(
        (6 / 256) ** 0.5, rel=0.02
    )
    assert float(model.layers[1].feed_forward_outer.bias.detach().abs().max()) <= 1 / 8
