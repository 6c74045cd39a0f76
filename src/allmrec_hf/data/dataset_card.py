"""The card of prepared data, from `dataset.json` alone, and `eval.yaml`, which makes them a benchmark of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ..hub_upload import escape, plain
from .eval_tasks import EVAL_FILE, eval_yaml

README_FILE = "README.md"
UNKNOWN = "unknown"
_CONFIGS = [
    {
        "config_name": "interactions",
        "default": True,
        "data_files": [
            {"split": split, "path": f"interactions/{split}.parquet"} for split in ("train", "validation", "test")
        ],
    },
    {"config_name": "items", "data_files": [{"split": "train", "path": "items.parquet"}]},
    {
        "config_name": "candidates",
        "data_files": [{"split": split, "path": f"candidates/{split}.parquet"} for split in ("validation", "test")],
    },
]
_SPLITS = {"leave-one-out": "leave-one-out in time", "time": "one date for all users"}
_PAGE = """# {name}

Interactions of users with items, split by {split}, and for each held-out item {num_candidates} seeded candidates, the
item among them. Prepared with allmrec-hf from {source}; `dataset.json` holds every step.

```python
from allmrec_hf import PreparedData

data = PreparedData.{load}
```

## What is in it

| part | content |
| --- | --- |
| `interactions` | who had what and when, in three splits |
| `items` | `item_id`, `title`, `description` and whatever else is known of an item |
| `candidates` | for each held-out item, the items that it is ranked among |

| count | value |
| --- | ---: |
{counts}

## How it was made

| step | users | items | interactions | note |
| --- | ---: | ---: | ---: | --- |
{steps}

| setting | value |
| --- | --- |
{settings}

## As a benchmark

`{eval_file}` lists the tasks: one for each protocol, metric and group of targets on the test split. `candidates` ranks
the stored candidates, `full` the whole catalogue without what a user had before. A target is *warm* or *cold* when its
item is among the 35 % with the most or the fewest training interactions, and *never seen* when nothing was known of it.
`allmrec evaluate` measures them, `allmrec card` writes a model's results in the Hub's form.

## Intended use

Training and evaluating recommenders. The people behind the user ids are not to be identified, and nothing about them is
to be decided from it. What people had shows what was offered to them, too: popular items are over-represented, and the
lack of an interaction is no dislike.

## Licence

{license}
"""


def dataset_card_files(info: Mapping[str, Any], repo_id: str | None, license: str | None = None) -> dict[str, str]:
    """Return the files of a data card as path -> text: `README.md` and `eval.yaml`.

    Args:
        info: The content of `dataset.json`.
        repo_id: The data's id on the Hub; None where they have none.
        license: Licence id of the Hub; None takes `license` of `info`, else it is told to be unknown.
    """
    license = license or info.get("license")
    license = plain(license) if isinstance(license, str) and license else UNKNOWN
    counts, kind = info["counts"], info.get("split", {}).get("kind", "leave-one-out")
    metadata: dict[str, Any] = {
        "license": license,
        "pretty_name": plain(info["name"]),
        "size_categories": [_size(counts["interactions"])],
        "task_categories": ["text-ranking"],
        "tags": ["recommendation", "allmrec-hf"],
        "configs": _CONFIGS,
    }
    known = "The licence of these data is unknown: whoever shares them has to find out." if license == UNKNOWN else ""
    page = _PAGE.format(
        name=escape(info["name"]),
        split=_SPLITS.get(kind, escape(kind)),
        num_candidates=info["num_candidates"],
        source=escape(info.get("source") or "a source that was not recorded"),
        load=f"load_from_hub({json.dumps(repo_id)})" if repo_id else 'load(".")',
        counts=_rows((name.replace("_", " "), f"{value:,}") for name, value in counts.items()),
        steps=_rows(
            (step["step"], *(f"{step[name]:,}" for name in ("users", "items", "interactions")), step["note"])
            for step in info.get("report", [])
        ),
        settings=_rows((name.replace("_", " "), value) for name, value in info.get("settings", {}).items()),
        eval_file=EVAL_FILE,
        license=known or escape(license),
    )
    about = (
        f"Rank the next item of {counts['test']:,} users of {plain(info['name'])}, split by "
        f"{_SPLITS.get(kind, plain(kind))}: among {info['num_candidates']} seeded candidates, or in the whole "
        f"catalogue of {counts['items']:,} items."
    )
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return {
        README_FILE: f"---\n{front}---\n\n{page}",
        EVAL_FILE: eval_yaml(plain(info["name"]), about, int(info["num_candidates"])),
    }


def _rows(rows: Any) -> str:
    return "\n".join(f"| {' | '.join('-' if cell is None else escape(cell) for cell in row)} |" for row in rows)


def _size(interactions: int) -> str:
    """Return the Hub's size category of a number of rows."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    bounds += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B")]
    return next((name for bound, name in bounds if interactions < bound), "n>1B")
