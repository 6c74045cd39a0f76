"""Reading exercises that pretrain the tiny language model: the world's grammar in the words of the prompt.

Every document is the recommendation prompt with titles invented for the purpose. Where stage 2 will put vectors (in
front of `<bos>`, behind titles), a document has nothing, a word, or a mixture of up to 32 words; the mixtures are
drawn at random and carry no user, no interaction and no title of a catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from allmrec_hf.data.synthetic import TOPICS, invent_titles

MAX_BASIS = 32
KINDS = ("mixture", "tag", "topic_word", "history", "blend")


@dataclass
class Batch:
    """Right-padded documents, `(B, T)` each; `mixture (B, T, 32)` weighs `basis (B, 32)` words where `is_slot`."""

    input_ids: Tensor
    is_slot: Tensor
    mixture: Tensor
    basis: Tensor
    weights: Tensor


@dataclass
class Document:
    """One document under construction: token ids, their weights in the loss, and mixtures by position."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    slots: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    basis: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MAX_BASIS, dtype=np.int64))

    def text(self, ids: list[int], weight: float) -> None:
        """Append tokens that count `weight` in the loss."""
        self.ids += ids
        self.weights += [weight] * len(ids)

    def slot(self, coefficients: NDArray[np.float64] | None) -> None:
        """Append a mixture of the document's basis words, `(32,)`; nothing for `None`."""
        if coefficients is not None:
            self.slots[len(self.ids)] = coefficients
            self.ids.append(0)
            self.weights.append(0.0)


