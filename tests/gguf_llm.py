"""A tiny Llama and its byte-level tokenizer, written into a GGUF file as llama.cpp writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.tiny import OPT_TINY

HEADS, KEY_HEADS = 4, 2
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tiny_llama() -> Any:
    """Return a Llama with random weights, tied embeddings and the vocabulary of the tests' OPT tokenizer."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(OPT_TINY)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    llm = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return llm.eval()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a query or key matrix in llama.cpp's order of rotary dimensions: pairs beside each other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    llm: Any,
    architecture: str = "llama",
    tokenizer: bool = True,
    left_out: tuple[str, ...] = (),
    quantized: bool = False,
    parts: int | None = None,
) -> Path:
    """Write an LLM of `tiny_llama` into a GGUF file.

    Args:
        path: The file.
        llm: The LLM.
        architecture: What the file says its architecture is.
        tokenizer: Whether the vocabulary goes into it.
        left_out: Tensors that are left out.
        quantized: Whether matrices are written in blocks of 8 bits (Q8_0).
        parts: Of how many files it claims to be one.
    """
    import gguf

    config = llm.config
    writer = gguf.GGUFWriter(str(path), architecture)
    if parts is not None:
        writer.add_uint16("split.count", parts)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        known = AutoTokenizer.from_pretrained(OPT_TINY)
        found = json.loads(known.backend_tokenizer.to_str())
        added = known.get_added_vocab()
        tokens = [token for token, _ in sorted(known.get_vocab().items(), key=lambda pair: pair[1])]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in added else 1 for token in tokens])
        merges = found["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        writer.add_bos_token_id(known.bos_token_id)
        writer.add_eos_token_id(known.eos_token_id)
        writer.add_unk_token_id(known.unk_token_id)
    state = llm.state_dict()
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in _LAYER.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = _interleaved(weight, HEADS if ours == "attn_q" else KEY_HEADS)
            tensors[f"blk.{layer}.{ours}.weight"] = weight
    for name, weight in tensors.items():
        if name in left_out:
            continue
        values = weight.float().contiguous().numpy()
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
