"""A small world and tiny parts on disk, from which a whole run takes a few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.synthetic import SyntheticWorld, description_vocabulary
from allmrec_hf.training.arguments import ALLMRecTrainingArguments
from allmrec_hf.training.stage_arguments import STAGES
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests.tiny import OPT_TINY, tiny_llm

NUM_CANDIDATES = 5


def write_data(directory: Path, **changes: Any) -> PreparedData:
    """Prepare 120 invented films, a fifth of them cold, and 200 users."""
    world = SyntheticWorld(num_items=120, num_users=200)
    choices: dict[str, Any] = {
        "filter": "none",
        "keep_items": "all",
        "name": "small",
        "domain": "movie",
        "num_candidates": NUM_CANDIDATES,
    }
    return prepare(world.interactions(), world.items(), output=directory, **{**choices, **changes})


def write_llm(directory: Path, family: str = "llama") -> Path:
    """Write a tiny causal LM with random weights and its tokenizer."""
    tiny_llm(family).save_pretrained(directory)
    AutoTokenizer.from_pretrained(OPT_TINY).save_pretrained(directory)
    return directory


def text_encoder(width: int = 12) -> SentenceTransformer:
    """Return static word embeddings over the invented world's words."""
    torch.manual_seed(2)
    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *description_vocabulary()])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=width)], device="cpu")


def write_text_encoder(directory: Path) -> Path:
    """Write `text_encoder`."""
    text_encoder().save_pretrained(str(directory))
    return directory


def settings(parts: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run with the parts in a folder, by their flat names."""
    values: dict[str, Any] = {
        "backbone_options": {"hidden_size": 16, "max_history_length": 12, "num_layers": 1},
        "llm_name": str(parts / "llm"),
        "text_encoder": str(parts / "text_encoder"),
        "joint_dim": 8,
        "warm_start_steps": 3,
        "num_candidates": NUM_CANDIDATES,
    }
    return {**values, **changes}


def arguments(**changes: Any) -> dict[str, dict[str, Any]]:
    """Return the loops of a few steps of every stage."""
    small = {
        "num_train_epochs": 2,
        "min_steps": None,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_grad_norm": None,
        "early_stopping_patience": None,
        "max_validation_users": 40,
        "save_steps": 2,
        "seed": 3,
    }
    return {stage: {**small, "max_steps": 8 if stage == "project" else 12, **changes} for stage in STAGES}


def run_arguments(
    output: Path, chosen: Mapping[str, Any], loops: Mapping[str, Mapping[str, Any]] | None = None
) -> ALLMRecTrainingArguments:
    """Return the arguments of a run: flat settings, and the loop of each stage."""
    sections = {stage: dict(loop) for stage, loop in (arguments() if loops is None else loops).items()}
    return ALLMRecTrainingArguments(output, **sections).with_flat(**chosen)


def train(
    data: PreparedData,
    output: Path,
    chosen: Mapping[str, Any],
    stages: Sequence[str] = STAGES,
    loops: Mapping[str, Mapping[str, Any]] | None = None,
    resume: bool = False,
    **parts: Any,
) -> Path:
    """Train stages into a folder and return it."""
    trainer = ALLMRecTrainer(args=run_arguments(output, chosen, loops), data=data, **parts)
    return trainer.train(stages, resume_from_checkpoint=resume).output_dir
