"""Facts of a causal LM: what its config, its modules and its placement say, asked in one place.

A multi-modal LLM keeps the settings of its text part in a nested config, an embedding module may scale what its table
holds, an offloaded module has no weights of its own, and PEFT wraps all of it: nothing else in this package reads an
LLM's config or table directly.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import nn

from .errors import CheckpointError

DEFAULT_CONTEXT = 2048  # tokens, where a config names no limit
ROWS_AT_ONCE = 8192
_CONTEXT_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions"),
    *("n_ctx", "seq_length", "context_length", "max_context_length"),
)
_WIDTH_NAMES = ("word_embed_proj_dim", "input_embedding_size", "embedding_size", "hidden_size", "d_model", "n_embd")
_LOCAL = re.compile(r"(?:^|_)(?:sliding|windows?|chunk|local)(?:_|$)|^index_topk$|^index_local")
_NOT_LOCAL = re.compile(r"feed_forward|expert|head|pattern|layers?(?:_|$)|prob|moe|^use_|conv|vision|audio|image")
_LENGTH_DEPENDENT_ROPE = ("longrope", "su", "dynamic")


def text_config(source: Any) -> Any:
    """Return the config of the text decoder.

    Args:
        source: A causal LM, wrapped by PEFT or not, or its config.
    """
    config = getattr(source, "config", source)
    ask = getattr(config, "get_text_config", None)
    if ask is None:
        return config
    try:
        return ask(decoder=True)
    except ValueError:  # several candidates: the settings at the top are those of all
        return config


def base_language_model(language_model: Any) -> Any:
    """Return the transformers model inside PEFT's wrapper, or the model itself."""
    unwrap = getattr(language_model, "get_base_model", None)
    return language_model if unwrap is None else unwrap()


# -- limits


def _rope_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    values = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(values, Mapping):
        nested = [value for value in values.values() if isinstance(value, Mapping)]
        yield from nested or [values]


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def context_length(source: Any) -> int:
    """Return the tokens that an LLM reads at most; 2,048 where nothing names a limit.

    Rotary embeddings whose frequencies depend on the length of the input (LongRoPE) end where they change: beyond, a
    prompt's scores would depend on the lengths of others.

    Args:
        source: A causal LM, or its config. A model also shows its tables of learned positions.
    """
    config = text_config(source)
    named = [getattr(config, name, None) for name in _CONTEXT_NAMES]
    found = next((value for value in named if _whole(value)), DEFAULT_CONTEXT)
    limits: list[int] = [found]
    for rope in _rope_settings(config):
        if (rope.get("rope_type") or rope.get("type")) in _LENGTH_DEPENDENT_ROPE:
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limits += [original] if _whole(original) else []
    if isinstance(source, nn.Module):
        limits += [places for places in _position_tables(base_language_model(source)) if found - 8 <= places <= found]
    return min(limits)


def _position_tables(language_model: nn.Module) -> list[int]:
    """Return the places that tables of learned positions have, without those in front that stand for padding.

    Tables of images and of other parts are among them.
    """
    found = []
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"(?:^|\.)(?:wpe|\w*positions?(?:_embeddings?)?)$", name):
            reserved = getattr(module, "offset", 0)
            if not reserved and module.padding_idx is not None:
                reserved = module.padding_idx + 1
            found.append(module.num_embeddings - int(reserved))
    return found


def local_limits(source: Any) -> dict[str, int]:
    """Return the windows and chunks beyond which some layers of an LLM do not look, by the names of its config.

    Args:
        source: A causal LM, or its config. Limits that its context never reaches are left out.
    """
    config = text_config(source)
    context = context_length(source)
    off = {"sliding_window"} if getattr(config, "use_sliding_window", True) is False else set()
    found: dict[str, int] = {}
    for name, value in _settings(config):
        if name in off or not _LOCAL.search(name) or _NOT_LOCAL.search(name):
            continue
        sizes = [size for size in (value if isinstance(value, (list, tuple)) else [value]) if _whole(size)]
        if sizes and min(sizes) < context:
            found[name] = min(sizes)
    return found


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    for name, value in values.items():
        yield name, value
        if isinstance(value, Mapping) and not _NOT_LOCAL.search(name):
            yield from ((str(key), inner) for key, inner in value.items())


def special_layers(source: Any) -> list[str]:
    """Return the kinds of layers that the config names and that are no full attention, in the order of their names."""
    kinds = getattr(text_config(source), "layer_types", None)
    kinds = [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, (list, tuple)) else []
    return sorted({kind for kind in kinds if kind not in ("full_attention", "attention")})


def config_width(source: Any) -> int:
    """Return d_llm, the width of an LLM's input embeddings, by its config alone."""
    config = text_config(source)
    for name in _WIDTH_NAMES:
        width = getattr(config, name, None)
        if _whole(width):
            return width
    raise CheckpointError(f"the config of this LLM ({type(config).__name__}) names no width of its embeddings")


