"""MoRec: a sequential model whose item embeddings are encoded texts (Yuan et al., SIGIR 2023, arXiv 2303.13835)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cf_encoder import cf_config_from_dict
from ..cf_losses import full_cross_entropy
from ..cf_sasrec import SASRecConfig, SASRecModel
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.rankers import BackboneRanker
from ..training.alignment import encode_texts, text_embedding_table
from ..training.backbone_training import train_backbone
from ..training.samples import training_targets
from ..training.text_encoders import load_text_encoder, text_dim
from .method import Method, Setting
from .shared import check_same_settings, run_arguments, stage_arguments, text_embeddings

TRUNK = "sasrec"
END_TO_END_NEGATIVES = 128  # items whose texts are encoded anew in each step, beside those of the batch


class TextItems(nn.Module):
    """Make item embeddings out of texts: the text encoder, then a small trained tower.

    It stands in a backbone where an `nn.Embedding` would. `weight` holds the table as of the last `refresh`.

    Args:
        texts: `(N + 1, d_text)` text embeddings, row 0 padding.
        width: d_cf.
        encoder: A `SentenceTransformer` that is trained too; without it the text embeddings stay as they are.
        contents: N texts, for the encoder.
    """

    def __init__(self, texts: Tensor, width: int, encoder: Any = None, contents: list[str] | None = None) -> None:
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)
        self.tower = nn.Sequential(
            nn.LayerNorm(texts.shape[1]), nn.Linear(texts.shape[1], width), nn.GELU(), nn.Linear(width, width)
        )
        self.encoder = encoder
        self.contents = contents or []
        self.weight = texts.new_zeros(len(texts), width)

    def refresh(self, needed: Tensor | None = None) -> None:
        """Compute the table anew, with gradients where they are enabled.

        Args:
            needed: Different catalogue indices that a step reads, all a trained encoder then encodes; None for all.
        """
        if self.encoder is None:
            rows = self.tower(self.get_buffer("texts"))  # (N + 1, d_cf)
            self.weight = torch.cat([torch.zeros_like(rows[:1]), rows[1:]])
            return
        if needed is None:
            table = text_embedding_table(self.encoder, self.contents).to(self.get_buffer("texts").device)
            needed = torch.arange(1, len(table), device=table.device)
            encoded = table[1:]
        else:
            encoded = encode_texts(self.encoder, [self.contents[i - 1] for i in needed.tolist()])
        rows = self.tower(encoded)
        self.weight = rows.new_zeros(self.weight.shape).index_copy(0, needed, rows)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return the embeddings `(..., d_cf)` of items `(...)`."""
        return F.embedding(item_ids, self.weight)


class TextSASRec(SASRecModel):
    """SASRec over item embeddings that are computed from texts.

    Items that are no target in training are no negatives: what is only ever a negative is learnt as one.

    Args:
        config: The trunk.
        items: The item tower.
        known: `(K,)` catalogue indices of the targets, ascending.
    """

    reads_texts: ClassVar[bool] = True

    def __init__(self, config: SASRecConfig, items: TextItems, known: Tensor) -> None:
        super().__init__(config)
        self.item_embedding: TextItems = items  # type: ignore[assignment]
        places = torch.zeros(config.num_items + 1, dtype=torch.long)
        places[known] = torch.arange(1, len(known) + 1)
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("places", places, persistent=False)  # (N + 1,) of each item among the known ones

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of `CFEncoder.training_loss`, with item embeddings computed for this step."""
        read = [batch[name].flatten() for name in ("item_ids", "targets", "negatives") if name in batch]
        needed = torch.cat(read).unique()
        self.item_embedding.refresh(needed[needed > 0])
        return super().training_loss(batch)

    def _loss_of_states(self, states: Tensor, targets: Tensor, batch: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        if self.config.loss != "cross_entropy":
            return super()._loss_of_states(states, targets, batch, wanted)
        known = self.get_buffer("known")
        table = F.pad(self.item_embeddings[known], (0, 0, 1, 0))  # (K + 1, d_cf)
        return full_cross_entropy(states, table, self.get_buffer("places")[targets])

    @torch.no_grad()
    def update_tables(self) -> None:
        """Compute the embeddings of the whole catalogue, those of cold items too."""
        self.item_embedding.refresh()


class MoRec(Method):
    """SASRec whose item embeddings are a trained tower over the text encoder's.

    Options: `fine_tune` trains the text encoder with it (end to end, as the paper prefers), `hidden_size` is d_cf.
    """

    name = "morec"
    paper = "Yuan et al., Where to Go Next for Recommender Systems?, SIGIR 2023, arXiv 2303.13835"
    simplified = (
        "the text encoder is frozen and embeds every text once, unless the option fine_tune trains it end to end as "
        "in the paper; a two-layer tower in place of one layer; softmax over all targets of training, or sampled "
        "softmax end to end, in place of in-batch negatives"
    )
    options: ClassVar[tuple[str, ...]] = ("fine_tune", "hidden_size")

    def fit(self, data: PreparedData, setting: Setting) -> BackboneRanker:
        """Train tower and trunk, and serve with the embeddings of all items, cold ones too."""
        options = self.checked(setting)
        fine_tune = options.get("fine_tune", False)
        if not isinstance(fine_tune, bool):
            raise ALLMRecError(f"the option fine_tune of {self.name} must be true or false, got {fine_tune!r}")
        check_same_settings(self, setting)
        arguments = stage_arguments(replace(setting, backbone=TRUNK), "backbone")
        config = self._config(data, setting, fine_tune)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            known = torch.from_numpy(training_targets(data)).unique()
            model = TextSASRec(config, self._items(data, setting, config.hidden_size, fine_tune), known)
        train_backbone(data, model, arguments, setting.folder, resume=True)
        return BackboneRanker(model, name=self.name)

    def _config(self, data: PreparedData, setting: Setting, fine_tune: bool) -> SASRecConfig:
        """Return the trunk's config: that of the preset's SASRec, and what the options say."""
        fields = {
            **(run_arguments(replace(setting, backbone=TRUNK)).backbone.options or {}),
            "num_items": data.num_items,
        }
        if "hidden_size" in setting.options:
            fields["hidden_size"] = setting.options["hidden_size"]
        if fine_tune:
            fields |= {"loss": "sampled_softmax", "num_negatives": END_TO_END_NEGATIVES}
        return cast("SASRecConfig", cf_config_from_dict({"model_type": SASRecConfig.model_type, **fields}))

    def _items(self, data: PreparedData, setting: Setting, width: int, fine_tune: bool) -> TextItems:
        if not fine_tune:
            return TextItems(text_embeddings(data, setting).cpu(), width)
        encoder = load_text_encoder(setting.text_encoder, setting.trust_remote_code)
        return TextItems(torch.zeros(data.num_items + 1, text_dim(encoder)), width, encoder, data.catalog.texts())
