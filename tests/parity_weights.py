"""Weight names of the parity data in the words of this package."""

import torch

from allmrec_hf.training.importing import authors_weights


def sasrec_weights(numbers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of `SASRecModel` for the weights in `sasrec.safetensors`."""
    prefix = "weight."
    return authors_weights(
        {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    )
