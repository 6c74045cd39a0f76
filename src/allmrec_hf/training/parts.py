"""What a run takes from elsewhere and what it tells about itself: text encoder, LLM, item table, model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModel

from ..cf_encoder import MODEL_TYPE_PREFIX, CFEncoder
from ..data.prepared import PreparedData
from ..errors import CheckpointError
from ..hub.card import ALLMRecCard
from ..language_model import num_token_rows
from ..language_model_checks import require_decoder
from ..llm_files import check_llm_options, empty_llm, find_llm, load_config, load_llm_files, load_tokenizer
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import (
    CHECKPOINT_PART,
    DEMO,
    DEMO_PARTS,
    LANGUAGE_MODEL_PART,
    TEXT_ENCODER_PART,
    located,
    one_line,
    public_name,
    recorded,
    require_found,
)
from .arguments import StageArguments
from .provenance import library_versions
from .settings import RunSettings
from .trained import target_counts

DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, StrictDataclassError)
CARD_COUNTS = ("users", "items", "interactions")
CARD_SETTINGS = (
    *("epochs", "min_steps", "max_steps", "batch_size", "learning_rate", "weight_decay", "mixed_precision"),
)


def named_part(name: str, part: str) -> str:
    """Return an id or path as it is, and for `demo` the folder of the tiny part that comes with this package.

    Args:
        name: Id, path or `demo`.
        part: `"language_model"` or `"text_encoder"`.
    """
    return str(DEMO_PARTS / part) if name == DEMO else name


def part_path(name: str, part: str) -> str:
    """Return what `named_part` does, and of a local folder the one spelling that tells it from others."""
    return named_part(recorded(name, part), part)


def with_absolute_paths(settings: RunSettings) -> RunSettings:
    """Return settings that name the same folders wherever a process runs."""
    parts = {"llm": LANGUAGE_MODEL_PART, "text_encoder": TEXT_ENCODER_PART, "cf_checkpoint": CHECKPOINT_PART}
    names = {field: getattr(settings, field) for field in parts}
    absolute: dict[str, Any] = {
        field: recorded(name, parts[field]) for field, name in names.items() if name is not None
    }
    return replace(settings, **absolute)


def load_backbone(directory: Path) -> CFEncoder:
    """Return the CF backbone saved in a folder, in eval mode."""
    backbone: CFEncoder = AutoModel.from_pretrained(str(directory))
    return backbone.eval()


def load_text_encoder(name: str, trust_remote_code: bool = False) -> Any:
    """Return the `SentenceTransformer` of an id, a folder or `demo`.

    Raises:
        CheckpointError: when it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        where = located(name, TEXT_ENCODER_PART)
        require_found(where, "modules.json")
        return SentenceTransformer(where, trust_remote_code=trust_remote_code)
    except (*DAMAGED, ImportError) as error:
        raise CheckpointError(
            f"the text encoder {name!r} cannot be loaded: {one_line(error)}; --text-encoder takes a "
            "sentence-transformers id or folder"
        ) from error


@contextlib.contextmanager
def _llm_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGED, ImportError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the LLM {name!r} cannot be loaded: {one_line(error)}; --llm takes a Hub id or the folder of a causal LM "
            "with its tokenizer, or of an adapter (PEFT) of one"
        ) from error


def check_llm(
    name: str, revision: str | None, options: dict[str, Any], trust_remote_code: bool = False, words: Iterable[str] = ()
) -> None:
    """Check an LLM without its weights, before anything is trained for it.

    Args:
        name: Id, folder or `demo`.
        revision: Its revision on the Hub.
        options: As for `load_llm`.
        trust_remote_code: As for `load_llm`.
        words: Texts that every prompt holds.

    Raises:
        CheckpointError: when config or tokenizer cannot be loaded, transformers has no causal LM for the config, an
            option cannot work on this machine, or the words need tokens that the LLM does not embed.
    """
    options, trust = without_trust(options, trust_remote_code)
    check_llm_options(options)
    with _llm_errors(name):
        source = find_llm(located(name, LANGUAGE_MODEL_PART), revision)
        config = load_config(source, trust)
        require_decoder(config)
        check_llm_options(options, config)
        tokenizer = load_tokenizer(source, trust)
        empty = empty_llm(config, trust, options.get("attn_implementation"))
    check_tokenizer(name, tokenizer, num_token_rows(empty), words)


