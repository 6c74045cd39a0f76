"""Photograph the page of `allmrec space` for docs/space.md, in Debian's chromium.

pip install -e '.[dev]' && apt-get install chromium
python scripts/space_screenshots.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from headless_chromium import chromium
from PIL import Image

from allmrec_hf.space.page import build_page, launch_page
from allmrec_hf.space.page_model import PageModel
from allmrec_hf.space.run_page import load_checkpoint
from allmrec_hf.space.space_folder import ABOUT_DEMO

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
LARGEST = 150_000  # bytes
COLORS = 256
PATIENCE = 120_000  # milliseconds
ITEM = ("The Dusty Saddle", "A western film about a lonely sheriff, his horse and a saddle.")


def pick(page: Any, *typed: str) -> None:
    """Pick the first item found for each text."""
    for one in typed:
        page.locator("#am-input").fill(one)
        page.wait_for_selector("#am-option-0[aria-selected=true]")
        page.keyboard.press("Enter")
        time.sleep(0.3)


def recommend(page: Any) -> None:
    """Show recommendations, and why the first one."""
    pick(page, "dusty mustang", "saddle of lasso", "saloon")
    page.locator("#am-recommend").click()
    page.wait_for_selector(".am-item")
    page.locator(".am-why").first.click()
    page.wait_for_selector(".am-bars")


def new_item(page: Any) -> None:
    """Show where a new item ranks."""
    pick(page, "dusty mustang", "saddle of lasso", "saloon")
    page.get_by_role("tab", name="New item").click()
    page.locator("#am-new-title input, #am-new-title textarea").fill(ITEM[0])
    page.locator("#am-new-text textarea").fill(ITEM[1])
    page.locator("#am-place").click()
    page.wait_for_selector(".am-kinds")


def compare(page: Any) -> None:
    """Show two rankers side by side."""
    pick(page, "dusty mustang", "saddle of lasso", "saloon")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#am-compare").click()
    page.wait_for_selector(".am-duel")


def search(page: Any) -> None:
    """Show what is found while one types."""
    pick(page, "dusty mustang")
    page.locator("#am-input").fill("sad")
    page.wait_for_selector("#am-option-3")


PICTURES = {  # what is shown, size, colours, from which heading on
    "space_recommend_light": (recommend, (1000, 1010), "light", None),
    "space_compare_dark": (compare, (1000, 1060), "dark", None),
    "space_phone_recommend": (recommend, (375, 1180), "light", None),
    "space_phone_new_item": (new_item, (375, 1180), "dark", "#am-placed"),
    "space_phone_search": (search, (375, 760), "light", None),
}


def photograph(browser: Any, address: str, name: str) -> Path:
    """Write one picture and return its path."""
    show, (width, height), scheme, start = PICTURES[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("#am-input")
    show(page)
    if start is not None:
        page.locator(start).evaluate("(node) => { node.scrollIntoView(); window.scrollBy(0, -14); }")
    time.sleep(0.6)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=str(path))
    context.close()
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {LARGEST}")
    return path


def main() -> None:
    """Write every picture, or those that are named on the command line."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    blocks = build_page([PageModel("demo", load_checkpoint("demo"))], about=ABOUT_DEMO)
    address = launch_page(blocks, "127.0.0.1", wait=False)
    with chromium() as browser:
        for name in sys.argv[1:] or PICTURES:
            path = photograph(browser, address, name)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")
    blocks.close()


if __name__ == "__main__":
    main()
