"""The optimizer of every stage: AdamW, without weight decay of biases, norms and other vectors."""

from __future__ import annotations

import torch
from torch import nn

from .stage_arguments import StageArguments


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name, in the order of the optimizer: matrices, then vectors."""
    found = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return dict(sorted(found.items(), key=lambda pair: pair[1].ndim <= 1))  # a stable sort


def adamw(parameters: dict[str, nn.Parameter], arguments: StageArguments) -> torch.optim.Optimizer:
    """Return AdamW over parameters in the order of `trained_parameters`."""
    groups = [
        {
            "params": [value for value in parameters.values() if value.ndim > 1],
            "weight_decay": arguments.weight_decay,
        },
        {"params": [value for value in parameters.values() if value.ndim <= 1], "weight_decay": 0.0},
    ]
    devices = {parameter.device for parameter in parameters.values()}
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=len(devices) == 1 and next(iter(devices)).type in ("cpu", "cuda"),
    )
