"""The catalogue: indices, titles, texts, files."""

import copy
import pickle

import polars as pl
import pytest

from allmrec_hf import catalog as catalog_module
from allmrec_hf import item_rows
from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.errors import ALLMRecError, CheckpointError, DataError

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
        "Only words.",
        "",
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
    with pytest.raises(ALLMRecError, match="no space left on the disk"):
        ItemCatalog.from_records(RECORDS[:1]).save(tmp_path)
    assert path.read_bytes() == before


def test_copies_share_the_catalogue(catalog):
    assert copy.deepcopy({"catalog": catalog})["catalog"] is catalog


# -- growing


def test_an_item_is_added_without_looking_at_those_before_it(monkeypatch):
    looked = []
    catalog = ItemCatalog(pl.DataFrame({"item_id": [f"B{n}" for n in range(1000)], "title": "T", "year": 1}))
    columns = catalog_module._columns
    monkeypatch.setattr(
        catalog_module, "_columns", lambda items, saved: looked.append(len(items)) or columns(items, saved)
    )
    grown = catalog
    for number in range(200):
        grown = grown.extended([{"item_id": f"N{number}", "title": f"New {number}"}])
    assert sum(looked) == 400  # each new row, read and cleaned; never one of the thousand
    assert grown._rows is catalog._rows  # one list of ids for all of them
    assert len(grown._parts) <= catalog_module.MOST_PARTS
    assert (len(catalog), len(grown)) == (1000, 1200)
    assert grown.index("N199") == 1200
    assert catalog.index("N199") is None
    assert "N0" not in catalog
    assert catalog.find_title("new 7") == []
    assert grown.find_title("new 7") == [1008]
    assert (len(catalog.item_ids), grown.item_ids[-1]) == (1000, "N199")
    assert (catalog.frame.height, grown.frame.height) == (1000, 1200)
    assert grown.frame["item_id"].to_list() == grown.item_ids
    with pytest.raises(DataError, match="must be 1 to 1000"):
        catalog.title(1001)


def test_two_catalogues_grown_from_one_do_not_mix(catalog):
    left = catalog.extended([{"item_id": "L", "title": "Left"}])
    right = catalog.extended([{"item_id": "R", "title": "Right"}])
    again = catalog.extended([{"item_id": "L", "title": "Other"}])
    assert [one.title(5) for one in (left, right, again)] == ["Left", "Right", "Other"]
    assert (left.index("R"), right.index("L"), again.index("L")) == (None, None, 5)
    assert left.extended([{"item_id": "M"}]).item_ids == [*catalog.item_ids, "L", "M"]
    assert pickle.loads(pickle.dumps(left)).find_title("left") == [5]


def test_titles_are_indexed_once_when_the_first_is_looked_for_and_new_ones_are_found(monkeypatch):
    made = []
    make = item_rows._TitleIndex
    monkeypatch.setattr(item_rows, "_TitleIndex", lambda titles: made.append(len(titles)) or make(titles))
    monkeypatch.setattr(item_rows, "NOT_INDEXED", 3)
    titles = ["Lost Harbor", None, "STRASSE  Nine", "İstanbul", "", "lost\u00a0harbor", "Cafe\u0301"]
    catalog = ItemCatalog.from_records({"item_id": str(n), "title": title} for n, title in enumerate(titles))
    assert catalog.index("nothing") is None
    assert made == []
    assert catalog.find_title(" LOST  harbor ") == [1, 6]
    assert catalog.find_title("straße nine") == [3]
    assert catalog.find_title("café") == [7]
    assert catalog.find_title("i\u0307stanbul") == [4]
    assert catalog.find_title("") == catalog.find_title("Untitled item 1") == []
    assert made == [7]
    for number in range(5):
        catalog = catalog.extended([{"item_id": f"N{number}", "title": "Straße nine"}])
        assert len(catalog.find_title("STRASSE NINE")) == number + 2
    assert made == [7, 11]


GROWN = pl.DataFrame(
    {
        "item_id": ["A", "B"],
        "year": [1999, 2001],
        "price": [1.5, 2.0],
        "genres": [["Drama"], ["Comedy", "Crime"]],
        "code": ["007", "x"],
        "nothing": pl.Series([None, None], dtype=pl.Null),
    }
)


@pytest.mark.parametrize(
    ("column", "value", "kept"),
    [
        ("year", "2020", 2020),
        ("year", 2020.0, 2020),
        ("year", None, None),
        ("price", 3, 3.0),
        ("price", "3.5", 3.5),
        ("genres", ["War"], ["War"]),
        ("genres", [], []),
        ("code", 7, "7"),
        ("nothing", "new", "new"),
        ("studio", "S", "S"),
    ],
)
def test_a_new_items_column_gets_the_type_of_the_catalogue(column, value, kept):
    catalog = ItemCatalog(GROWN)
    grown = catalog.extended([{"item_id": "N", column: value}])
    assert grown.frame[column].to_list()[-1] == kept
    assert grown.frame.schema.get(column) == catalog.frame.schema.get(column, pl.String) or column == "nothing"
    others = [name for name in GROWN.columns[1:] if name != column]
    assert grown.frame.select(others).row(2) == (None,) * len(others)


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("year", "next", "column 'year' of the new items is String, first 'next', but Int64 in the catalogue"),
        ("year", 2020.5, "column 'year' of the new items is Float64, first 2020.5, but Int64"),
        ("genres", "Drama", r"column 'genres' .* is String, first 'Drama', but List\(String\) in the catalogue"),
        ("code", ["a"], r"column 'code' .* is List\(String\), first \['a'\], but String in the catalogue"),
    ],
)
def test_a_column_that_cannot_be_of_the_catalogues_type_is_refused_in_one_line(column, value, match):
    catalog = ItemCatalog(GROWN)
    with pytest.raises(DataError, match=match) as refused:
        catalog.extended([{"item_id": "N", column: value}])
    assert "\n" not in str(refused.value)
    assert len(catalog._rows) == 2


def test_a_file_of_something_else_is_named(tmp_path):
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet: the catalogue has no column item_id"):
        ItemCatalog.load(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(CheckpointError, match=r"parquet file of items .* truncated or damaged: write or download it"):
        ItemCatalog.load(tmp_path)
