"""What the scripts of the speed benchmark write; needs the standard library alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write_timing(output: Path, facts: dict[str, Any], packages: Sequence[str]) -> None:
    """Write what was measured with the versions of the packages that matter."""
    result = {
        **facts,
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
