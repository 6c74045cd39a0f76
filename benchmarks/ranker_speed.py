"""Users a second of the rankers of one LLM: a likelihood of 20 titles and of all, and retrieval of all.

    python benchmarks/ranker_speed.py --llm runs/parts/SmolLM2-135M-Instruct --output FILE

All rank the same users with the same weights and take turns in one process; CPU seconds of one thread. Titles are
invented; heads are untrained, which costs the same. Items' vectors are stored, as they are in a checkpoint; users'
vectors that a ranker has at hand are forgotten before each turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import llm_setup as setup
import torch

from allmrec_hf.language_model import num_layers
from allmrec_hf.prompt import HistoryTemplate
from allmrec_hf.ranker import TitleLikelihood, UserBatch
from allmrec_hf.ranker_retrieval import RetrievalRanker, add_retrieval_head
from allmrec_hf.training.section_arguments import RetrieveArguments

TOP_K = 10
LISTED, ALL = "likelihood, 20 titles", "likelihood, whole catalogue, 20 titles at once"
WAYS = {  # of retrieval: the share of the LLM's layers, and whether the history names titles
    "retrieval, all layers, titles": (None, True),
    "retrieval, all layers, vectors alone": (None, False),
    "retrieval, 15 % of the layers, titles": (0.15, True),
    "retrieval, 15 % of the layers, vectors alone": (0.15, False),
}


def retrieval(llm: Any, tokenizer: Any, data: Any, share: float | None, titles: bool) -> RetrievalRanker:
    """Return a ranker `retrieval` with an untrained head and vectors of all items."""
    model, processor = setup.build(data, llm, tokenizer)
    arguments = RetrieveArguments(num_llm_layers=share, history_titles=titles)
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in ("dim", "history_in_prompt")}
    template = HistoryTemplate.for_domain(data.domain, data.verbs, titles)
    layers = arguments.layers_of(num_layers(llm))[0]
    add_retrieval_head(model, {**settings, "num_llm_layers": layers, "prompt": template.to_dict()})
    items = list(range(1, data.num_items + 1))
    model.retrieval_head.store_items(items, torch.nn.functional.normalize(torch.randn(len(items), settings["dim"])))
    return RetrievalRanker(model, processor)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the report."""
    llm, tokenizer, shown = setup.language_model(options.shape, options.llm, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        data = setup.world(Path(folder) / "world")
    histories, candidates, _ = setup.users_of(data, options.users)
    by_title = TitleLikelihood(*setup.build(data, llm, tokenizer))

    catalogue = torch.arange(1, data.num_items + 1).split(len(candidates[0]))  # a prompt lists its candidates
    lists = {LISTED: [candidates], ALL: [[part.tolist()] * len(histories) for part in catalogue]}

    def likelihood(turns: Any) -> Any:
        @torch.no_grad()
        def rank() -> torch.Tensor:
            users = UserBatch.encode(by_title.model, by_title.processor, histories)
            return torch.cat([by_title.score(users, titles).scores for titles in turns], dim=1)

        return rank

    def whole_catalogue(ranker: RetrievalRanker) -> Any:
        @torch.no_grad()
        def rank() -> torch.Tensor:
            ranker.head.users.clear()
            users = UserBatch.encode(ranker.model, ranker.processor, histories)
            return ranker.score_range(ranker.vectors(users), 1, data.num_items + 1).topk(TOP_K).indices

        return rank

    rankers = {name: retrieval(llm, tokenizer, data, *way) for name, way in WAYS.items()}
    ways = {name: likelihood(turns) for name, turns in lists.items()}
    ways |= {name: whole_catalogue(ranker) for name, ranker in rankers.items()}
    found = setup.in_turns(ways, options.repeats)
    tokens = {
        name: [count for titles in turns for count in by_title.tokens_read(histories, titles)]
        for name, turns in lists.items()
    }
    tokens |= {name: ranker.tokens_read(histories) for name, ranker in rankers.items()}
    base = found[LISTED]
    return {
        "llm": shown,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "users": len(histories),
        "items": data.num_items,
        "ways": {
            name: {
                "users_per_s": round(len(histories) / one["median_s"], 3),
                "range_s": one["range_s"],
                "tokens_of_a_user": round(sum(tokens[name]) / len(histories), 1),
                "times_likelihood": setup.of_pairs(base, one),
            }
            for name, one in found.items()
        },
    }


def main() -> None:
    """Print the report, and store it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=setup.SHAPES, default="folder")
    parser.add_argument("--llm", help="folder or id of a causal LM, with --shape folder")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setup.told(measured(options), options.output)


if __name__ == "__main__":
    main()
