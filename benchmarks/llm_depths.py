"""How many layers of a real LLM the ranker `retrieval` needs: trained at several depths, judged on validation users.

    make real-parts
    python benchmarks/llm_depths.py --data-root DATA --parts runs/parts --output RUNS

Settings, backbone and stage 1 are those of `real_rankers.py`, whose RUNS may be given; test users are not looked at.
Writes `docs/results/llm_depths.json` and `.md` with every data set measured so far; a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from real_rankers import DATASETS, LLM, SETTINGS, arguments, begun, dataset, part, text_encoder, write_report

from allmrec_hf import ALLMRecTrainer
from allmrec_hf.methods.method import Setting
from allmrec_hf.methods.shared import text_embeddings

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "llm_depths"
VALIDATION_USERS = 1_000


def measured(name: str, depths: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what each depth came to on validation users."""
    data = dataset(name, options.data_root, options.output)
    where, encoder = options.output / "work" / f"{name}-{seed}", text_encoder(options.parts)
    chosen = {"llm_depths": depths, "num_llm_layers": None, "max_validation_users": VALIDATION_USERS}
    settings = {**SETTINGS, "retrieve": {**SETTINGS["retrieve"], **chosen}}
    llm = part(options.parts, LLM)
    args = arguments(where / f"depths-{depths.replace(',', '-')}", llm, encoder, seed, settings)
    setting = Setting(where, where / "parts", options.output / "work" / "common", seed, llm, encoder)
    texts = text_embeddings(data, setting)
    begun(data, args, setting)
    ALLMRecTrainer(args=args, data=data, text_table=texts).train("retrieve", resume_from_checkpoint=True)
    rows = {}
    for depth in map(int, depths.split(",")):
        record = Path(args.output_dir) / "checkpoints" / "retrieve" / f"layers-{depth}" / "training.json"
        result = json.loads(record.read_text(encoding="utf-8"))["result"]
        rows[depth] = {
            "ndcg@10": [row["validation/ndcg@10"] for row in result["history"] if "validation/ndcg@10" in row],
            "minutes": result["seconds"] / 60,
        }
    return {"title": data.name, "seed": seed, "depths": rows}


HEAD = """# How many layers of the LLM retrieval needs

```bash
make real-parts
python benchmarks/llm_depths.py --data-root DATA --parts runs/parts --output RUNS
```

The ranker `retrieval` with SmolLM2-135M-Instruct cut to its first layers, {steps} steps of 32 users at every depth,
otherwise as in [real_rankers](real_rankers.md): NDCG@10 among 20 candidates of at most {users} validation users after
half of the steps and after all, and minutes of training on one core with validations. `--retrieve.llm-depths 2,4,8`
trains the same and keeps the best."""


def page(found: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    parts = [HEAD.format(steps=SETTINGS["retrieve"]["max_steps"], users=f"{VALIDATION_USERS:,}")]
    for entry in found.values():
        lines = ["| layers | half way | at the end | minutes |", "| ---: | ---: | ---: | ---: |"]
        for depth, row in entry["depths"].items():
            values = " | ".join(f"{value:.4f}" for value in row["ndcg@10"])
            lines.append(f"| {depth} | {values} | {row['minutes']:.1f} |")
        parts.append(f"## {entry['title']}, seed {entry['seed']}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["office"], choices=list(DATASETS))
    parser.add_argument("--depths", default="2,4,8", help="numbers of layers, two or more (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stored = REPORT.with_suffix(".json")
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    for name in options.datasets:
        found[f"{name}-{options.seed}"] = measured(name, options.depths, options.seed, options)
        write_report(REPORT, found, page(found))
        print(f"{name}, seed {options.seed}: done", flush=True)


if __name__ == "__main__":
    main()
