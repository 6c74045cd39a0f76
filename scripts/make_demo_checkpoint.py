"""Make the demo checkpoint of the package again: run the demo, and put its checkpoint, card and table in their places.

python scripts/make_demo_checkpoint.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from allmrec_hf.evaluation.evaluation_report import format_markdown
from allmrec_hf.hub.publish import checkpoint_files

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "src" / "allmrec_hf" / "demo" / "checkpoint"
WHOLE_CATALOGUE_USERS = 200
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    """Run the demo with the given seed and copy what the package ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        command = "from allmrec_hf.cli.main import main; main()"
        arguments = ["demo", "--output", str(run), "--seed", str(options.seed)]
        subprocess.run([sys.executable, "-c", command, *arguments], check=True)
        whole = ["evaluate", "--model", str(run), "--data", str(run / "data"), "--protocol", "full"]
        whole += ["--max-users", str(WHOLE_CATALOGUE_USERS), "--output", str(run / "evaluation-full.json")]
        subprocess.run([sys.executable, "-c", command, *whole], check=True)
        subprocess.run([sys.executable, "-c", command, "card", str(run), "--repo", "demo"], check=True)
        shutil.rmtree(CHECKPOINT, ignore_errors=True)
        for name in checkpoint_files(run):
            (CHECKPOINT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, CHECKPOINT / name)
        shutil.copyfile(run / "README.md", ROOT / "model_cards" / "demo.md")
        report = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        (RESULTS / "demo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "demo.md").write_text(format_markdown(report).strip() + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file())
    print(f"{CHECKPOINT.relative_to(ROOT)}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
