"""Amazon Reviews 2023: reviews and metadata as JSON lines (plain or gzip), parquet or, without texts, CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from ..interactions import require_columns, validate_interactions, validate_items
from ..times import BY_TIME, TimeRules
from .amazon_2018 import check_fixed_format, shop_items, text_fields
from .base import AS_FOUND, PathLike, RawData, TextFormat, stem
from .json_lines import TEXT, TEXTS, Fields, read_json_lines
from .table_files import is_json_lines, read_table

REVIEW_FIELDS = {"user_id": TEXT, "parent_asin": TEXT, "timestamp": TEXT, "rating": TEXT}
ITEM_FIELDS = {
    "parent_asin": TEXT,
    "title": TEXT,
    "description": TEXTS,
    "categories": TEXTS,
    "main_category": TEXT,
    "store": TEXT,
    "features": TEXTS,
    "details": TEXT,
}


def read_amazon_2023(
    interactions: PathLike,
    items: PathLike | None,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read `<Category>.jsonl.gz` and `meta_<Category>.jsonl.gz`, or their parquet or CSV forms.

    The item id is `parent_asin`; times are milliseconds. Titles and descriptions lose their HTML. `features` and
    `details` are kept as texts; a column map such as `{"description": "description+features"}` makes them part of the
    description.

    Args:
        interactions: The file of reviews.
        items: The file of metadata, or None.
        columns: May say of which fields titles and descriptions are made.
        max_bad_lines: The share of lines that may be broken.
        text: Only the encoding may be given.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when a file is missing, damaged or of another layout.
    """
    made_of = text_fields(columns, "amazon-2023", list(ITEM_FIELDS))
    check_fixed_format(text, "amazon-2023")
    needed = ("user_id", "parent_asin", "timestamp") if rules.order == "time" else ("user_id", "parent_asin")
    reviews, bad = _read(interactions, REVIEW_FIELDS, needed, max_bad_lines, text)
    rows = validate_interactions(reviews.rename({"parent_asin": "item_id"}), str(interactions), rules)
    catalog, merged = None, 0
    if items is not None:
        metadata, bad_items = _read(items, ITEM_FIELDS, ("parent_asin",), max_bad_lines, text)
        metadata = shop_items(metadata.rename({"parent_asin": "item_id", "categories": "category"}), made_of)
        catalog, merged = validate_items(metadata, str(items), "merge")
        bad += bad_items
    return RawData(rows, catalog, stem(interactions), bad, merged)


def _read(
    path: PathLike, fields: Fields, required: Sequence[str], max_bad_lines: float, text: TextFormat
) -> tuple[pl.DataFrame, int]:
    """Return the fields of a file of any form, and the number of bad lines."""
    if is_json_lines(path):
        frame, count = read_json_lines(path, fields, required, max_bad_lines, text.encoding, ("user_id", "parent_asin"))
        return frame, count.bad

    def choose(names: list[str]) -> dict[str, str]:
        require_columns(names, required, str(path))
        return {name: name for name in fields if name in names}

    frame, bad = read_table(path, max_bad_lines, choose, text)
    known = [_as_field(frame, name, kind) for name, kind in fields.items() if name in frame.columns]
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in fields.items() if name not in frame.columns]
    return frame.select(*known, *absent).select(*fields), bad


def _as_field(frame: pl.DataFrame, name: str, kind: pl.DataType) -> pl.Expr:
    """Return a column as it is, as the JSON text of an object, or as a list of texts where the field is one."""
    column, found = pl.col(name), frame[name].dtype
    if kind != TEXTS:
        return column.struct.json_encode() if isinstance(found, pl.Struct) else column
    return column.cast(TEXTS) if isinstance(found, pl.List) else pl.concat_list(column.cast(pl.String))
