"""The documentation holds together: links and anchors, navigation, the command line's page, the messages it quotes."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import allmrec_hf
from allmrec_hf.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")


class _Yaml(yaml.SafeLoader):
    """Reads MkDocs' file, whose tags of Python are of no interest here."""


_Yaml.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Yaml)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs both make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def navigation(part: object) -> list[str]:
    """Return the pages of a part of the navigation, in order."""
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, dict) else part
    return [page for one in parts for page in navigation(one)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = navigation(CONFIG["nav"])
    assert len(set(pages)) == len(pages)
    assert set(pages) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_the_site_is_that_of_the_project() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'Documentation = "{CONFIG["site_url"]}"' in pyproject
    assert f'Homepage = "{CONFIG["repo_url"]}"' in pyproject
    for hook in CONFIG["hooks"]:
        assert (ROOT / hook).is_file()


def test_tables_of_results_are_those_of_the_stored_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("render_results")
    for page in script.PAGES:
        assert page.read_text(encoding="utf-8") == script.rendered(page), f"{page.name} is older: make pages"


def test_the_page_of_the_command_line_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("render_cli_docs")
    written = script.PAGE.read_text(encoding="utf-8")
    assert written == script.render(), "run python scripts/render_cli_docs.py"
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        section = written.split(f"## allmrec {name}\n")[1].split("\n## ")[0]
        rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
        shown = [parameter for parameter in command.params if not parameter.hidden]
        options = {option for parameter in shown for option in (*parameter.opts, *parameter.secondary_opts)}
        arguments = {f"`{option.upper()}`" for option in options if not option.startswith("-")}
        assert set(re.findall(r"`(-[\w.-]+)`", "\n".join(rows))) == {one for one in options if one[0] == "-"} - {
            "--help"
        }
        assert arguments <= {row.removeprefix("| ") for row in rows}


def messages() -> str:
    """Return every text of the package, one a line, with `…` where a value is filled in."""
    texts = []
    for path in (ROOT / "src" / "allmrec_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(" ".join(text.split()) for text in texts)


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_package() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    known = messages()
    assert len(quoted) > 25
    missing = [text for text in quoted if text not in known]
    assert not missing


def test_the_interface_page_names_what_there_is() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        if name == "allmrec_hf.errors":
            continue
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    told = set(re.findall(r"^::: \S+\.(\w+)$", page, re.MULTILINE))
    models = {name for name in allmrec_hf._PUBLIC if name.endswith("Model") and name != "ALLMRecModel"}
    missing = {name for name in set(allmrec_hf._PUBLIC) - models - told if not name.endswith("Error")}
    assert not missing


def test_links_out_of_the_documentation_lead_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("docs_links")
    assert script.outside(DOCS / "a.md", "../README.md") == "README.md"
    assert script.outside(DOCS / "results" / "a.md", "../../CHANGELOG.md") == "CHANGELOG.md"
    assert script.outside(DOCS / "results" / "a.md", "../data.md") is None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'allmrec-hf[docs]' builds the site")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert (tmp_path / "site" / "api" / "index.html").exists()
