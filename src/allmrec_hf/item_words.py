"""The words of item texts, weighted by how rare they are: what two texts share by letter and not by meaning.

A text embedding blurs names, models and sizes, which say most where a catalogue is narrow. The weight of a word in an
item is `(1 + ln count) * ln((n + 1) / (d + 1))` (Salton and Buckley, 1988), of the n items with interactions d with
that word, and d = 0 for one outside of the vocabulary. All weights of an item have length 1; then the words outside of
the vocabulary and those beyond the 64 heaviest are left out.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import regex
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .growing_table import appended

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")  # letters, their marks and digits of any script
MOST_WORDS = 2**16  # of a catalogue; the words of most items are kept
WORDS_OF_ITEM = 64  # those of most weight are kept
SMALLEST_RARITY = 1e-3


class ItemWords(nn.Module):
    """The heaviest words of every item, as places in a vocabulary of words that at least two items have.

    Buffers: `keys (V,)` sorted hashes of words, `rarities (V,)`, `rarest (1,)` that of a word which no item has,
    `places (N + 1, 64)` in the vocabulary and `weights (N + 1, 64)` in half precision, 0 where there are fewer words.
    Row 0 is padding.

    Args:
        num_items: N.
        num_words: V.
    """

    keys: Tensor
    rarities: Tensor
    rarest: Tensor
    places: Tensor
    weights: Tensor

    def __init__(self, num_items: int, num_words: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(num_words, dtype=torch.long))
        self.register_buffer("rarities", torch.zeros(num_words))
        self.register_buffer("rarest", torch.zeros(1))
        self.register_buffer("places", torch.zeros(num_items + 1, WORDS_OF_ITEM, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(num_items + 1, WORDS_OF_ITEM, dtype=torch.float16))

    @classmethod
    def of(cls, texts: Sequence[str], counted: np.ndarray | None = None) -> ItemWords:
        """Return the words of items.

        Args:
            texts: N texts in catalogue order.
            counted: `(N,)` True for items among which the rarity of a word is counted; None for all.
        """
        rows, keys, counts = _words(texts)
        vocabulary, place = np.unique(keys, return_inverse=True)
        items_with = np.bincount(place, minlength=len(vocabulary))
        common = np.argsort(-items_with, kind="stable")[:MOST_WORDS]
        kept = np.sort(common[items_with[common] > 1])
        among = np.ones(len(texts), dtype=bool) if counted is None else counted
        with_it = np.bincount(place[among[rows]], minlength=len(vocabulary))[kept]
        total = int(among.sum())
        words = cls(0, max(len(kept), 1))  # one that no text has, where no two items share any
        words.keys[: len(kept)] = torch.from_numpy(vocabulary[kept])
        words.rarities[: len(kept)] = torch.from_numpy(np.log((total + 1) / (with_it + 1)).clip(SMALLEST_RARITY))
        words.rarest = torch.tensor([max(np.log(total + 1), SMALLEST_RARITY)], dtype=torch.float32)
        words._append(len(texts), rows, keys, counts)
        return words

    def append(self, texts: Sequence[str]) -> None:
        """Add items by their texts; words outside of the vocabulary count for the length of a text alone."""
        self._append(len(texts), *_words(texts))

    def _append(self, num_items: int, rows: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> None:
        vocabulary, rarities = self.keys.cpu().numpy(), self.rarities.float().cpu().numpy()
        place = np.searchsorted(vocabulary, keys).clip(max=len(vocabulary) - 1)
        known = vocabulary[place] == keys
        weight = (1 + np.log(counts)) * np.where(known, rarities[place], self.rarest.item())
        lengths = np.sqrt(np.bincount(rows, weight**2, minlength=num_items))
        rows, place, weight = rows[known], place[known], (weight / lengths[rows])[known]
        order = np.lexsort((place, -weight, rows))
        rows, place, weight = rows[order], place[order], weight[order]
        column = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = column < WORDS_OF_ITEM
        places = np.zeros((num_items, WORDS_OF_ITEM), dtype=np.int32)
        weights = np.zeros((num_items, WORDS_OF_ITEM), dtype=np.float16)
        places[rows[kept], column[kept]], weights[rows[kept], column[kept]] = place[kept], weight[kept]
        self.places = appended(self.places, torch.from_numpy(places))
        self.weights = appended(self.weights, torch.from_numpy(weights))

    def profile(self, items: Sequence[int], shares: Tensor) -> Tensor:
        """Return `(V,)` the sum of the weights of items `(H,)`, each times its share `(H,)`."""
        rows = list(items)
        weights = self.weights[rows].float() * shares.unsqueeze(1)
        return weights.new_zeros(len(self.keys)).index_add_(0, self.places[rows].flatten(), weights.flatten())

    def score_rows(self, profiles: Tensor, rows: slice | Tensor) -> Tensor:
        """Return the products of profiles `(B, V)` with C items, the same for all: `(B, C)`."""
        by_word = profiles.T.contiguous()  # a word's row is read at once: 30 times as fast
        weights = self.weights[rows].to(profiles)
        return F.embedding_bag(self.places[rows], by_word, mode="sum", per_sample_weights=weights).T

    def score_items(self, profiles: Tensor, items: Tensor) -> Tensor:
        """Return the products of profiles `(B, V)` with items `(B, C)`, `(B, C)`."""
        found = profiles.gather(1, self.places[items].flatten(1).long()).view(*items.shape, WORDS_OF_ITEM)
        return (found * self.weights[items].to(found)).sum(dim=-1)


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an entry for each text and each of its words: the text's row, the word's hash, how often it stands."""
    keys, counts, lengths = array("q"), array("l"), []
    hashes: dict[str, int] = {}
    for text in texts:
        found = Counter(WORD.findall(text.lower()))
        for word in found:
            if word not in hashes:
                hashes[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big", signed=True)
        keys.extend(hashes[word] for word in found)
        counts.extend(found.values())
        lengths.append(len(found))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.array(keys, dtype=np.int64), np.array(counts, dtype=np.int64)
