"""A frozen LLM larger than one device: each process keeps a part of every layer and gathers it when the layer is due.

`accelerate launch` with a configuration of FSDP or of DeepSpeed's ZeRO 3, such as `examples/accelerate/fsdp.yaml`, asks
for it. Accelerate or DeepSpeed would shard the whole module, trained parts included, so that no process could save them
or compute their norm. So neither is used: PyTorch's `fully_shard` takes the layers of the LLM alone; the trained parts
are small, are on every process, and are synchronised as without sharding. The token embeddings stay whole too: prompts
are embedded outside of the LLM's `forward`.

A layer is gathered from all processes, so all must make the same passes in the same order. The loop sees to it: a
process with fewer parts of a batch repeats one with weight 0. In a validation each computes its share of the users, in
as many passes as they take it, and then helps the others to gather their layers: see `passes_of_own`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn

from ..errors import ALLMRecError
from ..evaluation.shares import SHARDING, process_state
from ..language_model import decoder_layers


def is_asked_for() -> bool:
    """Tell whether the configuration of `accelerate launch` shards the LLM, and there are several processes."""
    return any(parse_flag_from_env(name) for name in SHARDING) and process_state().num_processes > 1


def _is_offloaded() -> bool:
    """Tell whether the parts are to lie in main memory."""
    zero = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") == "cpu"
    return parse_flag_from_env("FSDP_OFFLOAD_PARAMS") or (parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and zero)


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a module has parameters of which each process holds a part."""
    return any(_is_part(parameter) for parameter in module.parameters())


def sharded_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters of which each process holds a part."""
    return [name for name, parameter in module.named_parameters() if _is_part(parameter)]


def _is_part(parameter: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _frees_layers() -> bool:
    """Tell whether a layer that was gathered for a forward pass is let go after it."""
    return parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True)


def shard_language_model(language_model: Any) -> None:
    """Leave each process its part of every layer of a frozen LLM.

    Of the configuration `fsdp_offload_params` (or `offload_param_device: cpu`) keeps the parts in main memory, and
    `fsdp_reshard_after_forward: false` keeps layers whole between the forward and the backward pass.

    Raises:
        ALLMRecError: when the LLM is trained, quantised, spread over devices, or its layers cannot be told.
    """
    if is_sharded(language_model):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    parameters = list(language_model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        raise ALLMRecError("only a frozen LLM is sharded; this one is trained")
    if getattr(language_model, "hf_device_map", None) or not all(value.is_floating_point() for value in parameters):
        raise ALLMRecError(
            "an LLM that is quantised or spread by a device map cannot be sharded; leave out --llm.load-in-8bit and "
            "--llm.device-map, or the configuration that shards"
        )
    layers = decoder_layers(language_model)
    if layers is None:
        raise ALLMRecError(f"the layers of this LLM ({type(language_model).__name__}) cannot be told, so not sharded")
    mesh = init_device_mesh(process_state().device.type, (process_state().num_processes,))
    offload = CPUOffloadPolicy() if _is_offloaded() else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=_frees_layers(), offload_policy=offload)


@contextmanager
def passes_of_own(module: nn.Module) -> Iterator[None]:
    """Let every process make as many passes of a sharded LLM without gradients as its own work takes, if any.

    Before each layer all processes hear which one is due. One that has finished its work gathers it too, for the
    others, until all have finished.

    Args:
        module: What holds the LLM; nothing is done where that is not sharded.
    """
    from torch.distributed.fsdp import FSDPModule

    layers = [layer for layer in module.modules() if isinstance(layer, FSDPModule)]
    if not layers:
        yield
        return
    device = process_state().device

    def due(number: int) -> torch.Tensor:
        """Return the greatest number that a process tells: that of the layer that is due, from 1; 0 where none is."""
        told = torch.tensor(number, device=device)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        return told

    def tell(layer: nn.Module, inputs: Any) -> None:
        due(numbers[layer])

    numbers: dict[nn.Module, int] = {layer: number for number, layer in enumerate(layers, start=1)}
    handles = [layer.register_forward_pre_hook(tell, prepend=True) for layer in layers]  # before it is gathered
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    while number := int(due(0)):
        layers[number - 1].unshard()
        if _frees_layers():
            layers[number - 1].reshard()


def leave_sharded_alone(module: nn.Module) -> None:
    """Have `DistributedDataParallel` neither compare nor broadcast the parts that each process has its own of."""
    names = sharded_names(module)
    if names:
        torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
