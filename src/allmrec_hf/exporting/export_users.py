"""The real users of an export: of a file, of prepared data, or of the demo's world."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..batch_inference.users_file import UsersFile
from ..catalog import ItemCatalog
from ..data.prepared import INFO_FILE, PreparedData
from ..errors import DataError
from ..item_lookup import Naming, as_entries, find_items
from ..part_sources import CHECKPOINT_PART, DEMO, recorded
from ..values import id_text, is_missing

logger = logging.getLogger(__name__)

MOST_USERS = 1000
SEED = 0
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ExportUser:
    """One user of an export.

    Attributes:
        history: Catalogue indices in time order, at least one.
        candidates: Catalogue indices to rank; None where they are to be retrieved.
        user_id: What the file or the data call the user, where they do.
    """

    history: list[int]
    candidates: list[int] | None = None
    user_id: str | None = None


class _Row(NamedTuple):
    """What a file or data say of a user: histories and candidates by id or by title, and where that stands."""

    where: str
    history: tuple[Naming, Sequence[Any]] | None
    candidates: tuple[Naming, Sequence[Any]] | None
    user_id: str | None


def export_users(
    catalog: ItemCatalog,
    model: str | Path,
    users: str | Path | None = None,
    data: str | Path | None = None,
    most: int = MOST_USERS,
) -> list[ExportUser]:
    """Return real users whose items the catalogue knows.

    Where neither a file nor data are given, they are those of the data inside the run folder (`data/`, which `allmrec
    demo` writes), or of the invented world of the demo.

    Args:
        catalog: The checkpoint's catalogue.
        model: Run folder, Hub id or `demo`.
        users: A parquet file or folder, or a file of JSON lines, with `history` (ids) or `titles`, and where the
            prompts of an export list them `candidates` or `candidate_titles`. Its first `most` users are taken; history
            items that the catalogue does not know are left out.
        data: A folder of prepared data; the histories before the users' test items.
        most: Users at most; of data a seeded sample.

    Raises:
        DataError: when there are no such users, the file or data cannot be read, or a candidate is unknown.
    """
    if users is not None and data is not None:
        raise DataError("--users and --data both name users; give one of them")
    rows: Iterable[_Row]
    if users is not None:
        source, rows = str(users), _rows_of_file(Path(users))
    elif data is not None or (Path(model) / "data" / INFO_FILE).is_file():
        source = str(data if data is not None else Path(model) / "data")
        rows = _rows_of_data(PreparedData.load(source), most)
    elif recorded(str(model), CHECKPOINT_PART) == DEMO:
        source, rows = "the demo's invented world", _rows_of_demo()
    else:
        raise DataError(
            "an export is checked on real users; give --users (a parquet file, or JSON lines, with a column history of "
            "item ids) or --data (the prepared data of the run)"
        )
    found, unknown = _known(catalog, rows, most)
    if unknown:
        logger.warning("%d history items of %s are not in the catalogue and are left out", unknown, source)
    if not found:
        raise DataError(
            f"{source} has no user with an item of this catalogue ({len(catalog)} items, such as "
            f"{catalog.item_ids[:3]}); give users of the data that the checkpoint was trained on"
        )
    return found


def _known(catalog: ItemCatalog, rows: Iterable[_Row], most: int) -> tuple[list[ExportUser], int]:
    """Return the first users who have a known item, and how many items of histories are unknown."""
    users, unknown = [], 0
    for row in rows:
        naming, entries = row.history or ("id", ())
        found = find_items(catalog, entries, naming)
        unknown += len(found.unknown)
        if found.indices:
            users.append(ExportUser(found.indices, _candidates(catalog, row), row.user_id))
        if len(users) == most:
            break
    return users, unknown


def _candidates(catalog: ItemCatalog, row: _Row) -> list[int] | None:
    if row.candidates is None:
        return None
    naming, entries = row.candidates
    found = find_items(catalog, entries, naming)
    if found.unknown:
        raise DataError(f"{row.where}: candidates that are not in the catalogue: {found.named_unknown()}")
    return list(dict.fromkeys(found.indices))


def _rows_of_data(data: PreparedData, most: int) -> Iterator[_Row]:
    found = data.candidates("test")
    rows = np.arange(len(found))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, most, replace=False))
    ids = data.catalog.item_ids
    for row in rows:
        user = int(found.users[row])
        history, candidates = (
            [ids[item - 1] for item in part] for part in (data.history(user, "test"), found.items[row])
        )
        user_id = data.user_ids[user]
        yield _Row(f"user {user_id} of {data.directory}", ("id", history), ("id", candidates), user_id)


def _rows_of_demo() -> Iterator[_Row]:
    from ..data.interactions import ITEM_ID, TIMESTAMP, USER_ID
    from ..data.synthetic import SyntheticWorld

    frame = SyntheticWorld().interactions().sort(USER_ID, TIMESTAMP, maintain_order=True)
    for (user_id,), part in frame.group_by(USER_ID, maintain_order=True):
        yield _Row(f"user {user_id} of the demo", ("id", part[ITEM_ID].to_list()[:-1]), None, str(user_id))


def _rows_of_file(path: Path) -> Iterator[_Row]:
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        rows = _json_lines(path)
    else:
        file = UsersFile(path)
        rows = (
            (f"{path}, row {start + number}", row)
            for start in range(0, file.rows, ROWS_AT_ONCE)
            for number, row in enumerate(file.read(start, ROWS_AT_ONCE).iter_rows(named=True), 1)
        )
    for where, row in rows:
        named = row.get("user_id")
        yield _Row(
            where,
            _entries(where, row, "history", "titles"),
            _entries(where, row, "candidates", "candidate_titles"),
            None if is_missing(named) or isinstance(named, (list, dict, bool)) else id_text(named),
        )


def _entries(where: str, row: dict[str, Any], by_id: str, by_title: str) -> tuple[Naming, Sequence[Any]] | None:
    forms: tuple[tuple[str, Naming], ...] = ((by_id, "id"), (by_title, "title"))
    given = [(key, naming) for key, naming in forms if not is_missing(row.get(key))]
    if len(given) > 1:
        raise DataError(f"{where} has {by_id} and {by_title}; give one of them")
    for key, naming in given:
        try:
            return naming, as_entries(row[key], key)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not {"history", "titles"} & set(row):
                    raise DataError(
                        f"{path}, line {number} is no request; a line is a JSON object with history (ids) or titles"
                    )
                yield f"{path}, line {number}", row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a file of users") from error
    except DataError:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} cannot be read as JSON lines: {error}") from error
