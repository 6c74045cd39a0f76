"""Compare the memory that an LLM's weights need with what is free, before any of them is loaded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

VARIABLE = "ALLMREC_CHECK_MEMORY"
"""Set to 0 in the environment: no LLM is refused for its size."""
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # bytes; a cgroup without a limit says about so many


def free_main_memory() -> int | None:
    """Return the bytes of main memory that a process can still take; None where the system does not say.

    Of a container, the room that its limit leaves counts too; files that the system merely keeps in memory are free.
    """
    found = [size for size in (_system_memory(), _container_memory(_CGROUP)) if size is not None]
    return min(found, default=None)


def _system_memory() -> int | None:
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except ImportError:  # no requirement of exported code
        pass
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _container_memory(root: Path) -> int | None:
    """Return the room under the limit of this process's control group, of version 2 or 1."""
    for limit, used, kept in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most = int((root / limit).read_text(encoding="ascii"))
            held = int((root / used).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (root / kept).read_text(encoding="ascii").splitlines())
            files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if most < _UNLIMITED:
            return max(0, most - held + files)
    return None


def free_device_memory(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None where PyTorch does not say."""
    try:
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
        ask = getattr(torch.accelerator, "get_memory_info", None)
        return None if ask is None else int(ask(device)[0])
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, AttributeError):
        return None


def _accelerators() -> list[torch.device]:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if kind is None else torch.accelerator.device_count()
    return [torch.device(kind.type, number) for number in range(count)] if kind is not None else []


def free_memory(options: Mapping[str, Any], device: Any = None) -> tuple[int | None, str]:
    """Return the free bytes where an LLM is going to be, and what that place is called.

    Args:
        options: Loading options; with `device_map` an LLM may be spread over accelerators and main memory.
        device: Where it is put after loading; main memory where not given.
    """
    place = options.get("device_map")
    if isinstance(place, dict) or options.get("max_memory") or options.get("offload_folder"):
        return None, ""  # its user has shared it out
    if place in ("auto", "balanced", "balanced_low_0", "sequential"):
        sizes = [free_main_memory(), *map(free_device_memory, _accelerators())]
        known = [size for size in sizes if size is not None]
        return (sum(known) if len(known) == len(sizes) else None), "main memory and accelerators together"
    target = torch.device("cuda", place) if type(place) is int else torch.device(place if place is not None else "cpu")
    free, called = (free_main_memory(), "main memory") if target.type == "cpu" else (None, str(target))
    if target.type != "cpu":
        free = free_device_memory(target)
    elif place is None and device is not None and torch.device(device).type != "cpu":  # through main memory to there
        beyond = free_device_memory(torch.device(device))
        if beyond is not None and (free is None or beyond < free):
            return beyond, str(device)
    return free, called


def check_memory(name: str, parameters: int, bytes_each: float, options: Mapping[str, Any], device: Any = None) -> None:
    """Refuse an LLM whose weights do not fit, before it is loaded.

    Args:
        name: What the LLM is called.
        parameters: How many numbers it has.
        bytes_each: Bytes of a number as it will be kept.
        options: See `free_memory`.
        device: See `free_memory`.

    Raises:
        CheckpointError: with both sizes, when they do not fit.
    """
    if os.environ.get(VARIABLE, "1") == "0":
        return
    needed = int(parameters * bytes_each)
    free, where = free_memory(options, device)
    if free is None or needed <= free:
        return
    raise CheckpointError(
        f"the LLM {name} does not fit: its {parameters:,} parameters need {needed / 1e9:,.2f} GB ({bytes_each:g} bytes "
        f"each), and {free / 1e9:,.2f} GB are free ({where}). Give a smaller dtype (--llm.dtype bfloat16, dtype=), 8 "
        "bits (--llm.load-in-8bit), a device map (--llm.device-map auto), or a smaller LLM; --llm.no-check-memory, "
        f"check_memory=False or {VARIABLE}=0 in the environment load it all the same"
    )
