"""What `torch.compile` of the LLM's layers brings and costs: one request and a step of stage 2, compiled and not.

    python benchmarks/llm_compile.py --shape folder --llm runs/parts/SmolLM2-135M-Instruct

Two models with the same weights take turns in one process; scores and losses must agree. CPU seconds, and the seconds
that the first use of each compiled way takes. `--output FILE` stores the report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import llm_setup as setup
import llm_ways as ways
import torch

from allmrec_hf.ranker import TitleLikelihood, UserBatch

TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}  # of a title's log-likelihood, in nats


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the report."""
    dtype = getattr(torch, options.dtype)
    requests, steps, first = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        data = setup.world(Path(folder) / "world")
    histories, candidates, targets = setup.users_of(data, options.batch_size)
    for name in ("plain", "compiled"):
        llm, tokenizer, shown = setup.language_model(options.shape, options.llm, dtype)
        model, processor = setup.build(data, llm, tokenizer)
        if name == "compiled":
            model.compile_language_model()
        ranker = TitleLikelihood(model, processor)

        def request(model: Any = model, ranker: Any = ranker, processor: Any = processor) -> torch.Tensor:
            with torch.no_grad():
                return ranker.score(UserBatch.encode(model, processor, histories[:1]), candidates[:1]).scores

        step = ways.stage2_ways(model, processor, data, histories, candidates, targets)["ours"]
        requests[name], steps[name] = request, step
    report: dict[str, Any] = {"llm": shown, "dtype": options.dtype, "threads": torch.get_num_threads()}
    for part, found in (("request", requests), ("stage2", steps)):
        began = time.perf_counter()
        found["compiled"]()
        first[part] = round(time.perf_counter() - began, 1)
        taken = setup.in_turns(found, options.repeats)
        returned = [torch.as_tensor(taken[name]["returned"], dtype=torch.float32) for name in found]
        worst = float((returned[0] - returned[1]).abs().max())
        if worst > TOLERANCE[options.dtype]:
            raise SystemExit(f"{part}: compiled and plain differ by {worst:.2g}")
        report[part] = {
            "first_use_s": first[part],
            "largest_difference": worst,
            "plain": {key: taken["plain"][key] for key in ("median_s", "range_s")},
            "compiled": {key: taken["compiled"][key] for key in ("median_s", "range_s")},
            "compiled_of_plain": round(taken["compiled"]["median_s"] / taken["plain"]["median_s"], 3),
        }
    return report


def main() -> None:
    """Print the report, and store it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=setup.SHAPES, default="tiny")
    parser.add_argument("--llm", help="folder or id of a causal LM, with --shape folder")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    setup.told(measured(options), options.output)


if __name__ == "__main__":
    main()
