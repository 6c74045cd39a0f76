"""Give the model what it knows of each item after stage 1, and cold items a CF embedding decoded from their texts."""

from __future__ import annotations

import torch

from ..data.prepared import PreparedData
from ..modeling_allmrec import ALLMRecModel
from .trained import target_counts


@torch.no_grad()
def fill_item_table(model: ALLMRecModel, data: PreparedData, text_embeddings: torch.Tensor) -> None:
    """Write `q_i` of every item and how often it was a target into the model, and give cold items a CF embedding.

    An item that the backbone was not trained on gets the CF embedding decoded from its text, so that it can be
    retrieved and stand in a history; see `trained.target_counts`.

    Args:
        model: The model after stage 1.
        data: The data it was trained on.
        text_embeddings: `(N + 1, d_text)` by the text encoder of stage 1.
    """
    texts = text_embeddings.to(model.device)
    joint = model.aligner.encode_texts(texts)
    joint[0] = 0
    counts = target_counts(model.cf_encoder, data).to(model.device)
    model.item_table.text_joint_embeddings = joint
    model.item_table.interaction_counts = counts
    cold = (counts == 0).nonzero().flatten()
    cold = cold[cold > 0]
    decoded = model.aligner.decode_items(joint[cold])
    model.cf_encoder.replace_items(cold, model.cf_encoder.new_items(texts[cold], decoded))
