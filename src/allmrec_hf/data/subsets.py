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
from .interactions import ITEM_ID, SPLIT, TIMESTAMP, USER_ID
from .prepared import TARGET_SPLITS, PreparedData, TargetSplit
from .splits import MIN_INTERACTIONS, leave_one_out, target_rows
from .time_split import Cuts, SplitRules, find_cuts, split_by_time, split_counts

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
        DataError: when fewer than three would stay, or the data are split by time.
    """
    if data.cuts is not None:
        raise DataError(
            f"{data.name} is split by time: to cut histories would take users' targets with them; prepare it with "
            "split 'leave-one-out' for this"
        )
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
    """Return the data without some users and items, split again in the way they were, with newly drawn candidates.

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
    least = MIN_INTERACTIONS if data.cuts is None else 1
    if longest is None or cast("int", longest) < least:
        raise DataError(
            f"{data.name}: without {len(user_ids)} users and {len(item_ids)} items no user with {least} "
            f"interactions is left ({kept.height} of {frame.height} interactions are)"
        )
    catalog = ItemCatalog(data.catalog.frame.filter(~data.catalog.frame[ITEM_ID].is_in(gone_items)), saved=True)
    none = data.candidate_frame.clear()
    split = leave_one_out(kept) if data.cuts is None else split_by_time(kept, data.cuts)
    rest = _part(data, split.select(frame.columns), catalog, none, {**(note or {}), "seed": seed})
    return _part(rest, rest.interactions, catalog, _sampled(rest, seed), None)


def resplit_by_time(
    data: PreparedData, rules: SplitRules, seed: int, note: Mapping[str, Any] | None = None
) -> PreparedData:
    """Return the same interactions and catalogue split by time, with newly drawn candidates.

    What the preparation filtered by all interactions stays filtered by them; `prepare(split="time")` filters by those
    before the validation.

    Args:
        data: The original.
        rules: Where validation and test begin.
        seed: Seed of the candidates.
        note: Added to `info`.

    Raises:
        DataError: when the times of the data are the order of a file, or a date is not within them.
    """
    if (data.info.get("settings") or {}).get("order") == "file":
        raise DataError(f"{data.name} was read without times (order 'file'), so it cannot be split by time")
    cuts = find_cuts(data.interactions[TIMESTAMP], rules)
    split = split_by_time(data.interactions.drop(SPLIT), cuts).select(data.interactions.columns)
    facts = {**(note or {}), "seed": seed, SPLIT: cuts.to_dict()}
    rest = _part(data, split, data.catalog, data.candidate_frame.clear(), facts)
    return _part(rest, rest.interactions, data.catalog, _sampled(rest, seed), None)


def with_more_training(data: PreparedData, splits: Sequence[TargetSplit]) -> PreparedData:
    """Return the data with the interactions of some splits in the training part, without candidates of these splits.

    Args:
        data: The original.
        splits: `"validation"`, or that and `"test"`.

    Raises:
        DataError: when a split would be trained on and what comes before it would not.
    """
    later = list(TARGET_SPLITS[TARGET_SPLITS.index(splits[-1]) + 1 :]) if splits else []
    if [*splits, *later] != list(TARGET_SPLITS):
        raise DataError(f"what is trained on has no gap: ['validation'] or {list(TARGET_SPLITS)}; got {list(splits)}")
    relabelled = data.interactions.with_columns(data.interactions[SPLIT].replace(list(splits), ["train"] * len(splits)))
    candidates = data.candidate_frame.filter(~data.candidate_frame[SPLIT].is_in(list(splits)))
    return _part(data, relabelled, data.catalog, candidates, {"in_training": list(splits)})


def with_shuffled_histories(data: PreparedData, seed: int, note: Mapping[str, Any] | None = None) -> PreparedData:
    """Return the data with the training part of each user in a seeded random order; targets and candidates stay.

    A method that is trained on it can learn who likes what and nothing of the order.

    Args:
        data: The original.
        seed: Seed of the orders.
        note: Added to `info`.
    """
    frame = data.interactions
    rows, later = np.arange(frame.height), (frame[SPLIT] != "train").to_numpy()
    draws = np.where(later, rows, np.random.default_rng(seed).random(frame.height))
    order = np.lexsort((draws, later, frame[USER_ID].rle_id().to_numpy()))  # users stay, and what is later stays
    fixed = (USER_ID, TIMESTAMP, SPLIT)
    frame = frame.with_columns(frame[order].select(pl.exclude(fixed)).get_columns())
    return _part(data, frame, data.catalog, data.candidate_frame, {**(note or {}), "shuffled_histories": seed})


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
    info = {**data.info, **(note or {})}
    info["counts"] = _counts(interactions, catalog, Cuts.of_info(info))
    return PreparedData(interactions, catalog, candidates, info, UNSAVED)


def _counts(interactions: pl.DataFrame, catalog: ItemCatalog, cuts: Cuts | None) -> dict[str, int]:
    """Return those counts of `dataset.json` that a part can know."""
    return {
        "users": interactions[USER_ID].n_unique(),
        "items": len(catalog),
        "interactions": interactions.height,
        **split_counts(interactions, cuts),
        "items_without_interactions": len(catalog) - interactions[ITEM_ID].n_unique(),
    }


def _sampled(data: PreparedData, seed: int) -> pl.DataFrame:
    """Return seeded candidates for every user with targets."""
    sequences = [data.sequence(user) for user in range(data.num_users)]
    lengths = np.array([len(sequence) for sequence in sequences])
    seen = SeenItems(np.repeat(np.arange(data.num_users), lengths), np.concatenate(sequences), data.num_items)
    groups, width = title_groups(data.catalog.frame["title"]), int(data.info["num_candidates"])
    item_ids = pl.Series(data.catalog.item_ids, dtype=pl.String)
    held_out = target_rows(data.interactions)
    frames = []
    for split in TARGET_SPLITS:
        rows = held_out.filter(held_out[SPLIT] == split)
        names = rows[USER_ID].to_list()
        users = np.array([data.user_number(user_id) for user_id in names], dtype=np.int64)
        targets = np.array(data.catalog.indices(rows[ITEM_ID].to_list()), dtype=np.int64)
        items = sample_candidates(users, targets, seen, groups, width, seed, split, data.user_ids).items
        columns = {
            SPLIT: [split] * len(users),
            USER_ID: names,
            "target": item_ids.gather(targets - 1),
            "candidates": item_ids.gather(items.ravel() - 1).reshape(items.shape).arr.to_list(),
        }
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)
