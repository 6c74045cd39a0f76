"""The README does what it says: its Python runs, its commands exist with these options, its links lead somewhere."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

import allmrec_hf
from allmrec_hf import ALLMRecTrainer, SyntheticWorld
from allmrec_hf.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


TEN_LINES = blocks(README.split("<!-- ten lines -->")[1], "python")[0]


def commands(text: str) -> list[str]:
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("allmrec ")]


def test_python_of_the_readme_runs(capsys):
    if not Path(allmrec_hf.DEMO_CHECKPOINT).is_dir():
        pytest.fail("the package carries no demo checkpoint; scripts/make_demo_checkpoint.py makes it")
    namespace: dict = {}
    for block in blocks(README, "python"):
        if block != TEN_LINES:
            exec(compile(block, "README.md", "exec"), namespace)
    printed = README.split("top_k=3):")[1].split("```\n", 2)[2].split("```")[0].strip()
    assert capsys.readouterr().out.strip() == printed
    assert tuple(namespace["scores"].shape) == (1, 3)


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """As printed, but with the tiny parts of the package, a few steps, and no Hub to push to."""
    monkeypatch.chdir(tmp_path)
    world = SyntheticWorld(num_items=120, num_users=200)
    pushed = []
    monkeypatch.setattr(ALLMRecTrainer, "push_to_hub", lambda self, repo: pushed.append((repo, self.output_dir)))
    few = '{"max_steps": 3, "min_steps": None'
    code = TEN_LINES.replace('"facebook/opt-125m"', '"demo", text_encoder="demo"')
    code = code.replace('retrieve={"learning_rate": 5e-4}', f'retrieve={few}, "learning_rate": 5e-4}}')
    code = code.replace('preset="quick"', f'preset="quick", backbone={few}}}, align={few}}}')
    namespace = {"interactions": world.interactions().to_pandas(), "items": world.items().to_pandas()}
    exec(compile(code, "README.md", "exec"), namespace)
    assert "a-llmrec" in capsys.readouterr().out
    assert pushed == [("your-org/a-llmrec-shop", Path("runs/shop-all"))]
    assert len(namespace["recommend"]({"history": world.items()["item_id"].to_list()[:2]}, top_k=3)) == 3


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda page: page.name)
def test_pages_and_examples_import_from_the_package_alone(page):
    deeper = re.findall(r"^(?:from|import) (allmrec_hf\.[\w.]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert not deeper


def test_the_table_of_options_is_what_the_options_say():
    spec = importlib.util.spec_from_file_location("render_options", ROOT / "scripts" / "render_options.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run scripts/render_options.py"


def test_public_names_are_known_to_type_checkers():
    tree = ast.parse(Path(allmrec_hf.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in block.body for alias in node.names}
    assert names == set(allmrec_hf._PUBLIC)
    for node in block.body:
        for alias in node.names:
            assert allmrec_hf._PUBLIC[alias.name] == node.module


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
