"""Prepare data from raw files: read, validate, filter, split, sample candidates, write."""

from __future__ import annotations

import atexit
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from ..catalog import ItemCatalog
from ..errors import DataError
from ..prompt import domain_words
from ..values import plain_number
from .candidates import SampledCandidates, SeenItems, sample_candidates, title_groups
from .data_report import Steps, warn_of_missing_titles
from .filtering import FilterName, Repeats, apply_filter, check_filter, with_rating, without_repeats
from .interactions import (
    ITEM_ID,
    SPLIT,
    TEXT_COLUMNS,
    TIMESTAMP,
    USER_ID,
    drop_exact_duplicates,
    told_of_column_map,
)
from .matching import with_matching_ids
from .prepared import FORMAT, INFO_FILE, TARGET_SPLITS, PreparedData
from .readers import READERS, PathLike, Quotes, RawData, TextFormat, is_frame
from .splits import leave_one_out, target_rows
from .storage import check_output
from .time_split import (
    LEAVE_ONE_OUT,
    Cuts,
    SplitKind,
    SplitRules,
    filter_by_the_past,
    find_cuts,
    plain_time,
    split_by_time,
    split_counts,
)
from .times import Order, TimeRules
from .versions import library_versions

logger = logging.getLogger(__name__)
KeepItems = Literal["interacted", "all"]
SOURCE_DOMAINS = {"movielens": "movie"}
DEFAULT_DOMAIN = "item"


@dataclass(frozen=True)
class _Settings:
    """The choices that `dataset.json` keeps."""

    output: Path
    k_core: int
    filter: FilterName
    count_min_rating: float | None
    keep_items: KeepItems
    name: str
    domain: str
    verbs: tuple[str, ...]
    source: str
    seed: int
    num_candidates: int
    overwrite: bool
    drop_duplicates: bool
    min_rating: float | None
    repeats: Repeats
    times: TimeRules
    split: SplitRules

    def check(self) -> None:
        """Refuse what can be known to fail before anything is read."""
        check_output(self.output.absolute(), self.overwrite, INFO_FILE)
        if self.num_candidates < 2:
            raise DataError(
                f"num_candidates is {self.num_candidates}; a set needs the target and at least one negative"
            )
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}; it must not be negative")
        if self.keep_items not in get_args(KeepItems):
            raise DataError(f"keep_items is {self.keep_items!r}; choose one of {list(get_args(KeepItems))}")
        if not self.name or not self.domain:
            raise DataError("name and domain must not be empty")
        if self.repeats not in get_args(Repeats):
            raise DataError(f"repeats is {self.repeats!r}; choose one of {list(get_args(Repeats))}")
        check_filter(self.filter, self.k_core, self.count_min_rating)
        for what, rating in (("min_rating", self.min_rating), ("count_min_rating", self.count_min_rating)):
            if rating is not None and not math.isfinite(rating):
                raise DataError(f"{what} is {rating}; it must be a finite number")
        self.times.check()
        self.split.check(self.times)


