"""Record versions of the libraries and the commit of this package's source with a result."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..files import written_whole

LIBRARIES = ("torch", "transformers", "accelerate", "sentence-transformers", "datasets", "numpy", "polars")


def library_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that training depends on."""
    found = {"allmrec-hf": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the source this package runs from, `+changed` after it where files differ; else None."""
    source = Path(__file__).resolve()
    try:
        _git(
            source.parent, "ls-files", "--error-unmatch", source.name
        )  # not some other repository around an installed copy
        changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
        return _git(source.parent, "rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts about a run as JSON, together with library versions and the commit, whole or not at all."""
    record = {**facts, "versions": library_versions(), "git_commit": git_commit()}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
