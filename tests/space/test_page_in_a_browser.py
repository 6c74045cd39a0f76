"""The page in a real browser: by keyboard alone, on a phone, in the dark, while it waits, and with hostile titles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("gradio", reason="pip install 'allmrec-hf[space]' brings the page")

from allmrec_hf.space.page import build_page, launch_page
from scripts import headless_chromium as driven

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(driven.lacking() is not None, reason=driven.lacking() or ""),
]
PATIENCE = 60_000  # milliseconds; machines of tests are busy
LOCAL = re.compile(r"^(?:https?|wss?)://127\.0\.0\.1[:/]|^(?:data|blob|about):")
CONTRAST = """(selectors) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const paint = (layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const found = {};
  for (const selector of selectors) {
    for (const node of document.querySelectorAll(selector)) {
      if (!node.checkVisibility() || !node.textContent.trim()) continue;
      const layers = ['white'];
      for (let up = node; up; up = up.parentElement) layers.splice(1, 0, getComputedStyle(up).backgroundColor);
      const [back, front] = [paint(layers), paint([...layers, getComputedStyle(node).color])].map(light);
      const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
      found[selector] = Math.min(found[selector] ?? 99, ratio);
    }
  }
  return found;
}"""


@contextmanager
def served(*models: Any) -> Iterator[str]:
    blocks = build_page(models, about="Its film world is invented.")
    try:
        yield launch_page(blocks, "127.0.0.1", wait=False)
    finally:
        blocks.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with driven.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(hostile: Any, model: Any) -> Iterator[str]:
    with served(hostile, model) as url:
        yield url


class Visit:
    """One visitor's page, which notes what goes wrong in it."""

    def __init__(self, chromium: Any, address: str, width: int = 1000, scheme: str = "light") -> None:
        self.context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.context.route(lambda url: not LOCAL.match(url), self._refuse)
        self.page.goto(address)
        self.page.wait_for_selector("#am-input")

    def _refuse(self, route: Any) -> None:
        self.elsewhere.append(route.request.url)
        route.abort()

    def pick(self, *typed: str) -> None:
        for one in typed:
            before = self.page.locator(".am-chip").count()
            self.page.locator("#am-input").fill(one)
            self.page.wait_for_selector("#am-option-0[aria-selected=true]")
            self.page.keyboard.press("Enter")
            self.page.wait_for_function(f"document.querySelectorAll('.am-chip').length === {before + 1}")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def no_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Any]:
    made: list[Visit] = []

    def start(**options: Any) -> Visit:
        made.append(Visit(chromium, address, **options))
        return made[-1]

    yield start
    for one in made:
        one.context.close()
        assert one.errors == []


def test_by_keyboard_alone_from_the_first_letter_to_the_reasons(visit):
    page = visit().page
    assert "Nothing to go by yet" in page.locator("#am-results").inner_text()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "am-input":
            break
    page.keyboard.type("mustang")
    page.wait_for_selector("#am-option-0[aria-selected=true]")
    page.keyboard.press("ArrowDown")
    assert page.locator("#am-option-1").get_attribute("aria-selected") == "true"
    page.keyboard.press("Enter")
    page.keyboard.type("nothing like this")
    page.wait_for_selector(".am-none >> text=Nothing is called")
    page.keyboard.press("Escape")
    for _ in "nothing like this":
        page.keyboard.press("Backspace")
    page.keyboard.type("M0590")
    page.wait_for_selector("#am-option-0[aria-selected=true]")
    page.keyboard.press("Enter")
    assert page.locator(".am-chip bdi").all_inner_texts() == ["Dusty Mustang", "Mustang of Cattle"]
    page.keyboard.press("Enter")  # in the empty field
    page.wait_for_selector(".am-item")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "am-why":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    page.keyboard.press("Enter")
    page.wait_for_selector(".am-bars")
    assert page.locator(".am-bars li").count() == 3
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Enter")
    page.wait_for_selector(".am-bars", state="detached")
    page.locator("#am-input").focus()
    page.keyboard.press("Backspace")
    page.wait_for_selector("text=The history is ready")
    assert page.locator(".am-chip").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways_and_every_text_can_be_read(visit, scheme):
    phone = visit(width=375, scheme=scheme)
    page = phone.page
    page.locator("#am-input").focus()
    page.wait_for_selector("#am-option-0")
    assert phone.no_sideways()
    phone.pick("wwwwww", "onerror", "mustang")
    page.locator("#am-recommend").click()
    page.wait_for_selector(".am-item")
    page.locator(".am-why").first.click()
    page.wait_for_selector(".am-bars")
    assert phone.no_sideways()
    texts = [".am-lead", ".am-rank", ".am-value", ".am-why", ".am-title", ".am-id", ".am-hint", ".am-chip", ".am-key"]
    texts += [".am-label", ".am-number", ".am-legend dd", ".am-example", "#am-recommend"]
    contrast = page.evaluate(CONTRAST, texts)
    assert set(contrast) == set(texts)
    assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}
    phone.tab("New item")
    page.locator("#am-new-title input, #am-new-title textarea").fill("W" * 120)
    page.locator("#am-place").click()
    page.wait_for_selector(".am-kinds")
    assert phone.no_sideways()
    phone.tab("Compare")
    page.locator("#am-compare").click()
    page.wait_for_selector(".am-duel")
    assert page.locator(".am-duel").count() == 2
    assert phone.no_sideways()
    contrast = page.evaluate(CONTRAST, [".am-move", ".am-up", ".am-down", ".am-only", ".am-h"])
    assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")


