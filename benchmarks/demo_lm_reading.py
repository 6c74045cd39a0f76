"""How well the demo's tiny LM reads 20 candidates when words stand where stage 2 will put vectors.

python benchmarks/demo_lm_reading.py --users 500 --output docs/results
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import allmrec_hf
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.files import written_whole
from allmrec_hf.prompt import USER_SLOT
from allmrec_hf.ranking import hit_at_k, ndcg_at_k, target_ranks
from allmrec_hf.scoring import score_prefix_cache

LANGUAGE_MODEL = Path(allmrec_hf.__file__).parent / "demo" / "language_model"
KINDS = {
    "text": "text only, no vector anywhere",
    "topic": "the target's topic word in front",
    "topics": "the same, and each title's topic word behind it",
    "tags": "random words behind the titles, the target's in front",
    "mixtures": "mixtures of two words behind the titles, the target's in front",
    "half": "mixtures of two words in front, one of them behind the target",
}


def vectors_of(
    kind: str, items: list[int], target: int, topics: dict[int, int], words: np.ndarray, table: torch.Tensor
):
    """Return the vector in front (or None) and those behind titles, by catalogue index."""
    if kind == "text":
        return None, {}
    if kind in ("topic", "topics"):
        behind = {item: table[topics[item]] for item in items} if kind == "topics" else {}
        return table[topics[target]], behind
    behind = {item: table[words[place]] for place, item in enumerate(items)}
    if kind == "mixtures":
        second = {item: table[words[len(items) + place]] for place, item in enumerate(items)}
        behind = {item: (behind[item] + second[item]) / 2**0.5 for item in items}
    front = behind[target]
    return ((front + table[words[-1]]) / 2**0.5 if kind == "half" else front), behind


@torch.no_grad()
def main() -> None:
    """Score the test users of world 0 and write `demo_lm_reading.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    world = SyntheticWorld()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(world.interactions(), world.items(), output=Path(folder) / "data", filter="none", domain="movie")
        candidates = data.candidates("test").take(np.arange(options.users))
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL).eval()
    table = model.get_input_embeddings().weight
    processor = allmrec_hf.ALLMRecProcessor(tokenizer, allmrec_hf.PromptTemplate.for_domain("movie").to_dict())
    processor.catalog = data.catalog
    names = data.catalog.frame["topic"].to_list()
    topics = {index: tokenizer.convert_tokens_to_ids(name) for index, name in enumerate(names, start=1)}
    results = {}
    for kind in KINDS:
        generator, scores = np.random.default_rng(0), []
        for user, target, row in zip(candidates.users, candidates.targets, candidates.items.tolist(), strict=True):
            history = data.history(int(user), "test").tolist()
            shown = [*row, *history[-processor.history_in_prompt :]]
            words = generator.choice(np.arange(4, len(tokenizer)), 2 * len(shown) + 1, replace=False)
            front, behind = vectors_of(kind, shown, int(target), topics, words, table)
            prompt = processor.encode_prompt(history, row)
            places = [
                front if slot == USER_SLOT else behind.get(slot) if slot else table[token]
                for token, slot in zip(prompt.tokens, prompt.slots, strict=True)
            ]
            embeds = torch.stack([place for place in places if place is not None])[None]
            batch = processor([history], [row])
            tokens = score_prefix_cache(
                model, embeds, torch.ones(embeds.shape[:2]), batch["answer_ids"], batch["answer_mask"]
            )
            scores.append((tokens.sum(-1) / batch["answer_mask"].sum(-1))[0].numpy())
        ranks = target_ranks(np.stack(scores), candidates.target_columns)
        results[kind] = {"hit@1": float(hit_at_k(ranks, 1).mean()), "ndcg@10": float(ndcg_at_k(ranks, 10).mean())}
        print(f"{KINDS[kind]:70s} {results[kind]['hit@1']:.3f} / {results[kind]['ndcg@10']:.3f}", flush=True)
    lines = ["| what the LM is given | Hit@1 / NDCG@10 |", "| --- | ---: |"]
    lines += [f"| {KINDS[kind]} | {value['hit@1']:.2f} / {value['ndcg@10']:.2f} |" for kind, value in results.items()]
    report = {"users": options.users, "world_seed": 0, "num_candidates": 20, "results": results}
    for name, text in (("json", json.dumps(report, indent=1)), ("md", "\n".join(lines))):
        with written_whole(options.output / f"demo_lm_reading.{name}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
