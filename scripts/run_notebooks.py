"""Run the notebooks of examples/ from top to bottom and store what each cell shows; no kernel is needed.

python scripts/run_notebooks.py              # all of them
python scripts/run_notebooks.py explain      # one

All run in one process, one after the other, each with names of its own. The Hub is a stand-in on loopback
(`tests/fake_hub.py`), whose address is written as https://huggingface.co; standard error is not stored.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
HUB = "https://huggingface.co"
SECONDS = 560


def notebooks() -> list[Path]:
    """Return the paths of all notebooks."""
    return sorted(EXAMPLES.glob("*.ipynb"))


def load(path: Path) -> dict[str, Any]:
    """Return a notebook."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lines(text: str) -> list[str]:
    """Return a text as notebooks store it."""
    return text.splitlines(keepends=True)


def executed(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a notebook in this process and return its cells with what they show."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        tree, shown = ast.parse("".join(cell["source"])), None
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {count}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines(printed.getvalue())})
        if shown is not None:
            data = {"text/plain": lines(repr(shown))}
            outputs.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
        cells.append({**cell, "execution_count": count, "outputs": outputs})
    return cells


def run_in_own_process(paths: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of notebooks, by name, with what they show when they run in a fresh process.

    Raises:
        RuntimeError: when one fails; the message is the end of its traceback.
    """
    sys.path.insert(0, str(ROOT))
    from tests.fake_hub import FakeHub

    with tempfile.TemporaryDirectory() as folder, FakeHub() as hub:
        result = Path(folder) / "result.json"
        environment = {**os.environ, **hub.environment(Path(folder)), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--inside", str(result), *map(str, paths)]
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        process = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if process.returncode:
            raise RuntimeError(process.stderr[-3000:])
        text = re.sub(re.escape(hub.endpoint), HUB, result.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = json.loads(text)
    return found


def main() -> None:
    """Run the notebooks that are named, or all, and store their outputs."""
    if sys.argv[1:2] == ["--inside"]:
        result, *paths = map(Path, sys.argv[2:])
        cells = {path.name: executed(load(path)) for path in paths}
        result.write_text(json.dumps(cells), encoding="utf-8")
        return
    wanted = [EXAMPLES / f"{name}.ipynb" for name in sys.argv[1:]] or notebooks()
    for name, cells in run_in_own_process(wanted).items():
        path = EXAMPLES / name
        path.write_text(
            json.dumps({**load(path), "cells": cells}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(f"ran {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
