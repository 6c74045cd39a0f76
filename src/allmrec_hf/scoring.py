"""Log-likelihood of candidate titles after a prompt, by three equal methods.

`naive` runs the LLM over prompt and answer once for each candidate. `prefix_cache` runs the prompt once and continues
its key-value cache with every answer. `tree` packs the prompt and all answers into one pass, with a mask that lets an
answer see the prompt and itself alone. The fast ones are only used after `verified_method` has found them equal to the
naive one with the very LLM at hand: an LLM with convolutions or a recurrent state ignores the mask and would leak.

Prompts are LEFT-padded embeddings `prefix_embeds (B, T, d_llm)` with `prefix_mask (B, T)`; answers are right-padded
token ids `answer_ids (B, C, A)` with `answer_mask (B, C, A)`. Every function returns token log-likelihoods `(B, C, A)`,
zero where the mask is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from .errors import ALLMRecError

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
LOW_PRECISION_TOLERANCE = 0.1


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids `(B, T)` that count real tokens only."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _token_log_likelihoods(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    picked = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    return picked.masked_fill(~mask, 0.0)


def score_naive(
    language_model: Any,
    prefix_embeds: torch.Tensor,
    prefix_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
) -> torch.Tensor:
    """Score user by user, every candidate behind a prompt of its own, without left padding: the reference.

    Right for any causal LM, also one that ignores the attention mask, since what follows an answer cannot change it.
    """
    embed = language_model.get_input_embeddings()
    scores = []
    for user, real in enumerate(prefix_mask.bool()):
        prefix = prefix_embeds[user, real].expand(answer_ids.shape[1], -1, -1)  # (C, T, d_llm)
        tokens, mask = answer_ids[user], answer_mask[user].bool()  # (C, A)
        output = language_model(
            inputs_embeds=torch.cat([prefix, embed(tokens).to(prefix.dtype)], dim=1),
            attention_mask=torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1).long(),
            use_cache=False,
            logits_to_keep=tokens.shape[1] + 1,
        )
        scores.append(_token_log_likelihoods(output.logits[:, :-1], tokens, mask))
    return torch.stack(scores)  # (B, C, A)


def score_prefix_cache(
    language_model: Any,
    prefix_embeds: torch.Tensor,
    prefix_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
) -> torch.Tensor:
    """Score all candidates after one pass over the prompt, whose key-value cache every answer continues."""
    batch, num_candidates, length = answer_ids.shape
    mask = answer_mask.bool()
    prefix = language_model(
        inputs_embeds=prefix_embeds,
        attention_mask=prefix_mask.long(),
        position_ids=positions(prefix_mask),
        use_cache=True,
        logits_to_keep=1,
    )
    first = prefix.logits.expand(batch, num_candidates, -1)  # (B, 1, V) -> (B, C, V)
    scores = [_token_log_likelihoods(first, answer_ids[:, :, 0], mask[:, :, 0]).unsqueeze(-1)]
    if length > 1:
        cache = prefix.past_key_values
        cache.batch_repeat_interleave(num_candidates)
        read = mask[:, :, :-1].reshape(batch * num_candidates, length - 1)
        full_mask = torch.cat([prefix_mask.bool().repeat_interleave(num_candidates, dim=0), read], dim=1)
        output = language_model(
            input_ids=answer_ids[:, :, :-1].reshape(batch * num_candidates, length - 1),
            attention_mask=full_mask.long(),
            position_ids=positions(full_mask)[:, prefix_mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits.unflatten(0, (batch, num_candidates))  # (B, C, A - 1, V)
        scores.append(_token_log_likelihoods(logits, answer_ids[:, :, 1:], mask[:, :, 1:]))
    return torch.cat(scores, dim=-1)


def score_tree(
    language_model: Any,
    prefix_embeds: torch.Tensor,
    prefix_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
) -> torch.Tensor:
    """Score all candidates in one pass: prompt and answers packed, each answer blind to the others."""
    batch, num_candidates, length = answer_ids.shape
    prefix_length = prefix_embeds.shape[1]
    device, dtype = prefix_embeds.device, prefix_embeds.dtype
    mask, prefix_mask = answer_mask.bool(), prefix_mask.bool()

    # The last token of an answer is predicted, never read. Real tokens come first in each packed row.
    read = mask.clone()
    read[:, :, :-1] &= mask[:, :, 1:]
    read[:, :, -1] = False
    read = read.flatten(1)  # (B, C * A)
    packed = int(read.sum(dim=1).max()) if read.any() else 0
    order = torch.argsort((~read).to(torch.uint8), dim=1, stable=True)[:, :packed]  # (B, S)
    real = read.gather(1, order)
    candidate = torch.arange(num_candidates, device=device).repeat_interleave(length)[order]  # (B, S)
    step = torch.arange(length, device=device).repeat(num_candidates)[order]
    tokens = answer_ids.flatten(1).gather(1, order)

    total = prefix_length + packed
    allowed = torch.zeros(batch, total, total, dtype=torch.bool, device=device)
    causal = torch.ones(prefix_length, prefix_length, dtype=torch.bool, device=device).tril()
    allowed[:, :prefix_length, :prefix_length] = causal & prefix_mask[:, None, :]
    allowed[:, prefix_length:, :prefix_length] = prefix_mask[:, None, :]
    same = candidate[:, :, None] == candidate[:, None, :]
    allowed[:, prefix_length:, prefix_length:] = same & (step[:, :, None] >= step[:, None, :]) & real[:, None, :]
    allowed |= torch.eye(total, dtype=torch.bool, device=device)  # a padding row must see something: no NaN
    bias = torch.zeros(batch, 1, total, total, dtype=dtype, device=device)
    bias.masked_fill_(~allowed[:, None], torch.finfo(dtype).min)

    embeds = language_model.get_input_embeddings()(tokens).to(dtype)
    prompt_tokens = prefix_mask.sum(dim=1, keepdim=True)
    output = language_model(
        inputs_embeds=torch.cat([prefix_embeds, embeds], dim=1),
        attention_mask=bias,
        position_ids=torch.cat([positions(prefix_mask), prompt_tokens + step], dim=1),
        use_cache=False,
        logits_to_keep=packed + 1,
    )
    # Token t > 0 of a candidate is predicted where its token t - 1 was read, token 0 by the prompt's last position.
    scores = torch.zeros(batch, num_candidates * length, dtype=torch.float32, device=device)
    if packed:
        following = (order + 1).clamp(max=num_candidates * length - 1)
        values = _token_log_likelihoods(output.logits[:, 1:], answer_ids.flatten(1).gather(1, following), real)
        scores.scatter_add_(1, following, values)
    scores = scores.unflatten(1, (num_candidates, length))
    first = output.logits[:, :1].expand(batch, num_candidates, -1)
    scores[:, :, 0] += _token_log_likelihoods(first, answer_ids[:, :, 0], mask[:, :, 0])
    return scores


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "tree": score_tree,
    "prefix_cache": score_prefix_cache,
    "naive": score_naive,
}


def _refused_beforehand(language_model: Any, method: str) -> str | None:
    config = language_model.config
    if method == "tree":
        implementation = getattr(config, "_attn_implementation", None) or ""
        if "flash" in implementation or "flex" in implementation:
            return f"{implementation} takes no mask of our own"
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            return "a sliding attention window would be lost"
        if getattr(config, "attention_chunk_size", None) or getattr(config, "window_size", None):
            return "local attention goes by places in the packed row"
    return None


@torch.no_grad()
def deviation_from_naive(language_model: Any, method: str, seed: int = 0) -> float:
    """Return how far a method strays from scoring one candidate of one user at a time, on a few random tokens.

    The greatest absolute difference of any answer's log-likelihood; users differ in prompt length, candidates in
    answer length.
    """
    embed = language_model.get_input_embeddings()
    device = embed.weight.device
    generator = torch.Generator().manual_seed(seed)
    vocabulary = embed.weight.shape[0]
    draw = lambda *shape: torch.randint(vocabulary, shape, generator=generator).to(device)  # noqa: E731
    prompt_lengths, answer_lengths = [9, 6], [3, 1, 4, 2]
    prompts, answers = draw(2, 9), draw(2, 4, 4)
    prefix_mask = torch.arange(9) >= 9 - torch.tensor(prompt_lengths)[:, None]
    answer_mask = (torch.arange(4) < torch.tensor(answer_lengths)[:, None]).expand(2, 4, 4)
    prefix_mask, answer_mask = prefix_mask.to(device), answer_mask.to(device)
    embeds = embed(prompts)
    found = METHODS[method](language_model, embeds, prefix_mask, answers, answer_mask).sum(dim=-1)
    worst = 0.0
    for user, prompt_length in enumerate(prompt_lengths):
        for candidate, answer_length in enumerate(answer_lengths):
            expected = score_naive(
                language_model,
                embeds[user : user + 1, 9 - prompt_length :],
                prefix_mask[user : user + 1, 9 - prompt_length :],
                answers[user : user + 1, candidate : candidate + 1, :answer_length],
                answer_mask[user : user + 1, candidate : candidate + 1, :answer_length],
            ).sum()
            worst = max(worst, float((found[user, candidate] - expected).abs()))
    return worst


def check_method(language_model: Any, method: str) -> str | None:
    """Tell why a scoring method must not be used with this LLM; None where it equals the naive one.

    Tolerance: 1e-4 in fp32; in half precision, where the passes round differently, 0.1.
    """
    reason = _refused_beforehand(language_model, method)
    if reason is not None or method == "naive":
        return reason
    tolerance = TOLERANCE.get(language_model.get_input_embeddings().weight.dtype, LOW_PRECISION_TOLERANCE)
    try:
        deviation = deviation_from_naive(language_model, method)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return f"it fails: {type(error).__name__}: {error}"
    if not deviation <= tolerance:
        return f"its log-likelihoods stray by {deviation:.2g} from scoring one by one (allowed {tolerance:g})"
    return None


def verified_method(language_model: Any, wanted: str = "auto") -> str:
    """Return the fastest scoring method that equals the naive one with this LLM.

    Args:
        language_model: A causal LM with its weights.
        wanted: `"auto"`, or the one method to check.

    Raises:
        ALLMRecError: when the wanted method is unknown or not equal with this LLM.
    """
    if wanted != "auto":
        if wanted not in METHODS:
            raise ALLMRecError(f"unknown scoring method {wanted!r}; known are auto, {', '.join(METHODS)}")
        reason = check_method(language_model, wanted)
        if reason is not None:
            raise ALLMRecError(f"scoring method {wanted!r} cannot be used with this LLM: {reason}; use 'auto'")
        return wanted
    for method in ("tree", "prefix_cache"):
        reason = check_method(language_model, method)
        if reason is None:
            return method
        logger.warning("Scoring by %s is off for this LLM: %s.", method, reason)
    return "naive"
