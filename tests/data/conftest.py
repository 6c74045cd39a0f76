"""Small worlds of interactions and items for the tests of the data."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_hub import fake_hub  # noqa: F401


@pytest.fixture
def shared() -> Path:
    """Return the folder of real data that may lie beside the repository."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not here (expected ../shared/data beside the repository)")
    return folder


@pytest.fixture
def interactions() -> pl.DataFrame:
    """Return 30 users with 6 of 40 items each, in file order, with ties in time."""
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{(user * 7 + place * 5) % 40}", "timestamp": place // 2, "rating": 4.0}
        for user in range(30)
        for place in range(6)
    ]
    return pl.DataFrame(rows)


@pytest.fixture
def items() -> pl.DataFrame:
    """Return 45 items; the last five without interactions, i3 without title, i4 without description."""
    return pl.DataFrame(
        {
            "item_id": [f"i{number}" for number in range(45)],
            "title": [None if number == 3 else f"Title {number}" for number in range(45)],
            "description": [None if number == 4 else f"About {number}" for number in range(45)],
            "category": ["a"] * 45,
        }
    )
