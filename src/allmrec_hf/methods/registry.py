"""Every method of the benchmark by name."""

from __future__ import annotations

from ..cf_encoder import MODEL_TYPE_PREFIX, cf_encoder_types
from ..errors import ALLMRecError
from .a_llmrec import ALLMRec
from .backbone_alone import BackboneAlone
from .baselines import Popularity, TextCosine
from .controls import FairBackbone, LeakAlarm, NoLLM, RandomLLM
from .ctrl import CTRL
from .decision import Decision
from .item_knn import ItemKNN
from .llm_only import LLMOnly
from .llm_srec import LLMSRec
from .method import Method
from .mlp_llm import MLPLLM
from .morec import MoRec
from .recformer import RECFORMER
from .tallrec import TALLRec

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        *(Popularity, ItemKNN, TextCosine),
        *(ALLMRec, LLMOnly, Decision, MLPLLM, TALLRec, MoRec, CTRL, RECFORMER, LLMSRec),
        *(NoLLM, RandomLLM, FairBackbone, LeakAlarm),
    )
}
"""The methods with a class of their own. The name of a backbone is a method too, see `BackboneAlone`."""


def backbone_names() -> list[str]:
    """Return the names of the backbones, each of which is a method too."""
    return [name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types()]


def method_names() -> list[str]:
    """Return the names of all methods, the backbones among them."""
    return [*METHODS, *backbone_names()]


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        ALLMRecError: when the name is unknown; the message lists the known ones.

    Example:
        >>> method("popularity").name
        'popularity'
    """
    if name in METHODS:
        return METHODS[name]()
    if name in backbone_names():
        return BackboneAlone(name)
    raise ALLMRecError(f"unknown method {name!r}; known ones: {', '.join(method_names())}")
