"""The journal of added items: each is on the disk before it is confirmed, and read again when the service starts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ALLMRecError
from ..files import disk_error, sync, written_whole
from ..stored_values import json_value

logger = logging.getLogger(__name__)
_DIGEST = 16  # characters of a line before its JSON


class ItemJournal:
    """A file of one line for each addition: a digest and the items as JSON.

    A line is written and synced to the disk before `append` returns, so that what was confirmed survives a crash of the
    process and of the machine. When it is opened every line is checked: an end that was cut off is moved into a file of
    its own, and so are damaged lines elsewhere; all others are kept.

    Args:
        path: The file; made where it does not exist.

    Attributes:
        additions: The items of each line, oldest first.

    Raises:
        ALLMRecError: when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._broken: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            self._file = path.open("ab")
            if new:
                sync(path.parent)
            self.additions = self._checked()
        except OSError as error:
            raise ALLMRecError(
                f"the journal of added items {path} cannot be written: {error}; give a folder that can be with --state"
            ) from error

    def _checked(self) -> list[list[dict[str, Any]]]:
        lines = self.path.read_bytes().split(b"\n")
        end = lines.pop()  # empty where the last line is whole
        found = [_items(line) for line in lines]
        bad = [number for number, items in enumerate(found) if items is None]
        if bad or end:
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            with written_whole(aside) as temporary:
                temporary.write_bytes(b"\n".join([*(lines[number] for number in bad), end]))
            self._file.close()
            with written_whole(self.path) as temporary:
                temporary.write_bytes(
                    b"".join(line + b"\n" for line, items in zip(lines, found, strict=True) if items is not None)
                )
            sync(self.path.parent)
            self._file = self.path.open("ab")
            what = f"lines {[number + 1 for number in bad]} are damaged" if bad else "its end was cut off"
            logger.error("%s: %s and moved to %s; all other additions are kept", self.path, what, aside.name)
        return [items for items in found if items is not None]

    def append(self, items: list[dict[str, Any]]) -> None:
        """Write an addition and sync it.

        Raises:
            ALLMRecError: when it cannot be written; the file is as it was.
        """
        if self._broken is not None:
            raise ALLMRecError(self._broken)
        line = _line(items)
        before = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # its buffer cannot be written either
                self._file.close()
            try:
                os.truncate(self.path, before)
                self._file = self.path.open("ab")
            except OSError as second:
                self._broken = f"the journal {self.path} cannot be written any more ({second}); restart the service"
            raise disk_error(error, self.path) from error
        self.additions.append(items)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(items: list[dict[str, Any]]) -> bytes:
    text = json.dumps(items, ensure_ascii=True, separators=(",", ":")).encode()
    return sha256(text).hexdigest()[:_DIGEST].encode() + b" " + text + b"\n"


def _items(line: bytes) -> list[dict[str, Any]] | None:
    """Return the items of a line without its end, or None where it is damaged."""
    digest, _, text = line.partition(b" ")
    if digest != sha256(text).hexdigest()[:_DIGEST].encode():
        return None
    try:
        items = json_value(text)
    except ValueError:
        return None
    return items if isinstance(items, list) and all(isinstance(item, dict) for item in items) else None
