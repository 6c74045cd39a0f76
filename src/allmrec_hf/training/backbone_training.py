"""Train stage 0: the backbone alone, which every later stage keeps frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from ..cf_encoder import CFEncoder, CFEncoderConfig, build_cf_encoder
from ..data.prepared import PreparedData
from ..errors import ALLMRecError, DataError
from ..histories import pad_histories
from ..ranking import NaNScoresError, Ranks, hit_at_k, ndcg_at_k
from .cf_batches import InteractionBatches, SequenceBatches
from .loop import run_stage
from .samples import Samples, Split, drawn, validation_targets
from .stage_arguments import StageArguments
from .task import Batch, StageResult, StageTask

VALIDATION_SCORES = 2**21  # scores held at once while validating: few enough for a CPU's cache
VALIDATION_USERS = 1024  # users ranked together; more would make the slices of the catalogue too narrow
ENCODED_USERS = 128  # users encoded together


class CFEncoderModule(nn.Module):
    """The loss of a backbone as a module."""

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

    name = "backbone"
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
                f"the backbone has {cf_encoder.num_items} items, the data {data.name} have {data.num_items}; both "
                "must have the same catalogue"
            )
        self.module = CFEncoderModule(cf_encoder)
        self.cf_encoder = cf_encoder
        read = (
            data.digests
            if cf_encoder.reads_texts or cf_encoder.config.text_components
            else {**data.digests, "texts": "not read"}
        )
        self.content = {**read, "split": split}
        self.gradient_accumulation_steps = arguments.gradient_accumulation_steps
        self.examples: SequenceBatches | InteractionBatches
        layout = SequenceBatches if cf_encoder.trains_on == "sequences" else InteractionBatches
        self.examples = layout(cf_encoder, data, split, arguments)
        self.of_batch = ("negatives", "log_weights") if cf_encoder.config.loss == "sampled_softmax" else ()
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

    def target_counts(self, result: StageResult) -> Tensor:
        """Return `(N + 1,)` how often each item was a target in an epoch, or in the one that was cut short."""
        batches = self.batches(0)
        if result.best_epoch <= 1 and result.history:
            batches = batches[: int(result.history[0]["step"]) * self.gradient_accumulation_steps]
        targets = self.examples.targets_of(np.concatenate(batches)) if len(batches) else np.zeros(0, dtype=np.int64)
        return torch.from_numpy(np.bincount(targets, minlength=self.cf_encoder.num_items + 1).astype(np.int64))

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return NDCG@10 and Hit@10 in the whole catalogue for some validation users."""
        self.cf_encoder.update_tables()
        ranks = catalog_ranks(self.cf_encoder, self.validation.take(examples), device)
        return {"ndcg@10": ndcg_at_k(ranks, 10), "hit@10": hit_at_k(ranks, 10)}


@torch.no_grad()
def catalog_ranks(cf_encoder: CFEncoder, samples: Samples, device: torch.device) -> Ranks:
    """Return the rank of each target in the whole catalogue.

    Users are ranked many at a time against one slice of the catalogue after the other, so no more than
    `VALIDATION_SCORES` scores are held. Items of a user's history do not count, but for the target itself.

    Args:
        cf_encoder: The backbone, on the device.
        samples: Histories and targets.
        device: Where to compute.

    Raises:
        ValueError: when a score is NaN.
    """
    counts = np.zeros((2, len(samples)))
    order = np.argsort(samples.targets, kind="stable")  # neighbouring targets: few slices hold those of one block
    for start in range(0, len(order), VALIDATION_USERS):
        rows = order[start : start + VALIDATION_USERS]
        counts[:, rows] = _block_ranks(cf_encoder, samples.take(rows), device)
    return Ranks(better=counts[0], tied=counts[1])


