"""Log-likelihood of candidate titles after a prompt, by three equivalent methods.

`naive` runs the LLM over prompt and answer once for each candidate. `prefix_cache` runs the prompt once and continues
its key-value cache with every answer. `tree` packs the prompt and all answers into one pass, with a mask that lets an
answer see the prompt and itself alone. The fast ones are only used after `verified_method` has found them equal to the
naive one with the very LLM at hand: an LLM with convolutions or a recurrent state ignores the mask and would leak.

Prompts are LEFT-padded embeddings `prefix_embeds (B, T, d_llm)` with `prefix_mask (B, T)`; answers are right-padded
token ids `answer_ids (B, C, A)` with `answer_mask (B, C, A)`. Every function returns token log-likelihoods `(B, C, A)`,
zero where the mask is.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .errors import ALLMRecError
from .language_model import input_device, local_limits, num_token_rows, special_layers, text_config
from .language_model_passes import accepted, last_logits, positions

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # nats a token, in fp32 and where the LLM's own rounding is smaller
EXACT_TOLERANCE = 1e-6  # in fp64
HALF_ROUNDING_FACTOR = 2.0  # right methods stray by up to .5 of the rounding, wrong ones by 3 times (30 families)
FULL_ROUNDING_FACTOR = 100.0  # sums round too, not only their results; wrong methods stray by 50,000 times
ROUNDING_RUNS = 4
CACHE_BUDGET = 2**30
"""Bytes that copies of the key-value cache and their logits may take at once; one candidate at a time needs what it
needs."""
REACH_BUDGET = {"cpu": 1e12}
"""Parameters times tokens that the check of a window may cost, by device; see `OTHER_REACH_BUDGET`."""
OTHER_REACH_BUDGET = 1e14
WINDOW, SLIDING = "sliding_window", "sliding_attention"  # what a config calls a window, and layers that have one
PAST = 16  # tokens that a check goes past a window


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
        logits = last_logits(
            language_model,
            tokens.shape[1] + 1,
            inputs_embeds=torch.cat([prefix, embed(tokens).to(prefix.dtype)], dim=1),
            attention_mask=torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1).long(),
        )
        scores.append(_token_log_likelihoods(logits[:, :-1], tokens, mask))
    return torch.stack(scores)  # (B, C, A)


def score_prefix_cache(
    language_model: Any,
    prefix_embeds: torch.Tensor,
    prefix_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
) -> torch.Tensor:
    """Score all candidates after one pass over the prompt, whose key-value cache every answer continues.

    The cache is copied for some candidates at a time, as many as `CACHE_BUDGET` holds: each copy is as large as the
    cache of the whole batch. With gradients, the copies are made again in the backward pass.
    """
    batch, num_candidates, length = answer_ids.shape
    mask = answer_mask.bool()
    prefix = language_model(
        inputs_embeds=prefix_embeds,
        attention_mask=prefix_mask.long(),
        position_ids=positions(prefix_mask),
        use_cache=True,
        **accepted(language_model, {"logits_to_keep": 1}),
    )
    first = prefix.logits[:, -1:].expand(batch, num_candidates, -1)  # (B, 1, V) -> (B, C, V)
    scores = [_token_log_likelihoods(first, answer_ids[:, :, 0], mask[:, :, 0]).unsqueeze(-1)]
    if length == 1:
        return scores[0]
    cache = prefix.past_key_values

    def continued(ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        count = ids.shape[1]  # n of the C candidates
        read = real[:, :, :-1].reshape(batch * count, length - 1)
        full_mask = torch.cat([prefix_mask.bool().repeat_interleave(count, dim=0), read], dim=1)
        output = language_model(
            input_ids=ids[:, :, :-1].reshape(batch * count, length - 1),
            attention_mask=full_mask.long(),
            position_ids=positions(full_mask)[:, prefix_mask.shape[1] :],
            past_key_values=_copies(cache, count),
            use_cache=True,
        )
        logits = output.logits.unflatten(0, (batch, count))  # (B, n, A - 1, V)
        return _token_log_likelihoods(logits, ids[:, :, 1:], real[:, :, 1:])

    bytes_each = _cache_bytes(cache) + batch * (length - 1) * first.shape[-1] * (first.element_size() + 8)
    at_once = max(1, min(num_candidates, CACHE_BUDGET // max(bytes_each, 1)))
    parts = []
    for ids, real in zip(answer_ids.split(at_once, dim=1), mask.split(at_once, dim=1), strict=True):
        if torch.is_grad_enabled() and at_once < num_candidates:
            parts.append(checkpoint(continued, ids, real, use_reentrant=False))
        else:
            parts.append(continued(ids, real))
    return torch.cat([scores[0], torch.cat(parts, dim=1)], dim=-1)


def _copies(cache: Any, count: int) -> Any:
    """Return the cache with every row `count` times; the given one keeps its tensors."""
    copies = copy.copy(cache)
    copies.layers = [copy.copy(layer) for layer in cache.layers]
    copies.batch_repeat_interleave(count)
    return copies


def _cache_bytes(cache: Any) -> int:
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class _SharedBeginnings:
    """The tokens of answers that are read, each beginning that several candidates of a user share once.

    Place 0 stands for the prompt's last token, and the S tokens that are read stand in the places after it.

    Attributes:
        before: `(B, C, A)` the place from which each answer token is predicted.
        tokens: `(B, S)` token ids; a user's real ones come first.
        step: `(B, S)` how many tokens of its answer come before each.
        seen: `(B, S, S)` True where a token may see another: those before it in its answer, and itself.
    """

    before: torch.Tensor
    tokens: torch.Tensor
    step: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, answer_ids: torch.Tensor, answer_mask: torch.Tensor) -> _SharedBeginnings:
        """Return those of answers `(B, C, A)`; the last token of an answer is predicted, never read.

        They are told on the CPU, as an accelerator would be waited for at every step of an answer.
        """
        batch, num_candidates, length = answer_ids.shape
        device, answer_ids, mask = answer_ids.device, answer_ids.cpu(), answer_mask.cpu().bool()
        before = torch.zeros_like(answer_ids)
        user = torch.arange(batch)[:, None].expand(batch, num_candidates)
        count = torch.zeros(batch, dtype=torch.long)  # places of each user so far
        vocabulary, places = int(answer_ids.max()) + 1, num_candidates * length + 1
        for step in range(length - 1):
            read = mask[:, :, step + 1]  # (B, C): there is a next token that it predicts
            key = (user * places + before[:, :, step]) * vocabulary + answer_ids[:, :, step]
            different, which = torch.unique(key[read], return_inverse=True)  # sorted, so those of a user together
            owner = different // (places * vocabulary)
            first = torch.searchsorted(owner, torch.arange(batch))
            place = count[owner] + torch.arange(1, len(owner) + 1) - first[owner]
            before[:, :, step + 1][read] = place[which]
            count = count + torch.bincount(owner, minlength=batch)
        packed = int(count.max())
        tokens, steps = (torch.zeros(batch, packed + 1, dtype=torch.long) for _ in range(2))
        seen = torch.zeros(batch, packed + 1, packed + 1, dtype=torch.bool)
        for step in range(length - 1):
            place = before[:, :, step + 1]  # 0 where no token is read
            tokens[user, place], steps[user, place] = answer_ids[:, :, step], step
            later = before[:, :, step + 1 :]
            seen[user.unsqueeze(-1), later, place.unsqueeze(-1)] = True
        found = (before, tokens[:, 1:], steps[:, 1:], seen[:, 1:, 1:])
        return cls(*(tensor.to(device) for tensor in found))


def score_tree(
    language_model: Any,
    prefix_embeds: torch.Tensor,
    prefix_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    answer_mask: torch.Tensor,
) -> torch.Tensor:
    """Score all candidates in one pass: prompt and answers packed, each answer blind to the others.

    What the answers of a user begin with alike, such as a quotation mark, is packed once.
    """
    batch, num_candidates, length = answer_ids.shape
    prefix_length = prefix_embeds.shape[1]
    device, dtype = prefix_embeds.device, prefix_embeds.dtype
    mask, prefix_mask = answer_mask.bool(), prefix_mask.bool()
    answers = _SharedBeginnings.of(answer_ids, mask)
    packed = answers.tokens.shape[1]

    total = prefix_length + packed
    allowed = torch.zeros(batch, total, total, dtype=torch.bool, device=device)
    causal = torch.ones(prefix_length, prefix_length, dtype=torch.bool, device=device).tril()
    allowed[:, :prefix_length, :prefix_length] = causal & prefix_mask[:, None, :]
    allowed[:, prefix_length:, :prefix_length] = prefix_mask[:, None, :]
    allowed[:, prefix_length:, prefix_length:] = answers.seen
    allowed |= torch.eye(total, dtype=torch.bool, device=device)  # a padding row must see something: no NaN

    embeds = language_model.get_input_embeddings()(answers.tokens).to(dtype)
    places = torch.cat([positions(prefix_mask), prefix_mask.sum(dim=1, keepdim=True) + answers.step], dim=1)
    logits = last_logits(
        language_model,
        packed + 1,
        inputs_embeds=torch.cat([prefix_embeds, embeds], dim=1),
        attention_mask=_tree_masks(language_model, allowed, places, dtype),
        position_ids=places,
    ).float()
    before, vocabulary = answers.before.flatten(1), logits.shape[-1]
    picked = logits.flatten(1).gather(1, before * vocabulary + answer_ids.flatten(1))
    scores = picked - logits.logsumexp(dim=-1).gather(1, before)
    return scores.unflatten(1, (num_candidates, length)).masked_fill(~mask, 0.0)


_WINDOWS: weakref.WeakKeyDictionary[torch.nn.Module, int | None] = weakref.WeakKeyDictionary()


def _window(language_model: Any) -> int | None:
    """Return the sliding window of an LLM, looked up in its config once."""
    if language_model not in _WINDOWS:
        _WINDOWS[language_model] = local_limits(language_model).get(WINDOW)
    return _WINDOWS[language_model]


def _tree_masks(
    language_model: Any, allowed: torch.Tensor, places: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the bias `(B, 1, T, T)` of every layer; of an LLM whose layers differ, one for each kind of them.

    A sliding window goes by the places that tokens have in their own prompt and title, not in the packed row.

    Args:
        language_model: The LLM.
        allowed: `(B, T, T)` True where a token may see another.
        places: `(B, T)` position ids.
        dtype: Of the bias.
    """

    def bias(seen: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return found.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)

    window = _window(language_model)
    if window is None:
        return bias(allowed)
    near = bias(allowed & (places[:, :, None] - places[:, None, :] < window))
    kinds = _kinds_of_layers(language_model)
    if not kinds - {SLIDING}:
        return near
    return {kind: near if kind == SLIDING else bias(allowed) for kind in sorted(kinds)}