def prepare(
    interactions: Any,
    items: Any = None,
    *,
    output: PathLike | None = None,
    source: str | None = None,
    k_core: int = 5,
    filter: FilterName = "k-core",
    count_min_rating: float | None = None,
    keep_items: KeepItems = "interacted",
    name: str | None = None,
    domain: str | None = None,
    verbs: tuple[str, str] | None = None,
    seed: int = 0,
    num_candidates: int = 20,
    columns: Mapping[str, str] | None = None,
    max_bad_lines: float = 0.01,
    overwrite: bool = False,
    drop_duplicates: bool = True,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool = True,
    items_header: bool | None = None,
    quotes: Quotes = "auto",
    min_rating: float | None = None,
    repeats: Repeats = "keep",
    order: Order = "time",
    time_format: str | None = None,
    split: SplitKind = LEAVE_ONE_OUT,
    test_from: str | float | None = None,
    validation_from: str | float | None = None,
) -> PreparedData:
    """Prepare frames, raw files or Hub data sets, write the result to a folder, and return it.

    A frame may be of Polars or pandas, a table of Arrow, a `datasets.Dataset`, or a list of mappings.

    Args:
        interactions: A frame with `user_id`, `item_id`, `timestamp` and, if known, `rating`; a file of interactions,
            the MovieLens folder, or the Hub data set `ID[:CONFIGURATION[:SPLIT]]`.
        items: A frame with `item_id`, `title`, `description` and further columns, a file or a data set; without it,
            items have no titles.
        output: The folder to write; it must be new, empty, or (with `overwrite`) hold prepared data. Where not given,
            a temporary one, which goes with the process.
        source: `"table"`, `"amazon-2018"`, `"amazon-2023"`, `"movielens"`, `"hub"` or `"frames"`; by default frames or
            tables, by what is given. Of frames, any other text is noted as where they come from.
        k_core: The least number of interactions of a user and an item, for the filter.
        filter: `"k-core"`, `"a-llmrec"` (the paper's one pass) or `"none"`.
        count_min_rating: With `"a-llmrec"`: lower ratings do not count towards k.
        keep_items: `"interacted"`, or `"all"` to keep items of the metadata that nobody interacted with.
        name: The name of the data; the file's by default.
        domain: What an item is called in the prompt, such as `"book"`; `"movie"` for MovieLens and `"item"` for others
            where not given.
        verbs: What a user does with an item, and has done, such as `("read", "read")`; those of `"movie"`, `"game"` and
            `"item"` are known, others are bought.
        seed: Of the candidates.
        num_candidates: C, the target included.
        columns: Our column name to the file's, or to the column's number from 0, for frames, tables and the Hub.
        max_bad_lines: The share of lines that may be no JSON object, or have another number of fields than the header.
        overwrite: Replace prepared data that are in `output`.
        drop_duplicates: Drop exact duplicates; the paper's published counts include them.
        delimiter: What stands between the fields of text tables, e.g. `";"`, `"::"` or the word `"tab"`; by default it
            is told from the files.
        encoding: The encoding of text files, e.g. `"latin-1"`; by default UTF-8, or what a byte order mark says.
        header: Whether the first line of text tables holds the columns' names; without, they are `"0"`, `"1"`, ...
        items_header: The same of the items' file; None for as `header`.
        quotes: `"csv"` where quotation marks enclose fields, `"none"` where they are text; `"auto"` is `"none"` for
            fields that tabs, spaces or `::` divide, and `"csv"` for others.
        min_rating: Leave out interactions with a lower rating, or none, before anything is counted or filtered.
        repeats: Of several interactions of a user with an item `"keep"` all, or only the `"first"` or `"last"` in time.
        order: `"time"`, or `"file"` for data without times: the order of rows is taken for the order of time.
        time_format: The format of times written as text, such as `"%d/%m/%Y %H:%M"`; ISO dates need none.
        split: `"leave-one-out"`, or `"time"`: train before a date, validate up to a second, test from there on.
        test_from: With `"time"`, where the test begins: a share of the interactions (the latest), a date such as
            `"2018-01-01"`, or a time as the data have it; a tenth of the interactions by default.
        validation_from: The same for the validation, which ends where the test begins; by default it has as many
            interactions as the test.

    Returns:
        The prepared data; `.info` is the report.

    Raises:
        DataError: when the input cannot be used; nothing is written then.
        ALLMRecError: when the output cannot be written; nothing half-written is left.

    Example:
        >>> rows = [{"user_id": u, "item_id": i, "timestamp": i} for u in range(3) for i in range(u, u + 4)]
        >>> data = prepare(rows, filter="none", num_candidates=2)
        >>> data.num_users, data.num_items
        (3, 6)
    """
    if source is None:
        source = "frames" if is_frame(interactions) else "table"
    reader = "frames" if is_frame(interactions) and source not in READERS else source
    if reader not in READERS:
        raise DataError(f"there is no source {source!r}; choose one of {list(READERS)}")
    if not 0 <= max_bad_lines <= 1:
        raise DataError(f"max_bad_lines is {max_bad_lines}; it is a share between 0 and 1")
    domain = domain if domain is not None else SOURCE_DOMAINS.get(source, DEFAULT_DOMAIN)
    settings = _Settings(
        output=_temporary_folder() if output is None else Path(output),
        k_core=plain_number(k_core),
        filter=filter,
        count_min_rating=plain_number(count_min_rating),
        keep_items=keep_items,
        name=name or source,
        domain=domain,
        verbs=domain_words(domain, verbs)[1:],
        source=source,
        seed=plain_number(seed),
        num_candidates=plain_number(num_candidates),
        overwrite=overwrite,
        drop_duplicates=drop_duplicates,
        min_rating=plain_number(min_rating),
        repeats=repeats,
        times=TimeRules(order, time_format),
        split=SplitRules(split, plain_time(test_from), plain_time(validation_from)),
    )
    settings.check()
    text = TextFormat(delimiter, encoding, header, items_header, quotes)
    steps = Steps()
    with told_of_column_map(columns or {}):
        raw = READERS[reader](interactions, items, columns or {}, max_bad_lines, text, settings.times)
    return _run(raw, settings if name else replace(settings, name=raw.name), steps)


