"""The evaluator on prepared data and a real backbone, and the documentation of its report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cf_sasrec import SASRecConfig, SASRecModel
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import BackboneRanker, PopularityRanker, TextCosineRanker
from allmrec_hf.evaluation.scenarios import scenario

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
NUM_USERS, NUM_ITEMS, NUM_CANDIDATES = 30, 40, 6


@pytest.fixture(scope="module")
def data() -> PreparedData:
    generator = np.random.default_rng(0)
    sequences = [generator.permutation(NUM_ITEMS)[: generator.integers(4, 9)] + 1 for _ in range(NUM_USERS)]
    interactions, candidates = [], []
    for user, sequence in enumerate(sequences):
        splits = ["train"] * (len(sequence) - 2) + ["validation", "test"]
        for time, (item, split) in enumerate(zip(sequence, splits, strict=True)):
            interactions.append((f"u{user}", f"i{item}", time, split))
        others = generator.permutation(sorted(set(range(1, NUM_ITEMS + 1)) - set(sequence.tolist())))
        for split, target in (("validation", sequence[-2]), ("test", sequence[-1])):
            items = generator.permutation([target, *others[: NUM_CANDIDATES - 1]])
            candidates.append((split, f"u{user}", f"i{target}", [f"i{item}" for item in items]))
    info = {"format": 1, "name": "drawn", "domain": "item", "seed": 0, "num_candidates": NUM_CANDIDATES}
    catalog = ItemCatalog.from_records(
        [{"item_id": f"i{item}", "title": f"T{item}"} for item in range(1, NUM_ITEMS + 1)]
    )
    return PreparedData(
        pl.DataFrame(interactions, schema=["user_id", "item_id", "timestamp", "split"], orient="row"),
        catalog,
        pl.DataFrame(candidates, schema=["split", "user_id", "target", "candidates"], orient="row"),
        info,
    )


@pytest.fixture(scope="module")
def rankers(data):
    torch.manual_seed(0)
    sasrec = SASRecModel(SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_history_length=5))
    text = np.random.default_rng(1).normal(size=(NUM_ITEMS + 1, 4))
    return [PopularityRanker(data.item_counts("train")), BackboneRanker(sasrec), TextCosineRanker(text)]


@pytest.mark.parametrize("protocol", ["candidates", "full", "paper"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_protocol_and_split_runs_on_prepared_data(data, rankers, protocol, split):
    result = evaluate(rankers, data, protocol, split, num_retrieved=NUM_ITEMS)
    report = result.to_dict()
    assert list(report["methods"]) == ["popularity", "sasrec", "text"]
    assert all(groups["overall"]["users"] == NUM_USERS for groups in report["methods"].values())
    assert result.per_user().height == 3 * NUM_USERS
    if protocol == "full":
        assert all(
            np.isfinite(ranks.expected).all() for ranks in result.ranks.values()
        )  # everything unseen was retrieved


def test_the_backbone_ranks_its_candidates_as_the_full_catalogue_restricted_to_them(data, rankers):
    full = evaluate([rankers[1]], data, "full", num_retrieved=NUM_ITEMS).ranks["sasrec"]
    candidates = evaluate([rankers[1]], data).ranks["sasrec"]
    assert (candidates.expected <= full.expected).all()


def test_the_documentation_names_every_field_of_the_report(data, rankers):
    table = DOCUMENTATION.read_text().split("## The report")[1].split("```json")[0]
    documented = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    split = scenario("overall").split(data)
    assert documented == {
        *split.evaluate(rankers, "full", shuffle_test=True).to_dict(),
        *split.evaluate(rankers[-1:], full_ranking=True).to_dict(),
    }