def _kinds_of_layers(language_model: Any) -> set[str]:
    kinds = getattr(text_config(language_model), "layer_types", None)
    return set(kinds) if isinstance(kinds, (list, tuple)) else set()


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "tree": score_tree,
    "prefix_cache": score_prefix_cache,
    "naive": score_naive,
}


def fits_packed(prefix_mask: torch.Tensor, answer_ids: torch.Tensor, answer_mask: torch.Tensor, most: int) -> bool:
    """Tell whether the longest row that `score_tree` packs, padding in front included, has at most so many places."""
    read = (answer_mask.sum(dim=-1) - 1).clamp(min=0).sum(dim=-1)
    if prefix_mask.shape[1] + int(read.max()) <= most:
        return True
    return prefix_mask.shape[1] + packed_answers(answer_ids, answer_mask) <= most


def packed_answers(answer_ids: torch.Tensor, answer_mask: torch.Tensor) -> int:
    """Return the places that `score_tree` packs for the answers of a batch, of the user with the most of them."""
    return _SharedBeginnings.of(answer_ids, answer_mask).tokens.shape[1]


def _refused_beforehand(language_model: Any, method: str) -> str | None:
    if method == "tree":
        for config in (language_model.config, text_config(language_model)):
            implementation = getattr(config, "_attn_implementation", None) or ""
            if "flash" in implementation or "flex" in implementation:
                return f"{implementation} takes no mask of our own"
        limits = {name: size for name, size in local_limits(language_model).items() if name != WINDOW}
        if limits:
            names = ", ".join(f"{name} {size}" for name, size in limits.items())
            return f"a limit of attention would be lost, as it goes by places in the packed row ({names})"
        kinds = [kind for kind in special_layers(language_model) if kind != SLIDING]
        if kinds:
            return f"its layers are of other kinds than full attention ({', '.join(kinds)})"
    return None


