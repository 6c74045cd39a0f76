"""Debian's Chromium, driven by Playwright, for tests and screenshots; it fetches nothing from other machines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def lacking() -> str | None:
    """Return why there is no browser to test with."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "pip install playwright drives the browser"
    return None if shutil.which("chromium") else "no chromium on this machine: apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()
