"""Every example runs, in a process of its own, without network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--tiny", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_every_example_has_a_test():
    assert set(EXAMPLES) == {
        *("train_and_recommend.py", "cold_start.py", "explain.py", "favourite_category.py", "own_cf_backbone.py"),
        "share.py",
    }


def test_train_and_recommend(tmp_path):
    printed = run("train_and_recommend.py", "--output", str(tmp_path / "example"))
    assert "a-llmrec" in printed
    assert "popularity" in printed
    assert len(printed.strip().splitlines()[-3:]) == 3


def test_explain(tmp_path):
    printed = run("explain.py", "--output", str(tmp_path / "why"))
    assert "user vector" in printed
    assert (tmp_path / "why" / "explanation.json").exists()


def test_favourite_category(tmp_path):
    assert "| chance |" in run("favourite_category.py", "--output", str(tmp_path))
    assert (tmp_path / "free_text.json").exists()


def test_cold_start():
    printed = run("cold_start.py")
    assert "added ['NEW1', 'NEW2']" in printed
    assert "the same after saving and loading: True" in printed


def test_own_cf_backbone(tmp_path):
    printed = run("own_cf_backbone.py", "--output", str(tmp_path / "own"))
    assert "decay" in printed
    assert printed.strip().splitlines()[-1] == "stage 1 on top of decay"


@pytest.mark.slow
def test_share(tmp_path):
    with FakeHub() as hub:
        environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "0"}
        printed = run("share.py", "--repo", "org/a-llmrec-demo", **environment)
    assert "org/a-llmrec-demo" in printed
    assert len(printed.strip().splitlines()) == 4
