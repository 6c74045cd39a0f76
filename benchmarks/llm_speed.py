"""Time and memory of the LLM side: ours beside the naive way and the bare LLM, and what the cost grows with.

    python benchmarks/llm_speed.py --every PARTS --output benchmarks/results/llm_speed
    python benchmarks/llm_speed.py stage2 recommend --shape tiny --output benchmarks/results/llm_speed
    python benchmarks/llm_speed.py --page benchmarks/results/llm_speed

Ways take turns in one process on the same weights and must agree in their losses or scores; times are CPU seconds of
the process, and the medians of the quotients of each round are the result. A file of JSON is written for each shape and
dtype, part by part; `--page` writes the tables of docs/speed.md from all of them, and the plot. `--every` measures what
`PLAN` names, each part in a process of its own, from a folder PARTS with the models SmolLM2-135M-Instruct and
all-MiniLM-L6-v2. Parts that the output has already are left out, so that a run may be stopped and started again;
`--minutes` ends it between two parts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_setup as setup
import llm_speed_page
import llm_ways as ways
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from allmrec_hf import ALLMRecConfig, ALLMRecModel, SASRecConfig
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.part_sources import named_part
from allmrec_hf.processing_allmrec import ALLMRecProcessor
from allmrec_hf.prompt import PromptTemplate
from allmrec_hf.scoring import packed_answers

PARTS = ("stage1", "stage2", "recommend", "startup", "memory", "sweep")
PLAN: tuple[tuple[str, str, int, int, tuple[str, ...]], ...] = (  # shape, dtype, batch size, repeats, parts
    ("tiny", "float32", 8, 15, PARTS),
    ("tiny", "bfloat16", 2, 3, ("stage2", "recommend")),
    ("folder", "float32", 2, 5, ("stage2", "recommend", "startup")),
    ("folder", "float32", 8, 3, ("stage1", "memory")),
    ("opt-125m", "float32", 2, 5, ("stage2", "recommend")),
    ("opt-125m", "float32", 8, 3, ("memory",)),
)
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1.0}  # nats of a loss or a title's log-likelihood


def check(name: str, one: Any, other: Any, tolerance: float) -> float:
    """Return how far two results differ, and stop where it is more than rounding."""
    first, second = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    far = float((first - second).abs().max())
    if not far <= tolerance:
        raise SystemExit(f"{name}: {first} and {second} differ by {far}: what is compared is not the same work")
    return far


def stage1(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure a step of stage 1 with the text encoder trained, and with its embeddings made once."""
    from sentence_transformers import SentenceTransformer

    source = options.text_encoder or named_part("demo", "text_encoder")
    encoder = SentenceTransformer(str(source), device="cpu").eval()
    texts = [data.catalog.text(index) for index in range(1, data.num_items + 1)]
    made, counts = ways.stage1_ways(encoder, texts, data.num_items, options.batch_size * 4)
    found = setup.in_turns(made, options.repeats)
    check("stage 1", found["ours"]["returned"], found["naive"]["returned"], 1e-3)
    check("stage 1, frozen", found["ours"]["returned"], found["frozen"]["returned"], 1e-3)
    frozen = round(found["naive"]["median_s"] / found["frozen"]["median_s"], 1)
    return {**setup.ratios(found), "naive_of_frozen": frozen, **counts, "text_encoder": Path(source).name}


