"""Does the LLM know a user's favourite category? On the demo's invented world, and on prepared data if given.

python benchmarks/free_text.py --users 200 --seeds 0 1 2 --output docs/results
python benchmarks/free_text.py --model runs/ml-100k --data data/ml-100k --column category --output runs/free_text
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel

import allmrec_hf
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.explaining.favourite import favourite_category
from allmrec_hf.files import written_whole


def invented_world(folder: str) -> PreparedData:
    """Return the world that the demo checkpoint was trained on."""
    world = SyntheticWorld()
    choices: dict[str, Any] = {"filter": "none", "keep_items": "all", "name": "invented films", "domain": "movie"}
    return prepare(world.interactions(), world.items(), output=Path(folder) / "data", **choices)


def table(report: dict[str, Any]) -> str:
    """Return the means over the seeds as Markdown, with the seeds' range."""
    lines = []
    for column, runs in report["columns"].items():
        lines += [f"| {column} ({runs[0]['num_categories']}), answer by | favourite of the history | of the target |"]
        lines += ["| --- | ---: | ---: |"]
        for name in runs[0]["methods"]:
            cells = []
            for kind in ("history", "target"):
                values = [run["methods"][name][kind] for run in runs]
                cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Measure and write `free_text.json` and `free_text.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=allmrec_hf.DEMO_CHECKPOINT)
    parser.add_argument("--data", type=Path, help="folder of `allmrec prepare`; the invented world by default")
    parser.add_argument("--column", nargs="+", help="columns of categories")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the sample of users")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    model = AutoModel.from_pretrained(options.model)
    processor = allmrec_hf.ALLMRecProcessor.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        data = PreparedData.load(options.data) if options.data else invented_world(folder)
        columns = options.column or ([None] if options.data else ["genre", "topic"])
        runs: dict[str, list[dict[str, Any]]] = {}
        for column in columns:
            for seed in options.seeds:
                found = favourite_category(model, processor, data, column, max_users=options.users, seed=seed)
                runs.setdefault(found["column"], []).append(found)
                print(found["column"], seed, json.dumps(found["methods"]), flush=True)
    report = {"data": data.name, "users_per_seed": options.users, "seeds": options.seeds, "columns": runs}
    for suffix, text in (("json", json.dumps(report, indent=1)), ("md", table(report))):
        with written_whole(options.output / f"free_text.{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
