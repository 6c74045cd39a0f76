"""Train stage 1: the aligner, and the text encoder where it is not frozen, around the frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..aligner import ItemTextAligner
from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..histories import pad_histories
from ..losses import Contrast, alignment_losses, reconstruction_loss
from ..ranking import Ranks, hit_at_k, ndcg_at_k, target_ranks
from ..text_space import text_vectors
from .devices import global_batch_size
from .samples import (
    NegativeSampler,
    Samples,
    all_of_training,
    drawn_rows,
    last_of_training,
    random_batches,
    validation_targets,
)
from .section_arguments import LEAST_TEMPERATURE
from .stage_arguments import StageArguments
from .task import Batch, StageTask
from .trained import target_counts

TEXTS_AT_ONCE = 64
USERS_AT_ONCE = 1_024  # whose candidates are ranked together
CHECKED_TEXTS = 16  # of a table that is given, encoded again
COMPARED_NUMBERS = 2**22  # of the items' vectors that all users of a batch are compared with
LEAST_COMPARED = 64
TABLE_TOLERANCE = 0.05  # of a row's length: encoders in half precision round differently in other batches


def encode_texts(text_encoder: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return text embeddings `(len(texts), d_text)` with gradients, shortest texts first so that little is padding.

    They are those of `text_encoder.encode`: what the encoder puts before a text by default stands before it here too,
    and only the dimensions that it keeps are returned.
    """
    prepare = _preprocess(text_encoder)
    width = text_encoder.truncate_dim
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = []
    for start in range(0, len(order), TEXTS_AT_ONCE):
        features = prepare([texts[i] for i in order[start : start + TEXTS_AT_ONCE]])
        features = {k: v.to(text_encoder.device) if torch.is_tensor(v) else v for k, v in features.items()}
        parts.append(text_encoder(features)["sentence_embedding"][:, :width])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back.to(parts[0].device)]


def _preprocess(text_encoder: Any) -> Callable[[list[str]], dict[str, Any]]:
    """Return the encoder's own preparation of texts, its default prompt included."""
    prompt = text_encoder.prompts.get(text_encoder.default_prompt_name) or None
    if hasattr(text_encoder, "preprocess"):
        return lambda texts: text_encoder.preprocess(texts, prompt=prompt)
    if prompt is None:  # sentence-transformers 5
        return lambda texts: text_encoder.tokenize(texts)
    length = text_encoder._get_prompt_length(prompt)
    extra = {} if length is None else {"prompt_length": length}  # what poolings that leave the prompt out ask for
    return lambda texts: text_encoder.tokenize([prompt + text for text in texts]) | extra