# -- embeddings and devices


def input_device(language_model: Any) -> torch.device:
    """Return the device on which an LLM's token embeddings are computed.

    An embedding that Accelerate offloads has its weights on `meta` and is computed on its hook's execution device.

    Raises:
        CheckpointError: when the LLM has no weights at all.
    """
    embeddings = language_model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    for parameter in (*embeddings.parameters(), *language_model.parameters()):
        if parameter.device.type != "meta":
            return parameter.device
    raise CheckpointError("this LLM has no weights (all are on the device `meta`); load it with from_pretrained")


def is_offloaded(module: nn.Module) -> bool:
    """Tell whether a part of a module has its weights elsewhere, so that it must not be moved."""
    return any(parameter.device.type == "meta" for parameter in module.parameters())


def num_token_rows(language_model: Any) -> int:
    """Return how many token ids the LLM embeds."""
    embeddings = language_model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0])


@torch.no_grad()
def input_width(language_model: Any) -> int:
    """Return d_llm, the width of the vectors that the embedding module returns."""
    zero = torch.zeros(1, 1, dtype=torch.long, device=input_device(language_model))
    return int(language_model.get_input_embeddings()(zero).shape[-1])


@torch.no_grad()
def token_vectors(language_model: Any, rows: int = ROWS_AT_ONCE) -> Iterator[torch.Tensor]:
    """Yield the vectors of all tokens as prompts hold them, `(at most rows, d_llm)` at a time.

    They are what the embedding module returns: Gemma's multiplies its table by the root of its width, for example.
    """
    embeddings, device = language_model.get_input_embeddings(), input_device(language_model)
    for start in range(0, num_token_rows(language_model), rows):
        stop = min(start + rows, num_token_rows(language_model))
        yield embeddings(torch.arange(start, stop, device=device).unsqueeze(0))[0].detach()


def token_table(language_model: Any) -> torch.Tensor:
    """Return the vectors of all tokens as prompts hold them, `(V, d_llm)`, see `token_vectors`."""
    return torch.cat(list(token_vectors(language_model)))


# -- passes


def num_layers(source: Any) -> int:
    """Return how many layers an LLM's decoder has, by its config."""
    return int(text_config(source).num_hidden_layers)


def check_depth(count: int, whole: int) -> None:
    """Check that an LLM of `whole` layers can be cut to its first `count`.

    Raises:
        CheckpointError: when it has fewer.
    """
    if not 1 <= count <= whole:
        raise CheckpointError(
            f"num_llm_layers and llm_depths must be between 1 and the {whole} layers of this LLM, got {count}"
        )


def decoder_layers(language_model: Any) -> list[nn.Module] | None:
    """Return the layers of an LLM's decoder; None where they cannot be told."""
    decoder, count = base_language_model(language_model).get_decoder(), num_layers(language_model)
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return list(lists[0]) if len(lists) == 1 else None


def compile_layers(language_model: Any, **options: Any) -> None:
    """Have `torch.compile` compile an LLM's layers when they are next used, for inputs of any length.

    Args:
        language_model: A causal LM.
        **options: Of `torch.compile`, such as `backend` and `mode`.

    Raises:
        CheckpointError: when its layers cannot be told.
    """
    layers = decoder_layers(language_model)
    if layers is None:
        name = type(base_language_model(language_model)).__name__
        raise CheckpointError(f"the layers of this LLM ({name}) cannot be told, so they are not compiled")
    for layer in layers:
        layer.compile(**{"dynamic": True, **options})


def first_layers(language_model: Any, count: int | None = None) -> Any:
    """Return an LLM's decoder cut to its first layers, the final norm behind them; the weights are shared.

    Args:
        language_model: A causal LM.
        count: Layers; all of them where not given.

    Returns:
        A module that takes `inputs_embeds` and returns `last_hidden_state`, without vocabulary logits.

    Raises:
        CheckpointError: when the LLM has fewer layers, or its layers cannot be told.
    """
    model = base_language_model(language_model)
    decoder, whole = model.get_decoder(), num_layers(language_model)
    count = whole if count is None else count
    check_depth(count, whole)
    if count == whole:
        return decoder
    lists = [n for n, m in decoder.named_children() if isinstance(m, nn.ModuleList) and len(m) == whole]
    if len(lists) != 1 or "forward" in vars(decoder):
        raise CheckpointError(
            f"the layers of this LLM ({type(model).__name__}) cannot be cut; leave num_llm_layers out to take them all"
        )
    cut = copy.copy(decoder)
    cut._modules = dict(decoder._modules)
    cut._modules[lists[0]] = nn.ModuleList(list(getattr(decoder, lists[0]))[:count])
    cut.config = copy.deepcopy(decoder.config)
    cut.config.num_hidden_layers = count
    kinds = getattr(cut.config, "layer_types", None)
    if isinstance(kinds, (list, tuple)):
        cut.config.layer_types = list(kinds)[:count]
    return cut
