"""`make real`, on small parts in the place of the real ones."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from allmrec_hf import ALLMRecError, DataError
from scripts import real_run
from scripts.real_run import LLM, TEXT_ENCODER, found_data, main, parts_of, run
from tests import small_run

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def folder_with(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "layout", "interactions", "items"),
    [
        (["dataset.json"], "prepared", "", None),
        (["u.data", "u.item"], "movielens", "", None),
        (["ratings.csv", "movies.csv", "tags.csv"], "movielens", "", None),
        (["interactions.parquet", "items.parquet", "README.md"], "table", "interactions.parquet", "items.parquet"),
        (["interactions.csv", "items.csv"], "table", "interactions.csv", "items.csv"),
        (["A_5.json.gz", "meta_A.json.gz"], "amazon-2018", "A_5.json.gz", "meta_A.json.gz"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_the_layout_of_a_folder_is_found(tmp_path, names, layout, interactions, items):
    folder = folder_with(tmp_path, *names)
    expected = (layout, folder / interactions, None if items is None else folder / items)
    assert found_data(folder) == expected


@pytest.mark.parametrize("names", [[], ["interactions.csv"], ["a.json.gz", "b.json.gz", "meta_a.json.gz"]])
def test_a_folder_of_no_known_layout_is_refused_with_those_known(tmp_path, names):
    with pytest.raises(DataError, match=r"no data of a known layout; give the folder of MovieLens \(u.data"):
        found_data(folder_with(tmp_path, *names))
    with pytest.raises(DataError, match="is no folder"):
        found_data(tmp_path / "nowhere")


def test_missing_parts_are_told_with_the_command_that_fetches_them(tmp_path):
    with pytest.raises(ALLMRecError, match=rf"no {LLM} and no {TEXT_ENCODER}; `make real-parts` fetches them"):
        parts_of(tmp_path, LLM)


@pytest.mark.parametrize("data", ["", "nowhere"])
def test_make_without_data_ends_with_one_line(data, tmp_path):
    """`VENV` is a folder in which nothing has to be installed, and whose Python is this one."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (tmp_path / "venv" / ".installed").touch()
    (binaries / "python").symlink_to(shutil.which("python3") or "/usr/bin/python3")
    told = subprocess.run(
        ["make", "--no-print-directory", "real", f"DATA={data}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if data:
        assert told.returncode == 2
    else:
        assert (told.returncode, told.stdout) == (2, "")
        assert told.stderr.count("\n") == 1
        assert "make real needs data: make real DATA=FOLDER" in told.stderr


def test_a_mistake_of_the_user_is_one_line(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def parts(small_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "parts"
    shutil.copytree(small_parts / "llm", folder / LLM)
    shutil.copytree(small_parts / "text_encoder", folder / TEXT_ENCODER)
    return folder


def test_the_whole_job_ends_with_the_table_of_every_ranker(small_parts, parts, tmp_path):
    loops: dict[str, dict[str, Any]] = small_run.arguments(max_seconds=None)
    chosen = small_run.run_arguments(tmp_path, small_run.settings(small_parts), loops)
    sections: dict[str, dict[str, Any]] = {
        "backbone": {"options": chosen.backbone.options, **loops["backbone"]},
        "align": {"joint_dim": 8, **loops["align"]},
        "project": {"num_candidates": small_run.NUM_CANDIDATES, "warm_start_steps": 3, **loops["project"]},
        "retrieve": {"dim": 8, "num_llm_layers": 1, "max_steps": 3, "min_steps": None, "max_validation_users": 10},
        "rank": {"max_validation_users": 30},
    }
    given = argparse.Namespace(
        data=small_parts / "data", parts=parts, llm=LLM, output=tmp_path / "run", domain=None, max_users=10, seed=0,
        overwrite=False,
    )  # fmt: skip
    told: list[str] = []
    run(given, told.append, **sections)
    text = "\n".join(told)
    rows = ("fusion", "letter", "likelihood", "retrieval", "text", "words", "cf")
    for row in (*(f"a-llmrec {name}" for name in rows), "sasrec", "LM alone", "same vectors, no LM", "popularity"):
        assert row in text
    for line in ("backbone ", "align ", "project ", "retrieve ", "rank     what ranks by default: ", "Took 0."):
        assert line in text
    assert (tmp_path / "run" / "evaluation.json").is_file()
    with pytest.raises(ALLMRecError, match="is not empty"):
        run(given, told.append, **sections)
    given.overwrite = True
    with pytest.raises(DataError, match="is no folder"):
        run(argparse.Namespace(**{**vars(given), "data": tmp_path / "nowhere"}), told.append)
    assert (tmp_path / "run" / "evaluation.json").is_file()  # nothing is removed for a mistake


def test_movielens_has_movies_and_other_data_are_called_as_the_user_says(tmp_path):
    if not (SHARED / "ml_100k").is_dir():
        pytest.skip("the shared data are not there")
    for domain, expected in ((None, "movie"), ("film", "film")):
        layout, interactions, items = found_data(SHARED / "ml_100k")
        made = real_run.prepared_data(layout, interactions, items, tmp_path / str(domain), domain)
        assert made.domain == expected
        assert made.name == "ml_100k"
