"""The raw files of the Amazon review data of 2014 and 2018: reviews and metadata by lines, plain or gzip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ...errors import DataError
from ...values import text_values
from ..interactions import DESCRIPTION, TITLE, validate_interactions, validate_items
from ..text import plain_text, plain_title
from ..times import BY_TIME, TimeRules
from .base import AS_FOUND, PathLike, RawData, TextFormat, stem
from .columns import ITEMS_PREFIX
from .json_lines import TEXT, TEXTS, read_json_lines

REVIEW_FIELDS = {"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp", "overall": "rating"}
ITEM_FIELDS = {
    "asin": TEXT,
    "title": TEXT,
    "description": TEXTS,
    "category": TEXTS,
    "categories": TEXTS,
    "brand": TEXT,
    "feature": TEXTS,
}


def read_amazon_2018(
    interactions: PathLike,
    items: PathLike | None,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read `<Category>.json.gz` or `<Category>_5.json.gz` and `meta_<Category>.json.gz`.

    The files of 2014 have the same fields; their metadata are Python dictionaries instead of JSON, and their
    `categories` lists of lists. Titles and descriptions lose their HTML; the parts of a description are joined with
    spaces. Of an item that the metadata hold more than once, each field keeps its first non-empty value.

    Args:
        interactions: The file of reviews.
        items: The file of metadata, or None.
        columns: May say of which fields titles and descriptions are made, see `text_fields`.
        max_bad_lines: The share of lines that may be broken.
        text: Only the encoding may be given.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when a file is missing, damaged or of another layout.
    """
    made_of = text_fields(columns, "amazon-2018", list(ITEM_FIELDS))
    check_fixed_format(text, "amazon-2018")
    times = ("unixReviewTime",) if rules.order == "time" else ()
    reviews, count = read_json_lines(
        interactions,
        dict.fromkeys(REVIEW_FIELDS, TEXT),
        ("reviewerID", "asin", *times),
        max_bad_lines,
        text.encoding,
        ("reviewerID", "asin"),
    )
    rows = validate_interactions(reviews.rename(REVIEW_FIELDS), str(interactions), rules)
    bad, catalog, merged = count.bad, None, 0
    if items is not None:
        metadata, item_count = read_json_lines(items, ITEM_FIELDS, ("asin",), max_bad_lines, text.encoding, ("asin",))
        category = pl.when(pl.col("category").list.len() > 0).then(pl.col("category")).otherwise(pl.col("categories"))
        metadata = metadata.with_columns(category=category).drop("categories").rename({"asin": "item_id"})
        catalog, merged = validate_items(shop_items(metadata, made_of), str(items), "merge")
        bad += item_count.bad
    return RawData(rows, catalog, stem(interactions), bad, merged)


def shop_items(metadata: pl.DataFrame, made_of: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Return a shop's metadata as texts without HTML: lists joined with spaces, categories as one text `a|b`.

    Args:
        metadata: Items with `title`, `description`, `category` and what else the source knows.
        made_of: Of which fields titles and descriptions are made, joined with spaces; each of itself by default.
    """
    category = pl.Series("category", [_joined(parts) for parts in metadata["category"].to_list()], dtype=pl.String)
    texts = metadata.with_columns(category)
    lists = [name for name, kind in texts.schema.items() if isinstance(kind, pl.List)]
    texts = texts.with_columns(text_values(texts[name]) for name in lists)
    if "details" in texts.columns:
        details = pl.Series("details", [details_text(value) for value in texts["details"].to_list()], dtype=pl.String)
        texts = texts.with_columns(details)
    plain = [name for name in (TITLE, DESCRIPTION, "feature", "features", "details") if name in texts.columns]
    texts = texts.with_columns(plain_title(texts[name]) if name == TITLE else plain_text(texts[name]) for name in plain)
    return texts.with_columns(
        pl.concat_str(fields, separator=" ", ignore_nulls=True).alias(ours) for ours, fields in made_of.items()
    )


def _joined(categories: Sequence[str] | None) -> str | None:
    """Return categories as one text `a|b`; the lists of lists of 2014 lose what stands in several of them."""
    if categories is None:
        return None
    flat: list[str] = []
    for category in categories:
        inner = _decoded(category) if category.startswith("[") else None
        flat += [str(part) for part in inner] if isinstance(inner, list) else [category]
    return "|".join(dict.fromkeys(flat)) if len(flat) > len(categories) else "|".join(flat)


def details_text(details: str | None) -> str | None:
    """Return the details of a product, a JSON object as text, as `Brand: Acme; Weight: 2 pounds`.

    Example:
        >>> details_text('{"Brand": "Acme", "Rank": {"Games": 7}, "Parts": ["a", "b"], "Colour": null}')
        'Brand: Acme; Rank: Games: 7; Parts: a, b'
    """
    value = None if details is None else _decoded(details)
    if details is None or value is None:
        return details
    return _readable(value) or None


def _readable(value: Any) -> str:
    """Return a JSON value as a person writes it."""
    if isinstance(value, dict):
        parts = ((key, _readable(entry)) for key, entry in value.items())
        return "; ".join(f"{key}: {part}" for key, part in parts if part)
    if isinstance(value, list):
        return ", ".join(part for part in map(_readable, value) if part)
    return "" if value is None else str(value).strip()


def _decoded(text: str) -> Any:
    """Return the JSON value of a text, or None where it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def text_fields(columns: Mapping[str, str], source: str, fields: Sequence[str]) -> dict[str, list[str]]:
    """Return of which fields of the metadata titles and descriptions are made, from a column map.

    The layout of the source is fixed; but `description` may be made of several fields, such as
    `{"description": "description+features"}`.

    Raises:
        DataError: when the map asks for something else.
    """
    made_of = {}
    for key, value in columns.items():
        ours, theirs = key.removeprefix(ITEMS_PREFIX), [part.strip() for part in value.split("+")]
        if ours not in (TITLE, DESCRIPTION):
            check_no_column_map(columns, source)
        unknown = [part for part in theirs if part not in fields]
        if unknown:
            raise DataError(f"the column map says {key} = {value}, but items of {source} have {list(fields)}")
        made_of[ours] = theirs
    return made_of


def check_no_column_map(columns: Mapping[str, str], source: str) -> None:
    """Check that no column map is given for a source whose layout is fixed.

    Raises:
        DataError: when a column map is given.
    """
    if columns:
        raise DataError(
            f"the layout of {source} is fixed, but a column map {dict(columns)} is given; leave it out or use source "
            "table or hub"
        )


def check_fixed_format(text: TextFormat, source: str) -> None:
    """Check that only an encoding is given for a source whose layout is fixed.

    Raises:
        DataError: when more than the encoding is given.
    """
    if text != TextFormat(encoding=text.encoding):
        raise DataError(
            f"the layout of {source} is fixed, but a delimiter, quotes or no header is given; leave it out or use "
            "source table"
        )
