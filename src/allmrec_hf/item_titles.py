"""The titles of items as prompts hold them: harmless, and where a limit of tokens is set as short as it allows."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from .caches import BoundedCache
from .catalog import ItemCatalog
from .prompt import ForbiddenTexts, clean_title

CACHED_TITLES = 2**16  # of each form


class LengthLimit(NamedTuple):
    """The most tokens of a title, and what counts those of a text."""

    tokens: int
    count: Callable[[str], int]


class ItemTitles:
    """The titles of a catalogue; each form of one is made when it is first asked for, and kept.

    Args:
        catalog: The items.
        forbidden: What a title must not hold, see `clean_title`.
        max_characters: Longer titles are cut.
        limit: Titles of more tokens are cut behind a word; not where None.
    """

    def __init__(
        self, catalog: ItemCatalog, forbidden: ForbiddenTexts, max_characters: int, limit: LengthLimit | None
    ) -> None:
        self._catalog = catalog
        self._forbidden = forbidden
        self._max_characters = max_characters
        self._limit = limit
        self._whole = BoundedCache(CACHED_TITLES)
        self._short = BoundedCache(CACHED_TITLES)
        self._distinct = BoundedCache(CACHED_TITLES)
        self._sorted: list[str] | None = None

    def __len__(self) -> int:
        """Return how many whole titles are kept."""
        return len(self._whole)

    def whole(self, index: int) -> str:
        """Return the harmless form of an item's title."""
        found = self._whole.get(index)
        if found is None:
            found = clean_title(self._catalog.title(index), self._forbidden, self._max_characters)
            found = found or clean_title(f"Untitled item {self._catalog.item_id(index)}", self._forbidden)
            self._whole.put(index, found)
        return str(found)

    def short(self, index: int) -> str:
        """Return it within the limit of tokens."""
        if self._limit is None:
            return self.whole(index)
        found = self._short.get(index)
        if found is None:
            found = _shortened(self.whole(index), self._limit)
            self._short.put(index, found)
        return str(found)

    def distinct(self, index: int) -> str:
        """Return it within the limit, or as much longer as tells it from every other title of the catalogue.

        Two items have the same only where their whole titles are the same.
        """
        if self._limit is None:
            return self.whole(index)
        found = self._distinct.get(index)
        if found is None:
            whole = self.whole(index)
            found = self.short(index)
            for end in _word_ends(whole):
                if not self._begins_another(found, whole):
                    break
                found = whole[:end] if end > len(found) else found
            self._distinct.put(index, found)
        return str(found)

    def _begins_another(self, text: str, whole: str) -> bool:
        """Tell whether a text is the beginning of a title of the catalogue other than `whole`."""
        if self._sorted is None:
            self._sorted = sorted({self.whole(index) for index in range(1, len(self._catalog) + 1)})
        first = bisect_left(self._sorted, text)
        return any(other.startswith(text) and other != whole for other in self._sorted[first : first + 2])


def _word_ends(title: str) -> list[int]:
    """Return the lengths of a title's beginnings that end behind a word, the whole title last."""
    return [match.end() for match in re.finditer(r"\S+", title)]


def _shortened(title: str, limit: LengthLimit) -> str:
    """Return the longest beginning of a title, up to the end of a word, that is within the limit."""

    def fits(text: str) -> bool:
        return limit.count(text) <= limit.tokens

    if fits(title):
        return title
    ends = [end for end in _word_ends(title) if fits(title[:end])]
    if ends:
        return title[: ends[-1]]
    least, most = 1, len(title)  # characters: a single word of many tokens
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(title[:middle]) else (least, middle - 1)
    return title[:least]
