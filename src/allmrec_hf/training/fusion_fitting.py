"""Fit the ranker `fusion`: the weights of its parts and the pivot of its gate, on validation users."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import tqdm

from ..configuration_allmrec import ALLMRecConfig
from ..data.candidates import SeenItems, sample_candidates, title_groups
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.warmth import WarmthGroups
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import ModelRanker
from ..ranker_built_in import build_ranker, compared_rankers, rankers_of
from ..ranker_fusion import (
    CATALOGUE_PARTS,
    LIST_PARTS,
    WITHOUT_LLM,
    Fusion,
    FusionParts,
    ReciprocalRanks,
    WeightedSum,
    gates,
)
from ..ranking import ndcg_at_k, target_ranks
from .conditional_logit import FOLDS, fitted_weights, held_out_logits, held_out_loss
from .projection import candidate_samples
from .samples import Samples, validation_targets
from .section_arguments import ProjectArguments, RankArguments, split_names
from .text_fitting import USERS_AT_ONCE, fit_text, fit_words, user_batches

logger = logging.getLogger(__name__)

PIVOTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
SCORED_AT_ONCE = 16  # users whose prompts the LLM reads at once
FEW_CANDIDATES = 20
COMPARISONS = (WeightedSum.kind, ReciprocalRanks.kind)
T = TypeVar("T")


@dataclass(frozen=True)
class FusionSamples:
    """What a fusion is fitted on.

    Attributes:
        scores: `(P, B, C)` standardized scores of the parts.
        counts: `(B, C)` how often each candidate was a target in the backbone's training.
        columns: `(B,)` places of the targets.
    """

    scores: Tensor
    counts: Tensor
    columns: Tensor

    def features(self, pivot: float | None) -> Tensor:
        """Return `(B, C, F)`: each part times (1 - g), each times g, and g; without a pivot the parts alone."""
        if pivot is None:
            return self.scores.movedim(0, -1)
        gate = gates(self.counts, pivot).unsqueeze(0)
        return torch.cat([self.scores * (1 - gate), self.scores * gate, gate]).movedim(0, -1)


def fit_fusion(
    found: FusionSamples, names: Sequence[str], seed: int = 0, user_weights: Tensor | None = None
) -> dict[str, Any]:
    """Return what `config.rankers["fusion"]` holds: parts, pivot, weights with the gate and without.

    Args:
        found: Scores of the parts on users that none of the parts was trained on.
        names: The parts, in the order of the scores.
        seed: Of the folds, by which the pivot is chosen.
        user_weights: `(B,)` how much each user counts, see `weights_of_users`; all alike where not given.
    """

    def loss(pivot: float | None) -> float:
        return held_out_loss(found.features(pivot), found.columns, seed, user_weights)

    losses = {pivot: loss(pivot) for pivot in PIVOTS}
    pivot = min(losses, key=lambda value: losses[value])
    gated = fitted_weights(found.features(pivot), found.columns, user_weights).tolist()
    plain = fitted_weights(found.features(None), found.columns, user_weights).tolist()
    count = len(names)
    return {
        "parts": list(names),
        "pivot": pivot,
        "users": len(found.columns),
        "held_out_loss": {"gated": losses[pivot], "sum": loss(None)},
        "gated": {
            "parts": {name: [gated[i], gated[count + i]] for i, name in enumerate(names)},
            "popularity": gated[-1],
        },
        "sum": {"parts": {name: [plain[i]] * 2 for i, name in enumerate(names)}, "popularity": 0.0},
    }


def weights_of_users(data: PreparedData, targets: np.ndarray, cold_weight: float) -> Tensor | None:
    """Return `(B,)` how much users count in fitting a fusion, by their targets; None: all alike.

    Args:
        data: Prepared data.
        targets: `(B,)` catalogue indices.
        cold_weight: What a user counts whose target is cold in the training part, as reports group it; others count 1.
    """
    if cold_weight == 1:
        return None
    cold = WarmthGroups.from_counts(data.item_counts("train")).cold[targets]
    return torch.from_numpy(np.where(cold, cold_weight, 1.0))


def fusion_candidates(data: PreparedData, samples: Samples, count: int, seed: int) -> np.ndarray:
    """Return `(S, count)` the target and unseen items drawn from the whole catalogue, or fewer where it is small."""
    sequences = data.sequences("train+validation")
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    seen = SeenItems(users, np.concatenate(sequences), data.num_items)
    most_seen = max(len(np.unique(sequences[user])) for user in samples.users)
    wanted, count = count, min(count, data.num_items - most_seen)
    if count < 2:
        raise ALLMRecError(f"{data.name}: a user has seen nearly every item, so there is nothing to fit a fusion on")
    if count < min(wanted, FEW_CANDIDATES):
        logger.warning(
            "the fusion is fitted on %d items for each user, since one has seen %d of %d",
            count,
            most_seen,
            data.num_items,
        )
    drawn = sample_candidates(
        samples.users,
        samples.targets,
        seen,
        title_groups(data.catalog.frame["title"]),
        count,
        seed=seed,
        split="validation",
        user_ids=data.user_ids,
    )
    return drawn.items


@torch.no_grad()
def fusion_samples(
    model: ALLMRecModel, processor: ALLMRecProcessor, names: Sequence[str], samples: Samples, candidates: np.ndarray
) -> FusionSamples:
    """Return the parts' scores of validation users on their candidates.

    Args:
        model: The model.
        processor: Its processor.
        names: The parts.
        samples: Validation users.
        candidates: `(S, C)` catalogue indices, each target once in its row.
    """
    parts = FusionParts(model, processor, names)
    at_once = SCORED_AT_ONCE if parts.listed else USERS_AT_ONCE
    batches = user_batches(model, processor, samples, candidates, at_once)
    shown = _with_time_left(batches, "fusion's parts", len(samples), at_once)
    scores = torch.cat([parts.of_lists(users, rows, 1).cpu() for users, rows in shown], dim=1)
    counts = model.item_table.interaction_counts.cpu()[torch.from_numpy(candidates)].float()
    columns = torch.from_numpy((candidates == samples.targets[:, None]).argmax(axis=1))
    return FusionSamples(scores, counts, columns)


def held_out_users(data: PreparedData, project: ProjectArguments | None, arguments: RankArguments) -> np.ndarray:
    """Return the rows of `validation_targets` whose users no ranker was trained on.

    Args:
        data: Prepared data.
        project: The settings of stage 2, where it was trained: it may have learnt from validation items.
        arguments: The most users, and the seed.
    """
    rows = np.arange(len(validation_targets(data)))
    if project is not None and project.targets == "validation":
        rows = candidate_samples(data, project.targets, project.loop())[1]
    return np.sort(np.random.default_rng(arguments.seed).permutation(rows)[: arguments.max_validation_users])


def fit_rankers(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    data: PreparedData,
    text_embeddings: Tensor,
    arguments: RankArguments,
    project: ProjectArguments | None,
) -> None:
    """Give a model the rankers `text`, `words` and `fusion`, and choose the default by NDCG@10 on validation users.

    Args:
        model: The model; its config and item table are changed.
        processor: Its processor.
        data: Prepared data.
        text_embeddings: `(N + 1, d_text)` by the checkpoint's text encoder.
        arguments: The settings.
        project: Those of stage 2, where it was trained.

    Raises:
        ALLMRecError: when a part of the fusion is none that the checkpoint has, or there are too few users.
    """
    model.eval()
    rows = held_out_users(data, project, arguments)
    samples, stored = validation_targets(data).take(rows), data.candidates("validation").take(rows).items
    if len(samples) < FOLDS:
        raise ALLMRecError(
            f"a fusion is fitted on validation users that stage 2 has not seen; {len(samples)} are too few"
        )
    model.config.rankers = {name: value for name, value in (model.config.rankers or {}).items() if name != "fusion"}
    drawn = fusion_candidates(data, samples, arguments.num_candidates, arguments.seed)
    fit_text(model, processor, text_embeddings, samples, drawn, arguments.seed)
    fit_words(model, processor, samples, drawn, arguments.seed)
    parts = _parts_of(model, arguments)
    of_stored = fusion_samples(model, processor, parts, samples, stored)
    listed = any(name in LIST_PARTS for name in parts)
    found = of_stored if listed else fusion_samples(model, processor, parts, samples, drawn)
    user_weights = weights_of_users(data, samples.targets, arguments.cold_weight)
    fusion = fit_fusion(found, parts, arguments.seed, user_weights) | {"cold_weight": arguments.cold_weight}
    model.config.rankers = {**model.config.rankers, Fusion.kind: fusion}
    scores = {}
    for name in compared_rankers(model.config):
        if name in COMPARISONS:
            continue
        ranker = build_ranker(name, model, processor)
        if ranker.max_candidates is not None and ranker.max_candidates < stored.shape[1]:
            logger.warning("%s takes fewer than %d candidates, so it is not compared", name, stored.shape[1])
        elif name == Fusion.kind:  # of each user by weights that the others have given, as the parts had none
            own, shown = (each.features(fusion["pivot"]) for each in (found, of_stored))
            logits = held_out_logits(own, found.columns, arguments.seed, shown, user_weights)
            scores[name] = _ndcg(logits, of_stored.columns)
        elif name in parts:
            scores[name] = _ndcg(of_stored.scores[parts.index(name)], of_stored.columns)
        else:
            scores[name] = _ndcg(_scores(ranker, model, processor, samples, stored), of_stored.columns)
    best = max(scores, key=lambda name: scores[name])
    model.config.ranker = arguments.ranker or best
    build_ranker(None, model, processor)  # a name that the checkpoint lacks is refused
    told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    logger.info("NDCG@10 on %d validation users: %s; the default ranker is %s", len(samples), told, model.config.ranker)


def _parts_of(model: ALLMRecModel, arguments: RankArguments) -> list[str]:
    """Return the parts of the fusion in their order.

    Raises:
        ALLMRecError: when one is none that the checkpoint has.
    """
    has = rankers_of(model.config)
    language = ["retrieval"] if "retrieval" in has else ["likelihood"] if "likelihood" in has else []
    named = split_names(arguments.fusion_parts or "") or [*WITHOUT_LLM, *language]
    unknown = [name for name in named if name not in has]
    if unknown:
        raise ALLMRecError(f"rank.fusion_parts names {unknown}, but this checkpoint has {', '.join(has)}")
    return [name for name in (*CATALOGUE_PARTS, *LIST_PARTS) if name in named]


def take_rankers(
    model: ALLMRecModel, processor: ALLMRecProcessor, text_embeddings: Tensor, fitted: ALLMRecConfig
) -> None:
    """Give a model the rankers `text`, `words` and `fusion` as they were fitted for another one of the same parts.

    Args:
        model: The model; its config and item table are changed.
        processor: Its processor.
        text_embeddings: `(N + 1, d_text)` by the checkpoint's text encoder.
        fitted: The configuration of the other.
    """
    model.eval()
    rankers = fitted.rankers or {}
    model.keep_text_embeddings(text_embeddings, **rankers["text"])
    if "words" in rankers:
        model.keep_words(processor.catalog.texts(), rankers["words"]["recency"])
    model.config.rankers = {**(model.config.rankers or {}), "fusion": rankers["fusion"]}
    model.config.ranker = fitted.ranker
    build_ranker(None, model, processor)


def _scores(
    ranker: ModelRanker, model: ALLMRecModel, processor: ALLMRecProcessor, samples: Samples, candidates: np.ndarray
) -> Tensor:
    batches = user_batches(model, processor, samples, candidates, SCORED_AT_ONCE)
    shown = _with_time_left(batches, ranker.kind, len(samples), SCORED_AT_ONCE)
    return torch.cat([ranker.score(users, rows).scores.cpu() for users, rows in shown])


def _ndcg(scores: Tensor, columns: Tensor) -> float:
    return float(ndcg_at_k(target_ranks(scores.numpy(), columns.numpy()), 10).mean())


def _with_time_left(batches: Iterable[T], what: str, users: int, at_once: int) -> Iterable[T]:
    """Show how far the validation users have been scored, where it takes more than some seconds."""
    total = -(-users // at_once)
    return tqdm(batches, f"{what} on {users} validation users", total, unit="batch", delay=10, leave=False)