# -- the check


@dataclass
class _Trial:
    """Random prompts and answers, and what the naive method says of them.

    Attributes:
        inputs: What every method takes after the LLM.
        expected: `(B, C, A)`, one candidate of one user at a time.
        rounding: See `_own_rounding`; measured when first asked for.
    """

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    expected: torch.Tensor
    rounding: float | None = None


def _one_by_one(language_model: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    embeds, prefix_mask, answers, answer_mask = inputs
    found = torch.zeros(answers.shape, dtype=torch.float32, device=embeds.device)
    for user in range(answers.shape[0]):
        for candidate in range(answers.shape[1]):
            length = int(answer_mask[user, candidate].sum())
            real = prefix_mask[user]
            found[user, candidate, :length] = score_naive(
                language_model,
                embeds[user : user + 1, real],
                real[real].unsqueeze(0),
                answers[user : user + 1, candidate : candidate + 1, :length],
                answer_mask[user : user + 1, candidate : candidate + 1, :length],
            )[0, 0]
    return found


@torch.no_grad()
def _trial(
    language_model: Any,
    prompt_lengths: tuple[int, int] = (9, 6),
    answer_lengths: tuple[int, ...] = (3, 1, 4, 2),
    seed: int = 0,
) -> _Trial:
    """Return two users' random prompts of different lengths, with answers of different lengths."""
    device = input_device(language_model)
    generator = torch.Generator().manual_seed(seed)
    rows, width = num_token_rows(language_model), max(prompt_lengths)
    draw = lambda *shape: torch.randint(rows, shape, generator=generator).to(device)  # noqa: E731
    prompts, answers = draw(2, width), draw(2, len(answer_lengths), max(answer_lengths))
    answers[:, -1, :2] = answers[:, 0, :2]  # two candidates of a user begin alike
    prefix_mask = torch.arange(width) >= width - torch.tensor(prompt_lengths)[:, None]
    answer_mask = torch.arange(max(answer_lengths)) < torch.tensor(answer_lengths)[:, None]
    embeds = language_model.get_input_embeddings()(prompts)
    inputs = (embeds, prefix_mask.to(device), answers, answer_mask.expand_as(answers.cpu()).to(device))
    return _Trial(inputs, _one_by_one(language_model, inputs))


@contextlib.contextmanager
def _rounded_anew(language_model: Any, seed: int) -> Iterator[None]:
    """Let every layer round differently: its output moves by at most one rounding of the LLM's precision."""
    generators: dict[torch.device, torch.Generator] = {}

    def move(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return None
        device = output.device
        if device not in generators:
            generators[device] = torch.Generator(device=device).manual_seed(seed)
        signs = torch.rand(output.shape, generator=generators[device], device=device) * 2 - 1
        return (output.float() * (1 + torch.finfo(output.dtype).eps * signs)).to(output.dtype)

    leaves = [module for module in language_model.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(move) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _own_rounding(language_model: Any, trial: _Trial) -> float:
    """Return by how many nats a token the naive method itself moves when layers round differently, at most."""
    if trial.rounding is None:
        moves = []
        for seed in range(ROUNDING_RUNS):
            with torch.compiler.set_stance("force_eager"), _rounded_anew(language_model, seed):
                moves.append((score_naive(language_model, *trial.inputs) - trial.expected).abs().max())
        trial.rounding = float(torch.stack(moves).max())
    return trial.rounding


@torch.no_grad()
def _strays(language_model: Any, method: str, trial: _Trial) -> float:
    return float((METHODS[method](language_model, *trial.inputs) - trial.expected).abs().max())


def deviation_from_naive(language_model: Any, method: str, seed: int = 0) -> float:
    """Return how far a method strays from scoring one candidate of one user at a time, on a few random tokens.

    The greatest absolute difference of any answer token's log-likelihood; users differ in prompt length, candidates in
    answer length.
    """
    return _strays(language_model, method, _trial(language_model, seed=seed))


def _judged(language_model: Any, method: str, trial: _Trial) -> str | None:
    """Tell why a method fails a trial: it strays by more nats a token than rounding explains."""
    dtype = trial.inputs[0].dtype
    allowed = EXACT_TOLERANCE if dtype == torch.float64 else TOLERANCE
    try:
        deviation = _strays(language_model, method, trial)
        if deviation > allowed:
            factor = HALF_ROUNDING_FACTOR if torch.finfo(dtype).eps > 1e-4 else FULL_ROUNDING_FACTOR
            allowed = max(allowed, factor * _own_rounding(language_model, trial))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        return f"it fails: {type(error).__name__}: {error}"
    if not deviation <= allowed:
        length = trial.inputs[0].shape[1]
        return (
            f"its log-likelihoods stray by {deviation:.2g} a token from scoring one by one, behind prompts of {length} "
            f"tokens (allowed {allowed:.2g})"
        )
    return None


def _reached_and_not(language_model: Any) -> tuple[list[int], list[int]]:
    """Return the windows and chunks that a check can afford to go past, and the others, both in order."""
    sizes = sorted(set(local_limits(language_model).values()))
    parameters = sum(parameter.numel() for parameter in language_model.parameters())
    budget = REACH_BUDGET.get(input_device(language_model).type, OTHER_REACH_BUDGET)
    reached = [size for size in sizes if parameters * 6 * (size + PAST) <= budget]
    return reached, sizes[len(reached) :]


def unreached_limit(language_model: Any) -> int | None:
    """Return the smallest window or chunk that was too far for the check, or None."""
    return min(_reached_and_not(language_model)[1], default=None)


def _trials(language_model: Any) -> Iterator[_Trial]:
    """Yield a short trial, and one that goes past each window or chunk in reach."""
    yield _trial(language_model)
    for size in _reached_and_not(language_model)[0]:
        yield _trial(language_model, (size + PAST, max(size // 2, 1)), (3, 2), seed=size)


def _reason_against(language_model: Any, method: str, trials: list[_Trial]) -> str | None:
    for trial in trials:
        reason = _judged(language_model, method, trial)
        if reason is not None:
            return reason
    return None


def check_method(language_model: Any, method: str) -> str | None:
    """Tell why a scoring method must not be used with this LLM; None where it equals the naive one.

    Allowed for every answer token: 1e-4 nats, or twice what the naive method itself moves by when its layers
    round differently, as half precision does. The check is the same every time.
    """
    reason = _refused_beforehand(language_model, method)
    if reason is not None or method == "naive":
        return reason
    return _reason_against(language_model, method, list(_trials(language_model)))


@torch.no_grad()
def check_on(language_model: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> str | None:
    """Tell why a method must not be used on these very prompts: its first candidate, of the user with the most tokens.

    Args:
        language_model: The LLM.
        method: The method.
        inputs: `prefix_embeds`, `prefix_mask`, `answer_ids`, `answer_mask`.
    """
    longest = int(inputs[1].sum(dim=1).argmax())
    embeds, mask, answers, answer_mask = (tensor[longest : longest + 1].detach() for tensor in inputs)
    own = (embeds, mask.bool(), answers[:, :1], answer_mask[:, :1].bool())
    return _judged(language_model, method, _Trial(own, _one_by_one(language_model, own)))


def tell_refused(refused: Mapping[str, str]) -> None:
    """Log which methods are off, and why."""
    for method in (method for method in METHODS if method in refused):  # the fastest first
        logger.warning("Scoring by %s is off for this LLM: %s.", method, refused[method])


def verified_method(language_model: Any, wanted: str = "auto", refused: dict[str, str] | None = None) -> str:
    """Return the fastest scoring method that equals the naive one with this LLM.

    Args:
        language_model: A causal LM with its weights.
        wanted: `"auto"`, or the one method to check.
        refused: Gets the faster methods that are not equal, and why.

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
    trials: list[_Trial] = []
    for method in ("tree", "prefix_cache"):
        reason = _refused_beforehand(language_model, method)
        if reason is None:
            trials = trials or list(_trials(language_model))
            reason = _reason_against(language_model, method, trials)
        if reason is None:
            return method
        tell_refused({method: reason})
        if refused is not None:
            refused[method] = reason
    return "naive"
