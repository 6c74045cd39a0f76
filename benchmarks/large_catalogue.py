"""Measure what one request or one new item costs with a large catalogue: CPU seconds that should not grow with N.

What reads the whole catalogue grows: building it, loading a checkpoint, and the first look-up of a title.

Run: python benchmarks/large_catalogue.py --output benchmarks/results/large_catalogue.json --machine "2 cores, CPU"
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of one call, which other work on the machine does not lengthen."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 6)


def measured(num_items: int, width: int) -> dict[str, float]:
    """Return the seconds of every step, for a catalogue of N items and a SASRec table of a width."""
    import polars as pl
    import torch
    from transformers import AutoTokenizer

    from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, DataError, ItemCatalog, SASRecConfig
    from allmrec_hf.explaining.explanation import require_items
    from allmrec_hf.part_sources import named_part
    from allmrec_hf.prompt import clean_title

    numbers = pl.int_range(1, num_items + 1, eager=True)
    frame = pl.DataFrame(
        {
            "item_id": "B" + numbers.cast(pl.String).str.zfill(9),
            "title": "The Silent River Part " + numbers.cast(pl.String),
            "description": "A quiet story about a river, told in " + numbers.cast(pl.String) + " short chapters.",
            "year": numbers % 100 + 1920,
        }
    )
    found: dict[str, float] = {}
    catalogs = []
    found["build the catalogue"] = seconds(lambda: catalogs.append(ItemCatalog(frame)))
    catalog = catalogs[0]
    item = {"title": "New River", "description": "Silent.", "year": 1999}
    grown = [catalog]
    found["first new item"] = seconds(lambda: grown.append(grown[-1].extended([{"item_id": "N0", **item}])))

    def hundred() -> None:
        for number in range(1, 101):
            grown.append(grown[-1].extended([{"item_id": f"N{number}", **item}]))

    found["100 more, one by one"] = seconds(hundred) if found["first new item"] < 1 else float("nan")
    found["first title looked up"] = seconds(lambda: catalog.find_title("the silent river part 77"))
    found["another title"] = seconds(lambda: catalog.find_title("the silent river part 78"))

    def unknown() -> None:
        try:
            require_items(catalog, ["B00000000X"], "history")
        except DataError:
            return

    found["an unknown id named, with ids like it"] = seconds(unknown)
    config = ALLMRecConfig(cf_config=SASRecConfig(num_items=num_items, hidden_size=width), joint_dim=width, text_dim=16)
    model = ALLMRecModel(config).eval()
    processor = ALLMRecProcessor(AutoTokenizer.from_pretrained(named_part("demo", "language_model")))
    processor.catalog = catalog
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        found["megabytes of the checkpoint"] = round(sum(path.stat().st_size for path in files) / 1e6, 1)
        found["the model loaded, without an LLM"] = seconds(
            lambda: ALLMRecModel.from_pretrained(folder, language_model=None)
        )
        found["the processor with its catalogue loaded"] = seconds(lambda: ALLMRecProcessor.from_pretrained(folder))
    found["a row in every table of the model"] = seconds(lambda: model.add_items(torch.ones(1, 16)))
    found["another row"] = seconds(lambda: model.add_items(torch.ones(1, 16)))
    tokens = [f"<unused{number}>" for number in range(6_242)] + ["\n" * count for count in range(1, 31)]
    try:
        from allmrec_hf.prompt import ForbiddenTexts

        forbidden: Any = ForbiddenTexts(tokens)
    except ImportError:
        forbidden = tokens
    found["a title cleaned, 6,272 added tokens"] = seconds(lambda: clean_title("The Silent River <3", forbidden))
    return found


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--machine", default="not described")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": options.machine, "width": options.width, "seconds": {}}
    for num_items in options.items:
        result["seconds"][str(num_items)] = measured(num_items, options.width)
        print(json.dumps({num_items: result["seconds"][str(num_items)]}, indent=2), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