def stage2(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure a step of stage 2."""
    model, processor = options.build(data)
    users = setup.users_of(data, options.batch_size)
    found = setup.in_turns(ways.stage2_ways(model, processor, data, *users), options.repeats)
    loss = found["ours"]["returned"]
    for other in ("naive", "floor", "floor, padded"):
        check(f"stage 2, {other}", loss, found[other]["returned"], TOLERANCE[options.torch_dtype])
    batch = processor.training_batch(*users)
    tokens, places = int(batch["attention_mask"].sum()), batch["attention_mask"].numel()
    length, answers = tokens / options.batch_size, int((batch["labels"] != -100).sum())
    least = setup.flops(model.language_model, tokens, length / 2, answers, backward=True)
    plain = setup.flops(model.language_model, places, places / options.batch_size, places, backward=True)
    counts = {"loss": loss, "tokens": tokens, "users": options.batch_size}
    return {**setup.ratios(found), **counts, "naive_of_ours_by_flops": round(plain / least, 3)}


def recommend(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure one request with 20 candidates, and a batch of requests."""
    model, processor = options.build(data)
    results = {}
    for name, count in (("one request", 1), ("a batch", options.batch_size)):
        histories, candidates, _ = setup.users_of(data, count)
        made, counts = ways.recommend_ways(model, processor, histories, candidates, naive=count == 1)
        found = setup.in_turns(made, options.repeats)
        if count == 1:
            size = max(1.0, float(found["ours"]["returned"].abs().max()) / 40)
            check(name, found["ours"]["returned"], found["naive"]["returned"], TOLERANCE[options.torch_dtype] * size)
        read = counts["prompt_tokens"] + counts["answer_tokens_read"]
        floor = min(one["median_s"] for way, one in found.items() if way.startswith("floor"))
        pace = read / found["ours"]["median_s"], counts["prompt_tokens"] / floor
        length, packed = counts["prompt_tokens"] / count / 2, counts["answer_tokens_read"]
        work = [
            setup.flops(model.language_model, counts["prompt_tokens"] + more, length, more + count, backward=False)
            for more in (packed, 0)
        ]
        results[name] = {**setup.ratios(found), **counts, "users": count, "method": model.scoring_method}
        results[name]["ours_of_floor_by_flops"] = round(work[0] / work[1], 3)
        results[name]["tokens_per_second_of_floor"] = round(pace[0] / pace[1], 3)
    return results


def startup(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure loading a checkpoint with 60,000 and a million items, beside loading its LLM alone."""
    import polars as pl

    from allmrec_hf import ItemCatalog

    llm, tokenizer, _ = options.llm_parts()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        llm.save_pretrained(Path(folder) / "llm")
        for items in (60_000, 1_000_000):
            target = Path(folder) / str(items)
            model = ALLMRecModel(ALLMRecConfig(cf_config=SASRecConfig(num_items=items, hidden_size=64)))
            model.attach_language_model(llm)
            model.config.base_model_name_or_path = str(Path(folder) / "llm")
            model.save_pretrained(target)
            processor = ALLMRecProcessor(tokenizer, PromptTemplate.for_domain("movie").to_dict(), max_length=2_000)
            ids = pl.Series([f"B{number:08d}" for number in range(items)])
            processor.catalog = ItemCatalog(pl.DataFrame({"item_id": ids, "title": "Title of " + ids}))
            processor.save_pretrained(target)

            def light(target: Path = target) -> None:
                ALLMRecModel.from_pretrained(target, language_model=None)
                ALLMRecProcessor.from_pretrained(target)

            def whole(target: Path = target) -> None:
                ALLMRecModel.from_pretrained(target)
                ALLMRecProcessor.from_pretrained(target)

            def alone() -> None:
                AutoModelForCausalLM.from_pretrained(Path(folder) / "llm")

            found = setup.in_turns({"ours": whole, "floor": alone, "light part": light}, min(options.repeats, 3))
            size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
            results[f"{items} items"] = {**setup.ratios(found), "checkpoint_mb": round(size / 1e6, 1)}
            del model, processor
    return results


def memory(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure what a step of stage 2 keeps for its backward pass, and its peak in a process of its own."""
    model, processor = options.build(data)
    users = setup.users_of(data, options.batch_size)
    made = ways.stage2_ways(model, processor, data, *users)
    results: dict[str, Any] = {"users": options.batch_size, "saved_mb": {}, "peak_rss_mb": {}}
    for name in ("ours", "naive"):
        results["saved_mb"][name] = round(setup.most_saved(made[name], model) / 1e6, 1)
    for name in ("ours", "naive"):
        command = [sys.executable, __file__, *options.again, "--peak-of", name]
        results["peak_rss_mb"][name] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    peak = results["peak_rss_mb"]
    results["ours_of_naive_saved"] = round(results["saved_mb"]["ours"] / results["saved_mb"]["naive"], 3)
    results["ours_of_naive_peak"] = round(peak["ours"] / peak["naive"], 3)
    prompt = processor(users[0][:1], users[1][:1])
    tokens, packed = int(prompt["attention_mask"].sum()), packed_answers(prompt["answer_ids"], prompt["answer_mask"])
    results["tree"] = {}
    for count in (20, 100, 1_000):  # titles of other candidates are as long, and the prompt does not list so many
        places = tokens + round(packed * count / setup.CANDIDATES)
        size = options.torch_dtype.itemsize * places**2
        results["tree"][str(count)] = {"places": places, "bias_mb": round(size / 1e6, 1)}
    return results


def peak_of(options: argparse.Namespace, data: PreparedData) -> None:
    """Print by how many MB the memory of this process rises in one step of stage 2."""
    model, processor = options.build(data)
    made = ways.stage2_ways(model, processor, data, *setup.users_of(data, options.batch_size))
    print(setup.peak_mb(made[options.peak_of]))


def sweep(options: argparse.Namespace, data: PreparedData) -> dict[str, Any]:
    """Measure what recommending costs by users, items, history, candidates and width; all else as it is."""
    import polars as pl

    from allmrec_hf import ItemCatalog
    from allmrec_hf.ranker import TitleLikelihood, UserBatch

    _, tokenizer, _ = setup.language_model("tiny", None, torch.float32)

    def seconds(users: int = 4, items: int = 1_000, history: int = 10, candidates: int = 20, width: int = 128) -> float:
        torch.manual_seed(0)
        shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 4}
        heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32}
        llm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads)).eval()
        model = ALLMRecModel(ALLMRecConfig(cf_config=SASRecConfig(num_items=items, hidden_size=64)))
        model.attach_language_model(llm)
        settings = {"max_length": 8_000, "history_in_prompt": history}
        processor = ALLMRecProcessor(tokenizer, PromptTemplate.for_domain("movie").to_dict(), **settings)
        ids = pl.Series([f"B{number:08d}" for number in range(items)])
        processor.catalog = ItemCatalog(pl.DataFrame({"item_id": ids, "title": "Title of film " + ids.str.slice(5)}))
        ranker = TitleLikelihood(model, processor)
        generator = torch.Generator().manual_seed(1)
        histories = torch.randint(1, items + 1, (users, history), generator=generator).tolist()

        @torch.no_grad()
        def run() -> None:
            encoded = UserBatch.encode(model, processor, histories)
            found = ranker.retrieve(encoded, candidates).item_indices.tolist()
            ranker.score(encoded, found)

        return float(setup.in_turns({"ours": run}, min(3, options.repeats))["ours"]["median_s"])

    lines = {
        "users": (1, 2, 4, 8, 16),
        "items": (1_000, 10_000, 100_000, 1_000_000),
        "history": (2, 5, 10, 20, 40),
        "candidates": (5, 10, 20, 50, 100),
        "width": (64, 128, 256, 512),
    }
    return {name: {str(value): seconds(**{name: value}) for value in values} for name, values in lines.items()}


