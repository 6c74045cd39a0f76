"""RECFORMER: users and items as the text of their attributes (Li et al., KDD 2023, arXiv 2305.13731)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from ..catalog import ItemCatalog
from ..cf_encoder import CFEncoder, CFEncoderConfig
from ..cf_losses import sampled_cross_entropy
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.rankers import BackboneRanker
from ..training.alignment import text_embedding_table
from ..training.backbone_training import train_backbone
from ..training.section_arguments import DEFAULT_BACKBONE
from ..training.text_encoders import load_text_encoder
from .method import Method, Setting
from .shared import check_same_settings, stage_arguments

ATTRIBUTES = ("title", "description")  # the keys: what every method with text reads
PAD, START, UNKNOWN = 0, 1, 2
SPECIAL = 3
KEY_TYPE, VALUE_TYPE = 1, 2  # type 0 is the start token's
MAX_WORDS = 30_000
ITEMS_AT_ONCE = 1024
WORD_SCALE = 2.0  # the words' first embeddings are so much larger than those of places and types
_WORD = re.compile(r"\w+")


@strict
class RecformerConfig(CFEncoderConfig):
    """Describe the transformer.

    Args:
        vocabulary_size: Words, with padding, start and unknown word.
        num_layers: Layers.
        num_heads: Attention heads.
        item_tokens: T, the tokens of one item at most.
        dropout: Dropout of embeddings and of what the layers put out.
        temperature: Divides the cosines of users and items.
    """

    model_type: ClassVar[str] = "recformer"

    vocabulary_size: int = SPECIAL
    num_layers: int = 2
    num_heads: int = 4
    item_tokens: int = 24
    dropout: float | int = 0.1
    temperature: float | int = 0.05


def item_words(catalog: ItemCatalog, index: int) -> list[tuple[str, int]]:
    """Return the flattened attributes of an item as words and their token types: each key, then its value.

    Example:
        >>> catalog = ItemCatalog.from_records([{"item_id": "B1", "title": "Lost Harbor"}])
        >>> item_words(catalog, 1)
        [('title', 1), ('lost', 2), ('harbor', 2)]
    """
    row = catalog.frame.row(index - 1, named=True)
    values = {"title": catalog.title(index), "description": row["description"]}
    words: list[tuple[str, int]] = []
    for key in ATTRIBUTES:
        if values[key]:
            words += [(key, KEY_TYPE), *((word, VALUE_TYPE) for word in _WORD.findall(values[key].lower()))]
    return words


def flattened_items(catalog: ItemCatalog, item_tokens: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return token ids and token types of all items, both `(N + 1, T)`, and the words of the ids from `SPECIAL` on.

    Args:
        catalog: The catalogue; its most frequent words are the vocabulary.
        item_tokens: T; what an item has more is cut off.
    """
    items = [item_words(catalog, index)[:item_tokens] for index in range(1, len(catalog) + 1)]
    counts = Counter(word for words in items for word, _ in words)
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    numbers = {word: number for number, word in enumerate(vocabulary, start=SPECIAL)}
    tokens = torch.zeros(len(items) + 1, item_tokens, dtype=torch.long)
    types = torch.zeros_like(tokens)
    for index, words in enumerate(items, start=1):
        tokens[index, : len(words)] = torch.tensor([numbers.get(word, UNKNOWN) for word, _ in words])
        types[index, : len(words)] = torch.tensor([kind for _, kind in words])
    return tokens, types, vocabulary


