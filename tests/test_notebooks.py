"""Every notebook runs from top to bottom, and shows what is stored in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from scripts.run_notebooks import EXAMPLES, load, notebooks, run_in_own_process

NOTEBOOKS = notebooks()
TRAINS = {"own_data.ipynb"}  # what a few steps of training end with depends on the machine
NUMBER = re.compile(r"[-+]?\d+\.\d+")


def shown(cells: list[dict[str, Any]]) -> list[str]:
    """Return what each code cell shows, as one text."""
    texts = []
    for cell in cells:
        if cell["cell_type"] == "code":
            parts = (part.get("text") or part["data"]["text/plain"] for part in cell["outputs"])
            texts.append("".join("".join(part) for part in parts))
    return texts


@pytest.fixture(scope="module")
def ran() -> dict[str, list[dict[str, Any]]]:
    pytest.importorskip("fastapi", reason="pip install 'allmrec-hf[serve]' brings the service of serve.ipynb")
    return run_in_own_process(NOTEBOOKS)


def test_what_the_examples_are_about():
    told = {path.stem for path in NOTEBOOKS}
    assert told == {"quickstart", "own_data", "cold_start", "publish", "serve", "explain"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.ipynb`" in listed for name in told)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(path: Path) -> None:
    notebook = load(path)
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "127.0.0.1" not in "".join(shown(notebook["cells"]))
    assert not re.search(r"/(tmp|home|root|work)/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_what_is_stored_in_it(path: Path, ran: dict[str, list[dict[str, Any]]]) -> None:
    stored, found = shown(load(path)["cells"]), shown(ran[path.name])
    assert [bool(text) for text in found] == [bool(text) for text in stored]
    if path.name in TRAINS:
        assert [len(text.splitlines()) for text in found] == [len(text.splitlines()) for text in stored]
        return
    for before, now in zip(stored, found, strict=True):
        assert NUMBER.sub("#", now) == NUMBER.sub("#", before)
        numbers = [float(number) for number in NUMBER.findall(before)]
        assert [float(number) for number in NUMBER.findall(now)] == pytest.approx(numbers, rel=0.01, abs=0.011)


@pytest.mark.slow
def test_the_notebooks_do_what_they_tell(ran: dict[str, list[dict[str, Any]]]) -> None:
    told = {name.removesuffix(".ipynb"): shown(cells) for name, cells in ran.items()}
    assert "NEW1 The Lost Harbor" in "".join(told["quickstart"])
    assert {told[name][-1] for name in ("quickstart", "own_data")} == {"True"}
    assert told["cold_start"][-1] == "True\n"
    western, romance = (int(line.split()[1]) for line in told["cold_start"][2].splitlines())
    assert western < romance
    assert "True" in told["publish"]
    assert told["publish"][2] == "'https://huggingface.co/your-name/a-llmrec-demo'"
    assert told["serve"][3].startswith("201\n")
    assert told["serve"][4] == "(422, ['top_k'])"
