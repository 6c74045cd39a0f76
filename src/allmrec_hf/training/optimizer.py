"""The optimizer of every stage: AdamW, without weight decay of biases, norms and other vectors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import nn

from ..errors import ALLMRecError
from .stage_arguments import StageArguments


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name, in the order of the optimizer: matrices, then vectors."""
    found = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return dict(sorted(found.items(), key=lambda pair: pair[1].ndim <= 1))  # a stable sort


def adamw(
    parameters: Mapping[str, nn.Parameter], arguments: StageArguments, learning_rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Return AdamW over parameters in the order of `trained_parameters`.

    Args:
        parameters: What is trained, by name.
        arguments: The settings.
        learning_rates: Those of parameters whose names begin so, where others than that of the settings. A group's
            entry `scale` says how many times that of the settings it is.

    Raises:
        ALLMRecError: when no parameter's name begins as one of these.
    """

    def kind(pair: tuple[str, nn.Parameter]) -> tuple[bool, float]:
        name, value = pair
        rate = next((rate for start, rate in learning_rates.items() if name.startswith(start)), arguments.learning_rate)
        return value.ndim > 1, rate / arguments.learning_rate

    if unknown := [start for start in learning_rates if not any(name.startswith(start) for name in parameters)]:
        raise ALLMRecError(f"no trained parameter's name begins with {unknown}; they have learning rates of their own")
    groups = [
        {
            "params": [value for _, value in group],
            "weight_decay": arguments.weight_decay if is_matrix else 0.0,
            "scale": scale,
        }
        for (is_matrix, scale), group in groupby(parameters.items(), kind)
    ]
    devices = {parameter.device for parameter in parameters.values()}
    return torch.optim.AdamW(
        groups,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=len(devices) == 1 and next(iter(devices)).type in ("cpu", "cuda"),
    )