def load_llm(
    name: str, revision: str | None, options: dict[str, Any], trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Return a causal LM and its tokenizer.

    Args:
        name: Id, folder or `demo`; of an LM, or of an adapter (PEFT) that names its base.
        revision: Its revision on the Hub.
        options: Passed to `AutoModelForCausalLM.from_pretrained`.
        trust_remote_code: Run code that comes with it; also as an option.

    Raises:
        CheckpointError: when one cannot be loaded, or the tokenizer has words that the LLM does not embed.
    """
    options, trust = without_trust(options, trust_remote_code)
    with _llm_errors(name):
        source = find_llm(located(name, LANGUAGE_MODEL_PART), revision)
        tokenizer = load_tokenizer(source, trust)
        llm: Any = load_llm_files(source, trust, **options)
    check_tokenizer(name, tokenizer, num_token_rows(llm))
    return llm, tokenizer


def without_trust(options: dict[str, Any] | None, trust_remote_code: bool = False) -> tuple[dict[str, Any], bool]:
    """Return options of an LLM without `trust_remote_code`, and whether it was given among them or beside them."""
    rest = dict(options or {})
    return rest, bool(rest.pop("trust_remote_code", False)) or trust_remote_code


def check_tokenizer(name: str, tokenizer: Any, rows: int, words: Iterable[str] = ()) -> None:
    """Refuse a tokenizer whose words an LLM does not embed; tokens added to it may lack rows where nothing uses them.

    Args:
        name: The LLM.
        tokenizer: Its tokenizer.
        rows: Rows of the LLM's embedding table.
        words: Texts that every prompt holds.

    Raises:
        CheckpointError: when a word of the vocabulary, the start or end of a sequence, or one of the texts has none.
    """
    if len(tokenizer) <= rows:
        return
    added = tokenizer.get_added_vocab()
    largest = max((number for word, number in tokenizer.get_vocab().items() if word not in added), default=0)
    if largest >= rows:
        raise CheckpointError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens but the LLM embeds {rows}: it is another's"
        )
    used = {number for text in ("a", *words) for number in tokenizer(text)["input_ids"]}
    used |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    beyond = sorted(number for number in used if number >= rows)
    if beyond:
        raise CheckpointError(
            f"every prompt holds {tokenizer.convert_ids_to_tokens(beyond)!r}, added to the tokenizer of {name!r} as "
            f"{beyond}, but the LLM embeds the tokens 0 to {rows - 1} only; take the tokens out of the tokenizer, or "
            "save the LLM with rows for them (resize_token_embeddings)"
        )


def text_dim(text_encoder: Any) -> int:
    """Return d_text; sentence-transformers 6 renamed the method."""
    ask = getattr(text_encoder, "get_embedding_dimension", None) or text_encoder.get_sentence_embedding_dimension
    return int(ask())


@torch.no_grad()
def fill_item_table(model: ALLMRecModel, data: PreparedData, text_embeddings: torch.Tensor) -> None:
    """Write `q_i` of every item and how often it was a target into the model, and give cold items a CF embedding.

    An item that the backbone was not trained on gets the CF embedding decoded from its text, so that it can be
    retrieved and stand in a history; see `trained.target_counts`.

    Args:
        model: The model after stage 1.
        data: The data it was trained on.
        text_embeddings: `(N + 1, d_text)` by the text encoder of stage 1.
    """
    joint = model.aligner.encode_texts(text_embeddings.to(model.device))
    joint[0] = 0
    counts = target_counts(model.cf_encoder, data).to(model.device)
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
        base_model=None if model is None or llm is None else public_name(model.config.base_model_name_or_path),
        base_model_revision=None if model is None else model.config.base_model_revision,
        base_model_parameters=None if llm is None else _count(llm),
        includes_base_model=model is not None and model.config.language_model_included,
        cf_backbone=backbone,
        backbone_only=model is None,
        cf_parameters=_count(cf_encoder),
        trained_parameters=trained,
        text_encoder=None if model is None else public_name(model.config.text_encoder_name_or_path),
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
