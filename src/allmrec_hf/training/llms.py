"""Check and load the frozen LLM and its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import CheckpointError
from ..gguf_files import gguf_facts, split_gguf
from ..language_model import num_token_rows
from ..language_model_checks import require_decoder
from ..llm_files import (
    OWN_OPTIONS,
    LLMSource,
    check_llm_options,
    empty_llm,
    find_llm,
    load_config,
    load_llm_files,
    load_tokenizer,
    require_memory,
)
from ..part_sources import LANGUAGE_MODEL_PART, located, one_line


@contextlib.contextmanager
def _llm_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any class: an LLM is read by several libraries
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the LLM {name!r} cannot be loaded: {one_line(error)}; --llm takes a Hub id or the folder of a causal LM "
            "with its tokenizer, or of an adapter (PEFT) of one, or a .gguf file"
        ) from error


def llm_source(name: str, revision: str | None = None, gguf_file: str | None = None) -> LLMSource:
    """Return where the LLM of a name is.

    Args:
        name: Id, folder, `demo`, or a GGUF file, see `gguf_files.split_gguf`.
        revision: Its revision on the Hub.
        gguf_file: Name of the GGUF file inside the folder or repository.
    """
    name, gguf_file = split_gguf(name, gguf_file)
    return find_llm(located(name, LANGUAGE_MODEL_PART), revision, gguf_file)


def check_llm(
    name: str,
    revision: str | None,
    options: dict[str, Any],
    trust_remote_code: bool = False,
    words: Iterable[str] = (),
    device: Any = None,
) -> Any:
    """Check an LLM without its weights, before anything is trained for it.

    Args:
        name: Id, folder or `demo`.
        revision: Its revision on the Hub.
        options: As for `load_llm`.
        trust_remote_code: As for `load_llm`.
        words: Texts that every prompt holds.
        device: Where it is put after loading.

    Returns:
        Its config.

    Raises:
        CheckpointError: when config or tokenizer cannot be loaded, transformers has no causal LM for the config, an
            option cannot work on this machine, the words need tokens that the LLM does not embed, or its weights do
            not fit into memory.
    """
    options, trust = without_trust(options, trust_remote_code)
    own, options = split_options(options)
    check_llm_options(options)
    with _llm_errors(name):
        source = llm_source(name, revision, own.get("gguf_file"))
        config = load_config(source, trust)
        require_decoder(config)
        check_llm_options(options, config)
        tokenizer = load_tokenizer(source, trust)
        empty = empty_llm(config, trust, options.get("attn_implementation"))
        if own.get("check_memory", True):
            facts = None if source.gguf is None else gguf_facts(source.gguf)
            require_memory(source, trust, facts, bool(own.get("gguf_packed")), options, device)
    check_tokenizer(name, tokenizer, num_token_rows(empty), words)
    return config


def load_llm(
    name: str, revision: str | None, options: dict[str, Any], trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Return a causal LM and its tokenizer.

    Args:
        name: Id, folder or `demo`; of an LM, of an adapter (PEFT) that names its base, or of a GGUF file.
        revision: Its revision on the Hub.
        options: Passed to `AutoModelForCausalLM.from_pretrained`; `gguf_file`, `gguf_packed` and `check_memory` to
            `llm_files.load_llm_files`.
        trust_remote_code: Run code that comes with it; also as an option.

    Raises:
        CheckpointError: when one cannot be loaded, or the tokenizer has words that the LLM does not embed.
    """
    options, trust = without_trust(options, trust_remote_code)
    own, options = split_options(options)
    with _llm_errors(name):
        source = llm_source(name, revision, own.pop("gguf_file", None))
        tokenizer = load_tokenizer(source, trust)
        llm: Any = load_llm_files(source, trust, **own, **options)
    check_tokenizer(name, tokenizer, num_token_rows(llm))
    return llm, tokenizer


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of `llm_files.load_llm_files` itself, and those of transformers."""
    own = {name: value for name, value in options.items() if name in OWN_OPTIONS}
    return own, {name: value for name, value in options.items() if name not in OWN_OPTIONS}


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
