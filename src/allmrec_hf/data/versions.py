"""The versions of libraries that results are recorded with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .._version import __version__

LIBRARIES = ("torch", "transformers", "accelerate", "sentence-transformers", "datasets", "numpy", "polars")


def library_versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Return the versions of this package, of Python and of those libraries that are installed."""
    found = {"allmrec-hf": __version__, "python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
