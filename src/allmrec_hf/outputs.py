"""The outputs of the model, every field with its shape.

The dimension letters of this package: B users, L history length, C candidates, N items, T tokens; d_cf width of the
collaborative-filtering space, d_text of the text encoder, d_joint of the joint collaborative-text space, d_llm of the
LLM's input embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class AlignerOutput:
    """Stage 1 for a set of items: both embeddings in the joint space and both reconstructions.

    Attributes:
        item_joint: `(B, d_joint)` `e_i`, from the CF item embedding.
        text_joint: `(B, d_joint)` `q_i`, from the text embedding.
        item_reconstruction: `(B, d_cf)` decoded from `e_i`.
        text_reconstruction: `(B, d_text)` decoded from `q_i`.
    """

    item_joint: torch.Tensor
    text_joint: torch.Tensor
    item_reconstruction: torch.Tensor
    text_reconstruction: torch.Tensor


@dataclass
class ALLMRecOutput(ModelOutput):
    """One forward pass of the frozen LLM over prompts with projected vectors.

    Attributes:
        loss: Scalar, LM cross entropy on the answers' tokens (paper, eq. 9); None without labels.
        logits: `(B, K, V)` next-token logits at the last K positions only.
        inputs_embeds: `(B, T, d_llm)` what the LLM read.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None


@dataclass
class RetrievalOutput:
    """The best items of the whole catalogue for each user.

    Attributes:
        item_indices: `(B, k)` catalogue indices, best first; 0 where fewer than k items were left.
        scores: `(B, k)` the backbone's scores; `-inf` where `item_indices` is 0.
    """

    item_indices: torch.Tensor
    scores: torch.Tensor


@dataclass
class CFEncoderOutput(ModelOutput):
    """Hold what a backbone computes.

    Args:
        loss: Scalar training loss, only where targets were given.
        user_representation: `(B, d_cf)`, the state after the last item of each history.
        states: `(B, L, d_cf)`, the state after each item, zeros at padding.
    """

    loss: torch.Tensor | None = None
    user_representation: torch.Tensor | None = None
    states: torch.Tensor | None = None
