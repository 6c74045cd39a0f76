"""What stage 2 holds in memory on a CPU, step by step, with the heap trimmed and without.

    python benchmarks/stage2_memory.py --output benchmarks/results/stage2_memory.json

A random LLM of the shape of SmolLM2-135M (or `--llm`, an id or folder of a real one) reads prompts of some 750 tokens
of ever other lengths. Each way runs in a process of its own. `--layers` and
`--hidden-size` make it smaller, for a slow machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, SASRecConfig
from allmrec_hf.data import memory
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.part_sources import named_part
from allmrec_hf.prompt import PromptTemplate
from allmrec_hf.training import loop
from allmrec_hf.training.projection import ProjectionModule, ProjectionTask
from allmrec_hf.training.provenance import library_versions
from allmrec_hf.training.stage_arguments import StageArguments

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
WAYS = ("as it comes", "trimmed")


def world(folder: Path, tokens: int, seed: int = 0) -> PreparedData:
    """Return invented data whose titles are so long that a prompt comes to about so many tokens."""
    made = SyntheticWorld(num_items=400, num_users=2_000)
    items, generator = made.items(), np.random.default_rng(seed)
    words = sorted({word for title in items["title"].to_list() for word in title.split()})
    mean = max(2, round(tokens / 60))
    titles = [
        " ".join(generator.choice(words, int(generator.integers(1, 2 * mean)))) + f" {number}"
        for number in range(items.height)
    ]
    items = items.with_columns(pl.Series("title", titles))
    return prepare(
        made.interactions(), items, output=folder, filter="none", keep_items="all", domain="movie", name="titles"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process and return the resident memory every ten steps."""
    if options.way == "as it comes":
        memory._glibc = lambda: None  # type: ignore[assignment]
    torch.manual_seed(0)
    if options.llm is None:
        shape = SMOLLM2_135M | {"num_hidden_layers": options.layers, "hidden_size": options.hidden_size}
        shape |= {"intermediate_size": options.hidden_size * 8 // 3, "num_attention_heads": options.hidden_size // 64}
        llm: Any = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=getattr(torch, options.dtype))
        tokenizer = AutoTokenizer.from_pretrained(named_part("demo", "language_model"))
    else:
        llm = AutoModelForCausalLM.from_pretrained(options.llm, dtype=getattr(torch, options.dtype))
        tokenizer = AutoTokenizer.from_pretrained(options.llm)
    with tempfile.TemporaryDirectory() as folder:
        data = world(Path(folder) / "data", options.tokens)
        model = ALLMRecModel(ALLMRecConfig(cf_config=SASRecConfig(num_items=data.num_items, hidden_size=32)))
        model.attach_language_model(llm)
        processor = ALLMRecProcessor(tokenizer, PromptTemplate.for_domain("movie").to_dict(), max_length=4_096)
        processor.catalog = data.catalog
        arguments = StageArguments(
            num_train_epochs=1_000,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            save_minutes=None,
        )
        task = ProjectionTask(ProjectionModule(model), processor, data, "train", 20, arguments)
        task.validation = task.validation.take(np.arange(0))
        collate, series, lengths, started = task.collate, [], [], time.monotonic()

        def watched(examples: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
            if len(lengths) % 10 == 0:
                series.append(round(memory.resident_bytes() / 2**20))
            batch = collate(examples, generator)
            lengths.append(int(batch["attention_mask"].sum()) / len(examples))
            return batch

        task.collate = watched  # type: ignore[method-assign]
        loop.run_stage(task, arguments, Path(folder) / "run", progress=None)
        series.append(round(memory.resident_bytes() / 2**20))
    return {
        "way": options.way,
        "resident_mib_every_10_steps": series,
        "growth_mib_after_step_20": max(series[2:]) - series[2],
        "peak_mib": max(series),
        "seconds": round(time.monotonic() - started, 1),
        "tokens_per_prompt": {"mean": round(float(np.mean(lengths))), "longest": round(max(lengths))},
    }


def main() -> None:
    """Run each way in a process of its own and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", help="id or folder of a causal LM; a random one where not given")
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M["num_hidden_layers"])
    parser.add_argument("--hidden-size", type=int, default=SMOLLM2_135M["hidden_size"], help="a multiple of 192")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=750, help="of a prompt, about")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(measure(options)))
        return
    names = ("layers", "hidden_size", "dtype", "steps", "batch_size", "tokens", "llm")
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    given = [text for name, value in values.items() if value is not None for text in (name, str(value))]
    runs = []
    for way in options.ways:
        command = [sys.executable, __file__, *given, "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), flush=True)
    report = {
        "llm": (options.llm and Path(options.llm).name)
        or f"random weights, {options.layers} layers, width {options.hidden_size}",
        "dtype": options.dtype,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        "libc": " ".join(platform.libc_ver()),
        "runs": runs,
        "versions": library_versions(),
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
