"""The catalogue: indices, titles, texts, files."""

import copy

import polars as pl
import pytest

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.errors import CheckpointError, DataError

RECORDS = [
    {"item_id": "B1", "title": "Lost Harbor", "description": "A quiet port.", "year": 1999},
    {"item_id": "B2", "title": None, "description": "Only words."},
    {"item_id": "B3", "title": "  ", "description": ""},
    {"item_id": "B4", "title": "lost harbor"},
]


@pytest.fixture
def catalog():
    return ItemCatalog.from_records(RECORDS)


def test_items_are_numbered_from_one_in_their_order(catalog):
    assert len(catalog) == 4
    assert catalog.indices(["B3", "B1"]) == [3, 1]
    assert [catalog.item_id(index) for index in range(1, 5)] == ["B1", "B2", "B3", "B4"]
    assert catalog.index("B9") is None
    assert "B4" in catalog
    assert "B9" not in catalog


def test_items_without_a_title_are_named_and_never_match_each_other(catalog):
    assert [catalog.has_title(index) for index in range(1, 5)] == [True, False, False, True]
    assert catalog.title(2) == "Untitled item B2"
    assert len({catalog.title(2), catalog.title(3)}) == 2
    assert catalog.find_title("Untitled item B2") == []


def test_text_keeps_whatever_is_known(catalog):
    assert catalog.texts() == [
        "Lost Harbor, A quiet port.",
        "Untitled item B2, Only words.",
        "Untitled item B3",
        "lost harbor",
    ]


def test_titles_are_found_whatever_their_case(catalog):
    assert catalog.find_title(" LOST harbor ") == [1, 4]
    assert catalog.find_title("Found Harbor") == []


def test_unknown_ids_are_counted_and_named(catalog):
    with pytest.raises(DataError, match=r"2 of 3 item ids are not in the catalogue of 4 items: \['X', 'Y'\]"):
        catalog.indices(["X", "B1", "Y"])


def test_columns_may_be_missing_and_integer_ids_become_text():
    catalog = ItemCatalog(pl.DataFrame({"item_id": [7, 8]}))
    assert catalog.item_ids == ["7", "8"]
    assert catalog.title(1) == "Untitled item 7"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"title": ["A"]}, "no column item_id"),
        ({"item_id": ["a", None, None]}, "2 rows without item_id"),
        ({"item_id": ["a", "b", "a", "a"]}, r"1 item ids more than once, first \['a'\]"),
    ],
)
def test_bad_frames_are_refused(frame, message):
    with pytest.raises(DataError, match=message):
        ItemCatalog(pl.DataFrame(frame))


def test_further_items_come_last_and_leave_the_old_catalogue_alone(catalog):
    grown = catalog.extended([{"item_id": "N1", "title": "New", "studio": "S"}])
    assert len(catalog) == 4
    assert grown.item_ids == [*catalog.item_ids, "N1"]
    assert grown.frame["year"].to_list() == [1999, None, None, None, None]
    with pytest.raises(DataError, match=r"1 item ids are in the catalogue already: \['B1'\]"):
        catalog.extended([{"item_id": "B1"}])


def test_saved_catalogue_loads_the_same_from_file_or_folder(catalog, tmp_path):
    path = catalog.save(tmp_path)
    for place in (path, tmp_path):
        assert ItemCatalog.load(place).frame.equals(catalog.frame)
    assert [file.name for file in tmp_path.iterdir()] == ["items.parquet"]


def test_missing_and_damaged_files_are_named(catalog, tmp_path):
    with pytest.raises(CheckpointError, match=r"no catalogue at .*items.parquet"):
        ItemCatalog.load(tmp_path / "items.parquet")
    path = catalog.save(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"items.parquet is no readable parquet file"):
        ItemCatalog.load(tmp_path)


def test_a_full_disk_keeps_the_saved_catalogue(catalog, tmp_path, monkeypatch):
    path = catalog.save(tmp_path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space left"):  # inside a checkpoint, whose writer reports it
        ItemCatalog.from_records(RECORDS[:1]).save(tmp_path)
    assert path.read_bytes() == before


def test_copies_share_the_catalogue(catalog):
    assert copy.deepcopy({"catalog": catalog})["catalog"] is catalog
