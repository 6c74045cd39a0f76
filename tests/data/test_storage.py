from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.data.storage import check_output, replaced_folder
from allmrec_hf.errors import ALLMRecError, DataError


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_and_says_so(
    tmp_path: Path, interactions: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(
        ALLMRecError, match=r"no space left on the disk while writing .*d; nothing was changed. Free some"
    ):
        prepare(interactions, output=tmp_path / "d", k_core=2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_earlier_data(
    tmp_path: Path, interactions: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(interactions, output=tmp_path / "d", k_core=2, name="old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(ALLMRecError, match="no space left"):
            prepare(interactions, output=tmp_path / "d", k_core=2, name="new", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert PreparedData.load(tmp_path / "d").name == "old"


def test_a_real_limit_on_file_size_is_met_the_same_way(tmp_path: Path) -> None:
    program = (
        "import sys, polars as pl\n"
        "from allmrec_hf.data.prepare import prepare\n"
        "rows = [(f'u{u}', f'i{(u * 7 + p) % 90}', p) for u in range(400) for p in range(6)]\n"
        "frame = pl.DataFrame(rows, schema=['user_id', 'item_id', 'timestamp'], orient='row')\n"
        "try:\n    prepare(frame, output=sys.argv[1])\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    limit = 2048

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-c", program, str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, timeout=120, check=False)
    assert done.stdout.startswith("ALLMRecError"), done.stdout + done.stderr
    assert "cannot write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def write_half(folder: Path) -> None:
    (folder / "half").write_text("x")
    raise KeyError


def test_an_error_inside_the_block_removes_the_temporary_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replaced_folder(tmp_path / "d", False, "mark") as folder:
        write_half(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with replaced_folder(tmp_path / "d", False, "mark") as folder:
        (folder / "mark").write_text("x")
    assert (tmp_path / "d" / "mark").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_folder_that_is_not_empty_is_refused_with_both_ways_to_replace_it(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("x")
    with pytest.raises(DataError, match="with overwrite=True, or --overwrite on the command line"):
        check_output(tmp_path, False, "mark")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("x")
    with pytest.raises(DataError, match="d is a file; give a folder"), replaced_folder(tmp_path / "d", True, "mark"):
        pass
