"""`allmrec space --output` writes a folder that is ready to be a Space; a wrong one is refused in plain words."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest
import yaml

from allmrec_hf import __version__
from allmrec_hf.space.run_page import run_page, short_names
from allmrec_hf.space.space_folder import GRADIO_VERSION, write_space
from tests.command_line import refused, succeeded

ROOT = Path(__file__).resolve().parents[2]
FILES = ["README.md", "app.py", "requirements.txt"]


def header(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_example_is_what_the_command_writes(tmp_path):
    succeeded("space", "--output", tmp_path / "space")
    assert sorted(path.name for path in (tmp_path / "space").iterdir()) == FILES
    for name in FILES:
        example = (ROOT / "examples" / "space" / name).read_text(encoding="utf-8")
        assert (tmp_path / "space" / name).read_text(encoding="utf-8") == example, (
            "run allmrec space --output examples/space"
        )


def test_the_header_is_that_of_a_space(tmp_path):
    write_space(tmp_path, ["org/a-llmrec-games", "org/other"], title='Games: "why"?')
    told = header(tmp_path)
    assert told["sdk"] == "gradio"
    assert told["app_file"] == "app.py"
    assert told["title"] == 'Games: "why"?'
    assert told["models"] == ["org/a-llmrec-games", "org/other"]
    assert len(told["short_description"]) <= 60  # what the Hub allows
    pinned = re.search(r"^gradio==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert told["sdk_version"] == GRADIO_VERSION == pinned[1]
    assert (tmp_path / "requirements.txt").read_text() == f"allmrec-hf[space]=={__version__}\n"


def test_the_app_calls_what_there_is_with_the_models(tmp_path):
    write_space(tmp_path, ["org/one", "demo"], title='It\'s a "page" \\')
    tree = ast.parse((tmp_path / "app.py").read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert ast.unparse(call.func) == run_page.__name__
    assert ast.literal_eval(call.args[0]) == ["org/one", "demo"]
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given["title"] == 'It\'s a "page" \\'
    assert "invented" in given["about"]


def test_a_folder_of_this_machine_cannot_be_a_space(tmp_path):
    told = refused("space", "--model", tmp_path, "--output", tmp_path / "space")
    assert "push it first" in told
    assert not (tmp_path / "space").exists()
    assert "no repository of the Hub" in refused("space", "--model", "a b", "--output", tmp_path / "space")
    assert "for serving here" in refused("space", "--llm", "x", "--output", tmp_path / "space")


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    succeeded("space", "--output", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_missing_checkpoint_is_one_line(tmp_path):
    pytest.importorskip("gradio")
    assert "gone" in refused("space", "--model", tmp_path / "gone")
    assert "of one model" in refused("space", "--compare", "demo", "--llm", "x")


def test_checkpoints_are_called_by_their_last_part_where_that_tells_them_apart(tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        (tmp_path / name).mkdir(parents=True)
    assert short_names([str(tmp_path / "a/run"), str(tmp_path / "b/other")]) == ["run", "other"]
    both = [str(tmp_path / "a/run"), str(tmp_path / "b/run")]
    assert short_names(both) == both
    assert short_names(["org/one"]) == ["org/one"]


def test_a_port_in_use_is_one_line(monkeypatch, pipe):
    pytest.importorskip("gradio")
    monkeypatch.setattr("allmrec_hf.cli.space.load_pipeline", lambda *_: pipe)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"{port}" in refused("space", "--port", port)
