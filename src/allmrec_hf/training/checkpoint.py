"""Checkpoints of a stage: safetensors and JSON in a folder that appears whole or not at all; no pickle.

A checkpoint `step-00000120-epoch-00003/` (steps and epochs done) holds `tensors.safetensors` (trainable parameters,
optimizer state, random states) and `progress.json` (everything else, with size and checksum of the other file). The
weights of the best validation lie beside it as `best-00000080.safetensors`, named by their step, so that each
checkpoint keeps pointing at its own best.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import WRITE_ERRORS, disk_error, sync, written_whole
from ..stored_values import json_value
from .stage_arguments import StageArguments
from .task import StageTask

TENSORS_FILE = "tensors.safetensors"
PROGRESS_FILE = "progress.json"
FORMAT = 1
_TEMPORARY = ".tmp-"
_NAME = re.compile(r"step-\d{8}-epoch-\d{5}")
_CHUNK = 1 << 24


@dataclass
class StageProgress:
    """Where a run stands; everything of a checkpoint but tensors."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    num_batches: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_file: str | None = None
    bad_validations: int = 0
    seconds: float = 0.0
    stopped_by: str | None = None
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def check_same_stage(
    path: Path, progress: Mapping[str, Any], task: StageTask, arguments: StageArguments, processes: int
) -> None:
    """Check that a checkpoint is of this stage, these data and these settings.

    Raises:
        CheckpointError: when it is not.
    """
    if progress.get("stage") != task.name:
        raise CheckpointError(f"checkpoint {path} is of stage {progress.get('stage')}, not of {task.name}")
    noted = progress.get("content") or {}  # empty of an earlier version
    other = [name for name in noted if noted[name] != task.content.get(name)]
    if other:
        raise CheckpointError(
            f"checkpoint {path} was trained on other data, which these tell apart: {', '.join(other)} (as many, "
            "but others or in another order, are other data too); give the data it was trained on, or start anew "
            "in another folder"
        )
    changed = arguments.changes_since(progress["arguments"], processes, int(progress["processes"]))
    if changed:
        raise CheckpointError(
            f"checkpoint {path} was written with other settings ({', '.join(changed)}); resume with the same ones "
            "or start anew"
        )


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: trainable parameters, and the saved buffers of modules that own one."""
    state = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    for prefix, part in module.named_modules():
        if any(value.requires_grad for value in part.parameters(recurse=False)):
            for name, value in part.named_buffers(recurse=False):
                if name not in part._non_persistent_buffers_set:
                    state[f"{prefix}.{name}" if prefix else name] = value.detach()
    return state


@torch.no_grad()
def load_module_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy saved values into the module's trainable parameters and buffers.

    Raises:
        CheckpointError: when names or shapes differ; the message counts and names them.
    """
    own = module_state(module)
    missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or foreign or shapes:
        raise CheckpointError(
            f"{where} belongs to another model: {len(missing)} of {len(own)} trained tensors are missing "
            f"{missing[:3]}, {len(foreign)} are unknown {foreign[:3]}, {len(shapes)} have another shape {shapes[:3]}; "
            "resume with the settings the run was started with"
        )
    for name, value in own.items():
        value.copy_(state[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name|entry` -> tensor; names in the order of its parameters."""
    saved = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{entry}": torch.as_tensor(value)
        for index, entries in saved.items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    position = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("|")
        state.setdefault(position[name], {})[entry] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of torch's (CPU and GPU) and NumPy's global generators as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"kind": kind, "position": position, "has_gauss": has_gauss, "cached": cached}


def restore_random_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(tensors["torch"])
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((values["kind"], keys, values["position"], values["has_gauss"], values["cached"]))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint named by the `step` and `epoch` of its progress, then remove all but the `keep` latest ones.

    Raises:
        ALLMRecError: when it cannot be written, for instance on a full disk; earlier checkpoints are untouched.
    """
    target = directory / f"step-{progress['step']:08d}-epoch-{progress['epoch']:05d}"
    temporary = directory / f"{_TEMPORARY}{target.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        temporary.mkdir()
        _save_tensors(tensors, temporary / TENSORS_FILE)
        check = {"size": (temporary / TENSORS_FILE).stat().st_size, "crc32": _checksum(temporary / TENSORS_FILE)}
        text = json.dumps({"format": FORMAT, "tensors": check, **progress}, indent=1)
        (temporary / PROGRESS_FILE).write_text(text, encoding="utf-8")
        for path in (temporary / TENSORS_FILE, temporary / PROGRESS_FILE, temporary):
            sync(path)
        if target.exists():
            target.replace(directory / f"{_TEMPORARY}old")  # a folder can only take the place of an empty one
        temporary.replace(target)
        sync(directory)
    except WRITE_ERRORS as error:
        raise disk_error(error, target) from error
    finally:
        remove_leftovers(directory)
    _prune(directory, keep)
    return target


def save_best(directory: Path, step: int, state: Mapping[str, Tensor]) -> str:
    """Write the weights of the best validation so far, and return the file's name within the folder."""
    name = f"best-{step:08d}.safetensors"
    with written_whole(directory / name) as temporary:
        _save_tensors(state, temporary)
    return name


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, earliest first; a half-written one does not count."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def latest(directory: Path) -> Path | None:
    """Return the latest complete checkpoint of a folder, or None where there is none."""
    found = checkpoints(directory)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint's tensors and progress.

    Raises:
        CheckpointError: when a file is missing, truncated, changed or of another format.
    """
    advice = "delete this folder to go on from an earlier checkpoint, or start anew"
    try:
        progress = json_value((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        found_format, size, checksum = progress["format"], progress["tensors"]["size"], progress["tensors"]["crc32"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {PROGRESS_FILE} is missing or damaged ({error}); {advice}"
        ) from error
    if found_format != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {found_format}, this version reads {FORMAT}; {advice}")
    tensors_path = path / TENSORS_FILE
    found = tensors_path.stat().st_size if tensors_path.is_file() else 0
    if found != size or _checksum(tensors_path) != checksum:
        raise CheckpointError(
            f"checkpoint {path}: {TENSORS_FILE} is damaged ({found} of {size} bytes, checksum compared); {advice}"
        )
    return load_tensors(tensors_path), progress


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or raise `CheckpointError` where it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}); start the stage anew") from error


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that start with `prefix`."""
    return {prefix + name: value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def remove_leftovers(directory: Path) -> None:
    """Remove what a process that was killed while writing left behind."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".best-*.tmp"):
        path.unlink(missing_ok=True)


def _prune(directory: Path, keep: int) -> None:
    found = checkpoints(directory)
    for path in found[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    wanted = set()
    for path in found[-keep:]:
        try:
            wanted.add(json_value((path / PROGRESS_FILE).read_text(encoding="utf-8")).get("best_file"))
        except (OSError, ValueError):
            return  # a damaged neighbour: its best weights are not known, so none is removed
    for path in directory.glob("best-*.safetensors"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        while block := handle.read(_CHUNK):
            value = zlib.crc32(block, value)
    return value
