"""Record versions of the libraries and the commit of this package's source with a result."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.versions import library_versions
from ..files import written_whole


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
