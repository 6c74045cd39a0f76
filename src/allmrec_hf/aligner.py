"""The network of stage 1: item and text autoencoders with a joint space (paper, section 4.1)."""

from __future__ import annotations

import torch
from torch import nn

from .outputs import AlignerOutput


class Autoencoder(nn.Module):
    """A one-layer encoder with a sigmoid and a linear decoder.

    Args:
        input_dim: Width of the space to encode (d_cf or d_text).
        joint_dim: d_joint.
    """

    def __init__(self, input_dim: int, joint_dim: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(input_dim, joint_dim)
        self.decoder = nn.Linear(joint_dim, input_dim)

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map `(..., input_dim)` into the joint space, `(..., d_joint)`, each component in (0, 1)."""
        return torch.sigmoid(self.encoder(vectors))

    def decode(self, joint: torch.Tensor) -> torch.Tensor:
        """Map `(..., d_joint)` back to `(..., input_dim)`."""
        return self.decoder(joint)


class ItemTextAligner(nn.Module):
    """Brings CF item embeddings `E_i` and text embeddings `Q_i` into one space.

    Args:
        cf_dim: d_cf, width of the CF item embeddings.
        text_dim: d_text, width of the text encoder's embeddings.
        joint_dim: d_joint (the paper's d', 128).
    """

    def __init__(self, cf_dim: int, text_dim: int, joint_dim: int) -> None:
        super().__init__()
        self.item_autoencoder = Autoencoder(cf_dim, joint_dim)
        self.text_autoencoder = Autoencoder(text_dim, joint_dim)

    def encode_items(self, item_embeddings: torch.Tensor) -> torch.Tensor:
        """Return the joint embeddings `e_i` `(..., d_joint)` of CF item embeddings `(..., d_cf)`."""
        return self.item_autoencoder.encode(item_embeddings)

    def encode_texts(self, text_embeddings: torch.Tensor) -> torch.Tensor:
        """Return the joint embeddings `q_i` `(..., d_joint)` of text embeddings `(..., d_text)`."""
        return self.text_autoencoder.encode(text_embeddings)

    def decode_items(self, joint: torch.Tensor) -> torch.Tensor:
        """Return CF item embeddings `(..., d_cf)` decoded from joint embeddings `(..., d_joint)`."""
        return self.item_autoencoder.decode(joint)

    def decode_texts(self, joint: torch.Tensor) -> torch.Tensor:
        """Return text embeddings `(..., d_text)` decoded from joint embeddings `(..., d_joint)`."""
        return self.text_autoencoder.decode(joint)

    def forward(self, item_embeddings: torch.Tensor, text_embeddings: torch.Tensor) -> AlignerOutput:
        """Encode and reconstruct a set of items from both sides, `(B, d_cf)` and `(B, d_text)`."""
        item_joint = self.encode_items(item_embeddings)
        text_joint = self.encode_texts(text_embeddings)
        return AlignerOutput(
            item_joint=item_joint,
            text_joint=text_joint,
            item_reconstruction=self.decode_items(item_joint),
            text_reconstruction=self.decode_texts(text_joint),
        )
