"""Baselines that every method must beat: popularity, and raw text embeddings alone."""

from __future__ import annotations

from typing import ClassVar

from ..data.prepared import PreparedData
from ..evaluation.rankers import PopularityRanker, TextCosineRanker
from .method import Method, Setting
from .model_selection import best_on_validation, grid_of
from .shared import stage_arguments, text_embeddings

LAST_ITEMS = (1, 2, 3, 5, 10, 20)


class Popularity(Method):
    """Rank by the interactions of the training part, the same for every user."""

    name = "popularity"
    seeded: ClassVar[bool] = False

    def fit(self, data: PreparedData, setting: Setting) -> PopularityRanker:
        """Count; there is nothing to train."""
        self.checked(setting)
        return PopularityRanker(data.item_counts("train"), name=self.name)


class TextCosine(Method):
    """Rank by the cosine between raw text embeddings; no interaction trains it.

    Its option `last_items` fixes how many of the latest history items count; otherwise it is selected on validation.
    """

    name = "text-cosine"
    options: ClassVar[tuple[str, ...]] = ("last_items",)

    def fit(self, data: PreparedData, setting: Setting) -> TextCosineRanker:
        """Embed the catalogue's texts and select the number of history items."""
        grid = grid_of(self.name, self.checked(setting), {"last_items": LAST_ITEMS})
        texts = text_embeddings(data, setting).cpu().numpy()
        rankers = [TextCosineRanker(texts, last_items, name=self.name) for last_items in grid["last_items"]]
        max_users = stage_arguments(setting, "backbone").max_validation_users
        return rankers[0] if len(rankers) == 1 else best_on_validation(rankers, data, max_users, setting.seed)
