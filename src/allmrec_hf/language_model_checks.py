"""Check an LLM on a few tokens when it is attached: that it is causal, how it pads, and which LLM it is.

The checks take some fifteen passes. A checkpoint records what they found and under which circumstances, so that the
same LLM loaded again costs the one pass that tells it is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from .errors import CheckpointError
from .language_model import input_device, input_width, is_offloaded, num_token_rows, text_config
from .language_model_passes import last_logits, padded_pass

logger = logging.getLogger(__name__)

TOKENS = 12
CHANGED = 3  # of them, the last ones
SHORTER = 7  # tokens of the prompt that is padded
SAMPLED = 64  # figures of each part of an identity
DECIMALS = 6
OTHER_WORDS, OTHER_ANSWERS = 0.95, 0.8  # below such a correlation it is another LLM
SAME_WORDS, SAME_ANSWERS = 0.999, 0.98  # below such a one it was fine-tuned or coarsely quantised since
_NOT_OF_THE_RESULTS = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)


@dataclass(frozen=True)
class LanguageModelFacts:
    """The results of the checks.

    Attributes:
        width: d_llm.
        pads_left: Whether the LLM reads left-padded prompts as it reads them alone; where not, see `padded_pass`.
        reads_tokens: Whether it reads more of a token than its embedding vector.
    """

    width: int
    pads_left: bool
    reads_tokens: bool = False


def require_decoder(config: Any) -> None:
    """Check, before any weight is loaded, that a config is that of a decoder.

    Raises:
        CheckpointError: when the config is of an encoder that was not turned into a decoder, such as BERT's.
    """
    config = text_config(config)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", None) is not False:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise CheckpointError(_not_causal(f"its config ({config.model_type}) has is_decoder = False"))


def _not_causal(why: str) -> str:
    return (
        f"this LLM is not causal: {why}. An encoder such as BERT sees the whole answer before it rates it; give a "
        "causal LM, such as OPT, Llama, Qwen or Gemma"
    )


def _draw(language_model: Any, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_token_rows(language_model), (1, count), generator=generator)


def _logits(language_model: Any, embeds: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    return last_logits(language_model, embeds.shape[1], inputs_embeds=embeds, attention_mask=mask).float()


def relative_rounding(embeds: torch.Tensor) -> float:
    """Return the rounding of one number in the LLM's precision, relative to it: 1.2e-7 in fp32, .0078 in bf16."""
    return float(torch.finfo(embeds.dtype).eps)


@torch.no_grad()
def examine(language_model: Any) -> LanguageModelFacts:
    """Test that an LLM is causal and reads vectors, and find out how it pads.

    Args:
        language_model: An LLM in eval mode, with its weights.

    Raises:
        CheckpointError: when it is not causal, or takes no vectors in place of tokens.
    """
    require_decoder(language_model)
    width, device = input_width(language_model), input_device(language_model)
    tokens = _draw(language_model, TOKENS, seed=0).to(device)
    embed = language_model.get_input_embeddings()
    words = embed(tokens)
    vectors = (words + words.roll(1, dims=1)) / 2  # no token's own, as projected vectors are none
    try:
        read = _logits(language_model, vectors)
    except _ERRORS as error:
        raise CheckpointError(
            f"this LLM ({type(language_model).__name__}) takes no vectors in place of tokens (inputs_embeds): "
            f"{type(error).__name__}: {error}; give one that does"
        ) from error
    if not torch.isfinite(read).all():
        raise CheckpointError(
            f"this LLM ({type(language_model).__name__}) answers with NaN or infinity in {vectors.dtype}; load it in "
            "another dtype, or its weights are damaged"
        )
    changed = vectors.clone()
    changed[:, -CHANGED:] = changed[:, -CHANGED:].flip(2) + changed[:, :CHANGED]
    moved = (_logits(language_model, changed) - read)[:, :-CHANGED].abs().max()
    scale = read.abs().max()
    if float(moved) > max(4 * relative_rounding(words), 1e-4) * float(scale):
        raise CheckpointError(
            _not_causal(
                f"changing the last {CHANGED} of {TOKENS} tokens changes what it says at earlier ones by "
                f"{float(moved):.2g}"
            )
        )
    reads_tokens = _reads_tokens(language_model, tokens, words)
    _warn(language_model, reads_tokens)
    return LanguageModelFacts(width, _pads_left(language_model, vectors, read), reads_tokens)


