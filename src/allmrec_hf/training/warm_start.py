"""A warm start for stage 2, not in the paper: projectors that match users with items before the LLM reads them.

The frozen LLM finds a candidate by comparing what stands in the user's slot with what stands behind the titles. Trained
through the LLM alone, projectors take long to speak in vectors that it can compare at all. Here they first learn, with
no LLM pass, to put a user near the target and away from the other candidates, at the length of word embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data.prepared import CandidateSet, PreparedData
from ..histories import pad_histories
from ..language_model import token_table, token_vectors
from ..losses import listwise_loss
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..projector import AnyProjector
from .devices import share_of_batch
from .loop import run_stage
from .projection import CandidateTask, ProjectionTask
from .samples import bucketed_batches
from .section_arguments import ProjectArguments
from .stage_arguments import StageArguments
from .task import Batch

TEMPERATURE = 0.1
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
EVAL_EVERY = 20
STATISTICS_USERS = 2048
WORDS_AT_ONCE = 8192


@torch.no_grad()
def centre_inputs(projector: AnyProjector, inputs: torch.Tensor) -> None:
    """Fold the standardisation of the inputs `(S, input_dim)` into the projector's first layer.

    Joint embeddings are sigmoids that vary by hundredths around 0.5; without this, LayerNorm sees their common part.
    """
    first = projector.first
    mean, std = inputs.mean(dim=0), inputs.std(dim=0, correction=int(len(inputs) > 1)).clamp(min=1e-4)
    first.weight.div_(std)
    first.bias.sub_(first.weight @ mean)


@torch.no_grad()
def start_near_words(projector: AnyProjector, words: torch.Tensor, generator: torch.Generator) -> None:
    """Make the last layer's outputs random mixtures of the LLM's word embeddings `(V, d_llm)` around their mean."""
    last = projector.last
    words = words.float()
    mean = words.mean(dim=0)
    mixed = torch.zeros_like(last.weight.T)  # (in, d_llm)
    for part in (words - mean).split(WORDS_AT_ONCE):
        mixed += torch.randn(last.in_features, len(part), generator=generator).to(part.device) @ part
    last.weight.copy_(mixed.T / (last.in_features * len(words)) ** 0.5)
    last.bias.copy_(mean)


def prepare_projectors(model: ALLMRecModel, task: CandidateTask, seed: int) -> None:
    """Give fresh projectors a start that fits their inputs and the LLM's word embeddings.

    Args:
        model: The model with its LLM attached.
        task: Stage 2, whose users give the statistics.
        seed: The seed.
    """
    generator = torch.Generator().manual_seed(seed)
    words = token_table(model.language_model)
    histories = [
        history.tolist() for history in task.samples.take(np.arange(min(len(task.samples), STATISTICS_USERS))).histories
    ]
    tensors = {name: value.to(model.device) for name, value in task.processor.history_tensors(histories).items()}
    with torch.no_grad():
        users = model.cf_encoder.encode_users(tensors["history_ids"], tensors["history_mask"])
        items = model.item_vectors(torch.arange(1, model.cf_encoder.num_items + 1, device=model.device))
    for projector, inputs in ((model.user_projector, users), (model.item_projector, items)):
        start_near_words(projector, words.to(inputs.device), generator)
        centre_inputs(projector, inputs)  # last, as a linear projector's two layers are one


class MatchingModule(nn.Module):
    """Softmax over the candidates' cosines with the user, both as projected; no LLM pass.

    Args:
        model: The model with its LLM attached; only its projectors train.
    """

    def __init__(self, model: ALLMRecModel) -> None:
        super().__init__()
        self.model = model
        lengths = [words.float().norm(dim=-1) for words in token_vectors(model.language_model)]
        self.word_norm = float(torch.cat(lengths).mean())

    def cosines(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines `(B, C)` and how far the projections' lengths are from those of words (a mean square)."""
        with torch.no_grad():
            users = self.model.cf_encoder.encode_users(batch["history_ids"], batch["history_mask"])
            items = self.model.item_vectors(batch["candidate_ids"])
        users, items = self.model.user_projector(users), self.model.item_projector(items)
        lengths = [(vectors.norm(dim=-1) / self.word_norm - 1).square().mean() for vectors in (users, items)]
        cosines = torch.einsum("bd,bcd->bc", F.normalize(users, dim=-1), F.normalize(items, dim=-1))
        return cosines, (lengths[0] + lengths[1]) / 2

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the loss and its two parts."""
        cosines, length = self.cosines(batch)
        matching = listwise_loss(cosines, batch["target_columns"], TEMPERATURE)
        return {"loss": matching + length, "matching": matching, "length": length}


def warm_start_arguments(arguments: StageArguments, steps: int) -> StageArguments:
    """Return the loop's settings of a warm start of some steps before stage 2 with `arguments`."""
    steps = min(steps, arguments.max_steps or steps)
    return arguments.replaced(
        max_steps=steps,
        num_train_epochs=steps,
        eval_epochs=EVAL_EVERY,
        per_device_train_batch_size=share_of_batch(BATCH_SIZE),
        learning_rate=LEARNING_RATE,
        early_stopping_patience=None,
    )


