"""What a checkpoint knows of every item beside its CF embedding."""

import torch
from torch import nn


class ItemTable(nn.Module):
    """What the checkpoint knows of every item beside its CF embedding; inference needs no text encoder for it.

    Buffers: `text_joint_embeddings (N + 1, d_joint)` `q_i`, and `interaction_counts (N + 1,)` training interactions.
    Row 0 is padding.
    """

    text_joint_embeddings: torch.Tensor
    interaction_counts: torch.Tensor

    def __init__(self, num_items: int, joint_dim: int) -> None:
        super().__init__()
        self.register_buffer("text_joint_embeddings", torch.zeros(num_items + 1, joint_dim))
        self.register_buffer("interaction_counts", torch.zeros(num_items + 1, dtype=torch.long))

    def append(self, text_joint_embeddings: torch.Tensor) -> None:
        """Add rows `(k, d_joint)` for items without interactions."""
        joint = text_joint_embeddings.to(self.text_joint_embeddings)
        self.text_joint_embeddings = torch.cat([self.text_joint_embeddings, joint])
        self.interaction_counts = torch.cat([self.interaction_counts, self.interaction_counts.new_zeros(len(joint))])
