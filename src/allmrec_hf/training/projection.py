"""Train stage 2: the two projectors around the frozen LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..data.prepared import CandidateSet, PreparedData
from ..losses import listwise_loss
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import TitleLikelihood, UserBatch
from ..ranking import Ranks, hit_at_k, ndcg_at_k, reciprocal_rank, target_ranks
from ..rows_at_once import RowsAtOnce, rows_within
from .devices import global_batch_size
from .samples import (
    NegativeSampler,
    Samples,
    Split,
    bucketed_batches,
    last_of_training,
    training_targets,
    validation_targets,
)
from .sharded_llm import is_sharded
from .stage_arguments import StageArguments
from .task import Batch, StageTask

HELD_OUT_SHARE = 0.1
TOKENS_ON_CPU = 1_024
"""Tokens that go through the LLM at once on a CPU without a budget: more are no faster there, and take more memory."""
OF_TOKENS = ("input_ids", "attention_mask", "slot_ids", "labels")  # `(B, T)`, left-padded


class ProjectionModule(nn.Module):
    """The loss of stage 2 as a module; everything but the projectors is frozen and in eval mode.

    Args:
        model: The model with its LLM attached.
        loss: `"lm"`: cross entropy on the answer's tokens (paper, eq. 9). `"listwise"`: softmax over the candidates'
            length-normalised log-likelihoods (not in the paper): dearer, and aimed at the ranking itself.
        temperature: Of the listwise softmax.
    """

    def __init__(self, model: ALLMRecModel, loss: Literal["lm", "listwise"] = "lm", temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.temperature = temperature
        model.requires_grad_(False)
        model.user_projector.requires_grad_(True)
        model.item_projector.requires_grad_(True)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return `loss` for a batch of `ProjectionTask.collate`."""
        if self.loss == "lm":
            return {"loss": self.model(**batch).loss}
        rest: dict[str, Any] = {
            name: value for name, value in batch.items() if name not in ("candidate_ids", "target_columns")
        }
        if self.training and self.model._checkpoints_activations and self.model.scoring_method == "prefix_cache":
            rest["method"] = "naive"  # transformers keeps no key-value cache while it checkpoints activations
        tokens = self.model.candidate_log_likelihoods(**rest)
        scores = tokens.sum(dim=-1) / batch["answer_mask"].sum(dim=-1).clamp(min=1)
        return {"loss": listwise_loss(scores, batch["target_columns"], self.temperature)}


Targets = Literal["train", "validation"]


def candidate_samples(data: PreparedData, targets: Targets, arguments: StageArguments) -> tuple[Samples, np.ndarray]:
    """Return what stage 2 is trained on, and the rows of `validation_targets` that it is validated on.

    Args:
        data: Prepared data.
        targets: See `CandidateTask`.
        arguments: Seed and size of the validation.
    """
    held_out = validation_targets(data)
    order = np.random.default_rng(arguments.seed).permutation(len(held_out))
    count = max(1, int(len(held_out) * HELD_OUT_SHARE)) if targets == "validation" else len(held_out)
    count = min(count, arguments.max_validation_users or count)
    samples = held_out.take(np.sort(order[count:])) if targets == "validation" else last_of_training(data)
    return samples, np.sort(order[:count])


def candidate_items(data: PreparedData, samples: Samples) -> np.ndarray:
    """Return the items that stand in the candidate lists of stage 2: what backbones train on, and its own targets.

    An item that only held-out users have seen, or with targets "train" only the validation part, would never be right.

    Args:
        data: Prepared data.
        samples: What stage 2 is trained on.
    """
    return np.union1d(training_targets(data), samples.targets)


def validation_metrics(ranks: Ranks) -> dict[str, np.ndarray]:
    """Return what validations on candidates report of each user: NDCG@10, Hit@1 and reciprocal rank."""
    return {"ndcg@10": ndcg_at_k(ranks, 10), "hit@1": hit_at_k(ranks, 1), "mrr": reciprocal_rank(ranks)}