def _block_ranks(cf_encoder: CFEncoder, samples: Samples, device: torch.device) -> np.ndarray:
    """Return `(2, B)` how many items score better than each target, and how many others as it does."""
    item_ids, mask = pad_histories(samples.histories, cf_encoder.config.max_history_length)
    parts = zip(item_ids.split(ENCODED_USERS), mask.split(ENCODED_USERS), strict=True)
    users = torch.cat([cf_encoder.encode_users(ids.to(device), real.to(device)) for ids, real in parts])
    step = max(1, VALIDATION_SCORES // len(users))
    stop = cf_encoder.num_items + 1

    def scores_from(start: int) -> Tensor:
        return cf_encoder.score_range(users, start, min(start + step, stop)).float()

    # A product's rounding depends on its shape: the target's score is taken from the slice that it is compared in.
    places = torch.from_numpy(samples.targets).to(device)
    slices = (places - 1) // step
    own = torch.zeros(len(users), 1, device=device)  # (B, 1) the targets' scores
    for number in slices.unique().tolist():
        rows = (slices == number).nonzero().flatten()
        own[rows, 0] = scores_from(1 + number * step)[rows, places[rows] - 1 - number * step]
    left_out_rows, left_out = _left_out(samples)
    better, tied = (torch.zeros(len(users), dtype=torch.long, device=device) for _ in range(2))
    flags = torch.empty(len(users), min(step, stop - 1), device=device)  # as numbers, which sum faster than booleans
    for start in range(1, stop, step):
        scores = scores_from(start)
        if scores.sum().isnan():  # as that of infinities of both signs is too
            wrong = int(scores.isnan().any(dim=1).sum())
            if wrong:
                raise NaNScoresError(f"{wrong} of {len(scores)} rows hold NaN scores")
        here = slice(*np.searchsorted(left_out, [start, start + step]))
        rows, columns = (torch.from_numpy(v).to(device) for v in (left_out_rows[here], left_out[here] - start))
        out = flags[:, : scores.shape[1]]
        for counts, compare in ((better, torch.gt), (tied, torch.eq)):
            counts += compare(scores, own, out=out).sum(dim=1).long()
            counts.index_add_(0, rows, out[rows, columns].long(), alpha=-1)
    return torch.stack([better, tied]).cpu().numpy()


def _left_out(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Return row and item, ordered by item, of what is not compared with a user's target: the history, and itself."""
    rows = np.repeat(np.arange(len(samples)), [len(history) for history in samples.histories])
    rows = np.append(rows, np.arange(len(samples)))
    items = np.append(np.concatenate(samples.histories), samples.targets)
    keys = np.unique(items * len(samples) + rows)  # an item that stands in a history twice is left out once
    return keys % len(samples), keys // len(samples)


def train_backbone(
    data: PreparedData,
    model: CFEncoder | CFEncoderConfig,
    arguments: StageArguments,
    output_dir: str | Path,
    resume: bool = False,
    split: Split = "train",
    progress: bool | None = None,
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    texts: Tensor | CFEncoder | None = None,
) -> CFEncoder:
    """Train a backbone and return it with the weights of its best validation, on the CPU in eval mode.

    Args:
        data: Prepared data.
        model: The backbone, or its config for one with fresh weights drawn with `arguments.seed`.
        arguments: Settings of the stage.
        output_dir: Gets `training.json` and the checkpoints; the caller saves the backbone itself.
        resume: Go on from the latest checkpoint.
        split: `"train"`, or `"train+validation"` for the fair comparison with a stage 2 that saw the validation items;
            it has no validation, so it runs for all its epochs and keeps the last weights.
        progress: Show a progress bar; by default only on a terminal.
        callbacks: See `run_stage`.
        texts: Where the config has `text_components`: `(N + 1, d_text)` by the frozen text encoder, row 0 zeros, or a
            backbone of the same items that has them.

    Raises:
        ALLMRecError: when texts are needed and not given, or weight decay would change their components.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        cf_encoder = model if isinstance(model, CFEncoder) else build_cf_encoder(model)
        sequences = data.sequences(split)
        users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        items = np.concatenate(sequences)
        cf_encoder.start_training(torch.from_numpy(users), torch.from_numpy(items), len(sequences))
    kept = _keep_text_components(cf_encoder, texts, arguments)
    task = CFEncoderTask(cf_encoder, data, arguments, split)
    result = run_stage(task, arguments, output_dir, resume=resume, progress=progress, callbacks=callbacks)
    cf_encoder = cf_encoder.cpu().eval()
    before = cf_encoder.target_counts
    cf_encoder.target_counts = task.target_counts(result) + (0 if before is None else before)
    if kept is not None:
        kept.remove()
        with torch.no_grad():  # what was no target is known by its text alone
            cf_encoder.item_embedding.weight[cf_encoder.target_counts == 0, cf_encoder.config.text_components :] = 0
    cf_encoder.update_tables()
    cf_encoder.end_training()
    return cf_encoder


def _keep_text_components(
    cf_encoder: CFEncoder, texts: Tensor | CFEncoder | None, arguments: StageArguments
) -> RemovableHandle | None:
    """Give item embeddings their texts' components, which training then leaves alone; return the hook that does it."""
    count = cf_encoder.config.text_components
    if not count:
        return None
    if texts is None:
        raise ALLMRecError(
            f"text_components is {count}, and no text embeddings were given; pass texts to train_backbone"
        )
    if arguments.weight_decay:
        raise ALLMRecError(
            f"weight decay {arguments.weight_decay} would shrink the {count} text_components, which are not trained; "
            "take --backbone.weight-decay 0, or text_components 0"
        )
    if isinstance(texts, CFEncoder):
        cf_encoder.start_from_texts_of(texts)
    else:
        cf_encoder.start_from_texts(texts.cpu().float())
    weight: Tensor = cf_encoder.item_embedding.weight
    return weight.register_hook(lambda gradient: F.pad(gradient[:, count:], (count, 0)))
