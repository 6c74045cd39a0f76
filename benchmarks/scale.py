"""What a deployment costs on paper: tokens, FLOPs and bytes from the measured points, written into `docs/scale.md`.

python benchmarks/scale.py

An LLM of P parameters reads a token in 2 P FLOPs; a training step that only passes gradients through frozen weights
takes 4 P. The report of `benchmarks/llm_speed.py` says how many tokens each part of this package really reads and how
fast; one rate, that of the bare prefill, is to explain the other measured times before it is used on another machine.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmrec_hf.files import written_whole
from allmrec_hf.item_words import WORDS_OF_ITEM

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results" / "llm_speed" / "smollm2_135m_instruct_float32.json"
PAGE = ROOT / "docs" / "scale.md"
TERA, GIGA = 1e12, 1e9
UNITS = (("s", (1, 60)), ("min", (60, 3600)), ("h", (3600, 172_800)), ("days", (86_400, float("inf"))))  # and up to


@dataclass(frozen=True)
class Deployment:
    """A deployment and the assumptions about it.

    Attributes:
        name: Its name in the table.
        users: Users to recommend to.
        items: Items of the catalogue.
        parameters: Of the LLM.
        rate: FLOPs that a device really does in a second.
        training_users: Users that stages 2 or `retrieve` train on; more change little.
    """

    name: str
    users: float
    items: float
    parameters: float
    rate: float
    training_users: float = 100_000


PROMPT_TOKENS, ANSWER_TOKENS = 256, 126  # of one request with 20 candidates, as measured
RETRIEVAL_TOKENS, ITEM_TOKENS = (
    24,
    24,
)  # a history of eight vectors with its words; a title of twelve tokens with its words
WIDTH, TEXT_WIDTH, RETRIEVAL_WIDTH = 64, 384, 128
H100 = 0.4 * 989 * TERA  # assumed: 40 % of the dense bfloat16 rate in its data sheet
DEPLOYMENTS = (
    Deployment("a shop", 1e6, 1e5, 1.35e8, H100),
    Deployment("a large shop", 1e7, 1e6, 1.3e9, H100),
    Deployment("a platform", 1e8, 1e7, 7e9, H100),
)


def checks(measured: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return for each measured part the seconds predicted by the prefill's rate, and those measured."""
    parameters, batch = measured["parameters"], measured["recommend"]["a batch"]
    rate = 2 * parameters * batch["prompt_tokens"] / batch["times"]["floor"]["median_s"]
    one, stage2 = measured["recommend"]["one request"], measured["stage2"]
    forward = {
        "one request, 20 candidates": (one, one["prompt_tokens"] + one["answer_tokens_read"]),
        "a batch of requests": (batch, batch["prompt_tokens"] + batch["answer_tokens_read"]),
    }
    found = [
        (name, 2 * parameters * tokens / rate, part["times"]["ours"]["median_s"])
        for name, (part, tokens) in forward.items()
    ]
    step = 4 * parameters * stage2["tokens"] / rate
    return [*found, ("a step of stage 2", step, stage2["times"]["ours"]["median_s"])]


def costs(case: Deployment) -> dict[str, str]:
    """Return each part's cost on one device, and the memory of the tables."""

    def told(flops: float) -> str:
        seconds = flops / case.rate
        unit, size = next((unit, size) for unit, size in UNITS if seconds < size[1])
        return f"{seconds / size[0]:.2g} {unit}"

    forward = 2 * case.parameters
    words = WORDS_OF_ITEM * (4 + 2)  # bytes of their places and weights
    tables = case.items * (4 * (2 * WIDTH + TEXT_WIDTH / 2 + RETRIEVAL_WIDTH) + words)
    return {
        "users": f"{case.users:,.0f}",
        "items": f"{case.items:,.0f}",
        "LLM": f"{case.parameters / 1e9:g} B",
        "tables of items": f"{tables / GIGA:,.2g} GB",
        "exact retrieval by the backbone, all users": told(2.0 * case.users * case.items * WIDTH),
        "stage 2, one epoch": told(2 * forward * case.training_users * (PROMPT_TOKENS + ANSWER_TOKENS / 20)),
        "items of `retrieval`, once": told(forward * case.items * ITEM_TOKENS),
        "all users by `retrieval`": told(forward * case.users * RETRIEVAL_TOKENS),
        "all users by `likelihood`, 20 candidates": told(forward * case.users * (PROMPT_TOKENS + ANSWER_TOKENS)),
    }


def tables() -> str:
    """Return both tables in Markdown."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    lines = ["| part | predicted, s | measured, s | measured / predicted |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {said:.2f} | {real:.2f} | {real / said:.2f} |" for name, said, real in checks(measured)]
    columns = [costs(case) for case in DEPLOYMENTS]
    lines += ["", "| one device | " + " | ".join(case.name for case in DEPLOYMENTS) + " |"]
    lines += ["| --- |" + " ---: |" * len(columns)]
    lines += [f"| {name} | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    return "\n".join(lines)


def main() -> None:
    """Write the tables between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    made = re.sub(
        r"<!-- scale -->.*?<!-- /scale -->", lambda _: f"<!-- scale -->\n{tables()}\n<!-- /scale -->", text, flags=re.S
    )
    with written_whole(PAGE) as temporary:
        temporary.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
