"""The parts of a checkpoint that are exported as graphs: modules whose inputs and outputs are named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cf_encoder import CFEncoder
from ..errors import ALLMRecError
from ..language_model_passes import last_states, positions
from ..modeling_allmrec import ALLMRecModel
from ..ranker_retrieval import RetrievalRanker


class BackboneGraph(nn.Module):
    """A history's rows in the item table to the user representation, and to the scores of all items.

    Args:
        cf_encoder: The backbone.
    """

    def __init__(self, cf_encoder: CFEncoder) -> None:
        super().__init__()
        self.cf_encoder = cf_encoder

    def forward(self, item_ids: Tensor) -> dict[str, Tensor]:
        """Return `user_representation (B, d_cf)` and `scores (B, N + 1)`, `-inf` at padding, for histories `(B, L)`.

        The histories are left-padded with 0 to the length L that the graph was made for.
        """
        users = self.cf_encoder.encode_users(item_ids)
        rows = self.cf_encoder.num_items + 1
        padding = torch.arange(rows, device=users.device) == 0
        scores = self.cf_encoder.score_range(users, 0, rows).masked_fill(padding, float("-inf"))
        return {"user_representation": users, "scores": scores}


class NewItemGraph(nn.Module):
    """A new item's text embedding to its joint embedding, and to the item embedding by which the backbone scores it.

    Args:
        model: The model, of which aligner and backbone are read.
    """

    def __init__(self, model: ALLMRecModel) -> None:
        super().__init__()
        self.aligner, self.cf_encoder = model.aligner, model.cf_encoder

    def forward(self, text_embedding: Tensor) -> dict[str, Tensor]:
        """Return `joint_embedding (B, d_joint)` and `item_embedding (B, d_cf)` of text embeddings `(B, d_text)`."""
        joint = self.aligner.encode_texts(text_embedding)
        embedding = self.cf_encoder.new_items(text_embedding, self.aligner.decode_items(joint))
        return {"joint_embedding": joint, "item_embedding": embedding}


class TextEncoderGraph(nn.Module):
    """A text's tokens to its embedding: all modules of a `SentenceTransformer` as one graph.

    Static word embeddings, which sentence-transformers keeps in an `EmbeddingBag`, are a mean over real tokens here.

    Args:
        text_encoder: A `SentenceTransformer`.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.first, self.rest = text_encoder[0], nn.ModuleList(list(text_encoder)[1:])
        self.is_static = isinstance(getattr(self.first, "embedding", None), nn.EmbeddingBag)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `text_embedding (B, d_text)` of tokens `(B, T)`, 1 in the mask at real ones."""
        if self.is_static:
            mask = attention_mask.unsqueeze(-1).to(self.first.embedding.weight.dtype)  # (B, T, 1)
            total = (F.embedding(input_ids, self.first.embedding.weight) * mask).sum(dim=1)
            features = {"sentence_embedding": total / mask.sum(dim=1).clamp(min=1)}
        else:
            features = self.first({"input_ids": input_ids, "attention_mask": attention_mask})
        for module in self.rest:
            features = module(features)
        return {"text_embedding": features["sentence_embedding"]}


class RetrievalItemGraph(nn.Module):
    """An item's prompt and joint embedding to its vector of the ranker `retrieval`, by the LLM's first layers.

    Args:
        ranker: The ranker, whose LLM is in float32.

    Raises:
        ALLMRecError: when the LLM does not read padded prompts as it reads them alone, or is of another dtype.
    """

    def __init__(self, ranker: RetrievalRanker) -> None:
        super().__init__()
        language_model = ranker.model.require_language_model()
        if not ranker.model.pads_left:
            raise ALLMRecError(
                "the LLM of this checkpoint does not read left-padded prompts as it reads them alone, which a graph of "
                "batches needs; export the rest by --ranker cf"
            )
        kinds = {parameter.dtype for parameter in ranker.decoder.parameters()}
        if kinds != {torch.float32}:
            raise ALLMRecError(
                f"the LLM must be in float32 to be exported, and holds {sorted(map(str, kinds))}; load it unquantized "
                "with dtype='float32', or export the rest by --ranker cf"
            )
        self.embeddings, self.decoder = language_model.get_input_embeddings(), ranker.decoder
        self.item_projector, self.item_token = ranker.head.item_projector, ranker.head.item_token
        self.item_norm, self.item_output = ranker.head.item_norm, ranker.head.item_output

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, vector_mask: Tensor, joint_embedding: Tensor
    ) -> dict[str, Tensor]:
        """Return `item_vector (B, dim)`, of unit length.

        Args:
            input_ids: `(B, T)` tokens of the items' prompts, left-padded.
            attention_mask: `(B, T)` 1 at real places.
            vector_mask: `(B, T)` 1 where the item's vector stands in place of a token.
            joint_embedding: `(B, d_joint)` the items' joint embeddings.
        """
        projected = self.item_projector(joint_embedding).unsqueeze(1)  # (B, 1, d_llm)
        embeds = torch.where(vector_mask.bool().unsqueeze(-1), projected, self.embeddings(input_ids))
        token = self.item_token.expand(embeds.shape[0], 1, -1)
        embeds = torch.cat([embeds, token], dim=1)
        mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)
        state = last_states(self.decoder, 1, inputs_embeds=embeds, attention_mask=mask, position_ids=positions(mask))[
            :, -1
        ]
        return {"item_vector": F.normalize(self.item_output(self.item_norm(state)), dim=-1)}