def _pads_left(language_model: Any, vectors: torch.Tensor, alone: torch.Tensor) -> bool:
    """Tell whether a short prompt behind padding, beside a long one, is read as it is alone."""
    short = vectors[:, :SHORTER]
    padding = vectors[:, SHORTER:].flip(1)
    batch = torch.cat([vectors, torch.cat([padding, short], dim=1)])
    mask = torch.ones(batch.shape[:2], dtype=torch.bool, device=batch.device)
    mask[1, : TOKENS - SHORTER] = False

    def run(keep: int, **inputs: torch.Tensor) -> torch.Tensor:
        return last_logits(language_model, keep, **inputs).float()

    expected = torch.cat([alone[:, -SHORTER:], _logits(language_model, short)])
    try:
        found = padded_pass(run, batch, mask, SHORTER, pads_left=True)
    except _ERRORS:
        return False  # it takes no position ids
    strays = float((found - expected).abs().max())
    return strays <= max(16 * relative_rounding(vectors), 1e-4) * float(expected.abs().max())


def _reads_tokens(language_model: Any, tokens: torch.Tensor, words: torch.Tensor) -> bool:
    """Tell whether an LLM reads more of a token than its embedding vector."""
    try:
        mask = torch.ones_like(tokens)
        by_ids = last_logits(language_model, TOKENS, input_ids=tokens, attention_mask=mask).float()
        by_vectors = _logits(language_model, words)
    except _ERRORS:
        return False
    strays = float((by_ids - by_vectors).abs().max())
    return strays > max(16 * relative_rounding(words), 1e-4) * float(by_ids.abs().max())


def _warn(language_model: Any, reads_tokens: bool) -> None:
    if reads_tokens:
        logger.warning(
            "This LLM (%s) reads more of a token than its embedding vector; prompts of vectors tell it less, in "
            "training and in scoring alike.",
            type(language_model).__name__,
        )


# -- which LLM it is


def _spread(values: torch.Tensor) -> list[float]:
    """Return up to `SAMPLED` evenly spaced numbers of a vector, rounded."""
    places = torch.linspace(0, len(values) - 1, min(len(values), SAMPLED), device=values.device).long()
    return [round(float(value), DECIMALS) for value in values[places].float().cpu()]


