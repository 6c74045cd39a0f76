"""Select parts of prepared data that are prepared data themselves: users, recent interactions, joined catalogues.

What stays of a user keeps its split, its targets and its candidates; only `without` has to split and sample again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from ..catalog import ItemCatalog
from ..errors import DataError
from ..values import id_text
from .candidates import SeenItems, sample_candidates, title_groups
from .interactions import ITEM_ID, SPLIT, USER_ID
from .prepared import TARGET_SPLITS, PreparedData
from .splits import MIN_INTERACTIONS, SPLITS, leave_one_out

UNSAVED = "(not saved)"  # the directory of data that were made in memory; `save` puts the real one


def with_users(data: PreparedData, user_ids: Collection[Any], note: Mapping[str, Any] | None = None) -> PreparedData:
    """Return the data of some users, in the order of the original, with their very candidates.

    Args:
        data: The original; catalogue, name and settings stay, the catalogue as the same object.
        user_ids: Who stays.
        note: Added to `info`, e.g. `{"scenario": ...}`.

    Raises:
        DataError: when nobody is named, or an id is unknown.
    """
    if not user_ids:
        raise DataError(f"{data.name}: a part of the data needs at least one user, none was named")
    unknown = [user_id for user_id in user_ids if data.user_number(user_id) is None]
    if unknown:
        raise DataError(
            f"{data.name}: {len(unknown)} of {len(user_ids)} user ids are not in the data, first {unknown[:5]}"
        )
    chosen = pl.Series([data.user_ids[data.user_number(user_id) or 0] for user_id in user_ids]).implode()
    interactions = data.interactions.filter(data.interactions[USER_ID].is_in(chosen))
    candidates = data.candidate_frame.filter(data.candidate_frame[USER_ID].is_in(chosen))
    return _part(data, interactions, data.catalog, candidates, note)


def with_recent(data: PreparedData, num_interactions: int, note: Mapping[str, Any] | None = None) -> PreparedData:
    """Return the data with at most the last interactions of each user, whose targets and candidates stay.

    Args:
        data: The original.
        num_interactions: How many stay, at least three: one to train on, the validation and the test target.
        note: Added to `info`.

    Raises:
        DataError: when fewer than three would stay.
    """
    if num_interactions < MIN_INTERACTIONS:
        raise DataError(
            f"num_interactions is {num_interactions}; leave-one-out needs at least {MIN_INTERACTIONS} of a user"
        )
    from_end = (pl.len() - pl.int_range(pl.len())).over(USER_ID)
    interactions = data.interactions.filter(from_end <= num_interactions)
    return _part(data, interactions, data.catalog, data.candidate_frame, note)


def without(
    data: PreparedData,
    user_ids: Collection[Any],
    item_ids: Collection[Any],
    seed: int,
    note: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Return the data without some users and items, split again by leave-one-out, with newly drawn candidates.

    Removing an item moves the targets of those who had it last, so no old candidate set can be relied on.

    Args:
        data: The original.
        user_ids: Users to remove.
        item_ids: Items to remove, from the catalogue too.
        seed: Seed of the candidates.
        note: Added to `info`.

    Raises:
        DataError: when no user with three interactions is left, or too few items for the candidates.
    """
    gone_users, gone_items = (_spellings(ids) for ids in (user_ids, item_ids))
    frame = data.interactions
    kept = frame.filter(~frame[USER_ID].is_in(gone_users) & ~frame[ITEM_ID].is_in(gone_items))
    longest = kept.group_by(USER_ID).len()["len"].max()
    if longest is None or cast("int", longest) < MIN_INTERACTIONS:
        raise DataError(
            f"{data.name}: without {len(user_ids)} users and {len(item_ids)} items no user with {MIN_INTERACTIONS} "
            f"interactions is left ({kept.height} of {frame.height} interactions are)"
        )
    catalog = ItemCatalog(data.catalog.frame.filter(~data.catalog.frame[ITEM_ID].is_in(gone_items)), saved=True)
    none = data.candidate_frame.clear()
    rest = _part(data, leave_one_out(kept).select(frame.columns), catalog, none, {**(note or {}), "seed": seed})
    return _part(rest, rest.interactions, catalog, _sampled(rest, seed), None)


