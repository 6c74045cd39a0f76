"""The tiny text encoder of the invented film world: one vector per word, the mean of a text's words."""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from allmrec_hf.data.synthetic import TOPICS, description_vocabulary, invent_description, invent_title

DIMENSIONS = 64
NUM_TEXTS = 20_000


def build_text_encoder(seed: int) -> SentenceTransformer:
    """Return the encoder; words that stand in the same texts of the world get similar vectors.

    The vectors are the leading singular vectors of the positive pointwise mutual information between words that share
    one of 20,000 invented texts "Title, Description".

    Args:
        seed: Draws the texts.
    """
    words = ["[UNK]", *description_vocabulary()]
    index = {word: i for i, word in enumerate(words)}
    generator = np.random.default_rng([seed, 11])
    counts = np.zeros((NUM_TEXTS, len(words)), dtype=np.float32)
    for row in range(NUM_TEXTS):
        topic = int(generator.integers(len(TOPICS)))
        text = f"{invent_title(topic, generator)} {invent_description(topic, generator)}"
        for word in text.lower().replace(",", "").replace(".", "").split():
            counts[row, index[word]] = 1.0
    vectors = _word_vectors(counts)
    module = StaticEmbedding(_tokenizer(index), embedding_weights=torch.from_numpy(vectors))
    return SentenceTransformer(modules=[module], device="cpu")


def _word_vectors(counts: np.ndarray) -> np.ndarray:
    together = counts.T @ counts / len(counts)
    single = np.maximum(np.diag(together), 1e-9)
    information = np.log(np.maximum(together, 1e-9) / (single[:, None] * single[None, :]))
    information = np.maximum(information, 0.0) * (together > 0)
    left, values, _ = np.linalg.svd(information)
    vectors = left[:, :DIMENSIONS] * np.sqrt(values[:DIMENSIONS])
    vectors *= np.sign(vectors.sum(axis=0))  # the sign of a singular vector is arbitrary
    # Frequent words weigh less in the mean of a text.
    vectors *= (1e-2 / (1e-2 + single))[:, None]
    return np.ascontiguousarray(vectors / vectors.std(), dtype=np.float32)


def _tokenizer(index: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(index, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    return tokenizer
