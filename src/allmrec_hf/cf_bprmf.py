"""BPR-MF: matrix factorisation with a pairwise loss (Rendle et al., UAI 2009, arXiv 1205.2618)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cf_encoder import register_cf_encoder
from .cf_user_vectors import MIN_L2, ContrastingUserConfig, ContrastingUserEncoder


@strict
class BPRMFConfig(ContrastingUserConfig):
    """Describe a BPR-MF backbone, `model_type` "allmrec-bprmf".

    Other arguments are those of `ContrastingUserConfig`.

    Args:
        loss: `bpr`, which is what the model is.

    Example:
        >>> BPRMFConfig(num_items=100, hidden_size=32).loss
        'bpr'
    """

    model_type: ClassVar[str] = "allmrec-bprmf"

    loss: Literal["bpr"] = "bpr"
    num_negatives: int = 1
    l2: float | int = 0.01
    initializer_range: float | int = 0.1


class BPRMFModel(ContrastingUserEncoder):
    """Score an item by the dot product of its vector with the user's, which is folded in from the history.

    Fold-in minimises, over u, what training minimises for a user with the history H:
    `sum_{i in H} (mean_{j in J} softplus(u.q_j - u.q_i) + l2 / 2 |u|^2)`. The problem is convex and small, so Newton's
    method solves it; an item seen twice counts twice, as it does in training. An empty history gives
    zeros, which score every item 0.

    Example:
        >>> model = BPRMFModel(BPRMFConfig(num_items=100, hidden_size=32)).eval()
        >>> model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]])).shape
        torch.Size([2, 32])
    """

    config_class = BPRMFConfig
    config: BPRMFConfig
    training_recipe: ClassVar[Mapping[str, Any]] = {
        "per_device_train_batch_size": 1024,
        "learning_rate": 2e-3, "num_train_epochs": 200, "eval_epochs": 5, "early_stopping_patience": 5,
    }  # fmt: skip

    def __init__(self, config: BPRMFConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self._init_contrast()
        self.post_init()

    def fold_in(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Return the minimisers `(B, d_cf)` of histories `(B, H)`, in float32."""
        start = torch.zeros(len(item_ids), self.config.hidden_size, device=item_ids.device)
        return self.solved(item_ids, real, start, max(float(self.config.l2), MIN_L2))


register_cf_encoder(BPRMFConfig, BPRMFModel)
