"""Measure the memory of this process, and return freed memory to the system.

glibc keeps freed tensors of up to 32 MiB in its heap for the next ones. Batches of ever other lengths ask for other
sizes, which the holes do not fit, so that the process holds several times what it needs.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import psutil

SLACK_SHARE, SLACK_BYTES = 0.1, 64 * 2**20  # what a process may hold more before its heap is looked through


class HeapTrimmer:
    """Give memory back to the system whenever a process holds noticeably more than the last time it did.

    Looking through the heap takes milliseconds, and the pages must be asked for again: where lengths do not vary, and
    freed tensors fit the next ones, this is no gain.

    Args:
        wanted: Whether to do anything.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted and _glibc() is not None
        self.floor = resident_bytes() if self.wanted else 0

    def tick(self) -> None:
        """Look at the memory after a batch."""
        if self.wanted and resident_bytes() > (1 + SLACK_SHARE) * self.floor + SLACK_BYTES:
            return_freed_memory()
            self.floor = resident_bytes()


def return_freed_memory() -> None:
    """Give pages of the heap that hold nothing back to the system; with another C library than glibc, do nothing."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def resident_bytes() -> int:
    """Return the bytes of this process that are in main memory."""
    return int(psutil.Process().memory_info().rss)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "malloc_trim") else None
