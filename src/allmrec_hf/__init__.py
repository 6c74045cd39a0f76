"""allmrec-hf: a frozen large language model that recommends with the knowledge of a collaborative-filtering model.

Importing this package registers the Auto classes and the task `pipeline("recommendation")`. What they name is loaded
when it is first used: the import itself loads neither torch nor a model class.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._registration import DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT, register_when_needed
from ._version import __version__
from .cf_built_in import BUILT_IN

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


register_when_needed()
