"""Run the demo with several seeds (another world, other weights, other candidates) and print mean and deviation.

python benchmarks/demo_seeds.py --seeds 0 1 2 --output docs/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from allmrec_hf.files import written_whole

COMMAND = "from allmrec_hf.cli.main import main; main()"
METRICS = ("hit@1", "ndcg@10")


def run(seed: int, folder: Path) -> dict[str, Any]:
    """Return the evaluation report of one demo; one that the folder holds already is not run again."""
    report = folder / str(seed) / "evaluation.json"
    if not report.exists():
        arguments = ["demo", "--seed", str(seed), "--output", str(folder / str(seed)), "--overwrite"]
        subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True)
    return dict(json.loads(report.read_text(encoding="utf-8")))


def table(reports: dict[int, dict[str, Any]]) -> str:
    """Return a Markdown table of mean and sample deviation over the seeds."""
    first = next(iter(reports.values()))["methods"]
    groups = list(next(iter(first.values())))
    lines = ["| method | " + " | ".join(group.replace("_", " ") for group in groups) + " |"]
    lines.append("| --- |" + " ---: |" * len(groups))
    for method in first:
        cells = []
        for group in groups:
            parts = []
            for metric in METRICS:
                values = [report["methods"][method][group][metric] for report in reports.values()]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                parts.append(f"{statistics.mean(values):.3f}{spread}")
            cells.append(" / ".join(parts))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the demos and write `demo_seeds.json` and `demo_seeds.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--runs", type=Path, help="keep the runs here; an interrupted command goes on with them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reports = {seed: run(seed, options.runs or Path(folder)) for seed in options.seeds}
    seeds = ", ".join(map(str, options.seeds))
    text = f"Hit@1 / NDCG@10 on the invented world, mean ± sample deviation over seeds {seeds}.\n\n{table(reports)}\n"
    for name, content in (("demo_seeds.json", json.dumps(reports, indent=1) + "\n"), ("demo_seeds.md", text)):
        with written_whole(options.output / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
