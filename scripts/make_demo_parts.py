"""Make the language model and the text encoder of the invented film world, as shipped in `allmrec_hf/demo`.

    python scripts/make_demo_parts.py --output src/allmrec_hf/demo

takes about 10 minutes on one core; the same machine, seed and number of threads give the same weights. Both
models see text of the invented world alone: titles invented for the purpose, never those of the catalogue, no user and
no interaction. See docs/synthetic_world.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from demo_lm_data import KINDS, Batch, ExerciseWriter, stack
from demo_lm_model import build_language_model, build_tokenizer
from demo_text_encoder import build_text_encoder
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import LlamaForCausalLM

from allmrec_hf.data.synthetic import SyntheticWorld

LEARNING_RATE = 1.2e-3
NUM_TOKENS = 2000
# Shares of the kinds of exercises, in the order of KINDS.
SHARES = (0.18, 0.08, 0.18, 0.38, 0.18)
# Lists grow: until this part of the training, so many candidates and at most so many watched titles.
LENGTHS = ((0.12, 4, 2), (0.25, 8, 3), (0.40, 14, 6), (1.01, 20, 10))
TEXT_ENCODER_CARD = """A tiny sentence-transformers model (one static vector per word) of the invented film world.
Made by `scripts/make_demo_parts.py`; see `docs/synthetic_world.md`. It knows no other words.
"""


def input_embeddings(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Return the embeddings of a batch, `(B, T, hidden)`, with mixtures of words where the batch has slots."""
    table = model.get_input_embeddings().weight
    mixed = torch.einsum("btk,bkh->bth", batch.mixture, table[batch.basis])
    return torch.where(batch.is_slot[..., None], mixed, table[batch.input_ids])


def next_word_logits(model: LlamaForCausalLM, batch: Batch, positions: Tensor) -> Tensor:
    """Return the logits at the marked positions, `(marked, vocabulary)`; only they are computed."""
    states = model.model(inputs_embeds=input_embeddings(model, batch), use_cache=False).last_hidden_state
    return states[:, :-1][positions] @ model.get_input_embeddings().weight.T


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, float]:
    """Return the weighted cross entropy and the share of answer words that come first."""
    weights, targets = batch.weights[:, 1:], batch.input_ids[:, 1:]
    positions = weights > 0
    logits, targets, weights = next_word_logits(model, batch, positions), targets[positions], weights[positions]
    losses = F.cross_entropy(logits, targets, reduction="none")
    answers = weights == 1
    correct = (logits[answers].argmax(dim=-1) == targets[answers]).float().mean().item()
    return (losses * weights).sum() / weights.sum(), correct


@torch.no_grad()
def reading_accuracy(model: LlamaForCausalLM, writer: ExerciseWriter, num_documents: int) -> dict[str, float]:
    """Return, per kind of exercise, how often the first word of the answer comes first (20 candidates)."""
    accuracy = {}
    for kind in KINDS:
        batch = stack([writer.document(kind, 20, 10, 1) for _ in range(num_documents)])
        positions = (batch.weights[:, 1:] == 1) & (batch.weights[:, :-1] == 0)
        logits = next_word_logits(model, batch, positions)
        accuracy[kind] = round((logits.argmax(dim=-1) == batch.input_ids[:, 1:][positions]).float().mean().item(), 3)
    return accuracy


def pretrain(model: LlamaForCausalLM, writer: ExerciseWriter, steps: int) -> dict[str, Any]:
    """Train the model on exercises and return what was done and reached."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    started, tokens, recent = time.monotonic(), 0, []
    for step in range(steps):
        progress = step / steps
        num_candidates, longest_history = next(lengths for until, *lengths in LENGTHS if progress < until)
        warm_up = min(1.0, (step + 1) / 100)
        rate = LEARNING_RATE * warm_up * (0.485 * (1 + math.cos(math.pi * progress)) + 0.03)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = writer.batch(NUM_TOKENS, num_candidates, longest_history, 4, SHARES)
        loss, correct = weighted_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.input_ids.numel()
        recent = [*recent[-99:], (loss.item(), correct)]
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean_loss, mean_correct = np.mean(recent, axis=0)
            print(
                f"step {step + 1}/{steps}  {tokens / 1e6:.2f} M tokens  {time.monotonic() - started:.0f} s  "
                f"lists of {num_candidates}  loss {mean_loss:.3f}  answer words {mean_correct:.3f}",
                flush=True,
            )
    return {
        "steps": steps,
        "tokens": tokens,
        "loss": round(float(np.mean([loss for loss, _ in recent])), 4),
        "answer_word_accuracy": round(float(np.mean([correct for _, correct in recent])), 4),
    }


def make_language_model(output: Path, text_encoder: SentenceTransformer, seed: int, steps: int) -> dict[str, Any]:
    """Train and save the language model; return its report."""
    tokenizer = build_tokenizer()
    model = build_language_model(tokenizer, text_encoder, seed)
    catalogue = frozenset(SyntheticWorld(seed=0).items()["title"])
    report = pretrain(model, ExerciseWriter(tokenizer, seed, catalogue), steps)
    model.eval()
    fresh_titles = ExerciseWriter(tokenizer, seed + 1, catalogue, num_titles=4000)
    report["first_word_accuracy_of_20"] = reading_accuracy(model, fresh_titles, 200)
    report["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return report


def main() -> None:
    """Make both parts and their report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for language_model/ and text_encoder/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2400, help="training steps of the language model")
    parser.add_argument("--threads", type=int, default=1, help="a fixed number, for the same weights every time")
    parser.add_argument("--quick", action="store_true", help="20 steps: shows that the script runs, learns nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    steps = 20 if arguments.quick else arguments.steps
    arguments.output.mkdir(parents=True, exist_ok=True)
    text_encoder = build_text_encoder(arguments.seed)
    text_encoder.save(str(arguments.output / "text_encoder"), create_model_card=False)
    (arguments.output / "text_encoder" / "README.md").write_text(TEXT_ENCODER_CARD, encoding="utf-8")
    report = {
        "seed": arguments.seed,
        "threads": arguments.threads,
        "language_model": make_language_model(arguments.output / "language_model", text_encoder, arguments.seed, steps),
        "text_encoder": {"dimensions": text_encoder.get_embedding_dimension()},
    }
    text = json.dumps(report, indent=2)
    (arguments.output / "report.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
