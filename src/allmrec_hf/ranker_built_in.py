"""The rankers by name, and which of them a checkpoint has."""

from __future__ import annotations

from typing import Any

from .errors import CheckpointError
from .modeling_allmrec import ALLMRecModel
from .processing_allmrec import ALLMRecProcessor
from .ranker import CFScore, ModelRanker, TextSimilarity, TitleLikelihood
from .ranker_fusion import Fusion, ReciprocalRanks, WeightedSum
from .ranker_letter import LetterRanker
from .ranker_likelihood import LIKELIHOOD_FORMS
from .ranker_retrieval import RetrievalRanker
from .ranker_words import SharedWords
from .ranker_zero_shot import ZeroShot

_OTHERS: tuple[type[ModelRanker], ...] = (
    *(LetterRanker, RetrievalRanker, ZeroShot),
    *(Fusion, WeightedSum, ReciprocalRanks, TextSimilarity, SharedWords, CFScore),
)
RANKERS: dict[str, type[ModelRanker]] = {
    TitleLikelihood.kind: TitleLikelihood,
    **LIKELIHOOD_FORMS,
    **{kind.kind: kind for kind in _OTHERS},
}


def rankers_of(config: Any) -> list[str]:
    """Return the names of the rankers that a checkpoint with this configuration has."""
    return [name for name, kind in RANKERS.items() if kind.lacks(config) is None]


def can_rank(config: Any) -> bool:
    """Tell whether a checkpoint with this configuration has the ranker of its own choice; not so after stage 1."""
    return config.ranker in rankers_of(config)


def compared_rankers(config: Any) -> list[str]:
    """Return those that an evaluation shows side by side: all that training was asked for, and what it came with."""
    return [name for name in rankers_of(config) if name != LetterRanker.kind or name in (config.rankers or {})]


def ranker_class(name: str | None, config: Any) -> type[ModelRanker]:
    """Return the class of a ranker that a checkpoint with this configuration has.

    Args:
        name: One of `RANKERS`; the checkpoint's own choice (`config.ranker`) where not given.
        config: The configuration.

    Raises:
        CheckpointError: when the name is unknown, or the checkpoint lacks what the ranker needs.
    """
    name = name or config.ranker
    kind, known = RANKERS.get(str(name)), ", ".join(rankers_of(config))
    if kind is None:
        raise CheckpointError(f"unknown ranker {name!r}; this checkpoint has {known}")
    reason = kind.lacks(config)
    if reason is not None:
        raise CheckpointError(f"this checkpoint has no ranker {name!r} ({reason}); it has {known}")
    return kind


def build_ranker(name: str | None, model: ALLMRecModel, processor: ALLMRecProcessor) -> ModelRanker:
    """Return a ranker of a checkpoint; see `ranker_class`.

    Args:
        name: One of `RANKERS`; the checkpoint's own choice where not given.
        model: The model.
        processor: Its processor.
    """
    return ranker_class(name, model.config)(model, processor)
