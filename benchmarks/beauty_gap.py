"""What SASRec's distance from the published figure on Beauty may come from: its recipe, the order within a day.

    python benchmarks/beauty_gap.py --data-root DATA --output RUNS --way recipe
    python benchmarks/beauty_gap.py --data-root DATA --output RUNS --way descending
    python benchmarks/beauty_gap.py --data-root DATA --output RUNS --way 1
    python benchmarks/beauty_gap.py --data-root DATA --output RUNS --table

`recipe` trains as the published run does (logs of github.com/MTandHJ/CE-SCE-LLMRec: 5e-4, batches of 512, dropout .6,
its best epoch the 120th, Adam's beta2 .999, attention to padding), with its fresh weights, which no option gives. The
others run item-kNN, SASRec and BSARec of the suite `published` with interactions of one day in another order than
S3-Rec's, which is that of the ASINs: descending, or by a permutation of all items that a seed draws. Seed 0, 15 to 50
minutes each on one core. `--table` writes `docs/results/beauty/gap.json` from all that were run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from torch import nn

from allmrec_hf.cf_sasrec import SASRecModel
from allmrec_hf.cli.main import app
from allmrec_hf.files import written_whole

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "beauty" / "gap.json"
SOURCE = "amazon2014_beauty_s3rec"
LONG = HERE / "beauty_long.yaml"  # the recipe but for what follows
RECIPE = {"adam_beta2": 0.999, "options": {"dropout": 0.6, "attend_padding": True}}


@torch.no_grad()
def draw_as_published(model: SASRecModel) -> None:
    """Draw the weights again: Xavier's for tables and attention, PyTorch's own for the feed-forward layers."""
    width = model.config.hidden_size
    for table in (model.item_embedding, model.position_embedding):
        nn.init.normal_(table.weight, std=(2 / (len(table.weight) + width)) ** 0.5)
        if table.padding_idx is not None:
            table.weight[table.padding_idx] = 0
    for layer in model.layers:
        attention: Any = layer.attention
        for part in (attention.query, attention.key, attention.value):
            nn.init.uniform_(part.weight, -((6 / (4 * width)) ** 0.5), (6 / (4 * width)) ** 0.5)
        nn.init.normal_(attention.output.weight, std=width**-0.5)
        for part in (layer.feed_forward_inner, layer.feed_forward_outer):
            for values in (part.weight, part.bias):
                nn.init.uniform_(values, -(width**-0.5), width**-0.5)


def with_published_weights() -> None:
    """Let every new SASRec have them."""
    plain = SASRecModel.__init__

    def initialize(self: SASRecModel, config: Any) -> None:
        plain(self, config)
        draw_as_published(self)

    SASRecModel.__init__ = initialize  # type: ignore[method-assign]


def reordered(data_root: Path, output: Path, way: str) -> Path:
    """Return a data root of Beauty alone, the interactions of each user's day in another order."""
    folder = output / "data" / SOURCE
    folder.mkdir(parents=True, exist_ok=True)
    found = pl.read_parquet(data_root / SOURCE / "interactions.parquet").sort("user_id", "timestamp")
    items = sorted(found["item_id"].unique())
    places = -np.arange(len(items)) if way == "descending" else np.random.default_rng(int(way)).permutation(len(items))
    key = pl.col("item_id").replace_strict(dict(zip(items, places.tolist(), strict=True)))
    known = pl.col("unix_time").is_not_null().all().over("user_id")  # a user with an unknown day stays as he is
    day = pl.when(known).then("unix_time").otherwise("timestamp").alias("day")
    found = found.with_columns(day, pl.when(known).then(key).otherwise(0).alias("key")).sort("user_id", "day", "key")
    place = pl.int_range(pl.len()).over("user_id").alias("timestamp")
    found.with_columns(place).drop("day", "key").write_parquet(folder / "interactions.parquet")
    pl.read_parquet(data_root / SOURCE / "items.parquet").write_parquet(folder / "items.parquet")
    return output / "data"


def run(way: str, data_root: Path, output: Path) -> None:
    """Compute one way."""
    folder = output / way
    folder.mkdir(parents=True, exist_ok=True)
    if way == "recipe":
        with_published_weights()
        suite = folder / "suite.yaml"
        told = yaml.safe_load(LONG.read_text(encoding="utf-8"))
        told["methods"][0]["options"] |= RECIPE
        suite.write_text(yaml.safe_dump(told), encoding="utf-8")
        given = ["--suite", str(suite), "--data-root", str(data_root)]
    else:
        root = reordered(data_root, folder, way)
        given = ["--suite", "published", "--data-root", str(root), "--methods", "item-knn,sasrec,bsarec"]
    given += ["--datasets", "beauty", "--seeds", "0", "--output", str(folder / "runs")]
    app(["benchmark", *given], standalone_mode=False)


def days(data_root: Path) -> dict[str, Any]:
    """Return how many users have their last two interactions on one day, and how those of a day are ordered."""
    found = pl.read_parquet(data_root / SOURCE / "interactions.parquet").sort("user_id", "timestamp")
    before = pl.all().exclude("user_id").shift(1).over("user_id").name.suffix("_before")
    pairs = found.with_columns(before).filter(pl.col("unix_time") == pl.col("unix_time_before"))
    last = found.group_by("user_id").agg(pl.col("timestamp").max())
    return {
        "users": len(last),
        "last two on one day": len(pairs.join(last, on=["user_id", "timestamp"])),
        "neighbours of one day": len(pairs),
        "ascending": int((pairs["item_id"] > pairs["item_id_before"]).sum()),
    }


def write_table(data_root: Path, output: Path) -> None:
    """Store what all ways gave."""
    found: dict[str, Any] = {}
    for path in sorted(output.glob("*/runs/runs/*/result.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        for method, groups in told["report"]["methods"].items():
            interval = told["report"]["intervals"][method]["overall"]["ndcg@10"]
            row = {**groups["overall"], "interval of ndcg@10": interval, "options": told["details"].get("options")}
            found.setdefault(path.parents[3].name, {})[method] = row
    with written_whole(REPORT) as temporary:
        report = {"days": days(data_root), "ways": found}
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Compute a way, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--way", default="recipe", help="recipe, descending, or the seed of a permutation")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        write_table(options.data_root, options.output)
    else:
        run(options.way, options.data_root, options.output)


if __name__ == "__main__":
    main()
