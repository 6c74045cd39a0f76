"""Tiny parts built from configs, for tests: no weights are loaded from anywhere but tests/parity."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, ItemCatalog, PromptTemplate, SASRecConfig

OPT_TINY = Path(__file__).parent / "parity" / "opt_tiny"
VOCABULARY = 440
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
FAMILIES = {
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=16,  # like OPT-350m, whose embeddings are narrower than its layers
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        do_layer_norm_before=False,
        max_position_embeddings=1024,
    ),
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=1024,
        bos_token_id=2,
        eos_token_id=2,
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=512),
    "lfm2": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
}


def tiny_llm(family: str = "llama", attn_implementation: str = "sdpa") -> Any:
    """Return a causal LM with random weights, large enough that attention matters."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.mul_(3)
    return llm.eval()


def tiny_catalog(size: int = 40) -> ItemCatalog:
    return ItemCatalog.from_records(
        {"item_id": f"I{i}", "title": " ".join(["Lonely", "Silent", "Paper", "River"][: 1 + i % 4]) + f" {i}"}
        for i in range(1, size + 1)
    )


def tiny_processor(catalog: ItemCatalog | None = None, **settings: Any) -> ALLMRecProcessor:
    processor = ALLMRecProcessor(
        AutoTokenizer.from_pretrained(OPT_TINY),
        PromptTemplate.for_domain("movie").to_dict(),
        **{"max_length": 1000, **settings},
    )
    processor.catalog = catalog or tiny_catalog()
    return processor


def tiny_model(family: str | None = "llama", num_items: int = 40, **settings: Any) -> ALLMRecModel:
    """Return a model with random weights, a third of its items cold, around an LM of a family (None: without one)."""
    torch.manual_seed(1)
    config = ALLMRecConfig(
        cf_config=SASRecConfig(num_items=num_items, hidden_size=16, max_history_length=12),
        joint_dim=8,
        text_dim=12,
        **settings,
    )
    model = ALLMRecModel(config)
    model.item_table.text_joint_embeddings.uniform_()
    model.item_table.interaction_counts[1:] = torch.arange(num_items) % 3
    if family is not None:
        model.attach_language_model(tiny_llm(family))
    return model.eval()
