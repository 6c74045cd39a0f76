"""Stage 0: trains the CF backbone alone, which every later stage keeps frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..cf_encoder import CFEncoder, CFEncoderConfig, build_cf_encoder
from ..data.prepared import PreparedData
from ..errors import DataError
from ..histories import pad_histories
from ..ranking import Ranks, hit_at_k, ndcg_at_k, target_ranks
from .arguments import StageArguments
from .cf_batches import InteractionBatches, SequenceBatches, Split
from .loop import run_stage
from .samples import drawn, validation_targets
from .task import Batch, StageTask

VALIDATION_SCORES = 2**20  # scores held at once while validating: few enough for a CPU's cache


class CFEncoderModule(nn.Module):
    """The loss of a CF backbone as a module."""

    def __init__(self, cf_encoder: CFEncoder) -> None:
        super().__init__()
        self.cf_encoder = cf_encoder

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the backbone's training loss of a batch."""
        return {"loss": self.cf_encoder.training_loss(batch)}


class CFEncoderTask(StageTask):
    """Stage 0 for the training loop: predict each item of a sequence from those before it, or a user's items at all.

    Which of the two the backbone's `trains_on` says. Validation ranks the whole catalogue for each validation item,
    items the user has seen left out, and serves every user from the history alone.

    Args:
        cf_encoder: What is trained.
        data: Prepared data.
        arguments: Batch size, seed and size of the validation.
        split: What is trained on; with `"train+validation"` there is nothing to validate on.
    """

    name = "cf"
    metric = "ndcg@10"

    def __init__(
        self,
        cf_encoder: CFEncoder,
        data: PreparedData,
        arguments: StageArguments,
        split: Split = "train",
    ) -> None:
        if cf_encoder.num_items != data.num_items:
            raise DataError(
                f"the CF encoder has {cf_encoder.num_items} items, the data {data.name} have {data.num_items}; both "
                "must have the same catalogue"
            )
        self.module = CFEncoderModule(cf_encoder)
        self.cf_encoder = cf_encoder
        read = data.digests if cf_encoder.reads_texts else {**data.digests, "texts": "not read"}
        self.content = {**read, "split": split}
        self.examples: SequenceBatches | InteractionBatches
        layout = SequenceBatches if cf_encoder.trains_on == "sequences" else InteractionBatches
        self.examples = layout(cf_encoder, data, split, arguments)
        held_out = drawn(validation_targets(data), arguments.max_validation_users, arguments.seed)
        self.validation = held_out if split == "train" else held_out.take(np.arange(0))

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the example numbers of each batch of an epoch."""
        return self.examples.batches(epoch)

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return what `CFEncoder.training_loss` reads of some examples."""
        return self.examples.collate(examples, generator)

    def loss_weight(self, batch: Batch) -> float:
        """Return the number of targets."""
        return float((batch["targets"] > 0).sum())

    @property
    def num_validation_examples(self) -> int:
        """The number of validation users."""
        return len(self.validation)

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return NDCG@10 and Hit@10 in the whole catalogue for some validation users."""
        self.cf_encoder.update_tables()
        step = max(1, VALIDATION_SCORES // (self.cf_encoder.num_items + 1))
        starts = range(0, len(examples), step)
        ranks = Ranks.concatenate([self._ranks(examples[start : start + step], device) for start in starts])
        return {"ndcg@10": ndcg_at_k(ranks, 10), "hit@10": hit_at_k(ranks, 10)}

    def _ranks(self, examples: np.ndarray, device: torch.device) -> Ranks:
        samples = self.validation.take(examples)
        item_ids, mask = pad_histories(samples.histories, self.cf_encoder.config.max_history_length)
        users = self.cf_encoder.encode_users(item_ids.to(device), mask.to(device))
        scores = self.cf_encoder.score(users).float().cpu().numpy()
        rows = np.repeat(np.arange(len(samples)), [len(history) for history in samples.histories])
        seen = np.concatenate(samples.histories)
        other = seen != samples.targets[rows]  # an item bought again stays a candidate when it is the target
        scores[rows[other], seen[other]] = -np.inf
        return target_ranks(scores, samples.targets)


def train_cf_encoder(
    data: PreparedData,
    model: CFEncoder | CFEncoderConfig,
    arguments: StageArguments,
    output_dir: str | Path,
    resume: bool = False,
    split: Split = "train",
    progress: bool | None = None,
) -> CFEncoder:
    """Train a CF backbone and return it with the weights of its best validation, on the CPU in eval mode.

    Args:
        data: Prepared data.
        model: The backbone, or its config for one with fresh weights drawn with `arguments.seed`.
        arguments: Settings of the stage.
        output_dir: Gets `training.json` and the checkpoints; the caller saves the backbone itself.
        resume: Go on from the latest checkpoint.
        split: `"train"`, or `"train+validation"` for the fair comparison with a stage 2 that saw the validation items;
            it has no validation, so it runs for all its epochs and keeps the last weights.
        progress: Show a progress bar; by default only on a terminal.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        cf_encoder = model if isinstance(model, CFEncoder) else build_cf_encoder(model)
        sequences = data.sequences(split)
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        items = np.concatenate(sequences)
        cf_encoder.start_training(torch.from_numpy(users), torch.from_numpy(items), len(sequences))
    task = CFEncoderTask(cf_encoder, data, arguments, split)
    run_stage(task, arguments, output_dir, resume=resume, progress=progress)
    cf_encoder = cf_encoder.cpu().eval()
    cf_encoder.update_tables()
    cf_encoder.end_training()
    return cf_encoder
