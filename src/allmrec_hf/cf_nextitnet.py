"""NextItNet: dilated causal convolutions over the history (Yuan et al., WSDM 2019, arXiv 1808.05163)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import CFEncoderConfig, register_cf_encoder
from .cf_sequential import SequentialEncoder
from .errors import ALLMRecError


@strict
class NextItNetConfig(CFEncoderConfig):
    """Describe a NextItNet backbone, `model_type` "allmrec-nextitnet".

    Args:
        dilations: The dilation l of each residual block, first to last; a block's second convolution has 2l, so
            `[1, 4]` stands for the layers 1, 2, 4, 8 of arXiv 1808.05163.
        kernel_size: Width of each convolution, 3 in the paper.
        dropout: Dropout of the item embeddings and of what each residual block adds.
        layer_norm_eps: Epsilon of every LayerNorm.

    Example:
        >>> NextItNetConfig(num_items=100, dilations=[1, 4]).receptive_field
        31
    """

    model_type: ClassVar[str] = "allmrec-nextitnet"

    dilations: list[int] | tuple[int, ...] = (1, 4, 1, 4)
    kernel_size: int = 3
    # Differs from the paper, which has no dropout: it lifts validation NDCG@10 on MovieLens 100K from 0.097 to 0.108.
    dropout: float | int = 0.2
    layer_norm_eps: float | int = 1e-8

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.dilations, (list, tuple)) and all(isinstance(value, int) for value in self.dilations):
            if not self.dilations or min(self.dilations) < 1:
                raise ALLMRecError(f"dilations must be one or more whole numbers of at least 1, got {self.dilations}")
            self.dilations = list(self.dilations)  # as JSON gives it back
        if isinstance(self.kernel_size, int) and self.kernel_size < 2:
            raise ALLMRecError(
                f"kernel_size must be at least 2, or no state sees an earlier item; got {self.kernel_size}"
            )
        self.check_shares("dropout")
        self.check_layers("layer_norm_eps")
        super().__post_init__(**kwargs)

    @property
    def receptive_field(self) -> int:
        """The number of most recent items that a state depends on."""
        return 1 + 3 * (self.kernel_size - 1) * sum(self.dilations)


class NextItNetBlock(nn.Module):
    """Add two dilated causal convolutions, each followed by LayerNorm and ReLU, to what goes in.

    This is residual block (b) of figure 3 in arXiv 1808.05163; block (a), the bottleneck with one dilated convolution
    between two of width 1, is not offered.
    """

    def __init__(self, config: NextItNetConfig, dilation: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, float(config.layer_norm_eps)
        self.first_convolution = nn.Conv1d(width, width, config.kernel_size, dilation=dilation)
        self.first_norm = nn.LayerNorm(width, eps=eps)
        self.second_convolution = nn.Conv1d(width, width, config.kernel_size, dilation=2 * dilation)
        self.second_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(float(config.dropout))
        self.reach = (config.kernel_size - 1) * dilation  # items before its own that the first convolution sees

    def forward(self, states: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the next states of the last `count` positions, `(B, count, d_cf)`, zeros where `real` is 0.

        Args:
            states: `(B, K, d_cf)` the whole history, or at least the `count + 3 * reach` last positions of it; zeros
                at padding.
            real: `(B, L, 1)` 1 at real items; L is at least K.
            count: Positions wanted, at most K.
        """
        inner_count = min(states.shape[1], count + 2 * self.reach)
        inner = F.relu(self.first_norm(_causal(self.first_convolution, states, inner_count)))
        inner = inner * real[:, -inner_count:]  # biases would make something of padding, which later items would see
        added = F.relu(self.second_norm(_causal(self.second_convolution, inner, count)))
        return (states[:, -count:] + self.dropout(added)) * real[:, -count:]


class NextItNetModel(SequentialEncoder):
    """Read a history with dilated causal convolutions; the state after its last item is the user representation.

    All convolutions see zeros at padding, as if the history began there. A history longer than
    `config.max_history_length` is cut to its most recent items, which a warning says once. An empty history has the
    user representation zeros.

    Example:
        >>> import torch
        >>> model = NextItNetModel(NextItNetConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    config_class = NextItNetConfig
    config: NextItNetConfig
    # Learns by the number of steps: on MovieLens 100K the same time gives a validation NDCG@10 of 0.108 against 0.076
    # with batches of 128.
    training_recipe: ClassVar[Mapping[str, Any]] = {"per_device_train_batch_size": 32}
    _no_split_modules = ["NextItNetBlock"]

    def __init__(self, config: NextItNetConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(float(config.dropout))
        self.blocks = nn.ModuleList([NextItNetBlock(config, dilation) for dilation in config.dilations])
        # Differs from the paper, whose softmax layer has a table and biases of its own: a map of the last states, so
        # that dot products with the item embeddings score items.
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def last_states(self, item_ids: Tensor, real: Tensor, count: int) -> Tensor:
        """Return the states of the last `count` positions, `(B, count, d_cf)`; no others are computed."""
        counts = [count]  # positions that each block has to put out, last to first; the earliest is read from the table
        for dilation in reversed(self.config.dilations):
            counts.append(min(item_ids.shape[1], counts[-1] + 3 * (self.config.kernel_size - 1) * dilation))
        item_ids = item_ids[:, -counts[-1] :]
        keep = real.unsqueeze(-1).to(self.dtype)  # (B, L, 1)
        states = self.dropout(self.item_embedding(item_ids)) * keep[:, -counts[-1] :]
        for block, wanted in zip(self.blocks, reversed(counts[:-1]), strict=True):
            states = block(states, keep, wanted)
        return self.output(states) * keep[:, -count:]


def _causal(convolution: nn.Conv1d, states: Tensor, count: int) -> Tensor:
    """Convolve states `(B, K, d_cf)` so that none sees a later one; the last `count` results, `(B, count, d_cf)`."""
    wanted = count + (convolution.kernel_size[0] - 1) * convolution.dilation[0]
    states = F.pad(states, (0, 0, wanted - states.shape[1], 0))  # zeros in front of the history, or fewer positions
    return convolution(states.transpose(1, 2)).transpose(1, 2)


register_cf_encoder(NextItNetConfig, NextItNetModel)
