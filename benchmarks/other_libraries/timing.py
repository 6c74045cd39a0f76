"""What the scripts of the speed benchmark write; needs the standard library alone."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write_timing(output: Path, facts: dict[str, Any], packages: Sequence[str]) -> None:
    """Write what was measured, with this process's peak memory and the versions of the packages that matter."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    result = {
        **facts,
        "peak_memory_mib": round(kilobytes / 1024),
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
