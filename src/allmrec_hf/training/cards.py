"""Fill the model card of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cf_encoder import MODEL_TYPE_PREFIX, CFEncoder
from ..data.prepared import PreparedData
from ..data.versions import library_versions
from ..hub.card import ALLMRecCard
from ..hub.card_making import CARD_OPTIONS, TRAINED_ON, known_licenses
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import public_name
from ..ranker_built_in import rankers_of
from .stage_arguments import StageArguments

CARD_COUNTS = ("users", "items", "interactions")
CARD_SETTINGS = (
    *(
        "num_train_epochs",
        "min_steps",
        "max_steps",
        "per_device_train_batch_size",
        "learning_rate",
        "weight_decay",
        "bf16",
    ),
    "fp16",
)


def model_card(
    cf_encoder: CFEncoder,
    model: ALLMRecModel | None,
    data: PreparedData,
    arguments: Mapping[str, StageArguments],
) -> ALLMRecCard:
    """Return the card of a backbone alone, or of a model after stage 1 or 2.

    Args:
        cf_encoder: The backbone.
        model: The model, or None for a backbone alone.
        data: What it was trained on.
        arguments: The loop's settings of each stage.
    """
    llm = None if model is None else model.language_model
    rankers = [] if model is None else rankers_of(model.config)
    ranks = model is not None and model.config.ranker in rankers  # not after stage 1, whose rankers are not chosen
    stages = ["backbone"] if model is None else ["backbone", "align"]
    if model is not None and llm is not None:
        read = (("project", "likelihood"), ("retrieve", "retrieval"))
        stages += [stage for stage, ranker in read if ranker in rankers]
    backbone = cf_encoder.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    trained = {}
    if model is not None:
        parts = {
            "aligner": model.aligner,
            "user projector": model.user_projector,
            "item projector": model.item_projector,
            "retrieval head": model.retrieval_head,
        }
        trained = {name: _count(part) for name, part in parts.items() if part is not None}
    encoder = None if model is None else model._text_encoder
    parameters = getattr(encoder, "parameters", None)
    return ALLMRecCard(
        name=f"{backbone if model is None else 'A-LLMRec'} on {data.name}",
        base_model=None if model is None or llm is None else public_name(model.config.base_model_name_or_path),
        base_model_file=None if model is None or llm is None else model.config.base_model_gguf_file,
        base_model_revision=None if model is None else model.config.base_model_revision,
        base_model_parameters=None if llm is None else _count(llm),
        includes_base_model=model is not None and model.config.language_model_included,
        cf_backbone=backbone,
        backbone_only=model is None,
        cf_parameters=_count(cf_encoder),
        trained_parameters=trained,
        text_encoder=None if model is None else public_name(model.config.text_encoder_name_or_path),
        text_encoder_parameters=None if parameters is None else sum(part.numel() for part in parameters()),
        ranker=model.config.ranker if ranks and model is not None else None,
        rankers=rankers if ranks else [],
        dataset_name=data.name,
        dataset_source=str(data.info.get("source", "")) or None,
        counts={name: value for name, value in data.info.get("counts", {}).items() if name in CARD_COUNTS},
        training={stage: _shown(arguments[stage], CARD_OPTIONS.get(stage, ())) for stage in stages},
        seeds={stage: arguments[stage].seed for stage in stages},
        versions=library_versions(),
        part_licenses=known_licenses(None if model is None else model.config.to_dict(), data.info),
        warnings=_warnings(data.in_training),
        example_history=[data.catalog.item_id(int(index)) for index in data.sequence(0)[:3]],
    )


def _warnings(in_training: Sequence[str]) -> list[str]:
    """Say what a model was trained on beside the training part."""
    if not in_training:
        return []
    more = " and ".join(in_training)
    return [
        f"{TRAINED_ON}{more} interactions too, with what the validation of another run chose; on their targets its "
        "figures would be no test."
    ]


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shown(arguments: StageArguments, options: tuple[str, ...]) -> dict[str, Any]:
    wanted = (*CARD_SETTINGS, *options)
    return {name: value for name, value in arguments.to_dict().items() if name in wanted and value is not None}
