"""Indexes of item vectors on disk, by FAISS and by usearch, and the search in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ..catalog import ItemCatalog
from ..errors import ALLMRecError, DataError
from .export_record import RECORD_FILE, exported_file, read_record
from .item_vectors import RankedUsers, VectorTable, missing_package
from .rank_parity import LEAST_OVERLAP

ITEMS_FILE = "items.parquet"
FIRST_EXPANSION = 64  # candidates that a search in usearch's graph keeps; doubled until it finds what it should
ENOUGH_EXPANSION = 1024


class ItemIndex(ABC):
    """An index of item vectors; its keys are catalogue indices.

    Args:
        index: The library's own index.
        num_items: N.
    """

    format: str
    suffix: str

    def __init__(self, index: Any, num_items: int) -> None:
        self.index = index
        self.num_items = num_items

    @classmethod
    @abstractmethod
    def built(cls, table: VectorTable, users: RankedUsers) -> ItemIndex:
        """Return an index of the vectors of a table; an approximate one is set so that it finds what users need."""

    @classmethod
    @abstractmethod
    def opened(cls, path: Path, part: dict[str, Any]) -> ItemIndex:
        """Return the index of a file, and of what the export's record says of it."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the index to a file."""

    @abstractmethod
    def found(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return catalogue indices and scores `(B, count)` for users `(B, d)`, best first; 0 where there are fewer."""

    def settings(self) -> dict[str, Any]:
        """Return what the record says of the index."""
        return {"num_items": self.num_items}

    def search(self, vectors: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best items and their scores, both `(B, k)`; 0 and `-inf` where there are fewer.

        As many more are looked for as could be excluded.

        Args:
            vectors: `(B, d)` users' vectors.
            k: Number of items.
            exclude: `(B, E)` catalogue indices never to return; 0 excludes nothing.
        """
        unwanted = torch.zeros(len(vectors), 1, dtype=torch.long) if exclude is None else exclude.cpu()
        most = int((unwanted > 0).sum(dim=1).max()) if len(unwanted) else 0
        array = np.ascontiguousarray(vectors.detach().cpu().float().numpy())
        keys, values = self.found(array, min(k + most, self.num_items))
        items, scores = torch.from_numpy(keys), torch.from_numpy(values)
        gone = (items == 0) | (items.unsqueeze(2) == unwanted.unsqueeze(1)).any(dim=2)
        scores, order = scores.masked_fill(gone, float("-inf")).sort(dim=1, descending=True, stable=True)
        items = items.gather(1, order).masked_fill(scores == float("-inf"), 0)
        return items[:, :k], scores[:, :k]


class FaissFlat(ItemIndex):
    """An exact index of FAISS: `IndexFlatIP` in an `IndexIDMap2`."""

    format = "faiss"
    suffix = ".faiss"

    @classmethod
    def built(cls, table: VectorTable, users: RankedUsers) -> FaissFlat:
        """Return an index of the vectors of a table."""
        faiss = _imported("faiss")
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(table.width))
        index.add_with_ids(table.vectors, np.arange(1, len(table) + 1, dtype=np.int64))
        return cls(index, len(table))

    @classmethod
    def opened(cls, path: Path, part: dict[str, Any]) -> FaissFlat:
        """Return the index of a file."""
        index = _imported("faiss").read_index(str(path))
        return cls(index, int(index.ntotal))

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        _imported("faiss").write_index(self.index, str(path))

    def found(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items with the largest dot products."""
        scores, keys = self.index.search(vectors, count)
        return np.maximum(keys, 0), scores  # FAISS marks what it did not find by -1


class UsearchGraph(ItemIndex):
    """An index of usearch, a graph (HNSW) for the inner product, which searches approximately."""

    format = "usearch"
    suffix = ".usearch"

    @classmethod
    def built(cls, table: VectorTable, users: RankedUsers) -> UsearchGraph:
        """Return an index of the vectors of a table; added by one thread, so that the same table gives the same.

        The expansion of its searches is doubled until they find all that they should, or look at enough: 1,024 items
        where that passes the gate, else the whole table.
        """
        index = _imported("usearch.index").Index(
            ndim=table.width, metric="ip", dtype="f32", connectivity=32, expansion_add=256
        )
        index.add(np.arange(1, len(table) + 1, dtype=np.uint64), table.vectors, threads=1)
        index.expansion_search = FIRST_EXPANSION
        found = cls(index, len(table))
        while index.expansion_search < len(table):
            items, _ = found.search(users.vectors, users.expected.shape[1], users.users.seen_ids)
            overlap = users.parity(items).overlap
            if overlap == 1 or (overlap >= LEAST_OVERLAP and index.expansion_search >= ENOUGH_EXPANSION):
                break
            index.expansion_search = min(2 * index.expansion_search, len(table))
        return found

    @classmethod
    def opened(cls, path: Path, part: dict[str, Any]) -> UsearchGraph:
        """Return the index of a file, with the expansion of the record."""
        index = _imported("usearch.index").Index.restore(str(path))
        if index is None:
            raise DataError(f"{path} is no index of usearch; export it again")
        index.expansion_search = int(part["expansion_search"])
        return cls(index, len(index))

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        self.index.save(str(path))

    def settings(self) -> dict[str, Any]:
        """Return what the record says: the expansion, which a program that opens the file has to set."""
        return {**super().settings(), "expansion_search": int(self.index.expansion_search)}

    def found(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items with the largest dot products that the graph leads to."""
        matches = self.index.search(vectors, count, threads=1)
        keys = np.asarray(matches.keys).reshape(len(vectors), -1)
        distances = np.asarray(matches.distances).reshape(len(vectors), -1)  # 1 - dot product
        counts = np.asarray(getattr(matches, "counts", np.full(len(vectors), keys.shape[1]))).reshape(-1, 1)
        missing = np.arange(keys.shape[1]) >= counts
        return np.where(missing, 0, keys).astype(np.int64), np.where(missing, -np.inf, 1 - distances).astype(np.float32)


INDEXES: dict[str, type[ItemIndex]] = {kind.format: kind for kind in (FaissFlat, UsearchGraph)}


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package({"faiss": "faiss-cpu"}.get(name, "usearch"), "vectors", error) from error


def write_index(kind: type[ItemIndex], folder: Path, table: VectorTable, users: RankedUsers) -> dict[str, Any]:
    """Write the index of one ranker, check what a program finds in the file, and return its part of the record.

    Raises:
        ALLMRecError: when the file does not find our best items, or the library is not installed.
    """
    name = f"{table.name}{kind.suffix}"
    index = kind.built(table, users)
    part = {"name": table.name, "file": name, "width": table.width, "metric": "inner product", **index.settings()}
    index.write(folder / name)
    items, _ = kind.opened(folder / name, part).search(users.vectors, users.expected.shape[1], users.users.seen_ids)
    return {**part, "gate": users.parity(items).require(f"{kind.format} index of the ranker {table.name}")}


def write_items(folder: Path, catalog: ItemCatalog) -> None:
    """Write the ids and titles of all items by their catalogue index, which is what an index finds."""
    indices = range(1, len(catalog) + 1)
    titles = [catalog.title(index) for index in indices]
    frame = pl.DataFrame(
        {"item_index": pl.Series(indices, dtype=pl.Int64), "item_id": catalog.item_ids, "title": titles}
    )
    frame.write_parquet(folder / ITEMS_FILE)


class ExportedIndex:
    """The index that `allmrec export --format faiss` or `usearch` wrote, and the ids of its items.

    Args:
        folder: The folder of the export.
        ranker: `cf` or `retrieval`; the only one where there is one.

    Raises:
        ALLMRecError: when the folder holds no such index, or the library is not installed.

    Example:
        >>> from pathlib import Path
        >>> if Path("exports/games-faiss").is_dir():  # what `allmrec export --format faiss` wrote
        ...     index = ExportedIndex("exports/games-faiss", "cf")
        ...     users = model.encode_users(history_ids, history_mask)  # (B, d_cf)
        ...     index.recommend(users, top_k=10, exclude=[["B0001", "B0002"]])
    """

    def __init__(self, folder: str | Path, ranker: str | None = None) -> None:
        folder = Path(folder)
        record = read_record(folder)
        if record["format"] not in INDEXES:
            raise ALLMRecError(f"{folder} is an export for {record['format']}, not an index; see its {RECORD_FILE}")
        parts = {part.get("name"): part for part in record["parts"]}
        ranker = ranker or next(iter(parts), None)
        if ranker not in parts:
            raise ALLMRecError(f"{folder} has no index of the ranker {ranker!r}; it has {', '.join(map(str, parts))}")
        self.part = parts[ranker]
        try:
            file, self._width = str(self.part["file"]), int(self.part["width"])
            self.index = INDEXES[record["format"]].opened(exported_file(folder, record, file), self.part)
            items = pl.read_parquet(exported_file(folder, record, ITEMS_FILE))
        except ALLMRecError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise ALLMRecError(f"{folder} cannot be read ({error!r}); export it again") from error
        self._ids, self._titles = items["item_id"].to_list(), items["title"].to_list()
        self._rows = {item_id: row for row, item_id in enumerate(self._ids, 1)}

    def recommend(
        self, vectors: Tensor, top_k: int = 10, exclude: Sequence[Sequence[str]] | None = None
    ) -> list[list[dict[str, Any]]]:
        """Return the best items of users, as `pipeline("recommendation")` returns them.

        Args:
            vectors: `(B, d)` users' vectors: user representations for `cf`, those of the ranker for `retrieval`.
            top_k: Items for each.
            exclude: Ids of items never to return, for each user; unknown ones exclude nothing.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._width:
            raise DataError(
                f"the index of the ranker {self.part['name']} needs users (B, {self._width}), got "
                f"{tuple(vectors.shape)}"
            )
        rows = [[self._rows.get(str(item_id), 0) for item_id in row] for row in exclude or [[]] * len(vectors)]
        if len(rows) != len(vectors):
            raise DataError(f"there are {len(vectors)} users but {len(rows)} lists to exclude; give one each")
        width = max((len(row) for row in rows), default=0) or 1
        unwanted = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
        items, scores = self.index.search(vectors, top_k, unwanted.view(len(vectors), width))
        return [
            [
                {"item_id": self._ids[item - 1], "title": self._titles[item - 1], "score": score, "rank": rank}
                for rank, (item, score) in enumerate(zip(row, values, strict=True), 1)
                if item
            ]
            for row, values in zip(items.tolist(), scores.tolist(), strict=True)
        ]
