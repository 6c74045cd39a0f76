"""Find the tokens whose input embeddings are nearest to a projected vector."""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ALLMRecError
from ..language_model import token_vectors
from ..modeling_allmrec import ALLMRecModel

SLICE = 16384


class NearToken(NamedTuple):
    """A token of the vocabulary near a vector.

    Attributes:
        token_id: Its id.
        text: Its text, what cannot be seen written as an escape.
        cosine: Cosine similarity of its input embedding with the vector, -1 to 1.
    """

    token_id: int
    text: str
    cosine: float


def visible_text(text: str) -> str:
    r"""Return text in which spaces at the ends show as `␣`, and control and format characters as `\\uXXXX`.

    Example:
        >>> visible_text(" River\n")
        '␣River\\u000a'
    """
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    shown = "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else char
        for char in inner
    )
    return "␣" * left + shown + "␣" * (len(text) - left - len(inner) if inner else 0)


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return the visible text of one token; one that is no whole character is shown as the tokenizer writes it."""
    if token_id >= len(tokenizer):
        return f"<unused {token_id}>"  # embedding tables are often longer than their vocabulary
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    if not text or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token_id))
    return visible_text(text)


@torch.no_grad()
def nearest_tokens(model: ALLMRecModel, tokenizer: Any, vectors: Tensor, top_k: int = 5) -> list[list[NearToken]]:
    """Return the tokens nearest to projected vectors by cosine in the LLM's input embedding space, nearest first.

    Args:
        model: The model with its LLM.
        tokenizer: The LLM's tokenizer.
        vectors: `(n, d_llm)` projected vectors.
        top_k: Tokens for each; equal cosines in the order of their ids.
    """
    width = model.config.llm_dim
    if top_k < 1 or vectors.ndim != 2 or vectors.shape[1] != width:
        raise ALLMRecError(
            f"nearest tokens need vectors (n, d_llm = {width}) and top_k >= 1; got {tuple(vectors.shape)} and {top_k}"
        )
    if not vectors.isfinite().all():
        raise ALLMRecError(
            f"{int((~vectors.isfinite()).any(dim=1).sum())} of {len(vectors)} projected vectors hold numbers that are "
            "not finite; the projectors' training has diverged"
        )
    directions = F.normalize(vectors.float(), dim=-1)
    # A slice of the vocabulary at a time: a whole table in fp32 may be as large as the LLM.
    cosines = torch.cat(
        [directions @ F.normalize(part.float(), dim=-1).T for part in token_vectors(model.language_model, SLICE)],
        dim=-1,
    )  # (n, V)
    order = cosines.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    return [
        [NearToken(token, token_text(tokenizer, token), float(row[token])) for token in tokens]
        for row, tokens in zip(cosines, order.tolist(), strict=True)
    ]
