"""Texts alone on real data: cosines as they are, centred and whitened, and of words, by how old history items count.

    make real-parts
    python benchmarks/text_whitening.py --data-root DATA --parts runs/parts --output RUNS

Validation users only, at most 2,000 of each data set; nothing is trained. Writes `docs/results/text_whitening.json` and
`.md`, minutes on one core. `--table` writes the page again from the stored figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_rankers import DATASETS, dataset, text_encoder, write_report

from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import TextCosineRanker, best_unseen
from allmrec_hf.item_words import ItemWords
from allmrec_hf.methods.baselines import LAST_ITEMS
from allmrec_hf.methods.method import Setting
from allmrec_hf.methods.shared import text_embeddings
from allmrec_hf.ranker import recency_shares
from allmrec_hf.text_space import TextSpace
from allmrec_hf.training.text_fitting import RECENCIES, USERS_AT_ONCE, WHITENINGS

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "docs" / "results" / "text_whitening"
MAX_USERS = 2_000
PROTOCOLS, GROUPS = ("candidates", "full"), ("overall", "warm", "cold")


class RecentTexts(TextCosineRanker):
    """The mean cosine with the history, each item weighing `recency` times what the next later one does."""

    def __init__(self, directions: np.ndarray, recency: float, name: str) -> None:
        super().__init__(directions, name=name)
        self.recency = recency

    def _profiles(self, histories: Sequence[Any]) -> np.ndarray:
        profiles = np.zeros((len(histories), self.directions.shape[1]), dtype=np.float32)
        for profile, history in zip(profiles, histories, strict=True):
            shares = recency_shares(len(history), self.recency).numpy()
            profile[:] = shares @ self.directions[np.asarray(history, dtype=np.int64)]
        return profiles


class RecentWords:
    """The same of words."""

    def __init__(self, words: ItemWords, recency: float, name: str) -> None:
        self.words, self.recency, self.name = words, recency, name

    def _profiles(self, histories: Sequence[Any]) -> torch.Tensor:
        shares = (recency_shares(len(history), self.recency) for history in histories)
        return torch.stack([self.words.profile(*pair) for pair in zip(histories, shares, strict=True)])

    def score(self, histories: Sequence[Any], candidates: np.ndarray) -> np.ndarray:
        """Return `(B, C)` mean cosines."""
        return self.words.score_items(self._profiles(histories), torch.from_numpy(candidates)).numpy()

    def retrieve(self, histories: Sequence[Any], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the unseen items with the highest mean cosine."""
        pairs = []
        for start in range(0, len(histories), USERS_AT_ONCE):
            batch = histories[start : start + USERS_AT_ONCE]
            scores = self.words.score_rows(self._profiles(batch), slice(None))
            pairs.append(best_unseen(scores.numpy(), batch, top_k))
        items, scores = zip(*pairs, strict=True)
        return np.concatenate(items), np.concatenate(scores)


def rankers(texts: torch.Tensor, known: torch.Tensor, words: ItemWords) -> list[Any]:
    """Return raw cosines with the last items, and every whitening, and the words, with every recency."""
    found: list[Any] = [TextCosineRanker(texts.numpy(), last, name=f"raw, last {last}") for last in LAST_ITEMS]
    for whitening in WHITENINGS:
        table = texts
        if whitening is not None:
            space = TextSpace(texts.shape[1])
            space.fit(texts[known], whitening)
            table = space(texts)
        found += [RecentTexts(table.numpy(), recency, f"{whitening}, {recency}") for recency in RECENCIES]
    return found + [RecentWords(words, recency, f"words, {recency}") for recency in RECENCIES]


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return NDCG@10 of every ranker on validation users, by protocol and group."""
    data = dataset(name, options.data_root, options.output)
    where, encoder = options.output / "work" / name, text_encoder(options.parts)
    setting = Setting(where, where / "parts", options.output / "work" / "common", 0, "none", encoder)
    texts = text_embeddings(data, setting).float().cpu()
    known = torch.from_numpy(data.item_counts("train") > 0)
    words = ItemWords.of(data.catalog.texts(), known[1:].numpy())
    found: dict[str, Any] = {"title": data.name, "users": 0, "methods": {}}
    for protocol in PROTOCOLS:
        result = evaluate(rankers(texts, known, words), data, protocol, "validation", max_users=MAX_USERS).to_dict()
        found["users"] = result["users"]
        for method, groups in result["methods"].items():
            values = {group: groups[group]["ndcg@10"] for group in GROUPS if group in groups}
            found["methods"].setdefault(method, {})[protocol] = values
    return found


HEAD = """# Texts alone: whitened, by words, and recent ones first

```bash
make real-parts
python benchmarks/text_whitening.py --data-root DATA --parts runs/parts --output RUNS
```

NDCG@10 of an item's text against those of the history, by all-MiniLM-L6-v2, nothing trained; at most 2,000 validation
users of each data set, leave-one-out, among the 20 prepared candidates and in the whole catalogue. `raw` is the mean
cosine with the last items, as many as do best among candidates. The next row weighs a history item 0.85 times what the
next later one does; those below also take the mean of items with interactions off, with each direction divided by a
power of its variance (0 centres alone, 0.5 whitens). `words` reads no embedding: it is the cosine of words weighted by
how rare they are. Everything with every recency: [text_whitening.json](text_whitening.json). A checkpoint takes what
has the least loss on its own validation users (stage `rank`), and its fusion both `text` and `words`."""
SHOWN_RECENCY = 0.85


def page(found: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    parts = [HEAD]
    columns = [(protocol, group) for protocol in PROTOCOLS for group in GROUPS]
    for name in found:
        methods = found[name]["methods"]
        raw = max(
            (method for method in methods if method.startswith("raw")),
            key=lambda method: methods[method]["candidates"]["overall"],
        )
        rows = {raw: methods[raw]}
        for whitening in WHITENINGS:
            label = "raw, recency 0.85" if whitening is None else f"power {whitening}"
            rows[label] = methods[f"{whitening}, {SHOWN_RECENCY}"]
        rows["words"] = methods[f"words, {SHOWN_RECENCY}"]
        head = "| | " + " | ".join(f"{protocol}, {group}" for protocol, group in columns) + " |"
        lines = [head, "| --- |" + " ---: |" * len(columns)]
        for label, values in rows.items():
            cells = [f"{values[protocol][group]:.4f}" for protocol, group in columns]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        parts.append(f"## {found[name]['title']}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, or write the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"))
    parser.add_argument("--output", type=Path, default=Path("runs/text_whitening"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    stored = REPORT.with_suffix(".json")
    if options.table:
        found = json.loads(stored.read_text(encoding="utf-8"))
    else:
        found = {}
        for name in DATASETS:
            found[name] = measured(name, options)
            print(f"{name}: done", flush=True)
    write_report(REPORT, found, page(found))


if __name__ == "__main__":
    main()
