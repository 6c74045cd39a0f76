"""Make a stage's Accelerator and place its module on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn

from ..errors import ALLMRecError
from ..evaluation.shares import process_state as process_state
from ..evaluation.shares import sharding_hidden
from ..language_model import is_offloaded
from .stage_arguments import StageArguments
from .task import Batch


class Entry(nn.Module):
    """Stand between the loop and the task's module, so that Accelerate's wrappers never touch the latter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Mapping[str, Any]:
        """Return what the stage's module returns."""
        return self.module(batch)


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device, unless a part of it is spread over several devices, or offloaded."""
    spread = [part for part in module.modules() if len(set(getattr(part, "hf_device_map", {}).values())) > 1]
    if not spread and not is_offloaded(module):
        module.to(device)


def global_batch_size(arguments: StageArguments) -> int:
    """Return the examples of a batch over all processes."""
    return arguments.per_device_train_batch_size * process_state().num_processes


def share_of_batch(size: int) -> int:
    """Return the batch size of one process with which all come to `size`."""
    return max(1, size // process_state().num_processes)


def check_possible_here(arguments: StageArguments) -> None:
    """Check that this machine has what the settings of a stage need.

    Raises:
        ALLMRecError: when there is no CUDA device for fp16, or the tracker's package is not installed.
    """
    if arguments.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ALLMRecError("fp16 needs a CUDA device and none was found; use bf16 or full precision")
    if arguments.report_to != "none" and importlib.util.find_spec(arguments.report_to) is None:
        raise ALLMRecError(f"report_to {arguments.report_to} needs the package: pip install {arguments.report_to}")


def make_accelerator(arguments: StageArguments, output_dir: Path) -> Accelerator:
    """Return an Accelerator for a stage; stages of one process may differ in precision."""
    check_possible_here(arguments)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != arguments.mixed_precision:
        AcceleratorState._reset_state()
    process_state()
    with sharding_hidden():
        accelerator = Accelerator(
            mixed_precision=arguments.mixed_precision,
            device_placement=False,
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_dir=output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
        )
    if arguments.report_to != "none":
        settings = {name: str(value) for name, value in arguments.to_dict().items()}
        accelerator.init_trackers("allmrec", config=settings)
    return accelerator


def is_plain(accelerator: Accelerator) -> bool:
    """Tell whether PyTorch's own backward pass and optimizer do: one process, and no gradients to scale.

    Accelerate's versions of these two search the disk for an optional package at every call, which would be a tenth of
    a small model's training time.
    """
    return accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None
