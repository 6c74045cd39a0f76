"""`export.json`: what the files of an export are, how their inputs look, and how the export was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..catalog import ItemCatalog
from ..errors import ALLMRecError

RECORD_FILE = "export.json"
FORMAT_VERSION = 1
_BLOCK = 2**22


def digest_of_items(catalog: ItemCatalog) -> str:
    """Return hexadecimal digits over the item ids in their order, by which a catalogue is told from another."""
    found = hashlib.sha256()
    for item_id in catalog.item_ids:
        found.update(f"{len(item_id)}:{item_id}".encode())
    return found.hexdigest()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of this package and some others."""
    found = {"allmrec-hf": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of an export, with the size and digest of every other file of the folder."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"export_version": FORMAT_VERSION, **record, "files": files}, indent=2, ensure_ascii=False)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of an export.

    Raises:
        ALLMRecError: when the folder holds none, it is damaged, or of a newer version.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        newer = int(record["export_version"]) > FORMAT_VERSION
        known = {**record, "format": str(record["format"]), "parts": [dict(part) for part in record["parts"]]}
    except FileNotFoundError as error:
        raise ALLMRecError(f"{folder} holds no {RECORD_FILE}; give a folder that `allmrec export` wrote") from error
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ALLMRecError(f"{path} is damaged ({error}); export it again") from error
    if newer:
        raise ALLMRecError(f"{path} was written by a newer version of allmrec-hf; update the package")
    return known


def exported_file(folder: Path, record: dict[str, Any], name: str) -> Path:
    """Return a file of an export whose content is what was exported: libraries of C++ read it unchecked.

    Raises:
        ALLMRecError: when the record does not name it, or it is missing or another.
    """
    known = record.get("files", {}).get(name)
    if not isinstance(known, dict) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ALLMRecError(f"the {RECORD_FILE} of {folder} names no file {name!r}; export it again")
    try:
        found = _sha256(folder / name)
    except OSError as error:
        raise ALLMRecError(f"{folder / name} cannot be read ({error.strerror}); export it again") from error
    if found != known.get("sha256"):
        raise ALLMRecError(f"{folder / name} is not the file that was exported (its digest differs); export it again")
    return folder / name


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
