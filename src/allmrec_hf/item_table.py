"""The item table of a checkpoint: joint embeddings and interaction counts beside the CF embeddings."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .errors import ALLMRecError
from .growing_table import appended
from .item_words import ItemWords
from .text_space import ROWS_AT_ONCE, TextSpace


class ItemTable(nn.Module):
    """The joint embedding and interaction count of every item, so that inference needs no text encoder.

    Buffers: `text_joint_embeddings (N + 1, d_joint)` `q_i`, and `interaction_counts (N + 1,)` how often each was a
    target in an epoch of the backbone's training; where `text_dim` is given, `text_directions (N + 1, d_text)`, the
    texts' directions in half precision, which the rankers `text` and `fusion` read. Row 0 is padding. Where `num_words`
    is given, `words` holds the texts' words, which the rankers `words` and `fusion` read.

    Args:
        num_items: N.
        joint_dim: d_joint.
        text_dim: d_text, where text embeddings are kept.
        whitened: Whether those are brought into a `TextSpace`, which is kept too, for items that are added.
        num_words: How many words the vocabulary has, where words are kept.
    """

    text_joint_embeddings: torch.Tensor
    interaction_counts: torch.Tensor
    text_directions: torch.Tensor | None

    def __init__(
        self,
        num_items: int,
        joint_dim: int,
        text_dim: int | None = None,
        whitened: bool = False,
        num_words: int | None = None,
    ) -> None:
        super().__init__()
        self.words = None if num_words is None else ItemWords(num_items, num_words)
        self.text_space = TextSpace(text_dim) if text_dim is not None and whitened else None
        kept = None if text_dim is None else torch.zeros(num_items + 1, text_dim, dtype=torch.float16)
        self.register_buffer("text_directions", kept)
        self.register_buffer("text_joint_embeddings", torch.zeros(num_items + 1, joint_dim))
        self.register_buffer("interaction_counts", torch.zeros(num_items + 1, dtype=torch.long))

    @torch.no_grad()
    def keep_texts(self, text_embeddings: torch.Tensor, whitening: float | None) -> None:
        """Keep the directions of texts, in a space fitted on items that the backbone was trained on.

        Args:
            text_embeddings: `(N + 1, d_text)`, row 0 padding.
            whitening: See `TextSpace.fit`; None for the embeddings as they are.
        """
        device, text_dim = self.interaction_counts.device, text_embeddings.shape[1]
        self.text_space = None
        if whitening is not None:
            self.text_space = TextSpace(text_dim).to(device)
            known = self.interaction_counts[1:] > 0
            self.text_space.fit(text_embeddings[1:], whitening, known if known.any() else None)
        self.text_directions = torch.zeros(len(text_embeddings), text_dim, dtype=torch.float16, device=device)
        for start in range(1, len(text_embeddings), ROWS_AT_ONCE):  # no second table of them in single precision
            rows = text_embeddings[start : start + ROWS_AT_ONCE].to(device)
            self.text_directions[start : start + len(rows)] = self._directions(rows)

    def _directions(self, text_embeddings: torch.Tensor) -> torch.Tensor:
        space = self.text_space
        return F.normalize(text_embeddings.float(), dim=-1) if space is None else space(text_embeddings)

    def keep_words(self, texts: Sequence[str]) -> int:
        """Keep the words of N texts, their rarity as of items that the backbone was trained on; return how many.

        Raises:
            ALLMRecError: when there are not N texts.
        """
        num_items = len(self.interaction_counts) - 1
        if len(texts) != num_items:
            raise ALLMRecError(f"there are {len(texts)} texts for {num_items} items; give one for each")
        known = (self.interaction_counts[1:] > 0).cpu().numpy()
        words = ItemWords.of(texts, known if known.any() else None)
        self.words = words.to(self.interaction_counts.device)
        return len(words.keys)

    def append(self, text_joint_embeddings: torch.Tensor, text_embeddings: torch.Tensor, texts: Sequence[str]) -> None:
        """Add items without interactions by `(k, d_joint)`, `(k, d_text)` and, for their words, k texts."""
        if self.words is not None:
            self.words.append(texts)
        if self.text_directions is not None:
            self.text_directions = appended(self.text_directions, self._directions(text_embeddings))
        self.text_joint_embeddings = appended(self.text_joint_embeddings, text_joint_embeddings)
        none = self.interaction_counts.new_zeros(len(text_joint_embeddings))
        self.interaction_counts = appended(self.interaction_counts, none)


@torch.no_grad()
def random_joint_embeddings(item_joint: torch.Tensor, known: torch.Tensor, seed: int) -> torch.Tensor:
    """Return random vectors of the scale of real joint embeddings, for the ablation `item_embedding="random"`.

    Each component is uniform, with the mean and the standard deviation that it has over the known items' `e_i`. Rows
    are drawn one after the other, so that an item added later gets a row and no other row changes.

    Args:
        item_joint: `(N + 1, d_joint)` `e_i`; only its known rows are read.
        known: `(N + 1,)` True for items that the backbone was trained on; where there are none, all items count.
        seed: The seed.

    Returns:
        `(N + 1, d_joint)` float32 on the CPU, row 0 zeros; made there in fp64, so that devices agree.
    """
    real, known = item_joint.cpu().double(), known.cpu()
    rows = real[known] if known.any() else real[1:]
    draws = torch.from_numpy(np.random.default_rng(seed).random(tuple(real.shape)))  # (N + 1, d_joint) in [0, 1)
    table = rows.mean(dim=0) + (draws - 0.5) * 12**0.5 * rows.std(dim=0, correction=0)
    table[0] = 0
    return table.float()