MEASURED: dict[str, Callable[[argparse.Namespace, PreparedData], dict[str, Any]]] = {
    "stage1": stage1,
    "stage2": stage2,
    "recommend": recommend,
    "startup": startup,
    "memory": memory,
    "sweep": sweep,
}


def report_path(output: Path, name: str, dtype: str) -> Path:
    """Return the file of what is measured with an LLM."""
    return output / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}_{dtype}.json"


def every(options: argparse.Namespace) -> None:
    """Measure what `PLAN` names and the output lacks, each part in a process of its own."""
    models = {"llm": options.every / "SmolLM2-135M-Instruct", "text-encoder": options.every / "all-MiniLM-L6-v2"}
    began = time.monotonic()
    for shape, dtype, batch_size, repeats, parts in PLAN:
        known = report_path(options.output, setup.name_of(shape, str(models["llm"])), dtype)
        for part in parts:
            if known.exists() and part in json.loads(known.read_text(encoding="utf-8")):
                continue
            if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
                print("time is over; the same command goes on from here")
                return
            command = [sys.executable, __file__, part, "--shape", shape, "--dtype", dtype]
            command += ["--batch-size", str(batch_size), "--repeats", str(repeats), "--output", str(options.output)]
            if shape == "folder":
                command += [word for name, path in models.items() for word in (f"--{name}", str(path))]
            print(" ".join(command[1:]), flush=True)
            subprocess.run(command, check=True)


def main() -> None:
    """Measure parts and write their JSON, or the page from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--shape", choices=setup.SHAPES, default="tiny")
    parser.add_argument("--llm", help="folder or id of a causal LM, with --shape folder")
    parser.add_argument("--text-encoder", help="folder or id; the demo's where not given")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/llm_speed"), help="folder")
    parser.add_argument("--every", type=Path, metavar="PARTS", help="measure what is missing of the whole plan")
    parser.add_argument("--minutes", type=float, help="with --every: begin no part later than this")
    parser.add_argument("--page", type=Path, help="write docs/speed.md and its plot from a folder of results")
    parser.add_argument("--peak-of", choices=("ours", "naive"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page is not None:
        llm_speed_page.write(options.page)
        return
    if options.every is not None:
        every(options)
        return
    torch.set_num_threads(1)
    options.torch_dtype = getattr(torch, options.dtype)
    options.llm_parts = lambda: setup.language_model(options.shape, options.llm, options.torch_dtype)
    options.build = lambda data: setup.build(data, *options.llm_parts()[:2])
    options.again = ["--shape", options.shape, "--dtype", options.dtype, "--batch-size", str(options.batch_size)]
    options.again += ["--llm", options.llm] if options.llm else []
    with tempfile.TemporaryDirectory() as folder:
        data = setup.world(Path(folder) / "data")
        if options.peak_of is not None:
            peak_of(options, data)
            return
        llm, _, name = options.llm_parts()
        parameters = sum(parameter.numel() for parameter in llm.parameters())
        del llm
        path = report_path(options.output, name, options.dtype)
        for part in options.parts or PARTS:
            started = time.monotonic()
            measured = MEASURED[part](options, data)
            print(part, json.dumps(measured, indent=1), f"{time.monotonic() - started:.0f} s", file=sys.stderr)
            report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            report |= {"llm": name, "parameters": parameters, "dtype": options.dtype, "machine": setup.machine()}
            report |= {"torch": torch.__version__, "repeats": options.repeats, part: measured}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