def prefixed(
    data: PreparedData, prefix: str, catalog: ItemCatalog, note: Mapping[str, Any] | None = None
) -> PreparedData:
    """Return the data with a prefix before every user and item id, over a catalogue that has the prefixed items.

    Args:
        data: The original.
        prefix: What is put before the ids.
        catalog: The new catalogue, see `joint_catalog`.
        note: Added to `info`.

    Raises:
        DataError: when the catalogue lacks an item of the interactions or candidates.
    """
    interactions = data.interactions.with_columns(_prefixed(prefix, USER_ID), _prefixed(prefix, ITEM_ID))
    candidates = data.candidate_frame.with_columns(
        _prefixed(prefix, USER_ID),
        _prefixed(prefix, "target"),
        pl.col("candidates").list.eval(pl.lit(prefix) + pl.element()),
    )
    return _part(data, interactions, catalog, candidates, note)


def joint_catalog(catalogs: Sequence[ItemCatalog], prefixes: Sequence[str]) -> ItemCatalog:
    """Return one catalogue of all items, catalogue after catalogue, with a prefix before each one's ids."""
    frames = [
        catalog.frame.with_columns(_prefixed(prefix, ITEM_ID))
        for catalog, prefix in zip(catalogs, prefixes, strict=True)
    ]
    return ItemCatalog(pl.concat(frames, how="diagonal_relaxed"), saved=True)


def users_with_targets(data: PreparedData) -> list[str]:
    """Return the ids of the users who have held-out items, in their order."""
    return [data.user_ids[user] for user in data.candidates("test").users.tolist()]


def num_interactions(data: PreparedData) -> dict[str, int]:
    """Return how many interactions each user has in all, by user id."""
    return dict(zip(data.user_ids, (len(data.sequence(user)) for user in range(data.num_users)), strict=True))


def _spellings(ids: Collection[Any]) -> pl.Series:
    """Return ids as they are and as `values.id_text` spells them, as one list."""
    texts = [value for value in ids if isinstance(value, str)]
    spelt = [text for value in ids if (text := id_text(value)) is not None]
    return pl.Series([*texts, *spelt], dtype=pl.String).implode()


def _prefixed(prefix: str, column: str) -> pl.Expr:
    return (pl.lit(prefix) + pl.col(column)).alias(column)


def _part(
    data: PreparedData,
    interactions: pl.DataFrame,
    catalog: ItemCatalog,
    candidates: pl.DataFrame,
    note: Mapping[str, Any] | None,
) -> PreparedData:
    """Return a part with counts of its own; what `info` says of the preparation stays."""
    info = {**data.info, **(note or {}), "counts": _counts(interactions, catalog)}
    return PreparedData(interactions, catalog, candidates, info, UNSAVED)


def _counts(interactions: pl.DataFrame, catalog: ItemCatalog) -> dict[str, int]:
    """Return those counts of `dataset.json` that a part can know."""
    by_split = dict(interactions.group_by(SPLIT).len().iter_rows())
    users = interactions[USER_ID].n_unique()
    return {
        "users": users,
        "items": len(catalog),
        "interactions": interactions.height,
        **{split: int(by_split.get(split, 0)) for split in SPLITS},
        "users_only_trained_on": users - int(by_split.get("test", 0)),
        "items_without_interactions": len(catalog) - interactions[ITEM_ID].n_unique(),
    }


def _sampled(data: PreparedData, seed: int) -> pl.DataFrame:
    """Return seeded candidates for every user with targets."""
    sequences = [data.sequence(user) for user in range(data.num_users)]
    lengths = np.array([len(sequence) for sequence in sequences])
    seen = SeenItems(np.repeat(np.arange(data.num_users), lengths), np.concatenate(sequences), data.num_items)
    groups, width = title_groups(data.catalog.frame["title"]), int(data.info["num_candidates"])
    item_ids = pl.Series(data.catalog.item_ids, dtype=pl.String)
    users = np.flatnonzero(lengths >= MIN_INTERACTIONS)
    frames = []
    for split in TARGET_SPLITS:
        targets = np.array([sequences[user][-1 if split == "test" else -2] for user in users])
        items = sample_candidates(users, targets, seen, groups, width, seed, split, data.user_ids).items
        columns = {
            SPLIT: [split] * len(users),
            USER_ID: [data.user_ids[user] for user in users],
            "target": item_ids.gather(targets - 1),
            "candidates": item_ids.gather(items.ravel() - 1).reshape(items.shape).arr.to_list(),
        }
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)
