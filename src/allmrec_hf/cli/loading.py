"""Load a checkpoint for a command: its options, and one line for each failure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..pipeline_recommendation import RecommendationPipeline

STAGE_1_ONLY = (
    "is trained to stage 1 only; run `allmrec train --stage project` (or `--stage rank --rankers fusion`, without an "
    "LLM) into the same folder first"
)
ModelOption = Annotated[
    str | None,
    typer.Option(help="Run folder or Hub id; the demo checkpoint of this package by default, which `demo` names too."),
]
LlmOption = Annotated[
    str | None,
    typer.Option(
        "--llm", help="Folder, Hub id or .gguf file of the checkpoint's LLM, where it is no longer where it was."
    ),
]
GgufFileOption = Annotated[
    str | None,
    typer.Option("--gguf-file", help="Name of the GGUF file, where --llm is a folder or Hub id that has such files."),
]
TextEncoderOption = Annotated[
    str | None,
    typer.Option("--text-encoder", help="Folder or Hub id of the checkpoint's text encoder, likewise."),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that comes with the LLM, its tokenizer or the text encoder: read it first. Never remembered.",
    ),
]

OtherLlmOption = Annotated[
    bool,
    typer.Option(
        "--allow-other-llm",
        help="Take the LLM given with --llm though it is not the one of the training; its scores may mean nothing.",
    ),
]


@contextlib.contextmanager
def checkpoint_errors(model: str) -> Iterator[None]:
    """Say of any error of loading which checkpoint it is about, on one line."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from ..errors import ALLMRecError, CheckpointError
    from ..part_sources import TransportError, one_line

    try:
        yield
    except ALLMRecError as error:
        if model in str(error):
            raise
        raise type(error)(f"{model}: {error}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, TransportError) as error:
        raise CheckpointError(
            f"{model} is no checkpoint that can be loaded, or a damaged one: {one_line(error)}"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:  # what transformers raises of JSON of another shape
        raise CheckpointError(f"{model} is a damaged checkpoint: {error!r}") from error


def located_checkpoint(model: str) -> str:
    """Return the folder or Hub id of `--model`, where it can be found; the Hub is asked once.

    Raises:
        CheckpointError: when there is no such folder or repository.
    """
    from ..errors import CheckpointError
    from ..part_sources import CHECKPOINT_PART, located, require_found

    try:
        found = located(model, CHECKPOINT_PART)
        require_found(found)
    except FileNotFoundError as error:
        raise CheckpointError(f"--model {model}: {error}") from error
    return found


def checkpoint_type(path: str) -> str | None:
    """Return what a checkpoint's config says its model type is."""
    from transformers import PreTrainedConfig

    found = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    return found if isinstance(found, str) else None


def an(noun: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def named_llm(llm: str | None, gguf_file: str | None) -> str | None:
    """Return the LLM of `--llm` and `--gguf-file` as one name.

    Raises:
        ALLMRecError: when there is a file without a folder or repository, or two files.
    """
    from ..errors import ALLMRecError
    from ..gguf_files import split_gguf

    if llm is None:
        if gguf_file is not None:
            raise ALLMRecError("--gguf-file names a file in a folder or repository; give that as --llm")
        return None
    return "/".join(part for part in split_gguf(llm, gguf_file) if part is not None)


@contextlib.contextmanager
def checkpoint_of_all_stages(model: str | None) -> Iterator[str]:
    """Give the folder or Hub id of a checkpoint that can recommend; errors of its loading say which one it is.

    Args:
        model: Folder, Hub id or `demo`; the default one where None.

    Raises:
        CheckpointError: when there is none, it is of another kind, or it is not trained to stage 2.
    """
    from .. import DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT
    from ..configuration_allmrec import ALLMRecConfig
    from ..errors import CheckpointError
    from ..ranker_built_in import can_rank

    name = model or os.environ.get(DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT)
    with checkpoint_errors(name):
        path = located_checkpoint(name)
        kind = checkpoint_type(path)
        if kind is None:
            raise CheckpointError(f"{name} has no config.json that names a model type; give the folder of a whole run")
        if kind != ALLMRecConfig.model_type:
            raise CheckpointError(
                f"{name} is {an(kind)} model; only an A-LLMRec model can recommend, explain and take new items: give "
                "the folder of a run with all stages"
            )
        if not can_rank(ALLMRecConfig.from_pretrained(path)):
            raise CheckpointError(f"{name} {STAGE_1_ONLY}")
        yield path


def load_pipeline(
    model: str | None,
    llm: str | None = None,
    text_encoder: str | None = None,
    trust_remote_code: bool = False,
    allow_other_llm: bool = False,
    dtype: str = "auto",
) -> RecommendationPipeline:
    """Return the recommendation pipeline of a checkpoint, or of the default one.

    Args:
        model: Folder, Hub id or `demo`.
        llm: An LLM in place of the one that the checkpoint names.
        text_encoder: Likewise.
        trust_remote_code: Run code that comes with them.
        allow_other_llm: Take an LLM that is not the one of the training.
        dtype: The dtype of the LLM; its own where `auto`.

    Raises:
        CheckpointError: when it cannot be loaded.
    """
    from transformers import pipeline

    from ..modeling_allmrec import ALLMRecModel
    from ..processing_allmrec import ALLMRecProcessor

    with checkpoint_of_all_stages(model) as path:
        given: dict[str, Any] = {
            "text_encoder": text_encoder,
            "trust_remote_code": trust_remote_code,
            "allow_other_llm": allow_other_llm,
        }
        loaded = ALLMRecModel.from_pretrained(path, language_model=llm or "auto", dtype=dtype, **given)
        processor = ALLMRecProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        return pipeline("recommendation", model=loaded, processor=processor)  # type: ignore[call-overload, no-any-return]
