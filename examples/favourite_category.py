"""Measure whether the LLM knows a user's favourite category, on the demo's invented world or on prepared data.

python examples/favourite_category.py --users 150 --seeds 0 1 2 --output docs/results
python examples/favourite_category.py --model runs/games --data data/games --column genre
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModel

from allmrec_hf import (
    DEMO_CHECKPOINT,
    TASKS,
    ALLMRecError,
    ALLMRecModel,
    ALLMRecProcessor,
    DataError,
    ItemCatalog,
    PreparedData,
    SyntheticWorld,
    TextTask,
    answer_scores,
    choice_task,
    generate_answers,
    prepare,
)

Split = Literal["validation", "test"]
MOST_LISTED = 40
SAME_NATS = 1e-6
"""Mean log-likelihoods this close are tied: less than what another batch changes, more than subtraction leaves."""
COLUMNS = ("category", "categories", "genre", "genres")


def category_column(catalog: ItemCatalog, column: str | None = None) -> str:
    """Return the catalogue's column of categories: the given one, or the first usual name.

    Raises:
        DataError: when there is none.
    """
    found = [name for name in ((column,) if column else COLUMNS) if name in catalog.frame.columns]
    if not found:
        raise DataError(
            f"the catalogue has no column {column or ' or '.join(COLUMNS)}; its columns are {catalog.frame.columns}; "
            "name the column of categories"
        )
    return found[0]


def item_categories(catalog: ItemCatalog, column: str, separator: str = "|") -> list[list[str]]:
    """Return the categories of every item `1..N`; a list column as it is, a text column split at the separator.

    Raises:
        DataError: when there are fewer than two different categories.
    """
    values = catalog.frame[column].to_list()
    split = [
        [
            str(part).strip()
            for part in (value if isinstance(value, list) else str(value or "").split(separator))
            if part
        ]
        for value in values
    ]
    found = [[name for name in names if name] for names in split]
    if len({name for names in found for name in names}) < 2:
        raise DataError(f"column {column!r} of the catalogue holds fewer than two categories; there is nothing to ask")
    return found


def favourite_category(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    data: PreparedData,
    column: str | None = None,
    split: Split = "test",
    task: TextTask = TASKS["favourite-category"],
    max_users: int | None = 200,
    seed: int = 0,
    generate: bool = True,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Return how often the LLM names a user's favourite category, beside chance and controls.

    The right answer is the most frequent category of the history (of equally frequent ones the most recent); the
    second figure counts an answer that is a category of the target, which the prompt does not hold. Every category of
    the catalogue is an answer, scored by its mean log-likelihood per token. `centred` subtracts each category's mean
    score over the measured users, which takes out that some words are likely for everybody; it uses no labels. Of
    categories tied for the best, one is answered at random: their mean counts.

    Besides the task, up to 40 categories are asked for in the words of the recommendation prompt that stage 2 trained,
    in the place of the candidates ("categories as candidates").

    Args:
        model: The model with its LLM.
        processor: Its processor.
        data: Prepared data with the model's catalogue.
        column: The catalogue's column of categories; by default the first of category, categories, genre, genres.
        split: Whose histories and targets are asked about.
        task: The question.
        max_users: A seeded sample of users; None takes all.
        seed: Draws the sample.
        generate: Whether the LLM also writes an answer; it counts where it begins with the category.
        batch_size: Users that the LLM reads at once.

    Raises:
        DataError: when the catalogue has no categories, differs from the model's, or no user has any.
    """
    if processor.catalog.item_ids != data.catalog.item_ids:
        raise DataError("the data's catalogue is not the model's; give the prepared data of the training")
    column = category_column(data.catalog, column)
    categories = item_categories(data.catalog, column)
    users, histories, right, targets = _questions(data, categories, split, max_users, seed)
    names = sorted({name for row in categories for name in row})
    asked: dict[str, TextTask] = {"titles and vectors": task, "titles only": task.without_vectors()}
    if "{user}" in task.prompt and "{vector}" in task.item:
        asked["titles and user vector"] = replace(task, item=task.item.replace("{vector}", ""))
    if len(names) <= MOST_LISTED:
        listed = choice_task(processor.prompt, names)
        asked["categories as candidates"] = listed
        asked["categories as candidates, user vector only"] = replace(listed, item=listed.item.replace("{vector}", ""))
        asked["categories as candidates, titles only"] = listed.without_vectors()
    methods: dict[str, Any] = {}
    for name, question in asked.items():
        scores = answer_scores(model, processor, question, histories, names, batch_size=batch_size).numpy()
        methods[f"{name}, likelihood"] = _accuracy(_best(scores, names), right, targets)
        methods[f"{name}, likelihood centred"] = _accuracy(_best(scores - scores.mean(axis=0), names), right, targets)
    if generate:
        for name, question in asked.items():
            texts = generate_answers(model, processor, question, histories, batch_size=batch_size)
            methods[f"{name}, generated"] = _accuracy([[_named(text, names)] for text in texts], right, targets)
    counts = Counter(name for row in data.sequences("train") for item in row for name in categories[int(item) - 1])
    majority = min(counts, key=lambda name: (-counts[name], name))
    methods["most frequent category of all"] = _accuracy([[majority]] * len(right), right, targets)
    methods["counted in the history"] = _accuracy([[name] for name in right], right, targets)
    methods["chance"] = {
        "history": 1 / len(names),
        "target": float(np.mean([len(row) / len(names) for row in targets])),
    }
    return {
        "data": data.name,
        "column": column,
        "split": split,
        "users": len(users),
        "seed": seed,
        "num_categories": len(names),
        "task": task.to_dict(),
        "methods": methods,
    }


