"""Recompute a frozen LLM's activations in the backward pass: less memory for more time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .errors import ALLMRecError
from .language_model import input_device, num_token_rows
from .language_model_passes import last_logits

PROBE_TOKENS = 32


def recompute_activations(language_model: Any) -> None:
    """Make a frozen LLM recompute its activations, once `let_layers_recompute` has put its layers into train mode.

    transformers only does so for layers in train mode: the layers alone are put into it, not what they are made of,
    and their own dropout is set to 0.

    Raises:
        ALLMRecError: when the LLM cannot, or would compute something else than without.
    """
    expected = _answer_to_a_few_tokens(language_model)
    try:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except (ValueError, NotImplementedError) as error:
        raise ALLMRecError(f"this LLM cannot recompute its activations (checkpoint_activations): {error}") from error
    for layer in _recomputed_layers(language_model):
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
    let_layers_recompute(language_model)
    found = _answer_to_a_few_tokens(language_model)
    language_model.eval()
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        language_model.gradient_checkpointing_disable()
        raise ALLMRecError(
            "this LLM computes something else while it recomputes its activations (checkpoint_activations), such as a "
            "dropout of its own; train without"
        )


def let_layers_recompute(language_model: Any) -> None:
    """Put the layers that recompute themselves into train mode; what they are made of stays in eval mode."""
    for layer in _recomputed_layers(language_model):
        layer.training = True


def _recomputed_layers(language_model: Any) -> list[nn.Module]:
    marked = [module for module in language_model.modules() if getattr(module, "gradient_checkpointing", False)]
    layers: list[nn.Module] = [module for module in marked if isinstance(module, GradientCheckpointingLayer)]
    return layers or marked  # code of an LLM's own may check the flags in the module around its layers


@torch.no_grad()
def _answer_to_a_few_tokens(language_model: Any) -> Tensor:
    tokens = torch.arange(1, PROBE_TOKENS + 1, device=input_device(language_model)).unsqueeze(0)
    tokens = tokens % num_token_rows(language_model)
    embeds = language_model.get_input_embeddings()(tokens)
    return last_logits(
        language_model, PROBE_TOKENS, inputs_embeds=embeds, attention_mask=torch.ones_like(tokens)
    ).float()
