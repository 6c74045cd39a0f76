"""Strip HTML from titles and descriptions."""

from __future__ import annotations

import polars as pl

from ..values import plain_texts as plain_text

__all__ = ["plain_text", "plain_title"]
_PAGE_SCRIPT = r"getTime\(\)|var aPageStart"  # crawled page code that stands where a title should


def plain_title(titles: pl.Series) -> pl.Series:
    """Return titles as `plain_text`; page code that the crawl of 2018 left in place of a title becomes null."""
    code = titles.str.contains(_PAGE_SCRIPT)
    titles = titles.to_frame().select(pl.when(~code).then(pl.col(titles.name))).to_series()
    return plain_text(titles)
