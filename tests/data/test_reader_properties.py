"""Ids and titles that go through a file come back as they were, but for the documented cleaning (docs/data.md)."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec_hf.data.prepare import prepare
from allmrec_hf.values import NULL_WORDS
from tests.properties import FEW

NUM_ITEMS, NUM_USERS = 8, 4
NO_CONTROLS = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"))
IDS = st.text(NO_CONTROLS, min_size=1, max_size=8).filter(
    lambda text: text.strip() and text.strip() not in NULL_WORDS and not text.strip().startswith("#")
)
PLAIN = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="<>&\\")
TITLES = st.lists(
    st.one_of(st.text(PLAIN, max_size=10), st.sampled_from(["  ", '"', "'", ",", ";", "|", "::", "007", "null", "é"])),
    max_size=4,
).map("".join)


def clean(text: str) -> str:
    """Return an id or a title as the documentation says that it is kept."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def clean_id(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows by hand, in the way that the ending says."""
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@FEW
@given(
    users=st.lists(IDS, min_size=NUM_USERS, max_size=NUM_USERS, unique_by=clean_id),
    items=st.lists(IDS, min_size=NUM_ITEMS, max_size=NUM_ITEMS, unique_by=clean_id),
    titles=st.lists(TITLES, min_size=NUM_ITEMS, max_size=NUM_ITEMS),
)
def test_ids_and_titles_survive_a_file(
    ending: str, users: list[str], items: list[str], titles: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "example"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sales = [
        {"user_id": user, "item_id": items[(row + time) % NUM_ITEMS], "timestamp": time}
        for row, user in enumerate(users)
        for time in range(5)
    ]
    things = [{"item_id": item, "title": title} for item, title in zip(items, titles, strict=True)]
    files = write(folder / f"sales{ending}", sales), write(folder / f"things{ending}", things)
    data = prepare(*files, output=folder / "data", filter="none", num_candidates=2, keep_items="all")
    assert sorted(data.user_ids) == sorted(map(clean_id, users))
    expected = {clean_id(item): clean(title) for item, title in zip(items, titles, strict=True)}
    found = dict(zip(data.catalog.item_ids, data.catalog.frame["title"].fill_null(""), strict=True))
    assert found == {item: "" if title in NULL_WORDS else title for item, title in expected.items()}
    for row, user in enumerate(users):
        bought = [clean_id(items[(row + time) % NUM_ITEMS]) for time in range(5)]
        number = data.user_ids.index(clean_id(user))
        history = [data.catalog.item_id(index) for index in data.sequences()[number]]
        assert history == bought[:3]
