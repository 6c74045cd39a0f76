"""Stage 2 and batch recommending on a GPU, as a share of what the card's matrix products reach.

    python benchmarks/gpu.py --output benchmarks/results
    python benchmarks/gpu.py --shape tiny --device cpu

The LLM has random weights of OPT-6.7B's shape in bfloat16. Measured are tokens per second of a training step and of
scoring 20 candidates for a batch of users, the FLOPs that these tokens need, their share of the rate of large matrix
products on the same card in the same minute (goal: half), the peak of the device's memory, and users per second beside
12 generated tokens at the same batch. One JSON is written, named after the card. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_setup as setup
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from allmrec_hf.part_sources import named_part
from allmrec_hf.ranker import TitleLikelihood, UserBatch
from allmrec_hf.rows_at_once import is_out_of_memory
from allmrec_hf.training.projection import ProjectionModule

GENERATED = 12  # tokens of the way that writes its answer
GOAL = 0.5  # of the measured rate of matrix products
SHAPES: dict[str, dict[str, Any]] = {
    "opt-6.7b": {
        **{"vocab_size": 50_272, "hidden_size": 4_096, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"ffn_dim": 16_384, "max_position_embeddings": 2_048, "do_layer_norm_before": True},
    },
    "tiny": {
        **{"vocab_size": 2_048, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"ffn_dim": 128, "max_position_embeddings": 2_048, "do_layer_norm_before": True},
    },
}
PRODUCT = {"opt-6.7b": 8_192, "tiny": 512}  # rows and columns of the matrices that are multiplied


def synchronised(device: torch.device) -> float:
    """Return the time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median of the wall-clock seconds of some calls, after one that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        started = synchronised(device)
        work()
        taken.append(synchronised(device) - started)
    return statistics.median(taken)


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """Return the FLOP/s of square matrix products."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: one @ other, device, max(repeats, 5))


def peak_gib(work: Callable[[], Any], device: torch.device) -> float | None:
    """Return the GiB of the device's memory that are taken at most while something runs; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def largest(sizes: list[int], work: Callable[[int], Any]) -> int:
    """Return the largest batch that the device's memory holds."""
    for size in sizes:
        try:
            work(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        torch.cuda.empty_cache()
    raise SystemExit("the device's memory does not hold the LLM and one prompt")


def measured(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the figures of stage 2 and of batch recommending."""
    dtype = torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        llm = AutoModelForCausalLM.from_config(OPTConfig(**SHAPES[options.shape]), dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(named_part("demo", "language_model"))
    with tempfile.TemporaryDirectory() as folder:
        data = setup.world(Path(folder))
        model, processor = setup.build(data, llm, tokenizer)
    sizes = [size for size in (128, 64, 32, 16, 8, 4, 2, 1) if size <= options.batch_size]
    users = setup.users_of(data, sizes[0])
    module, ranker = ProjectionModule(model), TitleLikelihood(model, processor)
    rate = matmul_rate(PRODUCT[options.shape], dtype, device, options.repeats)
    found: dict[str, Any] = {"matmul_tflops": float(f"{rate / 1e12:.3g}")}

    def first(count: int) -> tuple[Any, Any, Any]:
        return users[0][:count], users[1][:count], users[2][:count]

    def step(count: int) -> None:
        module.train().zero_grad()
        batch = {name: value.to(device) for name, value in processor.training_batch(*first(count)).items()}
        module(batch)["loss"].backward()

    def generate(count: int) -> None:
        batch = processor(*first(count)[:2]).to(device)
        model.eval().generate(**batch, max_new_tokens=GENERATED, min_new_tokens=GENERATED)

    def recommend(count: int) -> None:
        histories, candidates, _ = first(count)
        ranker.score(UserBatch.encode(model.eval(), processor, histories), candidates)

    count = largest(sizes, step)
    batch = processor.training_batch(*first(count))
    tokens, answers = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
    taken = seconds(lambda: step(count), device, options.repeats)
    needed = setup.flops(llm, tokens, tokens / count / 2, answers, backward=True)
    found["stage2"] = {
        "users": count,
        "tokens": tokens,
        "seconds": round(taken, 4),
        "tokens_per_second": round(tokens / taken, 1),
        "share_of_matmul": float(f"{needed / taken / rate:.3g}"),
        "peak_gib": peak_gib(lambda: step(count), device),
    }
    count = largest(sizes, recommend)
    batch = processor(*first(count)[:2])
    prompts = int(batch["attention_mask"].sum())
    read = int((batch["answer_mask"].sum(dim=-1) - 1).clamp(min=0).sum())
    taken = seconds(lambda: recommend(count), device, options.repeats)
    written = seconds(lambda: generate(count), device, options.repeats)
    needed = setup.flops(llm, prompts + read, prompts / count / 2, int(batch["answer_mask"].sum()), backward=False)
    found["recommend"] = {
        "users": count,
        "method": model.scoring_method,
        "prompt_tokens": prompts,
        "title_tokens": read,
        "seconds": round(taken, 4),
        "tokens_per_second": round((prompts + read) / taken, 1),
        "users_per_second": round(count / taken, 3),
        "share_of_matmul": float(f"{needed / taken / rate:.3g}"),
        "peak_gib": peak_gib(lambda: recommend(count), device),
        "users_per_second_of_generation": round(count / written, 3),
        "generated_tokens": GENERATED,
        "generation_of_ours": round(written / taken, 3),
    }
    found["goal_share_of_matmul"] = GOAL
    return found


def main() -> None:
    """Measure, print, and write the JSON of the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="opt-6.7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=32, help="Users; halved until the memory holds them.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Folder of the JSON.")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result = {
        "card": card,
        "shape": options.shape,
        "dtype": "bfloat16",
        "torch": torch.__version__,
        **measured(options, device),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        name = "gpu_" + re.sub(r"\W+", "_", f"{card} {options.shape}").strip("_").lower()
        (options.output / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
