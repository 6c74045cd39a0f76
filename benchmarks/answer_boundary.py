"""The log-likelihood of an answer's opening quote, the blank before it being the prompt's or the answer's.

    make real-parts
    python benchmarks/answer_boundary.py --output benchmarks/results/answer_boundary.json

One prompt of three films in the history and three candidates, without vectors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allmrec_hf import ALLMRecProcessor, ItemCatalog, PromptTemplate

LLMS = ("runs/parts/SmolLM2-135M-Instruct", "runs/parts/gemma-3-270m")
TITLES = ("Toy Story (1995)", "Heat (1995)", "GoldenEye (1995)", "Alien (1979)", "Braveheart (1995)", "Casino (1995)")


@torch.no_grad()
def measure(folder: str) -> dict[str, Any]:
    """Return the log-likelihoods of the first token and of the whole answer, for both boundaries."""
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, paper = AutoTokenizer.from_pretrained(folder), PromptTemplate.for_domain("movie").without_vectors()
    found: dict[str, Any] = {"llm": Path(folder).name}
    for name, template in (("paper", paper), ("natural", paper.with_natural_boundary())):
        processor = ALLMRecProcessor(tokenizer, template.to_dict())
        processor.catalog = ItemCatalog.from_records(
            {"item_id": str(number), "title": title} for number, title in enumerate(TITLES)
        )
        prompt, answer = processor.encode_prompt([1, 2, 3], [4, 5, 6]).tokens, processor.answer_tokens(5)
        logits = llm(torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)
        values = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
        found[name] = {"opening_quote": round(values[0].item(), 2), "answer": round(values.sum().item(), 2)}
    return found


def main() -> None:
    """Measure each LLM and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llms", nargs="+", default=list(LLMS), help="folders of causal LMs")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = [measure(folder) for folder in options.llms]
    print(json.dumps(report, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
