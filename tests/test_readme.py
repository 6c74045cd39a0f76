"""The README does what it says: its Python runs, its commands exist with these options, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import allmrec_hf
from allmrec_hf.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("allmrec ")]


def test_python_of_the_readme_runs(capsys):
    if not Path(allmrec_hf.DEMO_CHECKPOINT).is_dir():
        pytest.fail("the package carries no demo checkpoint; scripts/make_demo_checkpoint.py makes it")
    namespace: dict = {}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    assert tuple(namespace["scores"].shape) == (1, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_every_page_exist_with_their_options(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    for line in commands(page.read_text(encoding="utf-8")):
        name, *arguments = shlex.split(line)[1:]
        command = group.commands[name]
        command.make_context(name, [argument for argument in arguments if argument != "\\"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\S+)", "\n".join(blocks(README, "bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile
