"""The raw files of the Amazon review data of 2018: reviews and metadata as JSON lines, plain or gzip."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ...errors import DataError
from ..interactions import DESCRIPTION, TITLE, validate_interactions, validate_items
from ..text import plain_text, plain_title
from .base import PathLike, RawData, stem
from .json_lines import TEXT, TEXTS, read_json_lines

REVIEW_FIELDS = {"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp", "overall": "rating"}
ITEM_FIELDS = {"asin": TEXT, "title": TEXT, "description": TEXTS, "category": TEXTS, "brand": TEXT}


def read_amazon_2018(
    interactions: PathLike, items: PathLike | None, columns: Mapping[str, str], max_bad_lines: float
) -> RawData:
    """Read `<Category>.json.gz` or `<Category>_5.json.gz` and `meta_<Category>.json.gz`.

    Titles and descriptions lose their HTML; the parts of a description are joined with spaces. An item that the
    metadata hold more than once keeps its first row.

    Raises:
        DataError: when a file is missing, damaged or of another layout.
    """
    refuse_columns(columns, "amazon-2018")
    reviews, count = read_json_lines(
        interactions, dict.fromkeys(REVIEW_FIELDS, TEXT), ("reviewerID", "asin", "unixReviewTime"), max_bad_lines
    )
    rows = validate_interactions(reviews.rename(REVIEW_FIELDS), str(interactions))
    bad, catalog, merged = count.bad, None, 0
    if items is not None:
        metadata, item_count = read_json_lines(items, ITEM_FIELDS, ("asin",), max_bad_lines)
        catalog, merged = validate_items(
            shop_items(metadata.rename({"asin": "item_id"}), "category"), str(items), "merge"
        )
        bad += item_count.bad
    return RawData(rows, catalog, stem(interactions), bad, merged)


def shop_items(metadata: pl.DataFrame, categories: str) -> pl.DataFrame:
    """Return a shop's metadata with plain titles and descriptions and its categories as one text `a|b`."""
    joined = metadata.with_columns(pl.col(DESCRIPTION).list.join(" "), pl.col(categories).list.join("|"))
    return joined.with_columns(plain_title(joined[TITLE]), plain_text(joined[DESCRIPTION]))


def refuse_columns(columns: Mapping[str, str], source: str) -> None:
    """Refuse a column map for a source whose layout is fixed.

    Raises:
        DataError: when a column map is given.
    """
    if columns:
        raise DataError(
            f"the layout of {source} is fixed, but a column map {dict(columns)} is given; leave it out or use source "
            "table or hub"
        )
