"""allmrec-hf: a frozen large language model that recommends with the knowledge of a collaborative-filtering model.

Importing this package registers the Auto classes and the task `pipeline("recommendation")`.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from ._version import __version__
from .cf_encoder import BUILT_IN, cf_encoder_class

DEMO_CHECKPOINT = str(Path(__file__).parent / "demo" / "checkpoint")
"""The self-contained demo checkpoint in this package; its film world is invented."""

DEFAULT_MODEL_VARIABLE = "ALLMREC_DEFAULT_MODEL"
"""The environment variable that names another default model for `pipeline("recommendation")`."""

_PUBLIC = {
    "ALLMRecConfig": "configuration_allmrec",
    "ALLMRecError": "errors",
    "ALLMRecModel": "modeling_allmrec",
    "ALLMRecProcessor": "processing_allmrec",
    "CFEncoder": "cf_encoder",
    "CFEncoderConfig": "cf_encoder",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ItemCatalog": "catalog",
    "PreparedData": "data.prepared",
    "PromptTemplate": "prompt",
    "RecommendationPipeline": "pipeline_recommendation",
    "evaluate": "evaluation.evaluator",
    "prepare": "data.prepare",
    "push_checkpoint": "hub.publish",
    "register_cf_encoder": "cf_encoder",
    **{f"{stem}{kind}": module for module, stem in BUILT_IN.values() for kind in ("Config", "Model")},
}

__all__ = ["DEFAULT_MODEL_VARIABLE", "DEMO_CHECKPOINT", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_allmrec import ALLMRecConfig
    from .modeling_allmrec import ALLMRecModel
    from .pipeline_recommendation import PipelineModel, RecommendationPipeline
    from .processing_allmrec import ALLMRecProcessor

    AutoConfig.register(ALLMRecConfig.model_type, ALLMRecConfig, exist_ok=True)
    AutoModel.register(ALLMRecConfig, ALLMRecModel, exist_ok=True)
    AutoProcessor.register(ALLMRecConfig, ALLMRecProcessor, exist_ok=True)
    for model_type in BUILT_IN:
        cf_encoder_class(model_type)  # registers a backbone saved alone
    if "recommendation" not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            "recommendation",
            pipeline_class=RecommendationPipeline,
            pt_model=(PipelineModel,),
            default={"model": (os.environ.get(DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT), "main")},
            type="multimodal",
        )


_register()