def test_hostile_titles_are_text_wherever_they_stand(visit):
    one = visit()
    page = one.page
    page.locator("#am-input").fill("saddle")
    page.wait_for_selector("#am-option-0")
    one.pick("X1", "X2", "X3", "X4", "X6")
    page.locator("#am-recommend").click()
    page.wait_for_selector(".am-item")
    page.locator(".am-why").first.click()
    page.wait_for_selector(".am-bars")
    one.tab("New item")
    page.locator("#am-new-title input, #am-new-title textarea").fill("<img src=x onerror='window.hit = 8'>")
    page.locator("#am-new-text textarea").fill("</div><script>window.hit = 9</script>")
    page.locator("#am-place").click()
    page.wait_for_selector(".am-kinds")
    one.tab("Compare")
    page.locator("#am-compare").click()
    page.wait_for_selector(".am-duel")
    page.wait_for_timeout(300)
    assert page.evaluate("window.hit") is None
    parts = "#am-history, #am-results, #am-placed, #am-own, #am-compared, .am-head1"
    inside = f"document.querySelectorAll(':is({parts}) :is(img, script, svg, a, code)').length"
    assert page.evaluate(inside) == 0
    chips = page.locator(".am-chip bdi").all_inner_texts()
    assert chips[0] == "<script>window.hit = 1</script> Saddle"
    assert chips[3] == "Saddle \\u202egnirts a \\u2067 back"
    assert page.locator(".am-head1 b").nth(1).inner_text() == "<b>demo</b> & co"
    assert one.elsewhere == []


def test_waiting_failing_and_a_lost_server_are_told(visit, hostile, monkeypatch):
    one = visit()
    page = one.page
    with hostile._alone:  # somebody else's question
        page.locator(".am-example").first.click()
        page.wait_for_selector("#am-results .am-loading")
        assert page.locator(".am-item").count() == 0
    page.wait_for_selector(".am-item")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path")

    with monkeypatch.context() as patched:
        patched.setattr(hostile, "recommend", broken)
        page.locator("#am-recommend").click()
        page.wait_for_selector("#am-results [role=alert]")
    assert "Something went wrong inside" in page.locator("#am-results").inner_text()
    assert "secret" not in page.content()
    with hostile._alone:
        page.locator("#am-recommend").click()
        page.wait_for_selector("#am-results .am-loading")
        one.context.set_offline(True)
        page.wait_for_selector("text=The server does not answer")


def test_a_new_item_is_seen_by_its_visitor_alone(visit, hostile):
    one, other = visit(), visit()
    for visitor in (one, other):
        visitor.pick("mustang")
    one.tab("New item")
    one.page.locator("#am-place").click()
    one.page.wait_for_selector("#am-placed [role=alert] >> text=the new item has no title")
    one.page.locator("#am-new-title input, #am-new-title textarea").fill("Dusty Mustang Rides Again")
    one.page.locator("#am-new-text textarea").fill("A western film about a mustang.")
    one.page.locator("#am-place").click()
    one.page.wait_for_selector(".am-kinds")
    assert one.page.locator(".am-stat").count() == 3
    assert one.page.locator(".am-trials li").count() == 1
    assert "Dusty Mustang Rides Again" in one.page.locator("#am-own").inner_text()
    assert other.page.locator(".am-trials li").count() == 0
    assert other.page.evaluate("document.body.innerText.includes('Rides Again')") is False
    one.page.locator(".am-trials button").click()
    one.page.wait_for_selector(".am-trials", state="detached")
    assert len(hostile.pipe.processor.catalog) == 1006


def test_two_checkpoints_stand_side_by_side(visit):
    one = visit()
    page = one.page
    one.tab("Compare")
    page.locator("#am-compare").click()
    page.wait_for_selector("#am-compared >> text=Nothing to go by yet")
    one.pick("mustang")
    page.locator("#am-compare").click()
    page.wait_for_selector(".am-duel")
    boxes = [side.bounding_box() for side in page.locator(".am-side").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    rows = [page.locator(".am-duel").nth(side).locator("li").first.bounding_box()["y"] for side in (0, 1)]
    assert rows[0] == pytest.approx(rows[1], abs=1)
    assert page.locator(".am-side h3").all_inner_texts() == ["<b>demo</b> & co · LLM", "demo · LLM"]


def test_the_page_asks_no_other_machine(visit):
    one = visit()
    one.pick("mustang")
    one.page.locator("#am-recommend").click()
    one.page.wait_for_selector(".am-item")
    assert one.elsewhere == []