class ExerciseWriter:
    """Draws documents of the pretraining corpus.

    Args:
        tokenizer: The world's tokenizer.
        seed: Draws the titles and the documents.
        exclude: Titles that must not come up.
        num_titles: Invented titles; they recur, in ever new lists.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, exclude: frozenset[str], num_titles: int = 12000
    ) -> None:
        self.generator = np.random.default_rng([seed, 7])
        titles, self.topics = invent_titles(num_titles, self.generator, exclude=exclude)
        self.titles = [tokenizer(title, add_special_tokens=False)["input_ids"] for title in titles]
        self.by_topic = [np.flatnonzero(self.topics == topic) for topic in range(len(TOPICS))]
        self.topic_words = np.array(tokenizer.convert_tokens_to_ids([topic.name for topic in TOPICS]))
        self.words = np.arange(4, len(tokenizer))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        self.quote, self.comma = ids('"')[0], ids(",")[0]
        self.start = ids("is a user representation.")
        self.history = ids("This user has watched")
        self.previous = ids("in the previous.")
        self.request = ids("Recommend one next movie for this user to watch next from the following movie title set,")
        self.answer = ids(". The recommendation is")
        self.again = ids("The recommendation is")

    def batch(
        self, num_tokens: int, num_candidates: int, longest_history: int, num_questions: int, shares: Sequence[float]
    ) -> Batch:
        """Return documents of about `num_tokens` tokens together."""
        documents: list[Document] = []
        while sum(len(document.ids) for document in documents) < num_tokens:
            kind = KINDS[self.generator.choice(len(KINDS), p=shares)]
            documents.append(self.document(kind, num_candidates, longest_history, num_questions))
        return stack(documents)

    def document(self, kind: str, num_candidates: int, longest_history: int, num_questions: int) -> Document:
        """Return one document: watched titles, a list of candidates, then questions about it with their answers."""
        rng = self.generator
        document = Document()
        watched_topics = self._chain(int(rng.integers(len(TOPICS))), longest_history)
        candidates, topics = self._candidates(num_candidates, kind, int(watched_topics[-1]))
        size = self._basis(document, kind, num_candidates)
        carried = self._carried(kind, size, num_candidates, topics)  # (C, 32) or None
        asked = [self._question(kind, size, carried, topics) for _ in range(num_questions)]
        if kind == "history":  # each question has its own history
            asked[0] = (None, int(np.flatnonzero(topics == watched_topics[-1])[0]))
        document.slot(asked[0][0])
        document.text([self.bos, *self.start], 0.0)
        self._watched(document, watched_topics, size if carried is not None else 0)
        document.text(self.request, 0.0)
        for i, title in enumerate(candidates):
            self._title(document, title, i > 0, None if carried is None else carried[i])
        for i, (query, target) in enumerate(asked):
            if i:
                document.slot(query)
                document.text([self.bos, *self.start], 0.0)
                if kind == "history":
                    self._watched(document, self._chain(int(topics[target]), longest_history), 0)
                document.text(self.again, 0.0)
            else:
                document.text(self.answer, 0.0)
            document.text([self.quote], 0.0)
            document.text([*candidates[target], self.quote, self.eos], 1.0)
        return document

    def _watched(self, document: Document, topics: NDArray[np.int64], size: int) -> None:
        """Append "This user has watched ... in the previous."; behind most titles a mixture of `size` basis words."""
        rng = self.generator
        document.text(self.history, 0.0)
        for i, topic in enumerate(topics):
            tag = None if size == 0 or rng.random() < 0.1 else self._coefficients(size)
            self._title(document, self.titles[rng.choice(self.by_topic[topic])], i > 0, tag)
        document.text(self.previous, 0.0)

    def _title(self, document: Document, title: list[int], comma: bool, tag: NDArray[np.float64] | None) -> None:
        document.text([self.comma, self.quote] if comma else [self.quote], 0.0)
        document.text([*title, self.quote], 0.1)
        document.slot(tag)

    def _chain(self, last: int, longest: int) -> NDArray[np.int64]:
        """Return the topics of a history that ends in topic `last`; most steps (65 %) stay in the topic."""
        rng = self.generator
        topics = np.full(int(rng.integers(1, longest + 1)), last)
        for i in range(len(topics) - 2, -1, -1):
            topics[i] = topics[i + 1] if rng.random() < 0.65 else rng.integers(len(TOPICS))
        return topics

    def _candidates(self, count: int, kind: str, topic: int) -> tuple[list[list[int]], NDArray[np.int64]]:
        rng = self.generator
        if kind in ("topic_word", "history"):
            topics = rng.permutation(len(TOPICS))[np.arange(count) % len(TOPICS)]
            if topic not in topics:
                topics[rng.integers(count)] = topic
        else:
            topics = rng.integers(len(TOPICS), size=count)
        return [self.titles[rng.choice(self.by_topic[t])] for t in topics], topics

    def _basis(self, document: Document, kind: str, num_candidates: int) -> int:
        rng = self.generator
        document.basis[:] = rng.choice(self.words, MAX_BASIS, replace=False)
        if kind in ("topic_word", "blend") or (kind == "mixture" and rng.random() < 0.7):
            document.basis[:] = self.topic_words
        if kind == "tag":
            return min(num_candidates, MAX_BASIS)
        return int(rng.integers(2, MAX_BASIS + 1)) if kind == "mixture" else MAX_BASIS

    def _carried(
        self, kind: str, size: int, num_candidates: int, topics: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        if kind in ("topic_word", "history"):
            return None
        if kind == "tag":
            return np.eye(MAX_BASIS)[self.generator.permutation(size)[np.arange(num_candidates) % size]]
        noise = np.stack([self._coefficients(size) for _ in range(num_candidates)])
        return _unit(0.7 * np.eye(MAX_BASIS)[topics] + noise) if kind == "blend" else noise

    def _question(
        self, kind: str, size: int, carried: NDArray[np.float64] | None, topics: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64] | None, int]:
        """Return what stands for the user, and the candidate that fits it best (drawn: better ones more often)."""
        rng = self.generator
        if carried is None:
            target = int(rng.integers(len(topics)))
            return None if kind == "history" else np.eye(MAX_BASIS)[topics[target]], target
        if kind == "tag":
            target = int(rng.integers(len(carried)))
            return carried[target], target
        query = self._coefficients(size)
        if rng.random() < 0.7:  # a user is rarely indifferent to every candidate
            query = _unit(query + rng.uniform(0.3, 1.5) * carried[rng.integers(len(carried))])
        return query, int((carried @ query + 0.05 * rng.gumbel(size=len(carried))).argmax())

    def _coefficients(self, size: int) -> NDArray[np.float64]:
        vector = np.zeros(MAX_BASIS)
        vector[:size] = self.generator.normal(size=size)
        return _unit(vector)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def stack(documents: list[Document]) -> Batch:
    """Return documents side by side, padded on the right."""
    longest = max(len(document.ids) for document in documents)
    shape = (len(documents), longest)
    ids, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    is_slot, mixture = np.zeros(shape, dtype=bool), np.zeros((*shape, MAX_BASIS), dtype=np.float32)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = document.ids
        weights[row, : len(document.weights)] = document.weights
        for position, coefficients in document.slots.items():
            is_slot[row, position] = True
            mixture[row, position] = coefficients
    basis = np.stack([document.basis for document in documents])
    return Batch(*(torch.from_numpy(array) for array in (ids, is_slot, mixture, basis, weights)))
