"""What the benchmarks of the LLM side have in common: shapes, invented data, models, and times taken in turns."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, SASRecConfig
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.files import written_whole
from allmrec_hf.part_sources import named_part
from allmrec_hf.prompt import PromptTemplate

OPT_125M = OPTConfig(
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    ffn_dim=3_072,
    max_position_embeddings=2_048,
    do_layer_norm_before=True,
)
SHAPES = ("tiny", "opt-125m", "folder")
CANDIDATES = 20


def world(folder: Path) -> PreparedData:
    """Return a small invented world."""
    made = SyntheticWorld(num_items=400, num_users=400)
    return prepare(
        made.interactions(), made.items(), output=folder, filter="none", keep_items="all", domain="movie", name="world"
    )


def name_of(shape: str, llm: str | None) -> str:
    """Return what an LLM is called in reports, see `language_model`."""
    return {"tiny": "the demo's LM", "opt-125m": "opt-125m shape, random weights"}.get(shape) or Path(str(llm)).name


def language_model(shape: str, llm: str | None, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Return an LLM, its tokenizer and its name.

    Args:
        shape: `tiny`: the demo's LM; `opt-125m`: random weights; `folder`: what `llm` names.
        llm: Folder or id.
        dtype: Of the LLM.
    """
    torch.manual_seed(0)
    demo = named_part("demo", "language_model")
    if shape == "opt-125m":
        made = AutoModelForCausalLM.from_config(OPT_125M, dtype=dtype)
        return made.eval(), AutoTokenizer.from_pretrained(demo), name_of(shape, llm)
    source = demo if shape == "tiny" else llm
    if source is None:
        raise SystemExit("--shape folder needs --llm FOLDER")
    found = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    return found.eval(), AutoTokenizer.from_pretrained(source), name_of(shape, llm)


def build(data: PreparedData, llm: Any, tokenizer: Any) -> tuple[ALLMRecModel, ALLMRecProcessor]:
    """Return a model with an untrained light part, and its processor."""
    torch.manual_seed(1)
    model = ALLMRecModel(ALLMRecConfig(cf_config=SASRecConfig(num_items=data.num_items, hidden_size=64)))
    model.attach_language_model(llm)
    processor = ALLMRecProcessor(tokenizer, PromptTemplate.for_domain("movie").to_dict(), max_length=2_000)
    processor.catalog = data.catalog
    return model.eval(), processor


def users_of(data: PreparedData, count: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return histories, lists of 20 candidates, and the targets among them, of some users."""
    generator = np.random.default_rng(seed)
    sequences = [list(map(int, sequence)) for sequence in data.sequences() if len(sequence) > 10][:count]
    targets = [sequence[-1] for sequence in sequences]
    candidates = []
    for sequence in sequences:
        others = np.setdiff1d(np.arange(1, data.num_items + 1), sequence)
        drawn = [*map(int, generator.choice(others, CANDIDATES - 1, replace=False)), sequence[-1]]
        candidates.append([drawn[place] for place in generator.permutation(CANDIDATES)])
    return [sequence[:-1] for sequence in sequences], candidates, targets


def told(report: dict[str, Any], output: Path | None) -> None:
    """Print a report, and store it where a file is given."""
    text = json.dumps(report, indent=1)
    print(text)
    if output is not None:
        with written_whole(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Return what each way returned, and CPU seconds of this process: the median and the range of its repeats.

    The ways take turns, so that what slows the machine down for a while slows them all; each runs once before.
    `rounds_s` are the seconds in the order of the rounds, `wall_s` is the median of the time on the clock.
    """
    returned = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started, began = time.process_time(), time.perf_counter()
            way()
            seconds[name].append(time.process_time() - started)
            clock[name].append(time.perf_counter() - began)
    return {
        name: {
            "returned": returned[name],
            "median_s": round(statistics.median(taken), 5),
            "range_s": [round(min(taken), 5), round(max(taken), 5)],
            "wall_s": round(statistics.median(clock[name]), 5),
            "rounds_s": [round(value, 5) for value in taken],
        }
        for name, taken in seconds.items()
    }


def of_pairs(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the median of the quotients of two ways, each of one round."""
    pairs = zip(one["rounds_s"], other["rounds_s"], strict=True)
    return round(statistics.median(first / max(second, 1e-9) for first, second in pairs), 3)


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the times, and those of ours against the others', round by round; of two floors the lower one counts."""
    kept = ("median_s", "range_s", "wall_s")
    times = {name: {key: one[key] for key in kept} for name, one in found.items()}
    quotients = {}
    floors = [one for name, one in found.items() if name.startswith("floor")]
    if floors:
        quotients["ours_of_floor"] = of_pairs(found["ours"], min(floors, key=lambda one: one["median_s"]))
    if "naive" in found:
        quotients["naive_of_ours"] = of_pairs(found["naive"], found["ours"])
    return {"times": times, **quotients}


def layer_parameters(llm: Any) -> int:
    """Return the parameters that every token passes: of the layers, without the tables of tokens and places."""
    return sum(value.numel() for name, value in llm.named_parameters() if ".layers." in name)


def flops(llm: Any, tokens: int, length: float, read: int, backward: bool) -> float:
    """Return the FLOPs that some tokens need.

    Args:
        llm: The LLM.
        tokens: Tokens read.
        length: Mean number of tokens that one of them attends to, in the prompt's layers.
        read: Places whose vocabulary logits are needed.
        backward: Whether gradients pass back; weights are frozen, so that they cost what the forward pass does.
    """
    config = llm.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * length
    each = 2 * layer_parameters(llm) + attention
    whole = tokens * each + 2 * read * config.vocab_size * config.hidden_size
    return whole * (2 if backward else 1)


class _Saved:
    """A tensor that a backward pass keeps, while it does."""

    def __init__(self, tensor: torch.Tensor, holders: dict[int, int]) -> None:
        self.tensor, self.holders, self.key = tensor, holders, tensor.untyped_storage().data_ptr()
        holders[self.key] = holders.get(self.key, 0) + 1

    def __del__(self) -> None:
        self.holders[self.key] -= 1
        if not self.holders[self.key]:
            del self.holders[self.key]


def most_saved(run: Callable[[], Any], model: torch.nn.Module) -> int:
    """Return the bytes that backward passes keep at most at once while something runs, the model's own left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    holders: dict[int, int] = {}
    sizes: dict[int, int] = {}
    most = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Saved:
        nonlocal most
        key = tensor.untyped_storage().data_ptr()
        if key in own:
            return tensor
        sizes[key] = tensor.untyped_storage().nbytes()
        saved = _Saved(tensor, holders)
        most = max(most, sum(sizes[kept] for kept in holders))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, _Saved) else kept):
        run()
    return most


def peak_mb(run: Callable[[], Any]) -> float:
    """Return by how many MB this process's memory rises at most while something runs (Linux)."""
    status = Path("/proc/self/status")
    kb = lambda field: int(status.read_text(encoding="utf-8").split(f"{field}:")[1].split()[0])  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = kb("VmRSS")
    run()
    return round((kb("VmHWM") - before) / 1e3, 1)


def machine() -> str:
    """Return what the measurements ran on."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} thread, no GPU"