def _questions(
    data: PreparedData,
    categories: list[list[str]],
    split: Split,
    max_users: int | None,
    seed: int,
) -> tuple[NDArray[np.int64], list[list[int]], list[str], list[set[str]]]:
    candidates = data.candidates(split)
    rows = np.arange(len(candidates))
    if max_users is not None and max_users < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), max_users, replace=False))
    kept, histories, right, targets = [], [], [], []
    for row in rows:
        history = data.history(int(candidates.users[row]), split).tolist()
        favourite = _favourite([categories[item - 1] for item in history])
        if favourite is not None:
            kept.append(row)
            histories.append(history)
            right.append(favourite)
            targets.append(set(categories[int(candidates.targets[row]) - 1]))
    if not kept:
        raise DataError(f"none of {len(rows)} {split} users has a history item with a category")
    return candidates.users[np.array(kept)], histories, right, targets


def _favourite(history: list[list[str]]) -> str | None:
    """Return the most frequent category; of equally frequent ones the one that came last, then the first by name."""
    counts = Counter(name for names in history for name in set(names))
    last = {name: place for place, names in enumerate(history) for name in names}
    return min(counts, key=lambda name: (-counts[name], -last[name], name)) if counts else None


def _best(scores: NDArray[np.float64], names: list[str]) -> list[list[str]]:
    """Return for each user the categories of the highest score, more than one where they are tied.

    Raises:
        ALLMRecError: when a score is no finite number.
    """
    broken = int((~np.isfinite(scores)).any(axis=1).sum())
    if broken:
        raise ALLMRecError(
            f"the LLM's scores of {broken} of {len(scores)} users are no finite numbers; its weights are broken or its "
            "numbers overflow (try float32)"
        )
    highest = scores.max(axis=1, keepdims=True)
    return [[names[place] for place in np.flatnonzero(row)] for row in scores >= highest - SAME_NATS]


def _named(text: str, names: list[str]) -> str:
    """Return the longest category that a text begins with, or nothing."""
    start = text.casefold().strip(" \"'.,:")
    return max((name for name in names if start.startswith(name.casefold())), key=len, default="")


def _accuracy(answers: Sequence[Sequence[str]], right: Sequence[str], targets: Sequence[set[str]]) -> dict[str, float]:
    """Return the shares of right answers; of several that are tied, one is given at random: their mean counts."""
    wanted = {"history": [{name} for name in right], "target": targets}
    return {
        name: float(np.mean([np.mean([one in row for one in given]) for given, row in zip(answers, rows, strict=True)]))
        for name, rows in wanted.items()
    }


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
    """Measure, print the table and, with --output, write `free_text.json` and `free_text.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO_CHECKPOINT)
    parser.add_argument("--data", type=Path, help="folder of `allmrec prepare`; the invented world by default")
    parser.add_argument("--column", nargs="+", help="columns of categories")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the sample of users")
    parser.add_argument("--output", type=Path, help="folder of the report")
    parser.add_argument("--tiny", action="store_true", help="five users, one seed, one column")
    options = parser.parse_args()
    users, seeds = (5, [0]) if options.tiny else (options.users, options.seeds)
    model, processor = AutoModel.from_pretrained(options.model), ALLMRecProcessor.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        data = PreparedData.load(options.data) if options.data else invented_world(folder)
        columns = options.column or ([None] if options.data or options.tiny else ["genre", "topic"])
        runs: dict[str, list[dict[str, Any]]] = {}
        for column in columns:
            for seed in seeds:
                found = favourite_category(model, processor, data, column, max_users=users, seed=seed)
                runs.setdefault(found["column"], []).append(found)
    report = {"data": data.name, "users_per_seed": users, "seeds": seeds, "columns": runs}
    print(table(report))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "free_text.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (options.output / "free_text.md").write_text(table(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
