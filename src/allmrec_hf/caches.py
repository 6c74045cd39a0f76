"""A cache that never holds more than a number of entries."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class BoundedCache:
    """Keep the results that were used last; where there are too many, the one not used for longest goes.

    Copies share it: processors are deep-copied to be printed and saved. It is pickled empty.

    Args:
        max_entries: How many results are kept at most.
    """

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        """Return how many results are kept."""
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> Any:
        """Return a result, or None where it is not kept."""
        try:
            self._entries.move_to_end(key)
            return self._entries[key]
        except KeyError:  # never kept, or another thread's results have pushed it out
            return None

    def put(self, key: Hashable, value: Any) -> Any:
        """Keep a result, which is not None, and return it."""
        self._entries[key] = value
        while len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)
        return value

    def clear(self) -> None:
        """Drop every result."""
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "BoundedCache":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundedCache, (self.max_entries,)
