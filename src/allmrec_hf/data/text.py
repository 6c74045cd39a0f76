"""Plain text out of the HTML that shops put into titles and descriptions."""

from __future__ import annotations

import html

import polars as pl

_ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"
_CODE = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"
_TAG = r"(?s)<!--.*?-->|</?[a-zA-Z][^<>]*>"
_PAGE_SCRIPT = r"getTime\(\)|var aPageStart"  # crawled page code that stands where a title should


def plain_text(texts: pl.Series) -> pl.Series:
    """Return texts without HTML: entities unescaped, tags stripped, white space collapsed, empty texts null.

    Entities are unescaped twice, because crawled texts hold `&amp;quot;` for a quote.
    """
    for _ in range(2):
        texts = _unescape(texts)
    texts = texts.str.replace_all(_CODE, " ").str.replace_all(_TAG, " ")
    texts = texts.str.replace_all(r"\s+", " ").str.strip_chars()
    return texts.to_frame().select(pl.when(pl.col(texts.name) != "").then(pl.col(texts.name))).to_series()


def plain_title(titles: pl.Series) -> pl.Series:
    """Return titles as `plain_text`; page code that the crawl of 2018 left in place of a title becomes null."""
    code = titles.str.contains(_PAGE_SCRIPT)
    titles = titles.to_frame().select(pl.when(~code).then(pl.col(titles.name))).to_series()
    return plain_text(titles)


def _unescape(texts: pl.Series) -> pl.Series:
    """Replace HTML entities by their characters; each distinct entity is looked up once."""
    found = texts.str.extract_all(_ENTITY).explode().drop_nulls().unique().sort().to_list()
    known = {entity: html.unescape(entity) for entity in found}
    changed = {entity: text for entity, text in known.items() if text != entity}
    if not changed:
        return texts
    return texts.str.replace_many(list(changed), list(changed.values()))
