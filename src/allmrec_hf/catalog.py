"""The item catalogue: ids, titles and descriptions, and the index of each item in every table of the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from .errors import CheckpointError, DataError
from .files import PARQUET_ERRORS, check_rows, written_whole
from .indices import checked_index
from .item_rows import ItemRows, fitted
from .values import as_frame, id_text, id_texts, plain_texts, present_texts, records_frame, storable, text_values

CATALOG_FILE = "items.parquet"
REQUIRED_COLUMNS = ("item_id", "title", "description")
TEXT_COLUMNS = ("title", "description")
MOST_PARTS = 64  # frames that a catalogue is made of, before those of added items become one


class ItemCatalog:
    """Item ids, titles and descriptions in a fixed order; item `i` of `1..N` is row `i - 1`, index 0 is padding.

    Args:
        items: A frame of Polars or pandas with `item_id` (unique; text or numbers, spelt by `values.id_text`), `title`
            and `description` (text or lists of text; null, NaN, blank and `values.NULL_WORDS` are missing); any further
            column is kept. A missing `title` or `description` column counts as all null.
        saved: The frame was written by a catalogue, so ids and texts are taken as they stand.

    Raises:
        DataError: when `item_id` is missing, null or not unique, or a column has a wrong type.

    Example:
        >>> catalog = ItemCatalog.from_records([{"item_id": "B1", "title": "Lost Harbor"}, {"item_id": "B2"}])
        >>> catalog.indices(["B2", "B1"]), catalog.title(1), catalog.title(2)
        ([2, 1], 'Lost Harbor', 'Untitled item B2')
    """

    def __init__(self, items: Any, saved: bool = False) -> None:
        items = as_frame(items, "the catalogue")
        if "item_id" not in items.columns:
            raise DataError(f"the catalogue has no column item_id; its columns are {items.columns}")
        items = items.with_columns(
            pl.lit(None, dtype=pl.String).alias(name) for name in TEXT_COLUMNS if name not in items.columns
        )
        items = items.with_columns(_columns(items, saved))
        if items["item_id"].null_count():
            raise DataError(f"the catalogue has {items['item_id'].null_count()} rows without item_id")
        frame = items.select(*REQUIRED_COLUMNS, pl.exclude(*REQUIRED_COLUMNS))
        if frame["item_id"].n_unique() != len(frame):
            duplicated = items["item_id"].filter(items["item_id"].is_duplicated()).unique(maintain_order=True)
            raise DataError(
                f"the catalogue holds {len(duplicated)} item ids more than once, first {duplicated.head(5).to_list()}; "
                "keep one row for each item_id"
            )
        frame = frame.with_columns(storable(column) for column in frame.iter_columns())
        rows = ItemRows()
        rows.append(frame)
        self._hold(rows, [frame], dict(frame.schema))

    def _hold(self, rows: ItemRows, parts: list[pl.DataFrame], schema: dict[str, Any]) -> None:
        """Take rows, of which those that are there now are this catalogue's, and the frames that they came in."""
        self._rows = rows
        self._count = len(rows)
        self._parts = parts
        self._schema = schema  # of the parts together
        self._item_ids: list[str] | None = None

    @property
    def frame(self) -> pl.DataFrame:
        """All columns of all items: `item_id`, `title`, `description`, then the further ones."""
        if len(self._parts) > 1:
            self._parts = [pl.concat(self._parts, how="diagonal_relaxed", rechunk=True)]
        return self._parts[0]

    @property
    def item_ids(self) -> list[str]:
        """The item ids in their order; the id of item `i` stands at `i - 1`."""
        if self._item_ids is None:
            self._item_ids = self._rows.ids[: self._count]
        return self._item_ids

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> ItemCatalog:
        """Build a catalogue from mappings with `item_id` and, where known, `title` and `description`."""
        return cls(records_frame(records, ("item_id",), TEXT_COLUMNS))

    def __len__(self) -> int:
        """Return N, the number of items (the padding index is not counted)."""
        return self._count

    def __contains__(self, item_id: object) -> bool:
        return self.index(item_id) is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> ItemCatalog:
        return self  # configs and processors are deep-copied to be printed; the catalogue is never changed in place

    def index(self, item_id: Any) -> int | None:
        """Return the index of an item id in `1..N`, or None where it is unknown.

        The id may be text or a number, and is spelt as the catalogue spells ids: 7, 7.0, "7" and " 7 " are one id.
        """
        row = self._rows.row_of(item_id, self._count) if isinstance(item_id, str) else None
        if row is not None:
            return row + 1
        try:
            spelt = id_text(item_id)
        except DataError:  # a truth value or a list is no id of any catalogue
            return None
        row = None if spelt is None else self._rows.row_of(spelt, self._count)
        return None if row is None else row + 1

    def indices(self, item_ids: Sequence[Any]) -> list[int]:
        """Return the indices of item ids, in their order.

        Raises:
            DataError: when ids are unknown; the message counts them and names the first five.
        """
        found = [self.index(item_id) for item_id in item_ids]
        unknown = [item_id for item_id, index in zip(item_ids, found, strict=True) if index is None]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(item_ids)} item ids are not in the catalogue of {len(self)} items: "
                f"{unknown[:5]}"
            )
        return [index for index in found if index is not None]

    def find_title(self, title: str) -> list[int]:
        """Return the indices of all items with this title; case and white space do not count.

        An index of the titles is made when one is first looked for.
        """
        return [row + 1 for row in self._rows.titled(title, self._count)]

    def _row(self, index: int) -> int:
        return checked_index(index, self._count) - 1

    def item_id(self, index: int) -> str:
        """Return the item id at an index of `1..N`; this and the next three raise a `DataError` for any other index."""
        return self._rows.ids[self._row(index)]

    def has_title(self, index: int) -> bool:
        """Tell whether the item has a title of its own."""
        return self._rows.titles[self._row(index)] is not None

    def title(self, index: int) -> str:
        """Return the title, or `Untitled item <item_id>`, which no two items share, where there is none."""
        row = self._row(index)
        return self._rows.titles[row] or f"Untitled item {self._rows.ids[row]}"

    def own_words(self, index: int) -> tuple[str | None, str | None]:
        """Return title and description as the catalogue has them, None where one is missing."""
        row = self._row(index)
        return self._rows.titles[row], self._rows.descriptions[row]

    def text(self, index: int) -> str:
        """Return the text that stands for an item in the text encoder: `"Title, Description"` (paper, section 4.1).

        An item without a description keeps its title, and one without a title its description; `""` without both.
        """
        return ", ".join(text for text in self.own_words(index) if text)

    def texts(self) -> list[str]:
        """Return `text` of every item, in index order `1..N`."""
        return [self.text(index) for index in range(1, len(self) + 1)]

    def extended(self, records: Iterable[Mapping[str, Any]]) -> ItemCatalog:
        """Return a new catalogue with further items at the end; existing indices stay.

        Titles and descriptions are cleaned as those of prepared data are, see `values.plain_texts`. A further column
        gets the type that it has in this catalogue; one that either side lacks is null there. The time it takes does
        not depend on how many items are there already.

        Raises:
            DataError: when an item id is missing or known already, or values of a further column cannot be of the type
                that it has in this catalogue.
        """
        added = ItemCatalog.from_records(records)
        added = ItemCatalog(added.frame.with_columns(plain_texts(added.frame[name]) for name in TEXT_COLUMNS), True)
        known = [item_id for item_id in added.item_ids if item_id in self]
        if known:
            raise DataError(f"{len(known)} item ids are in the catalogue already: {known[:5]}")
        new = fitted(added.frame, self._schema)
        rows = self._rows if len(self._rows) == self._count else self._rows.first(self._count)
        rows.append(new)
        parts = [*self._parts, new]
        if len(parts) > MOST_PARTS:
            parts = [parts[0], pl.concat(parts[1:], how="diagonal_relaxed")]
        grown = ItemCatalog.__new__(ItemCatalog)
        grown._hold(
            rows, parts, {**new.schema, **{name: kind for name, kind in self._schema.items() if kind != pl.Null}}
        )
        return grown

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the catalogue to `items.parquet` in a folder, whole or not at all, and return the path."""
        path = Path(directory) / CATALOG_FILE
        with written_whole(path) as temporary:
            self.frame.write_parquet(temporary)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ItemCatalog:
        """Read a catalogue from `items.parquet`, given as the file or its folder.

        Raises:
            CheckpointError: when the file is missing or no readable parquet file.
            DataError: when it holds no catalogue.
        """
        path = Path(path)
        path = path / CATALOG_FILE if path.is_dir() else path
        try:
            check_rows(path)
            frame = pl.read_parquet(path)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"no catalogue at {path}; a checkpoint or data folder holds {CATALOG_FILE}"
            ) from error
        except PARQUET_ERRORS as error:
            raise CheckpointError(
                f"{path} is no readable parquet file of items (item_id, title, description); it is truncated or "
                "damaged: write or download it again"
            ) from error
        try:
            return cls(frame, saved=True)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _columns(items: pl.DataFrame, saved: bool) -> list[pl.Series]:
    """Return ids, titles and descriptions as text, null where missing."""
    try:
        ids = items["item_id"].cast(pl.String) if saved else id_texts(items["item_id"])
        texts = [text_values(items[name]) for name in TEXT_COLUMNS]
    except DataError as error:
        raise DataError(f"the catalogue: {error}") from error
    return [ids, *(present_texts(text, words=not saved) for text in texts)]
