"""What a run takes from elsewhere and what it tells about itself: text encoder, LLM, item table, model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from ..cf_encoder import MODEL_TYPE_PREFIX, CFEncoder
from ..data.prepared import PreparedData
from ..errors import CheckpointError
from ..hub.card import ALLMRecCard
from ..language_model import num_token_rows
from ..language_model_checks import require_decoder
from ..modeling_allmrec import ALLMRecModel
from .arguments import StageArguments
from .provenance import library_versions

DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, StrictDataclassError)
CARD_COUNTS = ("users", "items", "interactions")
CARD_SETTINGS = (
    *("epochs", "min_steps", "max_steps", "batch_size", "learning_rate", "weight_decay", "mixed_precision"),
)

DEMO = "demo"  # in place of an id: the tiny LM and text encoder that come with this package
DEMO_PARTS = Path(__file__).parents[1] / "demo"


def named_part(name: str, part: str) -> str:
    """Return an id or path as it is, and for `demo` the folder of the tiny part that comes with this package.

    Args:
        name: Id, path or `demo`.
        part: `"language_model"` or `"text_encoder"`.
    """
    return str(DEMO_PARTS / part) if name == DEMO else name


def part_path(name: str, part: str) -> str:
    """Return what `named_part` does, and of a local folder the one spelling that tells it from others."""
    named = named_part(name, part)
    return str(Path(named).resolve()) if name != DEMO and Path(named).is_dir() else named


def _require_findable(name: str) -> None:
    """Refuse a path that leads nowhere; asking the Hub for it would only end in a puzzling answer."""
    if Path(name).exists():
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError("there is no such folder, and an id of the Hub looks like ORG/NAME") from error


def load_backbone(directory: Path) -> CFEncoder:
    """Return the CF backbone saved in a folder, in eval mode."""
    backbone: CFEncoder = AutoModel.from_pretrained(str(directory))
    return backbone.eval()


def load_text_encoder(name: str) -> Any:
    """Return the `SentenceTransformer` of an id or folder.

    Raises:
        CheckpointError: when it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        _require_findable(name)
        return SentenceTransformer(name)
    except DAMAGED as error:
        raise CheckpointError(
            f"the text encoder {name!r} cannot be loaded: {error}; --text-encoder takes a sentence-transformers id or "
            "folder"
        ) from error


@contextlib.contextmanager
def _llm_errors(name: str) -> Iterator[None]:
    try:
        _require_findable(name)
        yield
    except (*DAMAGED, ImportError) as error:
        raise CheckpointError(
            f"the LLM {name!r} cannot be loaded: {error}; --llm takes a Hub id or the folder of a causal LM with its "
            "tokenizer"
        ) from error


def check_llm(name: str, revision: str | None, options: dict[str, Any]) -> None:
    """Check that config and tokenizer of an LLM are there, before anything is trained for it.

    Args:
        name: Id or folder.
        revision: Its revision on the Hub.
        options: As for `load_llm`; a dtype that does not exist is refused.

    Raises:
        CheckpointError: when one cannot be loaded.
    """
    dtype = options.get("dtype")
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CheckpointError(f"there is no dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    where = {} if revision is None else {"revision": revision}
    with _llm_errors(name):
        config = AutoConfig.from_pretrained(name, **where)
        AutoTokenizer.from_pretrained(name, **where)
    require_decoder(config)


def load_llm(name: str, revision: str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return a causal LM and its tokenizer.

    Args:
        name: Id or folder.
        revision: Its revision on the Hub.
        options: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        CheckpointError: when one cannot be loaded, or the tokenizer has tokens that the LLM does not embed.
    """
    where = {} if revision is None else {"revision": revision}
    with _llm_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        llm: Any = AutoModelForCausalLM.from_pretrained(name, **where, **options)
    rows = num_token_rows(llm)
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens but the LLM embeds {rows}: it is another's"
        )
    return llm, tokenizer


def text_dim(text_encoder: Any) -> int:
    """Return d_text; sentence-transformers 6 renamed the method."""
    ask = getattr(text_encoder, "get_embedding_dimension", None) or text_encoder.get_sentence_embedding_dimension
    return int(ask())


@torch.no_grad()
def fill_item_table(model: ALLMRecModel, data: PreparedData, text_embeddings: torch.Tensor) -> None:
    """Write `q_i` and training counts of every item into the model, and give cold items a CF embedding.

    An item that no training sequence holds gets the CF embedding decoded from its text, so that it can be retrieved
    and stand in a history; its own row of the backbone never met an interaction.

    Args:
        model: The model after stage 1.
        data: The data it was trained on.
        text_embeddings: `(N + 1, d_text)` by the text encoder of stage 1.
    """
    joint = model.aligner.encode_texts(text_embeddings.to(model.device))
    joint[0] = 0
    counts = torch.from_numpy(data.item_counts("train")).to(model.device)
    counts = counts.masked_fill(~model.cf_encoder.item_embeddings.any(dim=1), 0)  # what an imported backbone lacks
    model.item_table.text_joint_embeddings = joint
    model.item_table.interaction_counts = counts
    cold = (counts == 0).nonzero().flatten()
    cold = cold[cold > 0]
    model.cf_encoder.replace_items(cold, model.aligner.decode_items(joint[cold]))


def model_card(
    cf_encoder: CFEncoder,
    model: ALLMRecModel | None,
    data: PreparedData,
    arguments: dict[str, StageArguments],
) -> ALLMRecCard:
    """Return the card of a backbone alone, or of a model after stage 1 or 2.

    Args:
        cf_encoder: The backbone.
        model: The model, or None for a backbone alone.
        data: What it was trained on.
        arguments: The loop's settings of each stage.
    """
    llm = None if model is None else model.language_model
    stages = ["cf"] if model is None else ["cf", "align"] if llm is None else ["cf", "align", "project"]
    backbone = cf_encoder.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    trained = {}
    if model is not None:
        parts = {
            "aligner": model.aligner,
            "user projector": model.user_projector,
            "item projector": model.item_projector,
        }
        trained = {name: _count(part) for name, part in parts.items() if part is not None}
    return ALLMRecCard(
        name=f"{backbone if model is None else 'A-LLMRec'} on {data.name}",
        base_model=None if model is None or llm is None else model.config.base_model_name_or_path,
        base_model_revision=None if model is None else model.config.base_model_revision,
        base_model_parameters=None if llm is None else _count(llm),
        includes_base_model=model is not None and model.config.language_model_included,
        cf_backbone=backbone,
        backbone_only=model is None,
        cf_parameters=_count(cf_encoder),
        trained_parameters=trained,
        text_encoder=None if model is None else model.config.text_encoder_name_or_path,
        dataset_name=data.name,
        dataset_source=str(data.info.get("source", "")) or None,
        counts={name: value for name, value in data.info.get("counts", {}).items() if name in CARD_COUNTS},
        training={stage: _shown(arguments[stage]) for stage in stages},
        seeds={stage: arguments[stage].seed for stage in stages},
        versions=library_versions(),
        example_history=[data.catalog.item_id(int(index)) for index in data.sequence(0)[:3]],
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shown(arguments: StageArguments) -> dict[str, Any]:
    return {name: value for name, value in arguments.to_dict().items() if name in CARD_SETTINGS and value is not None}