def _temporary_folder() -> Path:
    """Return a folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="allmrec-data-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _run(raw: RawData, settings: _Settings, steps: Steps) -> PreparedData:
    """Filter, split, sample and write validated data."""
    if settings.times.order == "file":
        logger.warning(
            "no times are read: the order of rows in the file is taken for the order of time, so each user's last row "
            "is the test target. Results mean nothing where the file is sorted by something else"
        )
    if raw.items is not None:
        interactions, items = with_matching_ids(raw.interactions, raw.items)
        raw = replace(raw, interactions=interactions, items=items)
    everything = _encoded(raw.interactions)
    steps.add("read", everything, f"{raw.bad_lines} bad lines left out" if raw.bad_lines else "")
    duplicates = 0
    if settings.drop_duplicates:
        everything, duplicates = drop_exact_duplicates(everything)
        steps.add("exact duplicates dropped", everything, f"{duplicates} rows")
    kept = everything
    if settings.min_rating is not None:
        kept = with_rating(kept, settings.min_rating)
        steps.add("rated lower left out", kept, f"min_rating {settings.min_rating:g}")
    if settings.repeats != "keep":
        kept = without_repeats(kept, settings.repeats)
        steps.add("repeats left out", kept, f"the {settings.repeats} of each user and item kept")
    kept, cuts = _filtered_and_split(kept, settings, steps)
    catalog, without_metadata = _catalog(raw.items, kept, settings.keep_items)
    user_ids = kept[USER_ID].unique(maintain_order=True).cast(pl.String)
    warn_of_missing_titles(catalog, raw.items, settings.source)
    candidates, repeated = _sample(everything, kept, catalog, user_ids, settings)
    steps.add(
        "candidates", kept, f"{settings.num_candidates} each, seed {settings.seed}, {repeated} sets repeat a title"
    )
    counts = _counts(kept, catalog, cuts) | {
        "duplicates_dropped": duplicates,
        "bad_lines": raw.bad_lines,
        "metadata_rows_merged": raw.merged_items,
        "items_without_metadata": without_metadata,
        "candidate_sets_with_repeated_titles": repeated,
    }
    info = _info(settings, counts, catalog, steps, cuts)
    interactions = kept.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String))
    data = PreparedData(interactions, catalog, candidates, info, settings.output)
    data.info["resources"] = steps.resources()
    data.save(settings.output, settings.overwrite)
    return data


def _filtered_and_split(kept: pl.DataFrame, settings: _Settings, steps: Steps) -> tuple[pl.DataFrame, Cuts | None]:
    """Return what the filter keeps, split, and the times of a split by time."""
    if settings.split.kind == LEAVE_ONE_OUT:
        kept = apply_filter(kept, settings.filter, settings.k_core, settings.count_min_rating)
        steps.add("filtered", kept, _filter_note(settings))
        kept = leave_one_out(kept)
        by = "time, ties in file order" if settings.times.order == "time" else "the order of rows in the file"
        steps.add("split", kept, f"leave-one-out by {by}")
        return kept, None
    cuts = find_cuts(kept[TIMESTAMP], settings.split)
    kept, dropped = filter_by_the_past(
        kept, lambda early: apply_filter(early, settings.filter, settings.k_core, settings.count_min_rating), cuts
    )
    note = f"{_filter_note(settings)}, counted before the validation"
    steps.add("filtered", kept, f"{note}; {dropped} later interactions of dropped users or items left out")
    kept = split_by_time(kept, cuts)
    steps.add("split", kept, f"by time: validation from {cuts.validation_from}, test from {cuts.test_from}")
    return kept, cuts


def _encoded(interactions: pl.DataFrame) -> pl.DataFrame:
    """Return interactions with ids as enumerations (by first appearance), so that later steps compare integers."""
    return interactions.with_columns(
        interactions[name].cast(pl.Enum(interactions[name].unique(maintain_order=True))) for name in (USER_ID, ITEM_ID)
    )


def _catalog(items: pl.DataFrame | None, kept: pl.DataFrame, keep_items: KeepItems) -> tuple[ItemCatalog, int]:
    """Return the catalogue in the order of the metadata, then items without metadata, and the number of the latter."""
    interacted = kept[ITEM_ID].unique(maintain_order=True).cast(pl.String)
    if items is None:
        items = pl.DataFrame(schema={ITEM_ID: pl.String, **dict.fromkeys(TEXT_COLUMNS, pl.String)})
    if keep_items == "interacted":
        items = items.filter(items[ITEM_ID].is_in(interacted.implode()))
    absent = interacted.filter(~interacted.is_in(items[ITEM_ID].implode()))
    if len(absent):
        logger.warning("%d items of the interactions have no metadata, first %s", len(absent), absent.head(5).to_list())
    return ItemCatalog(pl.concat([items, absent.to_frame()], how="diagonal")), len(absent)


def _sample(
    everything: pl.DataFrame, kept: pl.DataFrame, catalog: ItemCatalog, user_ids: pl.Series, settings: _Settings
) -> tuple[pl.DataFrame, int]:
    """Return the candidate file, and how many of its sets had to repeat a title.

    Interactions that the filter dropped count as seen: with `keep_items="all"` such an item may be in the catalogue.
    """
    item_ids = pl.Series(catalog.item_ids, dtype=pl.String)
    users, items = _numbers(everything, USER_ID, user_ids), _numbers(everything, ITEM_ID, item_ids)
    known = (users > 0) & (items > 0)
    seen = SeenItems(users[known] - 1, items[known], len(catalog))
    groups = title_groups(catalog.frame["title"])
    names, frames, repeated = user_ids.to_list(), [], 0
    held_out = target_rows(kept)
    for split in TARGET_SPLITS:
        rows = held_out.filter(held_out[SPLIT] == split)
        owners, targets = _numbers(rows, USER_ID, user_ids) - 1, _numbers(rows, ITEM_ID, item_ids)
        sampled = sample_candidates(owners, targets, seen, groups, settings.num_candidates, settings.seed, split, names)
        frames.append(_candidate_frame(rows, sampled, item_ids))
        repeated += int(sampled.duplicate_titles.sum())
    if repeated:
        logger.warning("%d candidate sets repeat a title, because too few titles were left for the user", repeated)
    return pl.concat(frames), repeated


def _numbers(frame: pl.DataFrame, column: str, ids: pl.Series) -> np.ndarray:
    """Return for each row the place of its id among `ids`, counted from 1; 0 where it is not there."""
    kind = frame.schema[column]
    categories = kind.categories if isinstance(kind, pl.Enum) else frame[column].unique()
    places = categories.replace_strict(
        ids, pl.int_range(1, len(ids) + 1, eager=True), default=0, return_dtype=pl.Int64
    ).to_numpy()
    return places[frame[column].to_physical().to_numpy()]


def _candidate_frame(rows: pl.DataFrame, sampled: SampledCandidates, item_ids: pl.Series) -> pl.DataFrame:
    """Return the candidate file of one split: one row per user, ids instead of numbers."""
    ids = item_ids.gather(sampled.items.ravel() - 1).reshape(sampled.items.shape).arr.to_list()
    named = rows.select(SPLIT, pl.col(USER_ID).cast(pl.String), pl.col(ITEM_ID).cast(pl.String).alias("target"))
    return named.with_columns(ids.alias("candidates"))


def _filter_note(settings: _Settings) -> str:
    """Return what the filter was, in words."""
    if settings.filter == "none":
        return "none"
    counted = "" if settings.count_min_rating is None else f", ratings from {settings.count_min_rating:g} counted"
    return f"{settings.filter}, k = {settings.k_core}{counted}"


def _counts(kept: pl.DataFrame, catalog: ItemCatalog, cuts: Cuts | None) -> dict[str, int]:
    """Return the counts of the result."""
    repeated = (~pl.struct(USER_ID, ITEM_ID).is_first_distinct()).alias("repeated")
    targets = target_rows(kept.with_columns(repeated))
    return {
        "users": kept[USER_ID].n_unique(),
        "items": len(catalog),
        "interactions": kept.height,
        **split_counts(kept, cuts),
        "test_targets_seen_before": int(((targets[SPLIT] == "test") & targets["repeated"]).sum()),
        "items_without_interactions": len(catalog) - kept[ITEM_ID].n_unique(),
        "items_without_title": catalog.frame["title"].null_count(),
        "items_without_description": catalog.frame["description"].null_count(),
    }


def _info(
    settings: _Settings, counts: dict[str, int], catalog: ItemCatalog, steps: Steps, cuts: Cuts | None
) -> dict[str, Any]:
    """Return the content of `dataset.json`."""
    return {
        "format": FORMAT,
        "name": settings.name,
        "domain": settings.domain,
        "verbs": list(settings.verbs),
        "source": settings.source,
        "seed": settings.seed,
        "num_candidates": settings.num_candidates,
        SPLIT: {"kind": LEAVE_ONE_OUT} if cuts is None else cuts.to_dict(),
        "settings": {
            "filter": settings.filter,
            "k_core": settings.k_core,
            "count_min_rating": settings.count_min_rating,
            "keep_items": settings.keep_items,
            "drop_duplicates": settings.drop_duplicates,
            "min_rating": settings.min_rating,
            "repeats": settings.repeats,
            "order": settings.times.order,
            "time_format": settings.times.time_format,
            "split": settings.split.kind,
            "test_from": settings.split.test_from,
            "validation_from": settings.split.validation_from,
        },
        "counts": counts,
        "shares": {
            f"without_{what}": round(counts[f"items_without_{what}"] / len(catalog), 6) for what in TEXT_COLUMNS
        },
        "report": steps.rows,
        "versions": library_versions(("polars", "numpy")),
    }
