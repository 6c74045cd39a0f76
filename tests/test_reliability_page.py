"""The page of attacks is what the stored reports say, and names tests and commands that are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def reliability_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reliability_page

    yield reliability_page
    sys.modules.pop("reliability_page")


def test_every_figure_of_the_page_is_that_of_a_stored_report(reliability_page):
    assert (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == reliability_page.page()


def test_commands_and_tests_of_the_page_are_there(reliability_page):
    for attack in reliability_page.ATTACKS:
        folder = ROOT
        for name in re.findall(r"`([^`]+)`", attack.tests):
            folder = (ROOT / name).parent if "/" in name else folder
            assert (folder / Path(name).name).is_file(), name
        if attack.command is not None:
            assert (ROOT / attack.command.split()[1]).is_file()


def test_a_report_that_is_missing_is_said_to_be_not_run(reliability_page, monkeypatch, tmp_path):
    monkeypatch.setattr(reliability_page, "RESULTS", tmp_path)
    assert reliability_page.page().count("| not run yet | - |") == 6