@torch.no_grad()
def _figures(language_model: Any, token_ids: list[int]) -> dict[str, list[float]]:
    tokens = torch.tensor([token_ids], device=input_device(language_model))
    words = language_model.get_input_embeddings()(tokens)
    answers = _logits(language_model, words)[0]
    rows = torch.linspace(0, min(answers.shape[-1] - 1, max(token_ids)), SAMPLED // 4, device=answers.device).long()
    return {"words": _spread(words[0, :4].flatten()), "answers": _spread(answers[-4:, rows].flatten())}


def fingerprint(language_model: Any) -> dict[str, Any]:
    """Return what tells an LLM from others of its width, in every precision: names, word vectors and answers.

    Returns:
        `model_type`, `num_layers`, the `token_ids` of a fixed prompt, a sample of their `words` (vectors) and of the
        LLM's `answers` (logits) to them.
    """
    config = text_config(language_model)
    token_ids = _draw(language_model, TOKENS, seed=1)[0].tolist()
    return {
        "model_type": config.model_type,
        "num_layers": getattr(config, "num_hidden_layers", None),
        "token_ids": token_ids,
        **_figures(language_model, token_ids),
    }


def _correlation(first: list[float], second: list[float]) -> float:
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    one, other = one - one.mean(), other - other.mean()
    lengths = float(one.norm()), float(other.norm())
    if max(lengths) < 1e-6:
        return 1.0  # an LLM whose answers are all the same
    return float(one @ other) / max(lengths[0] * lengths[1], 1e-300)


def difference(known: Mapping[str, Any], language_model: Any) -> str | None:
    """Tell what makes an LLM another than the one of a fingerprint; None where it is the same.

    The same one in another precision, quantised or with another attention implementation passes. One whose weights
    were changed a little passes with a warning.
    """
    config = text_config(language_model)
    for name, value in (
        ("model_type", config.model_type),
        ("num_layers", getattr(config, "num_hidden_layers", None)),
    ):
        if known.get(name) != value:
            return f"its {name} is {value!r}, not {known.get(name)!r}"
    rows = num_token_rows(language_model)
    if max(known["token_ids"]) >= rows:
        return f"it has {rows} tokens, not {max(known['token_ids']) + 1} or more"
    found = _figures(language_model, list(known["token_ids"]))
    if any(len(found[name]) != len(known[name]) for name in ("words", "answers")):
        return "its vectors or its vocabulary have another size"
    words, answers = (_correlation(known[name], found[name]) for name in ("words", "answers"))
    if not (words >= OTHER_WORDS and answers >= OTHER_ANSWERS):
        return f"its word vectors correlate by {words:.2f} and its answers by {answers:.2f} with those of the training"
    if words < SAME_WORDS or answers < SAME_ANSWERS:
        logger.warning(
            "The LLM differs a little from the one of the training (word vectors correlate by %.4f, answers by %.4f): "
            "fine-tuned since, or coarsely quantised?",
            words,
            answers,
        )
    return None


def require_same(config: Any, language_model: Any, width: int, allow_other_llm: bool) -> None:
    """Check that an LLM is the one that a checkpoint's projectors were trained for.

    Args:
        config: The checkpoint's.
        language_model: The LLM.
        width: Its `d_llm`.
        allow_other_llm: Whether another one of this width is taken, with a warning.

    Raises:
        CheckpointError: when it has another width, or is another one.
    """
    trained = config.base_model_name_or_path
    if width != config.llm_dim:
        raise CheckpointError(
            f"the projectors were trained for an LLM of width d_llm = {config.llm_dim} ({trained}), this one has "
            f"{width}; give the LLM of the training"
        )
    known = config.language_model_fingerprint
    reason = None if known is None else difference(known, language_model)
    if reason is not None and not allow_other_llm:
        raise CheckpointError(
            f"this is not the LLM of the training ({trained}): {reason}. Vectors projected for one LLM mean nothing to "
            "another; give the LLM of the training, or allow_other_llm=True (--allow-other-llm on the command line) to "
            "attach this one all the same"
        )
    if reason is not None:
        logger.warning("The LLM is not the one of the training: %s.", reason)


# -- what was found before


def _settings_alone(values: Any) -> Any:
    """Return a config's values without those that a model gets by being saved or loaded."""
    if not isinstance(values, Mapping):
        return values
    return {str(name): _settings_alone(value) for name, value in values.items() if name not in _NOT_OF_THE_RESULTS}


def circumstances(language_model: Any) -> str | None:
    """Return a digest of all that the results of the checks depend on beside the weights.

    Returns:
        None where they must not be taken over: an LLM with code of its own, with hooks or a `forward` put in place, or
        spread over devices.
    """
    modules = list(language_model.modules())
    classes = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in modules})
    foreign = any(name.startswith("transformers_modules.") for name in classes)
    changed = any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)
    if foreign or changed or is_offloaded(language_model) or getattr(language_model, "hf_device_map", None):
        return None
    configs = (language_model.config, text_config(language_model))
    facts = {
        "versions": [transformers.__version__, torch.__version__],
        "classes": classes,
        "dtypes": sorted({str(parameter.dtype) for parameter in language_model.parameters()}),
        "device": input_device(language_model).type,
        "attention": [str(getattr(config, "_attn_implementation", None)) for config in configs],
        "settings": [_settings_alone(config.to_dict()) for config in configs],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def record_of(
    language_model: Any, facts: LanguageModelFacts, method: str, refused: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what a checkpoint keeps of the results; None where they must not be taken over, see `circumstances`.

    Args:
        language_model: The LLM.
        facts: What `examine` found.
        method: The scoring method that was chosen.
        refused: The faster methods that were not, and why.
    """
    where = circumstances(language_model)
    if where is None:
        return None
    found = {"pads_left": facts.pads_left, "reads_tokens": facts.reads_tokens}
    return {"circumstances": where, **found, "scoring_method": method, "refused_methods": dict(refused)}


def recalled(
    record: Mapping[str, Any] | None, known: Mapping[str, Any] | None, language_model: Any
) -> LanguageModelFacts | None:
    """Return what `examine` found before, where that holds for an LLM: same circumstances, same words and answers.

    Args:
        record: See `record_of`.
        known: The fingerprint of the LLM that was checked.
        language_model: An LLM in eval mode, with its weights.

    Returns:
        None where the checks must be made.
    """
    if not record or not known or record.get("circumstances") != circumstances(language_model):
        return None
    if max(known["token_ids"]) >= num_token_rows(language_model):
        return None
    found = _figures(language_model, list(known["token_ids"]))
    for name, least in (("words", SAME_WORDS), ("answers", SAME_ANSWERS)):
        if len(found[name]) != len(known[name]) or not _correlation(known[name], found[name]) >= least:
            return None
    _warn(language_model, record["reads_tokens"])
    return LanguageModelFacts(input_width(language_model), record["pads_left"], record["reads_tokens"])
