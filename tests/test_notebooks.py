"""Every notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def program(notebook: dict[str, Any]) -> str:
    """Return the code cells as one program that prints the value of each cell's last line, as a notebook shows it."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            if isinstance(tree.body[-1], ast.Expr):
                tree.body[-1].value = ast.Call(ast.Name("_show", ast.Load()), [tree.body[-1].value], [])
            parts.append(ast.unparse(ast.fix_missing_locations(tree)))
    show = "def _show(value):\n    if value is not None:\n        print('Out:', value)"
    return "\n".join([show, *parts])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = load(path)
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_quickstart_runs() -> None:
    code = program(load(EXAMPLES / "quickstart.ipynb"))
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "NEW1 The Lost Harbor" in process.stdout
    assert "{'error': \"none of the 1 history items" in process.stdout
    assert process.stdout.strip().splitlines()[-1] == "Out: True"
