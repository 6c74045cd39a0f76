"""Files and folders are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.files import disk_error, finish_interrupted_write, folder_written_whole, written_whole


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_appears_when_its_block_ends(tmp_path):
    path = tmp_path / "new" / "report.json"
    with written_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename within one file system
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["new/report.json"]


def test_a_failing_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, step):
    path = tmp_path / "report.json"
    path.write_text("old")
    if step != "write":
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], full)

    def write():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            if step == "write":
                full()

    with pytest.raises(
        ALLMRecError, match=r"no space left on the disk while writing .*report.json; nothing was changed"
    ):
        write()
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_folder_keeps_what_is_not_replaced(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "notes.txt"):
        (folder / name).write_text("old")
    with folder_written_whole(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "weights").write_text("new")
        (temporary / "config.json").write_text("new")
        assert (folder / "config.json").read_text() == "old"
    assert names(folder) == ["config.json", "notes.txt", "sub/weights"]
    assert (folder / "config.json").read_text() == "new"
    assert (folder / "notes.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_makes_a_folder_a_checkpoint_comes_last(tmp_path, monkeypatch):
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (moved.append(self.name), replace(self, target))[1])
    with folder_written_whole(tmp_path / "model") as temporary:
        for name in ("config.json", "a.json", "model.safetensors"):
            (temporary / name).write_text("x")
    assert moved == ["a.json", "model.safetensors", "config.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("other")])
def test_a_failing_block_leaves_the_folder_as_it_was(tmp_path, error):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")

    def write():
        with folder_written_whole(folder) as temporary:
            (temporary / "config.json").write_text("half")
            raise error

    with pytest.raises(ALLMRecError if isinstance(error, OSError) else RuntimeError):
        write()
    assert (folder / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model/config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_that_fails_is_not_left_behind(tmp_path):
    def write():
        with folder_written_whole(tmp_path / "model"):
            full()

    with pytest.raises(ALLMRecError, match="no space left on the disk"):
        write()
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """What ends a process: no handler of errors runs."""


def killed_at_move(monkeypatch, number, write):
    """Run something that is killed when it moves its `number`-th file; tell whether it was."""
    moved, replace = [], Path.replace

    def until(self, target):
        moved.append(self)
        if len(moved) > number:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", until)
        try:
            write()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("number", range(4))
def test_a_process_that_is_killed_while_files_move_leaves_all_of_the_new_ones(tmp_path, monkeypatch, number):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b", "config.json", "kept"):
        (folder / name).write_text("old")

    def write():
        with folder_written_whole(folder) as temporary:
            for name in ("a", "b", "config.json"):
                (temporary / name).write_text("new")

    assert killed_at_move(monkeypatch, number, write) == (number < 3)
    assert finish_interrupted_write(folder) == (number < 3)
    assert names(folder) == ["a", "b", "config.json", "kept"]
    assert {(folder / name).read_text() for name in ("a", "b", "config.json")} == {"new"}
    assert (folder / "kept").read_text() == "old"
    assert not finish_interrupted_write(folder)
    assert len(list(folder.iterdir())) == 4


def test_a_block_inside_another_of_the_same_folder_ends_with_it(tmp_path):
    folder = tmp_path / "model"
    with folder_written_whole(folder) as outer:
        (outer / "table").write_text("new")
        with folder_written_whole(folder) as inner:
            (inner / "sub").mkdir()
            (inner / "sub" / "weights").write_text("new")
        assert names(folder / outer.name) == ["sub/weights", "table"]
        assert not (folder / "sub").exists()
    assert names(folder) == ["sub/weights", "table"]


def test_a_killed_save_of_a_grown_checkpoint_is_one_of_both_versions(tmp_path, monkeypatch):
    from allmrec_hf import ItemCatalog
    from allmrec_hf.pipeline_recommendation import RecommendationPipeline
    from tests.tiny import tiny_catalog, tiny_model, tiny_processor

    pipe = RecommendationPipeline(model=tiny_model(), processor=tiny_processor())
    grown = RecommendationPipeline(model=tiny_model(num_items=41), processor=tiny_processor(tiny_catalog(41)))
    number, was_killed, found = 0, True, set()
    while was_killed:
        folder = tmp_path / str(number)
        pipe.save_pretrained(folder)
        was_killed = killed_at_move(monkeypatch, number, lambda: grown.save_pretrained(folder))  # noqa: B023
        rows = type(pipe.model).from_pretrained(folder, language_model=None).cf_encoder.num_items
        assert len(ItemCatalog.load(folder)) == rows
        found.add(rows)
        number += 2
    assert rows == 41
    assert number > 4


def test_other_errors_of_the_system_are_passed_on_in_words():
    text = str(disk_error(PermissionError(errno.EACCES, "Permission denied"), "/x"))
    assert "cannot write /x" in text
    assert "Permission denied" in text
    assert "no space" in str(disk_error(OSError(errno.EDQUOT, "quota"), "/x"))
