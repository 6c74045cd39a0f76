"""What is typed finds items: whole words or parts, whatever case and accents, the better hit first."""

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.space.title_search import TitleSearch

TITLES = ["The Café of Dreams", "Café", "Decafé", "Night at the cafe", "100% (of) a.c?", None]
CATALOG = ItemCatalog.from_records({"item_id": f"I{n}", "title": title} for n, title in enumerate(TITLES, start=1))
SEARCH = TitleSearch(CATALOG, [5, 1, 9, 7, 2, 0])


def ids(typed, **options):
    return [item.item_id for item in SEARCH.find(typed, **options)]


def test_a_title_that_begins_so_comes_first_then_a_word_that_does_then_the_others():
    assert ids("cafe") == ["I2", "I4", "I1", "I3"]


def test_every_word_must_be_there_in_any_order():
    assert ids("DREAMS café") == ["I1"]
    assert ids("cafe night x") == []


def test_an_id_is_found_before_titles():
    assert ids("i4") == ["I4", "I1"][:1]
    assert SEARCH.find("I6")[0].title == "Untitled item I6"


def test_nothing_typed_shows_the_most_popular():
    assert ids("  ", limit=3) == ["I3", "I4", "I1"]
    assert ids(None, limit=1) == ["I3"]


def test_what_is_typed_is_no_pattern():
    assert ids("a.c") == ["I5"]
    assert ids("(of)") == ["I5"]
    assert ids(".*") == []
    assert ids("100%") == ["I5"]


def test_any_input_is_answered():
    for typed in (7, ["x"], {"a": 1}, "\x00", "\ud800", "x" * 10**6):
        assert isinstance(SEARCH.find(typed), list)
