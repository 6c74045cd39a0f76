"""Forward passes of a causal LM: states, logits, left-padded batches, and what the LLM writes after its prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .errors import CheckpointError
from .language_model import base_language_model, num_token_rows


def token_embeddings(language_model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the LLM's own embeddings `(B, T, d_llm)` of tokens.

    Raises:
        CheckpointError: when a token is one that the LLM does not embed, such as one added to its tokenizer.
    """
    rows = num_token_rows(language_model)
    if token_ids.numel() and int(token_ids.max()) >= rows:
        raise CheckpointError(
            f"a prompt holds the token {int(token_ids.max())}, but the LLM embeds the tokens 0 to {rows - 1} only: "
            "the tokenizer is another's, or tokens were added to it; take the LLM's own"
        )
    return language_model.get_input_embeddings()(token_ids)


def last_states(decoder: Any, keep: int, **inputs: Any) -> torch.Tensor:
    """Return the states `(B, keep, d)` of the last places of a decoder, see `first_layers`."""
    found = decoder(**inputs, **accepted(decoder, {"use_cache": False}))
    return found.last_hidden_state[:, -keep:]


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids `(B, T)` that count real tokens only."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def accepted(language_model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that the LLM's `forward` takes, of some that merely save time."""
    parameters = inspect.signature(base_language_model(language_model).forward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def last_logits(language_model: Any, keep: int, **inputs: Any) -> torch.Tensor:
    """Return the logits `(B, keep, V)` of the last places; an LLM that computes all of them is cut."""
    saving = accepted(language_model, {"use_cache": False, "logits_to_keep": keep})
    return language_model(**inputs, **saving).logits[:, -keep:]


def padded_pass(
    run: Callable[..., torch.Tensor], embeds: torch.Tensor, mask: torch.Tensor, keep: int, pads_left: bool
) -> torch.Tensor:
    """Run left-padded prompts through an LLM and return what it gives at the last `keep` places, `(B, keep, .)`.

    An LLM that ignores the attention mask, or counts places its own way, would read the padding in front of a prompt.
    Its prompts are shifted to the left for the pass, as what follows a prompt cannot change what a causal LM makes of
    it.

    Args:
        run: Takes `keep`, `inputs_embeds`, `attention_mask` and maybe `position_ids`; returns `(B, keep, .)`.
        embeds: `(B, T, d_llm)`, left-padded.
        mask: `(B, T)` True at real tokens.
        keep: Places wanted, counted from the end.
        pads_left: Whether the LLM reads left-padded prompts as it reads them alone.
    """
    mask = mask.bool()
    if pads_left:
        return run(keep=keep, inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions(mask))
    batch, length = mask.shape
    fill = length - mask.sum(dim=1)  # (B,)
    places = torch.arange(length, device=mask.device)
    order = (places + fill[:, None]) % length  # (B, T), real tokens first
    rows = torch.arange(batch, device=mask.device)[:, None]
    wanted = min(length, keep + int(fill.max()))
    found = run(keep=wanted, inputs_embeds=embeds[rows, order], attention_mask=mask[rows, order].long())
    # Place t of the left-padded row is place t - fill of the shifted one, of which the last `wanted` were returned.
    back = (places[length - keep :] - fill[:, None]).clamp(min=0) - (length - wanted)
    return found[rows, back.clamp(min=0)]


def written_after(
    language_model: Any, embeds: torch.Tensor, mask: torch.Tensor, pads_left: bool, **options: Any
) -> torch.Tensor:
    """Return the token ids `(B, new tokens)` that the LLM writes after left-padded prompts, without the prompts.

    Args:
        language_model: A causal LM.
        embeds: `(B, T, d_llm)`, left-padded.
        mask: `(B, T)` True at real tokens.
        pads_left: Whether the LLM reads left-padded prompts as it reads them alone; else they are read one by one.
        **options: Of the LLM's own `generate`.
    """
    if pads_left or bool(mask.all()):
        return language_model.generate(inputs_embeds=embeds, attention_mask=mask.long(), **options)
    rows = []
    for row, real in zip(embeds, mask.bool(), strict=True):
        alone = row[real].unsqueeze(0)
        ones = torch.ones(alone.shape[:2], dtype=torch.long, device=alone.device)
        rows.append(language_model.generate(inputs_embeds=alone, attention_mask=ones, **options)[0])
    return pad_sequence(rows, batch_first=True, padding_value=_padding_token(language_model, options))


def _padding_token(language_model: Any, options: dict[str, Any]) -> int:
    settings = language_model.generation_config
    for token in (options.get("pad_token_id"), settings.pad_token_id, settings.eos_token_id):
        if isinstance(token, (list, tuple)):
            token = token[0]
        if token is not None:
            return int(token)
    return 0
