"""The memory of this process: how much it holds, and what keeps the C library from hoarding what was freed.

glibc serves a tensor from its heap until one larger than a threshold has been freed, and then raises the threshold, up
to 32 MiB. Batches of ever other lengths so tear the heap apart: holes that no later tensor fits stay with the process.
With the threshold fixed, every large tensor has pages of its own that go back to the system when it is freed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil
import torch

logger = logging.getLogger(__name__)

MMAP_THRESHOLD = 2**20  # bytes from which a tensor has pages of its own
USUAL_THRESHOLD = 2**25  # to which glibc raises its threshold by itself, and no further
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_heap_flat() -> bool:
    """Fix glibc's thresholds for this process; tell whether they were.

    Other C libraries are left as they are, and so is glibc where the environment sets the thresholds. Pages of its own
    cost a tensor time: with sequences of one length, whose tensors fit the holes that others left, this is no gain.
    """
    return _set_thresholds(MMAP_THRESHOLD)


@contextmanager
def flat_heap(wanted: bool = True) -> Iterator[bool]:
    """Fix glibc's thresholds while the block runs, where wanted; then put them where it would have raised them to."""
    fixed = wanted and keep_heap_flat()
    try:
        yield fixed
    finally:
        if fixed:
            return_freed_memory()
            _set_thresholds(USUAL_THRESHOLD)


def return_freed_memory() -> None:
    """Give pages of the heap that hold nothing back to the system; without glibc, do nothing."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def resident_bytes() -> int:
    """Return the bytes of this process that are in main memory."""
    return int(psutil.Process().memory_info().rss)


def memory_text(device: torch.device) -> str:
    """Return how much memory this process holds, that of its GPU too, such as `2.1 GB`."""
    text = f"{resident_bytes() / 1e9:.1f} GB"
    if device.type == "cuda":
        text += f" (GPU {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB)"
    return text


def _set_thresholds(size: int) -> bool:
    libc = _glibc()
    own = any(name in os.environ for name in _USERS_OWN) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if libc is None or own:
        return False
    done = libc.mallopt(_M_MMAP_THRESHOLD, size) and libc.mallopt(_M_TRIM_THRESHOLD, 2 * size)
    logger.debug("heap thresholds of glibc: %d bytes, %s", size, "set" if done else "not taken")
    return bool(done)


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in wanted) else None
