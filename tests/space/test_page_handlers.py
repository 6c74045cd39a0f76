"""What the page answers: escaped titles, plain words for errors, and each visitor's own items."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="pip install 'allmrec-hf[space]' brings the page")

from allmrec_hf.space import page_html
from allmrec_hf.space.page import LONGEST_HISTORY, Page, build_page
from tests.space.hostile_titles import HOSTILE

PICKED = [{"item_id": "M0590", "title": "x"}, {"item_id": "M0638", "title": "y"}]
OWN = set(
    "div p ol ul li span b bdi button i em dl dt dd strong h3 section header details summary".split()  # noqa: SIM905
)
LOADING = {"href", "src", "srcset", "srcdoc", "action", "formaction", "data"}


class Elements(HTMLParser):
    """Checks every element of a piece of the page: one of its own, without a handler."""

    def handle_starttag(self, tag, attrs):
        assert tag in OWN
        assert not any(name.startswith("on") or name in LOADING for name, _ in attrs)


def click(item):
    return SimpleNamespace(_data={"item": item})


def harmless(html):
    """Check that a piece of the page holds no element, attribute or direction mark of a title."""
    Elements().feed(html)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", html)
    return html


def test_no_title_becomes_markup_in_any_part_of_the_page(hostile):
    page = Page([hostile, hostile])
    picked = [{"item_id": key, "title": "x"} for key in HOSTILE]
    listed, shown, _ = page.recommend(picked, "likelihood", [])
    explained, shown, _ = page.why(shown, click(shown.found.items[0].item_id))
    harmless(listed)
    assert "&lt;script&gt;" in harmless(explained)  # a title of the history, in the bars
    title = HOSTILE["X2"]
    placed, trials, own, _ = page.place(picked, title, title, [])
    assert "For whom it ranks high" in harmless(placed)
    assert "&lt;img" in harmless(own)
    compared, _ = page.compare(picked, "0:cf", "1:likelihood")
    assert "&lt;b&gt;demo&lt;/b&gt;" in harmless(compared)
    assert trials[0]["item_id"] == "new-1"
    assert "\\u202e" in page_html.safe(HOSTILE["X4"])
    assert len(page_html.shown_title(HOSTILE["X5"])) == page_html.LONGEST_SHOWN
    assert page.search("svg")[0]["title"] == HOSTILE["X6"]  # as text, which the picker puts into text nodes


def test_the_list_shows_every_rank_and_score(model):
    html, shown, said = Page([model]).recommend(PICKED, "cf", [])
    assert said == "10 recommendations"
    first = shown.found.items[0]
    assert f"CF: rank 1 of 20, score {page_html.figure(first.values['cf'])}" in html
    assert f"LLM: rank {first.ranks['likelihood']} of 20" in html
    assert f"Text: rank {first.ranks['text']} of 20" in html


def test_parts_of_a_fused_score_stand_as_bars():
    from allmrec_hf.space.ranked_lists import ListedItem, RankedList

    item = ListedItem("A", "A title", 1, 0.5, {"cf": 1.0, "text": -0.5}, {"cf": 3.0}, {"cf": 1})
    html = page_html.list_html(RankedList("fusion", ["cf"], [item], ["A"]))
    assert "Score 0.500 =" in html
    assert 'class="am-for" style="width:50.0%"' in html
    assert 'class="am-against" style="width:25.0%"' in html
    assert "\u22120.50" in html


def test_an_explanation_opens_and_closes(model):
    page = Page([model])
    _, shown, _ = page.recommend(PICKED, "likelihood", [])
    item = shown.found.items[0].item_id
    html, shown, _ = page.why(shown, click(item))
    assert "am-bars" in html
    assert "Your taste as a whole" in html
    assert "Mustang of Cattle" in html
    html, shown, _ = page.why(shown, click(item))
    assert "am-bars" not in html
    assert page.why(shown, click("not listed"))[1] is None
    assert page.why(None, click(item))[1] is None


def test_bars_are_of_the_explanation(model):
    found = model.recommend(["M0590", "M0638"], "likelihood")
    told = model.explain(["M0590", "M0638"], found.candidates[0], found.candidates)
    html = page_html.explanation_html(told)
    for one in told["contributions"]:
        assert page_html.signed(one["leave_one_out"]["total"]) in html


def test_an_empty_history_is_no_error(model):
    page = Page([model])
    for answer in (
        page.recommend([], "cf", [])[0],
        page.recommend(None, "cf", [])[0],
        page.compare([], "0:cf", "0:cf")[0],
    ):
        assert "Nothing to go by yet" in answer
        assert "alert" not in answer
    assert "Pick a history above" in page.place([], "A title", "", [])[0]


def test_a_mistake_is_told_in_plain_words_and_what_happens_inside_is_not(model, monkeypatch):
    page = Page([model])
    assert "none of the 1 history items is in the catalogue" in page.recommend([{"item_id": "gone"}], "cf", [])[0]
    assert 'role="alert"' in page.place(PICKED, " ", "", [])[0]
    assert "the new item has no title" in page.place(PICKED, " ", "", [])[0]
    for wrong in ("text", [1], [["M0001"]], {"a": 1}, [{"item_id": "M0001"}] * (LONGEST_HISTORY + 1)):
        assert "cannot be answered" in page.recommend(wrong, "cf", [])[0]

    def broken(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(model, "recommend", broken)
    html = page.recommend(PICKED, "cf", [])[0]
    assert "secret" not in html
    assert "the log of the server says what" in html


def test_new_items_are_the_visitors_own(model):
    page = Page([model])
    _, one, own, _ = page.place(PICKED, "The Dusty Saddle", "A western film.", [])
    again = page.place(PICKED, "The Dusty Saddle", "A western film.", one)[1]
    assert again == one
    assert "The Dusty Saddle" in own
    listed, shown, _ = page.recommend(PICKED, "likelihood", one)
    assert "new-1" in shown.found.candidates
    assert "new-1" not in page.recommend(PICKED, "likelihood", [])[1].found.candidates
    left, own, _ = page.remove(one, click("new-1"))
    assert (left, own) == ([], "")
    assert len(model.pipe.processor.catalog) == 1000
    assert listed


def test_two_checkpoints_are_compared_by_id_and_what_one_does_not_know_is_told(model, hostile):
    page = Page([model, hostile])
    assert page.default_sides() == ("0:likelihood", "1:likelihood")
    html, _ = Page([model, model]).compare(PICKED, "0:cf", "1:cf")
    assert "10 of 10" in html
    assert html.count(">same<") == 20
    html, _ = page.compare([{"item_id": "X1"}], "0:cf", "1:cf")
    assert "none of the 1 history items" in html
    assert html.count('class="am-duel"') == 1


def test_moves_between_two_lists():
    from allmrec_hf.space.ranked_lists import ListedItem, RankedList

    def of(*ids):
        items = [ListedItem(key, key, rank, 0.0, {}, {}, {}) for rank, key in enumerate(ids, start=1)]
        return RankedList("cf", [], items, list(ids))

    html = page_html.comparison_html([("one", of("A", "B", "C"), ""), ("two", of("C", "A", "D"), "")])
    assert "<b>2 of 3</b>" in html
    assert re.findall(r">(only here|same|[▲▼]\d)<", html) == ["▲1", "only here", "▼2", "▲2", "▼1", "only here"]


def test_one_checkpoint_compares_its_rankers(model):
    page = Page([model])
    assert page.sides() == [("LLM", "0:likelihood"), ("CF", "0:cf")]
    assert page.default_sides() == ("0:likelihood", "0:cf")


def test_the_page_offers_no_interface_beside_itself(model):
    config = build_page([model]).get_api_info()
    assert config == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize(("rank", "of", "share"), [(1, 100, 100), (100, 100, 0), (10, 100, 50), (1, 1, 100)])
def test_bars_of_ranks_are_logarithmic(rank, of, share):
    assert page_html.closeness(rank, of) == pytest.approx(share)