class CandidateTask(StageTask):
    """What stage 2 and its warm start have in common: users, targets, candidates and who is validated on.

    Args:
        processor: Makes the prompts.
        data: Prepared data.
        targets: `"train"`: the last training item of each user, which the frozen backbone has been trained on (the
            paper). `"validation"`: the validation item, which it has not seen, so that the user representation is as
            good as it will be in use, and no better; a tenth of the users is held out to validate. The backbone
            trained on the same data (train + validation) is then the fair comparison.
        num_candidates: C, target included.
        arguments: Batch size, seed and size of the validation.
    """

    metric = "ndcg@10"
    varied_lengths = True

    def __init__(
        self,
        processor: ALLMRecProcessor,
        data: PreparedData,
        targets: Targets,
        num_candidates: int,
        arguments: StageArguments,
    ) -> None:
        self.processor = processor
        self.num_candidates = num_candidates
        self.content = {**data.digests, "domain": data.domain}
        self.batch_size = global_batch_size(arguments)
        self.seed = arguments.seed
        self.samples, rows = candidate_samples(data, targets, arguments)
        self.validation = validation_targets(data).take(rows)
        self.validation_candidates = data.candidates("validation").take(rows)
        known: Split = "train" if targets == "train" else "train+validation"
        self.sampler = NegativeSampler(data, known, candidate_items(data, self.samples))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch, histories of similar length together."""
        shown = self.processor.history_in_prompt
        lengths = np.array([min(len(history), shown) for history in self.samples.histories])
        return bucketed_batches(lengths, self.batch_size, self.seed, epoch)

    @property
    def num_validation_examples(self) -> int:
        """The number of validation users."""
        return len(self.validation)

    def drawn(self, examples: np.ndarray, generator: np.random.Generator) -> tuple[Samples, np.ndarray, np.ndarray]:
        """Return samples, freshly drawn candidates `(B, C)` in a fresh order, and the targets' columns `(B,)`."""
        samples = self.samples.take(examples)
        candidates = self.sampler.candidates(samples, self.num_candidates, generator)
        return samples, candidates, (candidates == samples.targets[:, None]).argmax(axis=1)

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return Hit@1, NDCG@10 and reciprocal rank of some validation users on their candidates."""
        parts = []
        for start in range(0, len(examples), self.batch_size):  # all at once would not fit a device's memory
            rows = examples[start : start + self.batch_size]
            candidates = self.validation_candidates.take(rows)
            scores = self.scores(self.validation.take(rows).histories, candidates, device)
            parts.append(target_ranks(scores.float().cpu().numpy(), candidates.target_columns))
            self.progressed(min(start + self.batch_size, len(examples)))
        ranks = Ranks.concatenate(parts)
        return validation_metrics(ranks)

    def scores(self, histories: Sequence[np.ndarray], candidates: CandidateSet, device: torch.device) -> torch.Tensor:
        """Return the scores `(B, C)` of candidates."""
        raise NotImplementedError(f"{type(self).__name__} must implement scores, or validate")


class ProjectionTask(CandidateTask):
    """Stage 2 for the training loop.

    Args:
        module: The loss.
        processor: See `CandidateTask`.
        data: See `CandidateTask`.
        targets: See `CandidateTask`.
        num_candidates: See `CandidateTask`.
        arguments: See `CandidateTask`.
        max_tokens_per_batch: Tokens that the LLM reads at once; a batch with more is read in parts. Where not given, an
            accelerator reads the batch, and a CPU `TOKENS_ON_CPU` tokens or one longer prompt.
    """

    name = "project"

    def __init__(
        self,
        module: ProjectionModule,
        processor: ALLMRecProcessor,
        data: PreparedData,
        targets: Targets,
        num_candidates: int,
        arguments: StageArguments,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        super().__init__(processor, data, targets, num_candidates, arguments)
        self.max_tokens_per_batch = max_tokens_per_batch
        self._rows_at_once = RowsAtOnce()
        self.module: ProjectionModule = module
        self.model = module.model
        self.ranker = TitleLikelihood(self.model, processor)
        # Characters stand for tokens: to bucket by length, no title has to be tokenised before its prompt is made.
        self._title_lengths = np.append(0, data.catalog.frame["title"].str.len_chars().fill_null(0).to_numpy())

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch, prompts of similar length together."""
        shown = self.processor.history_in_prompt
        lengths = np.array([self._title_lengths[history[-shown:]].sum() for history in self.samples.histories])
        return bucketed_batches(lengths, self.batch_size, self.seed, epoch)

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return one training batch, with fresh negatives and a fresh order of the candidates."""
        return self.share(examples, np.arange(len(examples)), generator)

    def share(self, examples: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return some rows of a batch; no prompt of the others is made."""
        samples, candidates, columns = self.drawn(examples, generator)
        samples, candidates, columns = samples.take(rows), candidates[rows], columns[rows]
        histories = [history.tolist() for history in samples.histories]
        if self.module.loss == "lm":
            return dict(self.processor.training_batch(histories, candidates.tolist(), samples.targets.tolist()))
        permutation = int(generator.integers(2**31))
        batch = dict(self.processor(histories, candidates.tolist(), permutation=permutation))
        return {**batch, "target_columns": torch.from_numpy(columns)}

    def loss_weight(self, batch: Batch) -> float:
        """Return the number of answer tokens, or of users for the listwise loss."""
        return float((batch["labels"] != -100).sum()) if "labels" in batch else super().loss_weight(batch)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return a batch in parts of `max_tokens_per_batch` tokens, prompts of similar length together."""
        budget = self.max_tokens_per_batch
        if budget is None and (self.model.device.type != "cpu" or is_sharded(self.model.language_model)):
            return [batch]
        lengths = batch["attention_mask"].sum(dim=1)
        read = lengths + batch["answer_mask"].flatten(1).sum(dim=1) if "answer_mask" in batch else lengths
        groups = rows_within(read.tolist(), budget or max(TOKENS_ON_CPU, int(read.max())))
        count = len(lengths)
        return [batch] if len(groups) == 1 else [self.some_rows(batch, np.array(rows), count) for rows in groups]

    def some_rows(self, batch: Batch, rows: np.ndarray, count: int) -> Batch:
        """Return some rows of a batch, without the padding that none of them needs."""
        found = super().some_rows(batch, rows, count)
        width = int(found["attention_mask"].sum(dim=1).max())
        return {name: value[:, -width:].contiguous() if name in OF_TOKENS else value for name, value in found.items()}

    def scores(self, histories: Sequence[np.ndarray], candidates: CandidateSet, device: torch.device) -> torch.Tensor:
        """Return the log-likelihoods `(B, C)` of the candidates' titles."""
        users = UserBatch.encode(self.model, self.processor, [history.tolist() for history in histories])
        lists = candidates.items.tolist()

        def score(rows: list[int]) -> list[torch.Tensor]:
            some = users if len(rows) == len(users) else users.take(rows)
            return list(self.ranker.score(some, [lists[row] for row in rows]).scores)

        lengths = None if self.max_tokens_per_batch is None else self.ranker.tokens_read(users.histories, lists)
        return torch.stack(self._rows_at_once.collected(lengths, len(users), self.max_tokens_per_batch, score))
