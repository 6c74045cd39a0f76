"""Measure how much each history item and the user vector contribute to a title's score, by two methods.

Leave-one-out takes an item out of the history and scores again. Gradient x input multiplies the gradient of the score
with the distance of every vector from a baseline. An item reaches the LLM by two routes, its title and vector in the
prompt and its share in the user vector, so both methods give a part for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ALLMRecError
from ..indices import checked_index, checked_indices
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from .prompt_probe import PromptProbe

Removal = Literal["delete", "neutral"]
CLEAR = 0.1
"""The nats from which a contribution counts as clear: the title's probability changes by a tenth."""


@dataclass(frozen=True)
class Effect:
    """One contribution by one method, in nats; a positive one raises the title's score.

    Attributes:
        total: The contribution by both routes.
        in_prompt: The part of the title's tokens and the vector behind them; None where the prompt does not name it.
        through_user_vector: The part that goes through the user vector; None where the prompt has none.
    """

    total: float
    in_prompt: float | None = None
    through_user_vector: float | None = None


@dataclass(frozen=True)
class Contribution:
    """The contribution of the user vector or one history item to the explained value.

    Attributes:
        source: `"user"` or `"history"`.
        item: Catalogue index of a history item, 0 for the user vector.
        position: Place in the history from 0, oldest first; -1 for the user vector.
        leave_one_out: The value minus the value without it; for the user vector, with the average user's in its slot.
        gradient_x_input: Gradient times (input - baseline), summed over its places.
    """

    source: Literal["user", "history"]
    item: int
    position: int
    leave_one_out: Effect
    gradient_x_input: Effect

    def to_dict(self) -> dict[str, Any]:
        """Return the form that goes into JSON."""
        return asdict(self)


def contributions(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    history: Sequence[int],
    item: int,
    candidates: Sequence[int],
    contrast: bool = False,
    removal: Removal = "neutral",
    gradient_steps: int = 8,
    permutation: int = 0,
    batch_size: int = 16,
) -> list[Contribution]:
    """Return the contributions of the user vector (first, where the prompt has one) and of every history item.

    The candidate list of the prompt keeps its order while items are left out. Of an item that the prompt does not name
    (an older one) only the share in the user vector counts. When the only item is left out, the average user's vector
    (see `prompt_probe.Baselines`) stands in the slot.

    Args:
        model: The model with its LLM.
        processor: Its processor.
        history: Catalogue indices in time order, at least one; the last `max_history_length` are read.
        item: The explained item's catalogue index.
        candidates: Catalogue indices of the prompt's list, the item among them.
        contrast: Explain the score minus the mean score of all candidates: what decides the ranking.
        removal: How leave-one-out takes an item out of the prompt: `"delete"` shortens the list; `"neutral"` puts the
            gradient's baselines in its places, so that nothing else moves. The CF history loses it either way.
        gradient_steps: Places on the straight path from the baseline to the input over which the gradient is averaged
            (integrated gradients, arXiv 1703.01365); 1 takes the gradient at the input alone.
        permutation: Order of the candidate list, as for the processor.
        batch_size: Variants that the LLM reads at once.

    Raises:
        ALLMRecError: when there are no steps, the item is not among the candidates, or a contribution is no finite
            number.
    """
    if gradient_steps < 1 or batch_size < 1:
        raise ALLMRecError(f"gradient_steps and batch_size must be at least 1, got {gradient_steps} and {batch_size}")
    if removal not in get_args(Removal):
        raise ALLMRecError(f"removal must be one of {list(get_args(Removal))}, got {removal!r}")
    count = len(processor.catalog)
    history, item = checked_indices(history, count, "the history"), checked_index(item, count, "the explained item")
    candidates = checked_indices(candidates, count, "the candidate list")
    if item not in candidates:
        raise ALLMRecError("the explained item must be among the candidates of its prompt")
    read = list(history)[-processor.max_history_length :]
    rows = [item, *(index for index in candidates if index != item)]
    probe = PromptProbe(model, processor, read, rows, permutation, contrast, batch_size)
    shorter = probe.user_vectors([read[:place] + read[place + 1 :] for place in range(len(read))])  # (L, d_llm)
    left_out = _leave_one_out(probe, shorter, removal)
    gradients = _gradient_x_input(probe, shorter, gradient_steps)
    _check_finite([(left.total, right.total) for left, right in zip(left_out, gradients, strict=True)])
    offset = len(history) - len(read)
    found: list[Contribution] = []
    if probe.user_place is not None:
        found.append(Contribution("user", 0, -1, left_out[-1], gradients[-1]))
    return found + [
        Contribution("history", index, offset + place, left_out[place], gradients[place])
        for place, index in enumerate(read)
    ]


