"""Map the columns of a file to the schema: by name, by the column map, or by number."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from ...errors import DataError
from ..interactions import (
    INTERACTION_COLUMNS,
    ITEM_ID,
    RATING,
    TEXT_COLUMNS,
    TIMESTAMP,
    USER_ID,
    MissingColumnsError,
    require_columns,
    rules_columns,
)
from ..times import BY_TIME, TimeRules
from .base import PathLike

logger = logging.getLogger(__name__)
INTERACTIONS_PREFIX = "interactions."
ITEMS_PREFIX = "items."
OF_INTERACTIONS = (USER_ID, TIMESTAMP, RATING)
OURS = (*INTERACTION_COLUMNS, RATING, *TEXT_COLUMNS)
_DATA = re.compile(r"[-+]?\d+(?:\.\d+)?")


def interaction_names(
    names: Sequence[str], columns: Mapping[str, str], where: PathLike, rules: TimeRules = BY_TIME
) -> dict[str, str]:
    """Return our name to the file's for the columns of interactions; without that of times where none are read.

    Raises:
        DataError: when a needed column is missing, or the column map does not fit.
    """
    found = map_names(names, columns, INTERACTIONS_PREFIX, str(where))
    needed = rules_columns(rules)
    _require(found, needed, str(where), names)
    _warn_of_row(found, names, str(where))
    if TIMESTAMP in found and TIMESTAMP not in needed:
        logger.warning("%s: the column %s is not read, because the order is that of the rows", where, found[TIMESTAMP])
    return {name: found[name] for name in (*needed, RATING) if name in found}


def item_names(names: Sequence[str], columns: Mapping[str, str], where: PathLike) -> dict[str, str]:
    """Return our name to the file's for all columns of items.

    Raises:
        DataError: when `item_id` is missing, or the column map does not fit.
    """
    found = map_names(names, columns, ITEMS_PREFIX, str(where))
    _require(found, (ITEM_ID,), str(where), names)
    _warn_of_row(found, names, str(where))
    return found


def map_names(names: Sequence[str], columns: Mapping[str, str], prefix: str, where: str) -> dict[str, str]:
    """Return our name to the file's for all columns of a file.

    A key with the file's prefix must be found in the file, as must a column that no other file has; `item_id` without a
    prefix applies to each file that has it. What is missing of the columns that are needed, `require_columns` tells.
    Names are found as `find_name` finds them.

    Raises:
        DataError: when a key of this file names a column that the file lacks, or a prefix is unknown.
    """
    of_interactions = prefix == INTERACTIONS_PREFIX
    other = ITEMS_PREFIX if of_interactions else INTERACTIONS_PREFIX
    found = {key: find_name(names, theirs) for key, theirs in columns.items()}
    if not of_interactions:  # a number of these means a column of the interactions
        found = {key: found[key] for key in found if key not in OF_INTERACTIONS or not columns[key].isdecimal()}
    mapped = {ours: theirs for ours, theirs in found.items() if "." not in ours and theirs is not None}
    for key, theirs in found.items():
        optional = key == RATING if of_interactions else "." not in key and key not in (*INTERACTION_COLUMNS, RATING)
        if (key.startswith(prefix) or optional) and theirs is None:
            raise DataError(f"the column map says {key} = {columns[key]}, but {where} has {list(names)}")
        if key.startswith(prefix) and theirs is not None:
            mapped[key.removeprefix(prefix)] = theirs
        elif "." in key and not key.startswith((prefix, other)):
            raise DataError(f"the column map's key {key!r} is neither a column nor one after {prefix!r} or {other!r}")
    for ours in OURS:  # a header that writes our name in another way
        theirs = find_name(names, ours, numbers=False)
        if ours not in mapped and theirs is not None and theirs not in mapped.values():
            mapped[ours] = theirs
    others = {name: name for name in names if name not in mapped and name not in mapped.values()}
    return others | mapped


def find_name(names: Sequence[str], wanted: str, numbers: bool = True) -> str | None:
    """Return the column of a file that a name means, or None.

    That is the column of this name; else the only one whose name is the same but for case, surrounding space and
    whether a space, `-` or `_` stands between words, with or without the type of RecBole's files (`user_id:token`);
    else, for a number, the column at that place, counted from 0.
    """
    if wanted in names:
        return wanted
    alike = [name for name in names if _plain(name) == _plain(wanted)]
    if len(alike) == 1:
        return alike[0]
    if numbers and wanted.strip().isdecimal() and int(wanted) < len(names):
        return names[int(wanted)]
    return None


def _plain(name: str) -> str:
    """Return a column's name without what does not count."""
    name = name.strip("\ufeff \t").casefold()
    name = re.sub(r":(?:token|token_seq|float|float_seq)$", "", name)
    return re.sub(r"[\s_-]+", "_", name)


def _warn_of_row(found: Mapping[str, str], names: Sequence[str], where: str) -> None:
    """Log a warning where what is taken for the header looks like a row, which would be lost."""
    by_place = list(names) == [str(place) for place in range(len(names))]
    if not by_place and any(_DATA.fullmatch(found[name]) for name in OURS if name in found):
        logger.warning(
            "%s: the columns are called %s, which looks like a row; if the file has no header, say --no-header "
            "(header=False in Python), or this row is lost",
            where,
            list(names)[:8],
        )


def _require(found: Mapping[str, str], columns: Sequence[str], where: str, names: Sequence[str]) -> None:
    """Check that the columns are there; where the names look like a row, say what to do.

    Raises:
        MissingColumnsError: when one is missing.
    """
    try:
        require_columns(found, columns, where)
    except MissingColumnsError as error:
        if list(names) == [str(place) for place in range(len(names))]:
            hint = f"Without a header, name columns by their numbers from 0: --column {error.missing[0]}=0"
        elif any(_DATA.fullmatch(name) for name in names):
            hint = (
                "If its first line is a row and no header, say so and name columns by their numbers from 0: "
                f"--no-header --column {error.missing[0]}=0 (header=False, columns={{{error.missing[0]!r}: '0'}})"
            )
        else:
            hint = error.hint
        raise MissingColumnsError(error.missing, names, where, hint=hint) from error
