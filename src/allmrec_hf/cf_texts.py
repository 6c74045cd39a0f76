"""The directions in which the texts of a catalogue differ: what item embeddings take over from texts."""

import torch
from torch import Tensor, nn

from .errors import ALLMRecError

TEXT_DEVIATION = 0.6
"""Of each text component over the items; chosen on validation users of Office Products."""


def text_layer(texts: Tensor, count: int, deviation: float) -> nn.Linear:
    """Return the frozen layer from text embeddings `(..., d_text)` to their components `(..., count)`.

    The components are those along the directions in which the texts differ most, uncorrelated, of one deviation.

    Args:
        texts: `(N + 1, d_text)`, row 0 padding.
        count: K, how many directions.
        deviation: Of each component over the N texts.

    Raises:
        ALLMRecError: when the texts differ in fewer directions.
    """
    mean = texts[1:].mean(dim=0)
    _, sizes, directions = torch.linalg.svd(texts[1:] - mean, full_matrices=False)
    if len(sizes) < count or not sizes[count - 1] > sizes[0] * 1e-6:
        raise ALLMRecError(
            f"text_components {count}: the texts of {len(texts) - 1} items must differ in that many directions; take "
            "fewer, or 0"
        )
    layer = nn.Linear(texts.shape[1], count).requires_grad_(False)
    layer.weight.copy_(directions[:count] * (deviation * (len(texts) - 1) ** 0.5 / sizes[:count])[:, None])
    layer.bias.copy_(-layer.weight @ mean)
    return layer