@torch.no_grad()
def _leave_one_out(probe: PromptProbe, shorter: Tensor, removal: Removal) -> list[Effect]:
    """Return the effect of every history item, and of the user vector last."""
    count, first = len(probe.history), probe.first_named
    take_out = probe.without_item if removal == "delete" else probe.with_neutral_item
    variants = [probe.embeds]
    for place, user in enumerate(shorter):
        prompt = take_out(place - first) if place >= first else probe.embeds
        variants += [probe.with_user(prompt, user), prompt, probe.with_user(probe.embeds, user)]
    variants.append(probe.with_user(probe.embeds, probe.baselines.user))
    values = probe.values(variants).double()
    drops = (values[0] - values[1:]).tolist()
    effects = []
    for place in range(count):
        total, in_prompt, through_user = drops[3 * place : 3 * place + 3]
        has_user = probe.user_place is not None
        effects.append(Effect(total, in_prompt if place >= first else None, through_user if has_user else None))
    return [*effects, Effect(drops[-1])]


def _gradient_x_input(probe: PromptProbe, shorter: Tensor, steps: int) -> list[Effect]:
    """Return the effect of every history item, and of the user vector last."""
    embeds = probe.embeds
    baseline = probe.with_user(embeds, probe.baselines.user)
    for number in range(len(probe.spans)):
        baseline = probe.with_neutral_item(number, baseline)
    gradient = _path_gradient(probe, baseline, steps)
    shares = (gradient * (embeds - baseline).double()).sum(dim=-1)  # (T,)
    effects = []
    for place in range(len(probe.history)):
        number = place - probe.first_named
        in_prompt = None
        if number >= 0:
            in_prompt = float(shares[probe.spans[number].start : probe.spans[number].stop].sum())
        through_user = None
        if probe.user_place is not None:
            change = (embeds[probe.user_place] - shorter[place].to(embeds.dtype)).double()
            through_user = float(gradient[probe.user_place] @ change)
        effects.append(Effect((in_prompt or 0.0) + (through_user or 0.0), in_prompt, through_user))
    return [*effects, Effect(0.0 if probe.user_place is None else float(shares[probe.user_place]))]


def _path_gradient(probe: PromptProbe, baseline: Tensor, steps: int) -> Tensor:
    """Return the gradient `(T, d_llm)` of the value, averaged over the path from the baseline to the input."""
    places = [1.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]
    total = torch.zeros_like(baseline, dtype=torch.float64)
    for start in range(0, steps, probe.batch_size):
        points = [
            (baseline + place * (probe.embeds - baseline)).detach().requires_grad_(True)
            for place in places[start : start + probe.batch_size]
        ]
        with torch.enable_grad():
            value = probe.values(points).sum()
        total += torch.stack(torch.autograd.grad(value, points)).double().sum(dim=0)
    return total / steps


def _check_finite(pairs: Sequence[tuple[float, float]]) -> None:
    broken = sum(not (isfinite(left) and isfinite(right)) for left, right in pairs)
    if broken:
        raise ALLMRecError(
            f"{broken} of {len(pairs)} contributions are no finite numbers; the weights are broken or numbers overflow "
            "(try float32)"
        )


def sign_agreement(found: Iterable[Contribution], clear: float = CLEAR) -> dict[str, float | int | None]:
    """Return how often the two methods agree in sign where leave-one-out is clear, and what guessing would reach.

    Args:
        found: Contributions, of many requests.
        clear: Nats from which on a contribution counts.

    Returns:
        `contributions` (how many are clear), `agreement` (share of equal signs), `always_one_sign` (the share a method
        would reach that always says the more frequent sign); the shares are None where nothing is clear. A gradient of
        exactly 0 has no sign and agrees half the time.

    Raises:
        ALLMRecError: when a contribution is no finite number.

    Example:
        >>> effects = [(1.0, 0.4), (0.5, -0.1), (0.02, -3.0)]
        >>> sign_agreement(Contribution("history", 1, 0, Effect(a), Effect(b)) for a, b in effects)
        {'contributions': 2, 'agreement': 0.5, 'always_one_sign': 1.0}
    """
    pairs = [(one.leave_one_out.total, one.gradient_x_input.total) for one in found]
    _check_finite(pairs)
    pairs = [pair for pair in pairs if abs(pair[0]) >= clear]
    if not pairs:
        return {"contributions": 0, "agreement": None, "always_one_sign": None}
    positive = sum(left > 0 for left, _ in pairs) / len(pairs)
    equal = sum(0.5 if right == 0 else float((left > 0) == (right > 0)) for left, right in pairs) / len(pairs)
    return {"contributions": len(pairs), "agreement": equal, "always_one_sign": max(positive, 1 - positive)}
