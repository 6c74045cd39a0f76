"""Look up items by id or by title; an id is never read as a title, nor a title as an id."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .catalog import ItemCatalog
from .errors import DataError
from .prompt import clean_title
from .values import is_missing, value_text

Naming = Literal["id", "title"]
NAMED = 5  # entries that a message names
_OTHER: dict[Naming, str] = {
    "id": "is the title of {items}; what is meant by title goes into titles or candidate_titles (on the command line "
    "--titles, --item-title, --candidate-titles)",
    "title": "is the id of an item; what is meant by id goes into history or candidates (on the command line "
    "--history, --item, --candidates)",
}


@dataclass
class FoundItems:
    """The catalogue indices of a list of ids or titles.

    Attributes:
        indices: Catalogue indices of the entries that are known, in their order.
        unknown: The other entries, in their order.
        hints: What those are, where they are known by the other name.
        notes: Titles that several items share, and which of them was taken.
    """

    indices: list[int]
    unknown: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def named_unknown(self) -> str:
        """Return the first unknown entries for a message, and what they are."""
        return "; ".join([str(self.unknown[:NAMED]), *self.hints])


def find_items(catalog: ItemCatalog, entries: Sequence[Any], by: Naming) -> FoundItems:
    """Look items up by their id, or by their title.

    Args:
        catalog: The catalogue.
        entries: Ids, as text or numbers; or titles, in which case and white space do not count.
        by: What the entries are. An entry that is no id of the catalogue stays unknown, whatever titles there are.
    """
    found = FoundItems([])
    for entry in entries:
        index = catalog.index(entry) if by == "id" else _titled(catalog, entry, found.notes)
        if index is not None:
            found.indices.append(index)
            continue
        found.unknown.append(clean_title(str(entry)))
        if len(found.unknown) <= NAMED and not is_missing(entry):
            found.hints += _known_otherwise(catalog, entry, by)
    return found


def as_entries(value: Any, what: str) -> list[Any]:
    """Return a list of ids or titles from a list, a tuple, or a vector of NumPy, PyTorch, Polars or pandas.

    Raises:
        DataError: when it is something else; `what` names it.
    """
    if hasattr(value, "tolist") and getattr(value, "ndim", 1) == 1:
        return list(value.tolist())
    if hasattr(value, "to_list"):
        return list(value.to_list())
    if isinstance(value, (set, frozenset)):
        raise DataError(f"{what!r} must be a list of item ids or titles in their order; a set has none")
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or hasattr(value, "tolist"):
        raise DataError(f"{what!r} must be a list of item ids or titles; got {str(value)[:80]!r}")
    return list(value)


def _titled(catalog: ItemCatalog, entry: Any, notes: list[str]) -> int | None:
    title = None if is_missing(entry) or isinstance(entry, (list, tuple, dict, bool)) else value_text(entry)
    indices = catalog.find_title(title) if title else []
    if len(indices) > 1:
        ids = [catalog.item_id(index) for index in indices[:NAMED]]
        notes.append(f"{len(indices)} items are titled {clean_title(str(entry))!r}, took {ids[0]} of {ids}")
    return indices[0] if indices else None


def _known_otherwise(catalog: ItemCatalog, entry: Any, by: Naming) -> list[str]:
    """Return a sentence where an unknown id is a title, or an unknown title an id."""
    if by == "title":
        return [f"{clean_title(str(entry))!r} {_OTHER[by]}"] if catalog.index(entry) is not None else []
    if isinstance(entry, (list, tuple, dict, bool)):
        return []
    indices = catalog.find_title(value_text(entry) or "")
    if not indices:
        return []
    ids = [clean_title(catalog.item_id(index)) for index in indices[:NAMED]]
    return [f"{clean_title(str(entry))!r} {_OTHER[by].format(items='item ' + ', '.join(ids))}"]
