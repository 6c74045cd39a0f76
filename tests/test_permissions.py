"""Folders that may not be written: each command says so and leaves them as they were.

Root may write anywhere, so a process of root first gives up the capabilities that let it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from allmrec_hf.data.prepared import PreparedData
from tests.command_line import in_own_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and folder modes are those of Linux")

HELD_TO_PERMISSIONS = """
import ctypes, os
if os.geteuid() == 0:
    libc, words = ctypes.CDLL(None, use_errno=True), ctypes.c_uint32 * 2
    header, sets = words(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for place in (0, 1):  # effective and permitted: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        sets[place] &= ~0b110
    assert libc.capset(header, sets) == 0
try:
    open(os.path.join(PLACE, "probe"), "w")
    raise SystemExit("the folder can be written")
except PermissionError:
    pass
"""


@pytest.fixture
def closed(tmp_path):
    """A folder that its owner may read and enter, not write."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


def told(place: Path, *arguments) -> str:
    """Run a command that must end with one error that names the permission; return it."""
    done = in_own_process(*arguments, before=HELD_TO_PERMISSIONS.replace("PLACE", repr(str(place))))
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert "ermission" in said, said
    return said


def commands(run, data, tables, closed):
    """Return every command that writes, with its output in the closed folder."""
    users, items = tables / "users.parquet", tables / "new.csv"
    history = PreparedData.load(data).catalog.item_ids[:3]
    pl.DataFrame({"user_id": ["u1"], "history": [history]}).write_parquet(users)
    items.write_text("item_id,title\nN1,New\n")
    return {
        "prepare": (
            "prepare",
            "--interactions",
            tables / "interactions.csv",
            "--items",
            tables / "items.csv",
            "--filter",
            "none",
        ),
        "train": ("train", "--data", data, "--stage", "backbone", "--backbone.max-steps", 2),
        "evaluate": ("evaluate", "--model", run, "--data", data),
        "benchmark": ("benchmark", "--suite", "smoke"),
        "recommend": ("recommend", "--model", run, "--users", users),
        "add-items": ("add-items", "--model", run, "--items", items),
        "export": ("export", "--format", "vllm", "--model", run, "--data", data),
    }


NAMES = ("prepare", "train", "evaluate", "benchmark", "recommend", "add-items", "export")


@pytest.mark.parametrize("name", NAMES)
def test_an_output_in_a_closed_folder_is_refused(finished_run, small_parts, tmp_path, closed, name):
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(
        f"u{user},i{(user + step) % 30},{step}\n" for user in range(30) for step in range(6)
    ))  # fmt: skip
    (tables / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},Title {item}\n" for item in range(30)))
    command = commands(finished_run, small_parts / "data", tables, closed)[name]
    output = closed / ("out.parquet" if name == "recommend" else "out")
    assert str(closed) in told(closed, *command, "--output", output)
    assert list(closed.iterdir()) == []


def test_a_service_whose_state_cannot_be_written_does_not_start(finished_run, closed):
    said = told(closed, "serve", "--model", finished_run, "--port", 0, "--state", closed / "state")
    assert str(closed) in said


def test_items_cannot_be_added_to_a_checkpoint_that_is_closed(finished_run, tmp_path):
    model = Path(shutil.copytree(finished_run, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")))
    (tmp_path / "new.csv").write_text("item_id,title\nN1,New\n")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    model.chmod(0o500)
    try:
        told(model, "add-items", "--model", model, "--items", tmp_path / "new.csv")
        assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    finally:
        model.chmod(0o700)
