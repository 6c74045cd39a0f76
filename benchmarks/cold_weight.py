"""What more weight on cold targets does to the fusion: fitted and looked at on validation users, no LLM.

    python benchmarks/cold_weight.py --data-root DATA --parts runs/parts --output RUNS

RUNS are those of `real_rankers.py`, whose first seed's checkpoints are taken. The fusion of backbone, text and words
is fitted with each weight (`--rank.cold-weight`) on drawn candidates, in folds of users, and each fold's targets are
ranked among their stored candidates by the weights of the others. Writes `docs/results/cold_weight.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_rankers import DATASETS, LLM, arguments, dataset, text_encoder, write_report

from allmrec_hf import ALLMRecModel, ALLMRecProcessor
from allmrec_hf.evaluation.warmth import WarmthGroups
from allmrec_hf.ranking import ndcg_at_k, target_ranks
from allmrec_hf.training.conditional_logit import held_out_logits
from allmrec_hf.training.fusion_fitting import (
    WITHOUT_LLM,
    fit_fusion,
    fusion_candidates,
    fusion_samples,
    held_out_users,
    weights_of_users,
)
from allmrec_hf.training.samples import validation_targets

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "cold_weight"
WEIGHTS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
GROUPS = ("overall", "warm", "cold")
HEAD = """# What more weight on cold targets does

```bash
make real-parts
python benchmarks/cold_weight.py --data-root DATA --parts runs/parts --output RUNS
```

NDCG@10 among 20 candidates of at most {users:,} validation users, checkpoints of [real_rankers](real_rankers.md), seed
0; the fusion is that of backbone, text and words, fitted in five folds of users with `--rank.cold-weight`, each fold's
users ranked by the weights of the others; `cf` is the backbone with new items decoded from text. Test users were not
looked at."""


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return NDCG@10 of each part and of the fusion with each weight, by group."""
    data = dataset(name, options.data_root, options.output)
    folder = options.output / "work" / f"{name}-0" / LLM
    rank = arguments(folder, LLM, text_encoder(options.parts), 0, options.settings).rank
    model = ALLMRecModel.from_pretrained(folder, language_model=None).eval()
    processor = ALLMRecProcessor.from_pretrained(folder)
    rows = held_out_users(data, None, rank)
    samples, stored = validation_targets(data).take(rows), data.candidates("validation").take(rows).items
    drawn = fusion_candidates(data, samples, rank.num_candidates, rank.seed)
    shown, own = (fusion_samples(model, processor, WITHOUT_LLM, samples, each) for each in (stored, drawn))
    groups = WarmthGroups.from_counts(data.item_counts("train")).members(samples.targets)

    def ndcg(scores: torch.Tensor) -> dict[str, float]:
        values = ndcg_at_k(target_ranks(scores.numpy(), shown.columns.numpy()), 10)
        return {group: float(np.mean(values[groups[group]])) for group in GROUPS}

    found = {part: ndcg(scores) for part, scores in zip(WITHOUT_LLM, shown.scores, strict=True)}
    for weight in WEIGHTS:
        users = weights_of_users(data, samples.targets, weight)
        pivot = fit_fusion(own, WITHOUT_LLM, rank.seed, users)["pivot"]
        features = own.features(pivot), shown.features(pivot)
        logits = held_out_logits(features[0], own.columns, rank.seed, features[1], users)
        found[f"fusion, cold weight {weight:g}"] = ndcg(logits)
    counts = {group: int(groups[group].sum()) for group in GROUPS}
    return {"title": data.name, "users": counts, "ndcg@10": found}


def page(found: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    parts = [HEAD.format(users=max(row["users"]["overall"] for row in found.values()))]
    for row in found.values():
        heads = [f"{group}, {row['users'][group]:,} users" for group in GROUPS]
        lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(GROUPS)]
        for method, values in row["ndcg@10"].items():
            lines.append(f"| {method} | " + " | ".join(f"{values[group]:.3f}" for group in GROUPS) + " |")
        parts.append(f"## {row['title']}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found = {}
    for name in DATASETS:
        run = options.output / "runs" / f"{name}-0-{LLM}" / "result.json"
        options.settings = json.loads(run.read_text(encoding="utf-8"))["settings"]
        found[name] = measured(name, options)
        print(f"{name}: done", flush=True)
    write_report(REPORT, found, page(found))


if __name__ == "__main__":
    main()
