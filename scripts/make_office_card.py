"""Write `model_cards/office.md` from a run of `benchmarks/real_rankers.py`; it calls `allmrec card`.

python scripts/make_office_card.py RUNS
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "model_cards" / "office.md"
DATASET, SEED, LLM = "office", 0, "SmolLM2-135M-Instruct"
HUB_IDS = {"--llm-id": f"HuggingFaceTB/{LLM}", "--text-encoder-id": "sentence-transformers/all-MiniLM-L6-v2"}
SOURCE = "the last interactions of reviews of office products in the Amazon review data of 2018"
NOT_FOR = (
    "for a shop: it is a measurement on part of a public data set whose licence is not stated here, with a small LLM "
    "cut to its first layers, trained for the time there was"
)
LAYERS = (
    "The LLM is cut to its first {layers} layers, and this is one seed. Whether the LLM adds anything is measured in "
    "docs/results/real_rankers.md, against random weights in its place and against no LLM at all."
)


def arguments(runs: Path, output: Path) -> list[str]:
    """Return the arguments of `allmrec card`.

    Args:
        runs: The `--output` of `real_rankers.py`.
        output: The page.
    """
    report = runs / "runs" / f"{DATASET}-{SEED}-{LLM}"
    facts = json.loads((report / "result.json").read_text(encoding="utf-8"))
    given = {
        "--report": str(report),
        "--output": str(output),
        "--backbone-method": "backbone",
        "--method": facts["default_ranker"],
        "--language": "en",
        "--data-source": SOURCE,
        "--not-for": NOT_FOR,
        "--warning": LAYERS.format(layers=facts["settings"]["retrieve"]["num_llm_layers"]),
        **HUB_IDS,
    }
    folder = runs / "work" / f"{DATASET}-{SEED}" / LLM
    return ["card", str(folder), *(part for pair in given.items() for part in pair)]


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    command = "from allmrec_hf.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", command, *arguments(parser.parse_args().runs, OUTPUT)], check=True)


if __name__ == "__main__":
    main()