class WarmStartTask(CandidateTask):
    """The warm start for the training loop: stage 2's users and candidates, without prompts.

    Args:
        module: The loss.
        processor: See `CandidateTask`.
        data: See `CandidateTask`.
        targets: See `CandidateTask`.
        num_candidates: See `CandidateTask`.
        arguments: See `CandidateTask`.
    """

    name = "warm-start"
    varied_lengths = False

    def __init__(
        self,
        module: MatchingModule,
        processor: ALLMRecProcessor,
        data: PreparedData,
        targets: Literal["train", "validation"],
        num_candidates: int,
        arguments: StageArguments,
    ) -> None:
        super().__init__(processor, data, targets, num_candidates, arguments)
        self.module: MatchingModule = module

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch."""
        lengths = np.array([min(len(h), self.processor.max_history_length) for h in self.samples.histories])
        return bucketed_batches(lengths, self.batch_size, self.seed, epoch)

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return histories, candidates `(B, C)` and the targets' columns `(B,)`."""
        samples, candidates, columns = self.drawn(examples, generator)
        return {**self._histories(samples.histories), **_tensors(candidates, columns)}

    def loss_weight(self, batch: Batch) -> float:
        """Return the number of users."""
        return float(len(batch["candidate_ids"]))

    def _histories(self, histories: Sequence[np.ndarray]) -> Batch:
        ids, mask = pad_histories(histories, self.processor.max_history_length)
        return {"history_ids": ids, "history_mask": mask}

    def scores(self, histories: Sequence[np.ndarray], candidates: CandidateSet, device: torch.device) -> torch.Tensor:
        """Return the cosines `(B, C)` of what stands for users and candidates."""
        batch = {**self._histories(histories), **_tensors(candidates.items, candidates.target_columns)}
        return self.module.cosines({name: value.to(device) for name, value in batch.items()})[0]


def warm_start(
    task: ProjectionTask,
    data: PreparedData,
    arguments: ProjectArguments,
    folder: Path,
    resume: bool,
) -> None:
    """Bring the projectors of stage 2's task near words, and train them to match before the LLM is asked.

    Args:
        task: Stage 2.
        data: Prepared data.
        arguments: The settings of stage 2.
        folder: Checkpoints of the warm start.
        resume: Go on where an interrupted one stopped.
    """
    loop = warm_start_arguments(arguments.loop(), arguments.warm_start_steps)
    prepare_projectors(task.model, task, loop.seed)
    own = WarmStartTask(
        MatchingModule(task.model), task.processor, data, arguments.targets, arguments.num_candidates, loop
    )
    run_stage(own, loop, folder, resume)


def _tensors(candidates: np.ndarray, columns: np.ndarray) -> Batch:
    return {"candidate_ids": torch.from_numpy(candidates), "target_columns": torch.from_numpy(columns)}