@torch.no_grad()
def text_embedding_table(text_encoder: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return `(N + 1, d_text)` text embeddings of a catalogue, row 0 zeros; each text is encoded once."""
    embeddings = text_vectors(text_encoder, texts, batch_size=TEXTS_AT_ONCE)
    return torch.cat([embeddings.new_zeros(1, embeddings.shape[1]), embeddings]).float().clone()


def check_text_table(table: torch.Tensor, text_encoder: Any, texts: Sequence[str]) -> None:
    """Refuse a table of text embeddings that is not what an encoder makes of a catalogue's texts, by a few of them.

    Args:
        table: `(N + 1, d_text)`.
        text_encoder: A `SentenceTransformer`.
        texts: N texts in catalogue order.

    Raises:
        ALLMRecError: when the table has other rows, as of the same items in another order, or values not finite.
    """
    if len(table) != len(texts) + 1:
        raise ALLMRecError(f"text_table has {len(table)} rows, {len(texts)} texts need {len(texts) + 1}")
    if not torch.isfinite(table).all():
        raise ALLMRecError("text_table holds values that are not finite; encode the texts again")
    rows = sorted({round(i * (len(texts) - 1) / max(1, CHECKED_TEXTS - 1)) + 1 for i in range(CHECKED_TEXTS)})
    expected = text_embedding_table(text_encoder, [texts[row - 1] for row in rows])[1:].cpu()
    given = table[torch.tensor(rows, device=table.device)].float().cpu()
    if given.shape != expected.shape:
        raise ALLMRecError(f"text_table is {table.shape[1]} wide, the text encoder's vectors {expected.shape[1]}")
    far = (given - expected).norm(dim=1) > TABLE_TOLERANCE * expected.norm(dim=1).clamp(min=1e-12)
    if far.any():
        numbers = [row for row, other in zip(rows, far.tolist(), strict=True) if other]
        raise ALLMRecError(
            f"text_table is not what the text encoder makes of these texts: {len(numbers)} of {len(rows)} rows that "
            f"were looked at differ, first rows {numbers[:5]}; it was made of other texts, of the same in another "
            "order, or by another encoder"
        )


class AlignmentModule(nn.Module):
    """The loss of stage 1 as a module: aligner trained, backbone frozen, text encoder trained or a table.

    Args:
        cf_encoder: The backbone of stage 0.
        aligner: What is trained.
        texts: N texts in catalogue order.
        text_encoder: A `SentenceTransformer`.
        fine_tune: Whether the text encoder is trained too (the paper); if not, every text is embedded once.
        alpha: Weight of the item reconstruction.
        beta: Weight of the text reconstruction.
        cross_reconstruction: Weight of the CF embedding decoded from the text's joint embedding, which is what a cold
            item lives on; 0 in the paper.
        matching: Weight of the matching of both sides; 1 in the paper, as the next.
        recommendation: Weight of the recommendation loss.
        matching_loss: `"mse"` (the paper) or `"infonce"`, each target set and each set of negatives a batch of its own.
        matching_temperature: Of InfoNCE.
        learn_matching_temperature: Whether it is trained too, as its logarithm, down to `LEAST_TEMPERATURE`
            (CLIP, arXiv 2103.00020).
        text_table: `text_embedding_table` of the frozen text encoder, where it is known already.
        text_recommendation: Weight of finding each target, decoded from its text, among the catalogue; 0 in the paper.

    Attributes:
        compared: `(N + 1,)` True at the items that a target is to be found among.
    """

    compared: torch.Tensor

    def __init__(
        self,
        cf_encoder: CFEncoder,
        aligner: ItemTextAligner,
        texts: Sequence[str],
        text_encoder: Any,
        fine_tune: bool,
        alpha: float,
        beta: float,
        cross_reconstruction: float = 0.0,
        matching: float = 1.0,
        recommendation: float = 1.0,
        matching_loss: Literal["mse", "infonce"] = "mse",
        matching_temperature: float = 0.07,
        learn_matching_temperature: bool = False,
        text_table: torch.Tensor | None = None,
        text_recommendation: float = 0.0,
    ) -> None:
        super().__init__()
        self.cf_encoder = cf_encoder.requires_grad_(False).eval()
        self.aligner = aligner
        self.texts = texts
        self.text_encoder = text_encoder if fine_tune else None
        self.weights: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "matching": matching,
            "recommendation": recommendation,
        }
        self.temperature = matching_temperature if matching_loss == "infonce" else None
        self.log_temperature: nn.Parameter | None = None
        if self.temperature is not None and learn_matching_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))
        self.cross_reconstruction = cross_reconstruction
        self.text_recommendation = text_recommendation
        self.register_buffer("compared", torch.arange(cf_encoder.num_items + 1) > 0, persistent=False)
        if fine_tune:
            text_table = None
        elif text_table is None:
            text_table = text_embedding_table(text_encoder, texts)
        elif len(text_table) != len(texts) + 1:
            raise ALLMRecError(f"text_table has {len(text_table)} rows, {len(texts)} texts need {len(texts) + 1}")
        self.register_buffer("text_table", text_table, persistent=False)

    def train(self, mode: bool = True) -> AlignmentModule:
        """Set training mode for what is trained; the backbone stays in eval mode."""
        super().train(mode)
        self.cf_encoder.eval()
        return self

    def embedding_table(self) -> torch.Tensor:
        """Return `Q_i` of the whole catalogue `(N + 1, d_text)`, by the text encoder as it is now."""
        if self.text_encoder is None:
            return self.get_buffer("text_table")
        return text_embedding_table(self.text_encoder, self.texts)

    def text_embeddings(self, indices: torch.Tensor) -> torch.Tensor:
        """Return `Q_i` `(P, d_text)` of items `(P,)`; a text that occurs twice is encoded once."""
        if self.text_encoder is None:
            return self.embedding_table()[indices]
        unique, inverse = torch.unique(indices, return_inverse=True)
        return F.embedding(inverse, encode_texts(self.text_encoder, [self.texts[i - 1] for i in unique.tolist()]))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every loss term and the total `loss`.

        Args:
            batch: `item_ids`, `attention_mask` `(B, L)`, and `targets`, `negatives` `(B, L)`, 0 where a position is
                not trained on. Of one process's share also `batch_targets` and `batch_negatives` `(P,)`, those of the
                whole batch, and the `seed` of what `text_recommendation` draws.
        """
        wanted = batch["targets"] > 0
        with torch.no_grad():
            users = self.cf_encoder.states_at(batch["item_ids"], batch["attention_mask"], wanted)
        positive, negative = batch["targets"][wanted], batch["negatives"][wanted]
        positive_texts, negative_texts = self.text_embeddings(torch.cat([positive, negative])).chunk(2)
        positives = (self.cf_encoder.item_embeddings[positive], positive_texts)
        negatives = (self.cf_encoder.item_embeddings[negative], negative_texts)
        outputs = self.aligner(*positives), self.aligner(*negatives)
        temperature = self._temperature()
        contrast = None if temperature is None else Contrast(positive, negative, temperature)
        score = self.cf_encoder.score_vectors
        terms = alignment_losses(users, *outputs, positives, negatives, score=score, contrast=contrast, **self.weights)
        if isinstance(temperature, torch.Tensor):
            terms["matching_temperature"] = temperature
        if self.cross_reconstruction:
            pairs = ((outputs[0].text_joint, positives[0]), (outputs[1].text_joint, negatives[0]))
            terms["cross_reconstruction"] = sum(
                (reconstruction_loss(self.aligner.decode_items(text), cf) for text, cf in pairs), users.new_zeros(())
            )
            terms["loss"] = terms["loss"] + self.cross_reconstruction * terms["cross_reconstruction"]
        if self.text_recommendation:
            of_batch = (batch.get("batch_targets", positive), batch.get("batch_negatives", negative))
            terms["text_recommendation"] = self._text_recommendation(
                users, positive, torch.cat(of_batch), of_batch[0], int(batch.get("seed", 0))
            )
            terms["loss"] = terms["loss"] + self.text_recommendation * terms["text_recommendation"]
        return terms

    def _temperature(self) -> float | torch.Tensor | None:
        """Return the temperature of InfoNCE; None where both sides are matched by distance."""
        if self.log_temperature is None:
            return self.temperature
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(LEAST_TEMPERATURE))
        return self.log_temperature.exp()

    def _text_recommendation(
        self,
        users: torch.Tensor,
        targets: torch.Tensor,
        batch_items: torch.Tensor,
        batch_targets: torch.Tensor | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Return the cross entropy of targets `(B,)` among items of which a random half is decoded from their texts.

        They are the catalogue where texts are embedded already, or a random part of a large one; else the batch's.
        Targets are decoded as often as others, so that to be decoded says nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        pool = batch_items.unique()
        batch_targets = targets if batch_targets is None else batch_targets
        if self.text_encoder is None:
            others = self.compared.nonzero().flatten()
            count = max(LEAST_COMPARED, COMPARED_NUMBERS // (len(batch_targets) * users.shape[1]))
            if count < len(others):
                others = others[torch.randperm(len(others), generator=generator)[:count].to(others.device)]
            pool = torch.cat([batch_targets, others]).unique()
        chosen = (torch.rand(len(pool), generator=generator) < 0.5).to(pool.device).nonzero().flatten()
        texts = self.text_embeddings(pool[chosen])
        rows = self.cf_encoder.item_embeddings[pool]
        rows = rows.index_copy(0, chosen, self.aligner.decode_items(self.aligner.encode_texts(texts)).to(rows.dtype))
        if type(self.cf_encoder).score_vectors is CFEncoder.score_vectors:  # dot products
            scores = users @ rows.T
        else:
            scores = self.cf_encoder.score_vectors(users.unsqueeze(1), rows.unsqueeze(0))
        return F.cross_entropy(scores, torch.searchsorted(pool, targets))


class AlignmentTask(StageTask):
    """Stage 1 for the training loop.

    Negatives are items that the user did not touch in the training part and that the backbone was trained on. The row
    of any other item means nothing: it is no negative, and no target of a validation by the loss.

    Args:
        module: The loss.
        data: Prepared data.
        positions: `"last"`: one target for each user (the paper's default); `"all"`: every position (A-LLMRec_all),
            long sequences in windows.
        arguments: Batch size, seed and size of the validation.
        metric: What a validation is judged by: `"loss"`, or `"ndcg@10"` of the validation candidates with every item
            decoded from its text, as an item is that nobody has touched yet.
        text_encoder_learning_rate: Of the text encoder where it is trained; the aligner's where not given.

    Raises:
        ALLMRecError: when stage 1 is to be judged by ranking around a backbone of `text_components`, whose new items it
            does not decode.
    """

    name = "align"
    of_batch = ("batch_targets", "batch_negatives", "seed")

    def __init__(
        self,
        module: AlignmentModule,
        data: PreparedData,
        positions: Literal["last", "all"],
        arguments: StageArguments,
        metric: Literal["loss", "ndcg@10"] = "loss",
        text_encoder_learning_rate: float | None = None,
    ) -> None:
        if metric != "loss" and module.cf_encoder.text_layer is not None:
            raise ALLMRecError(
                f"metric_for_best_model {metric} says nothing of stage 1 where the backbone has text_components, by "
                "which new items are ranked; take loss"
            )
        self.module: AlignmentModule = module
        self.metric = metric
        if text_encoder_learning_rate is not None:
            self.learning_rates = {"text_encoder.": text_encoder_learning_rate}
        self.content = data.digests
        self.varied_lengths = module.text_encoder is not None
        self.rows_add_up = module.temperature is None  # InfoNCE tells the rows of a batch apart
        self.positions = positions
        self.batch_size = global_batch_size(arguments)
        self.seed = arguments.seed
        self.length = module.cf_encoder.config.max_history_length
        self.samples = last_of_training(data) if positions == "last" else all_of_training(data, self.length)
        trained = target_counts(module.cf_encoder, data).nonzero().flatten().cpu().numpy()
        items = np.append(trained, self.samples.targets)
        module.compared.fill_(False)[torch.from_numpy(items)] = True
        self.sampler = NegativeSampler(data, "train", items)
        held_out = validation_targets(data)
        rows = np.arange(len(held_out))
        if metric == "loss":  # which looks at the targets' own embeddings
            rows = np.flatnonzero(np.isin(held_out.targets, items))
        rows = rows[drawn_rows(len(rows), arguments.max_validation_users, arguments.seed)]
        self.validation, self.candidates = held_out.take(rows), data.candidates("validation").take(rows)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch."""
        lengths = np.array([min(len(history), self.length) for history in self.samples.histories])
        return random_batches(lengths, self.batch_size, self.seed, epoch)

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return one training batch."""
        batch = self._batch(self.samples.take(examples), self.positions, generator)
        if self.module.text_recommendation:
            wanted = batch["targets"] > 0
            batch |= {f"batch_{name}": batch[name][wanted] for name in ("targets", "negatives")}
            batch["seed"] = torch.tensor(int(generator.integers(2**62)))
        return batch

    def _batch(self, samples: Samples, positions: str, generator: np.random.Generator) -> Batch:
        item_ids, mask = pad_histories(samples.histories, self.length)
        targets = torch.zeros_like(item_ids)
        targets[:, -1] = torch.from_numpy(samples.targets)
        if positions == "all":
            targets[:, :-1] = item_ids[:, 1:].where(mask[:, :-1], 0)  # what follows each real item
        places = targets.nonzero(as_tuple=True)
        negatives = torch.zeros_like(item_ids)
        negatives[places] = torch.from_numpy(self.sampler.negatives(samples.users[places[0].numpy()], generator))
        return {"item_ids": item_ids, "attention_mask": mask, "targets": targets, "negatives": negatives}

    def loss_weight(self, batch: Batch) -> float:
        """Return the number of targets."""
        return float((batch["targets"] > 0).sum())

    @property
    def num_validation_examples(self) -> int:
        """The number of validation users."""
        return len(self.validation)

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return the mean loss terms of some validation users, for each of them, or how their targets rank."""
        if self.metric != "loss":
            return self._ranking_by_text(examples, device)
        every = np.arange(len(self.validation))
        batch = self._batch(self.validation, "last", np.random.default_rng([self.seed, 0]))
        wanted = batch["targets"] > 0
        whole = {f"batch_{name}": batch[name][wanted] for name in ("targets", "negatives")}
        batch = batch if len(examples) == len(every) else self.some_rows(batch, examples, len(every))
        batch |= whole
        terms = self.module({name: value.to(device) for name, value in batch.items()})
        return {name: np.full(len(examples), float(value)) for name, value in terms.items()}

    def _ranking_by_text(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return NDCG@10 and Hit@10 of some validation users, their candidates decoded from texts."""
        module, candidates, histories = self.module, self.candidates.take(examples), self.validation.histories
        columns = candidates.target_columns
        items, places = np.unique(candidates.items, return_inverse=True)
        texts = module.text_embeddings(torch.from_numpy(items).to(device))
        vectors = module.aligner.decode_items(module.aligner.encode_texts(texts))
        listed, parts = torch.from_numpy(places.reshape(candidates.items.shape)).to(device), []
        for start in range(0, len(examples), USERS_AT_ONCE):
            rows = slice(start, start + USERS_AT_ONCE)
            ids, mask = pad_histories([histories[row] for row in examples[rows]], self.length)
            users = module.cf_encoder.encode_users(ids.to(device), mask.to(device))
            scores = module.cf_encoder.score_vectors(users.unsqueeze(1), vectors[listed[rows]])
            parts.append(target_ranks(scores.float().cpu().numpy(), columns[rows]))
        ranks = Ranks.concatenate(parts)
        return {"ndcg@10": ndcg_at_k(ranks, 10), "hit@10": hit_at_k(ranks, 10)}
