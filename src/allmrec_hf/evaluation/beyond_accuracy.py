"""Measure recommended lists beyond accuracy: what they favour, how new, how varied and how true to the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .protocol import History

PLACES = 10  # of each list that are measured
CATEGORY_COLUMNS = ("category", "categories", "genre", "genres")
SMOOTHING = 0.01  # of the history's distribution in the recommended one (Steck, RecSys 2018)
_SEPARATORS = re.compile(r"[|;,]")


def item_categories(frame: pl.DataFrame) -> list[tuple[str, ...]] | None:
    """Return the categories of each item, in the order of the frame; None where no column holds any.

    The first of `CATEGORY_COLUMNS` that is not empty counts: lists, or texts whose parts `|`, `;` or `,` separate.

    Example:
        >>> item_categories(pl.DataFrame({"category": ["Drama|War", None]}))
        [('Drama', 'War'), ()]
    """
    for name in CATEGORY_COLUMNS:
        if name in frame.columns:
            found = [_parts(value) for value in frame[name].to_list()]
            if any(found):
                return found
    return None


def _parts(value: Any) -> tuple[str, ...]:
    values = _SEPARATORS.split(value) if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(text for part in values if part is not None and (text := str(part).strip())))


def beyond_accuracy(
    lists: NDArray[np.int64],
    histories: Sequence[History],
    counts: NDArray[np.int64],
    members: Mapping[str, NDArray[np.bool_]],
    categories: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Return what a method's lists are like.

    Args:
        lists: `(U, K)` catalogue indices, the best first, 0 where a list has ended.
        histories: U histories.
        counts: `(N + 1,)` interactions of each item that were known.
        members: By group `(N + 1,)` True at its items: the shares of the lists that are told.
        categories: Of each of the N items, in catalogue order.

    Returns:
        `places`; `coverage`: the share of the catalogue that stands in some list; `popularity_lift`: by how much the
        items of a list are more popular than those of its user's history, as a share of these, over all users,
        where some history has items with interactions;
        `novelty`: the mean information of a place in bits, `-log2` of the item's share of the interactions; `share of
        GROUP`: the share of the places; with categories `diversity`: one less the Jaccard similarity of two items of a
        list, and `miscalibration`: the Kullback-Leibler divergence of a list's categories from its user's history's, in
        nats; 0 is exactly the user's mixture.
    """
    lists = lists[:, :PLACES]
    real = lists > 0
    num_items = len(counts) - 1
    shown: dict[str, float] = {"places": float(lists.shape[1])}
    shown["coverage"] = len(np.unique(lists[real])) / num_items
    usual = np.array([counts[history].mean() if len(history) else np.nan for history in histories])
    listed = np.where(real, counts[lists], 0).sum(axis=1) / np.maximum(real.sum(axis=1), 1)
    known = (usual > 0) & real.any(axis=1)
    if known.any():
        shown["popularity_lift"] = float(listed[known].mean() / usual[known].mean() - 1)
    bits = -np.log2((counts + 1.0) / (counts.sum() + num_items))
    shown["novelty"] = float(bits[lists[real]].mean()) if real.any() else 0.0
    for group, mask in members.items():
        shown[f"share of {group}"] = float(mask[lists[real]].mean()) if real.any() else 0.0
    if categories is not None:
        shown |= _by_category(lists, histories, categories)
    return shown


def _by_category(
    lists: NDArray[np.int64], histories: Sequence[History], categories: Sequence[Sequence[str]]
) -> dict[str, float]:
    names = {name: place for place, name in enumerate(dict.fromkeys(name for row in categories for name in row))}
    has = np.zeros((len(categories) + 1, len(names)), dtype=np.float32)
    for item, row in enumerate(categories, start=1):
        for name in row:
            has[item, names[name]] = 1.0
    sizes = has.sum(axis=1)
    shares = has / np.maximum(sizes, 1)[:, None]
    unlike, divergences = [], []
    for row, history in zip(lists, histories, strict=True):
        items = row[(row > 0) & (sizes[row] > 0)]
        known = history[sizes[history] > 0] if len(history) else history
        if len(items) > 1:
            common = has[items] @ has[items].T
            either = sizes[items][:, None] + sizes[items][None, :] - common
            pairs = np.triu_indices(len(items), 1)
            unlike.append(1 - float((common / either)[pairs].mean()))
        if len(items) and len(known):
            wanted, found = shares[known].mean(axis=0), shares[items].mean(axis=0)
            mixed = (1 - SMOOTHING) * found + SMOOTHING * wanted
            own = wanted > 0
            divergences.append(float((wanted[own] * np.log(wanted[own] / mixed[own])).sum()))
    means = {"diversity": unlike, "miscalibration": divergences}
    return {name: float(np.mean(values)) for name, values in means.items() if values}
