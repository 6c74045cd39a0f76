"""The main job on real data with a real LLM: prepare, train, rank by every ranker, one table; `make real DATA=FOLDER`.

Usage: python scripts/real_run.py --data FOLDER [--parts runs/parts] [--llm NAME] [--output runs/real]

FOLDER holds MovieLens as published, the Amazon 2018 reviews and metadata as published, `interactions` and `items` as
tables (parquet or CSV), or what `allmrec prepare` has written. The LLM and the text encoder are those of `make
real-parts`. Loops are short: 454 users of gift cards took 36 minutes on one core of a busy
machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from allmrec_hf import ALLMRecTrainingArguments, prepare
from allmrec_hf.cli.demo import checkpoint_size, clear, evaluate_side_by_side, recommend_again, train_stages
from allmrec_hf.cli.options import say, setup_process, user_errors
from allmrec_hf.data.prepared import INFO_FILE, PreparedData
from allmrec_hf.data.readers.movielens import LAYOUTS
from allmrec_hf.errors import ALLMRecError, DataError

LLM = "SmolLM2-135M-Instruct"
TEXT_ENCODER = "all-MiniLM-L6-v2"
OUTPUT = Path("runs/real")
TABLES = (".parquet", ".csv")
PART_FILES = ("config.json", "modules.json")
AMAZON_METADATA = "meta_*.json.gz"
BATCH_SIZE = 8
MEANING = (
    "One seed, a sample of users and short loops: read the rankers of a-llmrec against 'LM alone' and 'same vectors, "
    "no LM', and differences under 0.05 as chance. Suites with seeds, intervals and controls: allmrec benchmark."
)


def found_data(folder: Path) -> tuple[str, Path, Path | None]:
    """Return the layout of the data in a folder (`"prepared"`, or a source of `prepare`), its interactions and items.

    Raises:
        DataError: when the folder holds no data of a known layout.
    """
    if (folder / INFO_FILE).is_file():
        return "prepared", folder, None
    if any((folder / ratings).is_file() for ratings, _ in LAYOUTS):
        return "movielens", folder, None
    for suffix in TABLES:
        pair = tuple(folder / f"{name}{suffix}" for name in ("interactions", "items"))
        if all(path.is_file() for path in pair):
            return "table", *pair
    metadata = sorted(folder.glob(AMAZON_METADATA))
    reviews = sorted(set(folder.glob("*.json.gz")) - set(metadata))
    if len(metadata) == len(reviews) == 1:
        return "amazon-2018", reviews[0], metadata[0]
    raise DataError(
        f"{folder} {'holds no data of a known layout' if folder.is_dir() else 'is no folder'}; give the folder of "
        "MovieLens (u.data, ratings.dat or ratings.csv), of Amazon 2018 (one file of reviews and its meta_*.json.gz), "
        "of interactions and items (.parquet or .csv), or one that allmrec prepare has written"
    )


def parts_of(folder: Path, llm: str) -> tuple[Path, Path]:
    """Return the folders of the LLM and of the text encoder.

    Raises:
        ALLMRecError: when one of them is missing.
    """
    found = folder / llm, folder / TEXT_ENCODER
    missing = [path.name for path in found if not any((path / name).is_file() for name in PART_FILES)]
    if missing:
        raise ALLMRecError(
            f"{folder} has no {' and no '.join(missing)}; `make real-parts` fetches them into runs/parts"
        )
    return found


def prepared_data(
    layout: str, interactions: Path, items: Path | None, output: Path, domain: str | None
) -> PreparedData:
    """Return the data, prepared into `output` where they are not yet."""
    if layout == "prepared":
        return PreparedData.load(interactions)
    name = interactions.name if items is None else interactions.parent.name
    own = "movie" if domain is None and name.lower().startswith(("ml", "movielens")) else domain
    return prepare(interactions, items, output=output, source=layout, name=name, domain=own)


def arguments(output: Path, llm: Path, text_encoder: Path, seed: int, **sections: Any) -> ALLMRecTrainingArguments:
    """Return the arguments of the run: loops of minutes, prompts of some 400 tokens."""
    values: dict[str, dict[str, Any]] = {
        "align": {"text_encoder": str(text_encoder)},
        "project": {
            "max_seconds": 300,
            "per_device_train_batch_size": 8,
            "max_validation_users": 50,
            "max_title_tokens": 12,
        },
        "rank": {"rankers": "likelihood,letter,retrieval,fusion", "max_validation_users": 200},
        "llm": {"name": str(llm)},
    }
    merged = {name: {**values.get(name, {}), **sections.get(name, {})} for name in {**values, **sections}}
    return ALLMRecTrainingArguments(output, "quick", seed=seed, **merged)


def run(given: argparse.Namespace, tell: Callable[[str], None], **sections: Any) -> None:
    """Do the whole job and tell how it goes, the table at the end.

    Args:
        given: The options of `main`.
        tell: Takes lines for the user.
        **sections: Options of the training's sections in place of those of `arguments`.

    Raises:
        ALLMRecError: when data or parts are missing, or the output folder is not free.
    """
    started = time.monotonic()
    layout, interactions, items = found_data(given.data)
    llm, text_encoder = parts_of(given.parts, given.llm)
    clear(given.output, given.overwrite)
    data = prepared_data(layout, interactions, items, given.output / "data", given.domain)
    counts = data.info["counts"]
    tell(
        f"data     {data.name}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} events"
    )
    train_stages(data, arguments(given.output, llm, text_encoder, given.seed, **sections), False, tell)
    result = evaluate_side_by_side(data, given.output, given.max_users, False, tell, BATCH_SIZE)
    tell(f"\n{result.to_table()}\n\n{MEANING}")
    recommend_again(data, given.output, False, tell)
    minutes = (time.monotonic() - started) / 60
    tell(f"\nThe checkpoint is in {given.output} ({checkpoint_size(given.output)}). Took {minutes:.1f} minutes.")


def main(command: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"), help="folder of the parts (%(default)s)")
    parser.add_argument("--llm", default=LLM, help="the LLM among the parts (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="run folder (%(default)s)")
    parser.add_argument("--domain", help="what an item is called, such as movie or gift card")
    parser.add_argument("--max-users", type=int, default=150, help="test users that are drawn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier run in the output folder first")
    given = parser.parse_args(command)
    setup_process(verbose=True)
    try:
        with user_errors():
            run(given, say)
    except typer.Exit as end:
        return int(end.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
