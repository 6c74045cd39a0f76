"""Load the text encoder of stage 1."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError
from ..part_sources import TEXT_ENCODER_PART, located, one_line, require_found


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
    except Exception as error:  # of any class: tokenizers raises plain `Exception`
        raise CheckpointError(
            f"the text encoder {name!r} cannot be loaded: {one_line(error)}; --text-encoder takes a "
            "sentence-transformers id or folder"
        ) from error


def text_dim(text_encoder: Any) -> int:
    """Return d_text; sentence-transformers 6 renamed the method."""
    ask = getattr(text_encoder, "get_embedding_dimension", None) or text_encoder.get_sentence_embedding_dimension
    return int(ask())