class Recformer(CFEncoder):
    """Encode a history, most recent item first, and a single item by the same transformer; score by cosine.

    The served item table is computed from the texts whenever `update_tables` is called.

    Args:
        config: The transformer.
        tokens: `(N + 1, T)` token ids of each item, 0 at padding.
        types: `(N + 1, T)` token types.
        words: `(V, d_text)` text embeddings of the words from `SPECIAL` on, which the word embeddings start from.
    """

    reads_texts: ClassVar[bool] = True
    config_class = RecformerConfig
    config: RecformerConfig

    def __init__(self, config: RecformerConfig, tokens: Tensor, types: Tensor, words: Tensor) -> None:
        super().__init__(config)
        length = 1 + config.max_history_length * config.item_tokens
        bert = BertConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=2 * config.hidden_size,
            max_position_embeddings=length,
            type_vocab_size=3,
            initializer_range=config.hidden_size**-0.5,  # BERT's 0.02 is for 768: here all texts would start out alike
            hidden_dropout_prob=float(config.dropout),
            attention_probs_dropout_prob=0.0,  # with it there is no fused attention on a CPU
        )
        self.transformer = BertModel(bert, add_pooling_layer=False)
        self.item_position_embedding = nn.Embedding(config.max_history_length + 1, config.hidden_size)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("types", types, persistent=False)
        self.post_init()
        self.item_embedding.requires_grad_(False)  # what is served, not what is trained
        self._start_words(words)

    @torch.no_grad()
    def _start_words(self, words: Tensor) -> None:
        """Let each word start from a random projection of its text embedding, which keeps what is alike alike."""
        centred = words - words.mean(dim=0)
        drawn = centred @ torch.randn(words.shape[1], self.config.hidden_size)
        scale = WORD_SCALE * self.config.hidden_size**-0.5 / drawn.std().clamp(min=1e-6)
        self.transformer.get_input_embeddings().weight[SPECIAL : SPECIAL + len(words)] = drawn * scale

    def encode_sequences(self, item_ids: Tensor) -> Tensor:
        """Return unit vectors `(B, d_cf)` of left-padded item sequences `(B, L)`, L up to `max_history_length`."""
        batch, length = item_ids.shape
        recent = item_ids.flip(1)  # the most recent item first
        tokens = self.get_buffer("tokens")[recent].flatten(1)  # (B, L * T)
        types = self.get_buffer("types")[recent].flatten(1)
        places = torch.arange(1, length + 1, device=item_ids.device).repeat_interleave(self.config.item_tokens)
        order = (tokens == PAD).to(torch.uint8).argsort(dim=1, stable=True)  # the words close up, padding goes last
        order = order[:, : int((tokens != PAD).sum(dim=1).max())]
        tokens, types = tokens.gather(1, order), types.gather(1, order)
        places = places.expand(batch, -1).gather(1, order).where(tokens != PAD, 0)
        tokens, types, places = F.pad(tokens, (1, 0), value=START), F.pad(types, (1, 0)), F.pad(places, (1, 0))
        embedded = self.transformer.get_input_embeddings()(tokens) + self.item_position_embedding(places)
        states = self.transformer(
            inputs_embeds=embedded, token_type_ids=types, attention_mask=(tokens != PAD).long()
        ).last_hidden_state
        return F.normalize(states[:, 0], dim=-1)

    def encode_users(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, d_cf)` user representations, scaled so that a dot product is a cosine over the temperature."""
        item_ids = item_ids[:, -self.config.max_history_length :]
        users = self.encode_sequences(item_ids) / float(self.config.temperature)
        return users * item_ids.any(dim=1, keepdim=True)  # an empty history scores every item 0

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the contrastive loss of one position of each sequence, drawn anew in every step.

        Args:
            batch: That of the loss `sampled_softmax`, see `CFEncoder.training_loss`; its targets and uniform items are
                encoded with gradients.
        """
        item_ids, targets = batch["item_ids"], batch["targets"]
        lengths = (targets > 0).sum(dim=1)
        dropped = (torch.rand(len(lengths)).to(lengths.device) * lengths).long()  # items left out at the end, (B,)
        columns = torch.arange(item_ids.shape[1], device=item_ids.device) - dropped[:, None]
        histories = item_ids.gather(1, columns.clamp(min=0)).where(columns >= 0, 0)
        chosen = targets.gather(1, item_ids.shape[1] - 1 - dropped[:, None])[:, 0]
        items = self.encode_sequences(batch["negatives"][:, None])  # (S, d_cf)
        places = torch.searchsorted(batch["negatives"], chosen)
        everyone = torch.arange(len(items), device=items.device)
        return sampled_cross_entropy(self.encode_users(histories), items, places, everyone, batch["log_weights"])

    @torch.no_grad()
    def update_tables(self) -> None:
        """Encode every item of the catalogue, cold ones too."""
        indices = torch.arange(1, self.num_items + 1, device=self.item_embeddings.device)
        for part in indices.split(ITEMS_AT_ONCE):
            self.item_embedding.weight[part] = self.encode_sequences(part[:, None])


class RECFORMER(Method):
    """A small bidirectional transformer over the words of the history's items, trained to find the next item's words.

    Options: `history` items and `item_tokens` that are read, `hidden_size`, `num_layers`, `num_heads`, `num_negatives`.
    """

    name = "recformer"
    paper = (
        "Li et al., Text Is All You Need: Learning Language Representations for Sequential Recommendation, KDD 2023, "
        "arXiv 2305.13731"
    )
    simplified = (
        "a small transformer with full attention in place of a pretrained Longformer; words of the catalogue in place "
        "of subwords, each starting from a random projection of its embedding by the text encoder; no pretraining on "
        "other domains and no masked language modelling; one stage of training in place of two, item vectors computed "
        "anew in every step; negatives are the batch's targets and uniform items, logQ-corrected; title and "
        "description are the only attributes"
    )
    options: ClassVar[tuple[str, ...]] = (
        "history", "item_tokens", "hidden_size", "num_layers", "num_heads", "num_negatives"
    )  # fmt: skip

    def fit(self, data: PreparedData, setting: Setting) -> BackboneRanker:
        """Train the transformer and serve with the encoded texts of all items."""
        options = self._numbers(setting)
        check_same_settings(self, setting)
        arguments = stage_arguments(replace(setting, backbone=DEFAULT_BACKBONE), "backbone")
        tokens, types, vocabulary = flattened_items(data.catalog, options["item_tokens"])
        config = RecformerConfig(
            num_items=data.num_items,
            hidden_size=options["hidden_size"],
            max_history_length=options["history"],
            loss="sampled_softmax",
            num_negatives=options["num_negatives"],
            vocabulary_size=SPECIAL + len(vocabulary),
            num_layers=options["num_layers"],
            num_heads=options["num_heads"],
            item_tokens=options["item_tokens"],
        )
        words = text_embedding_table(load_text_encoder(setting.text_encoder, setting.trust_remote_code), vocabulary)[
            1:
        ].cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            model = Recformer(config, tokens, types, words)
        train_backbone(data, model, arguments, setting.folder, resume=True)
        return BackboneRanker(model, name=self.name)

    def _numbers(self, setting: Setting) -> dict[str, int]:
        defaults = {
            "history": 10, "item_tokens": 24, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_negatives": 128
        }  # fmt: skip
        options: dict[str, Any] = {**defaults, **self.checked(setting)}
        for name, value in options.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ALLMRecError(f"the option {name} of {self.name} must be a whole number above 0, got {value!r}")
        if options["hidden_size"] % options["num_heads"]:
            raise ALLMRecError(
                f"num_heads of {self.name} must divide hidden_size {options['hidden_size']}, got {options['num_heads']}"
            )
        return options
