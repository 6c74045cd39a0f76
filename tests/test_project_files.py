"""The files that GitHub, pre-commit and citation tools read: valid, and of one mind with pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from allmrec_hf import __version__

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
YAML_FILES = [
    ".github/workflows/ci.yml",
    ".github/ISSUE_TEMPLATE/bug.yml",
    ".github/ISSUE_TEMPLATE/feature.yml",
    ".github/ISSUE_TEMPLATE/config.yml",
    ".pre-commit-config.yaml",
    "CITATION.cff",
]
HOME = "https://github.com/allmrec-hf/allmrec-hf"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def table(name: str) -> str:
    """Return the text of one table of pyproject.toml; Python 3.10 has no parser for it."""
    return PYPROJECT.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]


def pinned(name: str) -> str:
    return re.findall(rf"^{name}==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[0]


@pytest.mark.parametrize("name", YAML_FILES)
def test_the_file_is_valid_yaml(name: str) -> None:
    assert isinstance(read(name), dict)


def test_the_workflow_runs_every_python_that_is_promised() -> None:
    workflow = read(".github/workflows/ci.yml")
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', PYPROJECT)
    promised = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert lowest is not None
    assert matrix["python"] == promised
    assert promised[0] == lowest[1]
    assert {"python": lowest[1], "dependencies": "lowest"} in matrix["include"]


def test_the_workflow_calls_targets_that_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = [step for job in read(".github/workflows/ci.yml")["jobs"].values() for step in job["steps"]]
    called = [step["run"].removeprefix("make ") for step in steps if step.get("run", "").startswith("make ")]
    assert {"lint", "types", "docs"} <= set(called)
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("kind", ["bug", "feature"])
def test_an_issue_form_has_what_github_asks_for(kind: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{kind}.yml")
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes", "markdown"}
        assert field["attributes"]["label"]


def test_the_linter_is_the_same_everywhere() -> None:
    hooks = {repo["repo"]: repo for repo in read(".pre-commit-config.yaml")["repos"]}
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff["rev"] == f"v{pinned('ruff')}"
    assert f'"ruff=={pinned("ruff")}"' in PYPROJECT
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["repository-code"] == HOME
    assert {"message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert " and ".join(names) in readme
    assert paper["title"] in readme
    assert str(paper["year"]) in paper["conference"]["name"]
    assert "2404.11343" in paper["url"]


def test_the_links_of_the_project_are_its_own() -> None:
    urls = dict(re.findall(r'^(\w+) = "(.+)"$', table("project.urls"), re.MULTILINE))
    assert urls["Homepage"] == HOME
    assert {"Documentation", "Changelog", "Issues"} <= set(urls)
    assert f"{HOME}/security/advisories/new" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_pin_is_a_version_and_every_required_package_has_one() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    pins = {}
    for line in lines:
        match = re.fullmatch(r'([A-Za-z0-9_.-]+)==([0-9][0-9a-z.]*)( ; python_version >= "3\.11")?', line)
        assert match, line
        pins[match[1].lower().replace("_", "-")] = match[2]
    groups = PYPROJECT.split("dependencies = [\n", 1)[1].split("]", 1)[0] + table("project.optional-dependencies")
    needed = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)>=', groups)}
    optional = {"bitsandbytes", "fastapi", "uvicorn"}  # extras that no test needs
    assert needed - set(pins) <= optional | {"jinja2"}
