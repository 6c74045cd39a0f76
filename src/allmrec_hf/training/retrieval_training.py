"""Train the ranker `retrieval`: its projectors, learned tokens and output layers, around the frozen LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.prepared import PreparedData
from ..histories import pad_histories
from ..losses import catalogue_contrast, uniformity_loss
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor, EncodedPrompt, left_padded
from ..ranker import UserBatch
from ..ranker_retrieval import RetrievalRanker
from ..ranking import Ranks, target_ranks
from .devices import global_batch_size, process_state
from .projection import validation_metrics
from .samples import Samples, bucketed_batches, validation_targets
from .stage_arguments import StageArguments
from .task import Batch, StageTask

ROW_NAMES = ("input_ids", "attention_mask", "slot_ids")


class Positions:
    """Every position of the training sequences as a sample: the items before it, and the item itself.

    Args:
        data: Prepared data.
        per_user: The latest positions of each user that count; all where None.
    """

    def __init__(self, data: PreparedData, per_user: int | None) -> None:
        self._sequences = data.sequences("train")
        users, places = [], []
        for user, sequence in enumerate(self._sequences):
            first = 1 if per_user is None else max(1, len(sequence) - per_user)
            places.append(np.arange(first, len(sequence)))
            users.append(np.full(len(places[-1]), user))
        self.users, self.places = np.concatenate(users), np.concatenate(places)
        self.targets = np.array([self._sequences[u][p] for u, p in zip(self.users, self.places, strict=True)])

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.users)

    def take(self, rows: np.ndarray) -> Samples:
        """Return some samples."""
        histories = [self._sequences[self.users[row]][: self.places[row]] for row in rows]
        return Samples(self.users[rows], histories, self.targets[rows])


def uniformity_of_all(users: Tensor, row_counts: Tensor | None) -> Tensor:
    """Return the uniformity of the users `(B, d)` of all processes together.

    Args:
        users: Of this process; beyond its number they do not count.
        row_counts: `(processes,)` users of each; None of one process.

    Returns:
        A scalar whose gradient is that of this process's users, times all users over its own: the loop weighs the loss
        of a process by its users.
    """
    if row_counts is None:
        return uniformity_loss(users)
    rank, counts = process_state().process_index, row_counts.tolist()
    own, longest = users[: counts[rank]], max(counts)
    padded = F.pad(own.detach(), (0, 0, 0, longest - len(own)))
    every = gather(padded).view(len(counts), longest, -1)
    parts = [own if other == rank else every[other, :count] for other, count in enumerate(counts)]
    value = uniformity_loss(torch.cat(parts))
    return value.detach() + (value - value.detach()) * (sum(counts) / max(1, len(own)))


class RetrievalModule(nn.Module):
    """The loss of the ranker `retrieval` as a module; all but its head is frozen and in eval mode.

    Args:
        model: The model with its LLM attached and a head.
        processor: Its processor.
        distillation: Weight of the distance to the backbone's user representation.
        uniformity: Weight of the uniformity of users and of items.
    """

    def __init__(
        self, model: ALLMRecModel, processor: ALLMRecProcessor, distillation: float = 1.0, uniformity: float = 0.1
    ) -> None:
        super().__init__()
        self.model = model
        self.ranker = RetrievalRanker(model, processor)
        self.distillation, self.uniformity = distillation, uniformity
        model.requires_grad_(False)
        self.ranker.head.requires_grad_(True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss` and its terms for a batch of `RetrievalTask.collate`."""
        head, model = self.ranker.head, self.model
        representations = model.encode_users(batch["history_ids"], batch["history_mask"])
        user_rows, item_rows = ({n: batch[f"{side}_{n}"] for n in ROW_NAMES} for side in ("user", "item"))
        users = head.user_vectors(self.ranker.states(user_rows, head.user_token, representations))
        items = head.item_vectors_of(self.ranker.states(item_rows, head.item_token))
        contrast = catalogue_contrast(
            users * head.scale, items, batch["target_columns"], batch["log_rates"], batch["seen"]
        )
        terms = {"contrast": contrast}
        if self.distillation:
            wanted = F.normalize(representations, dim=-1)
            terms["distillation"] = 1 - (F.normalize(head.to_backbone(users), dim=-1) * wanted).sum(dim=-1).mean()
        if self.uniformity:
            spread = uniformity_of_all(users, batch.get("row_counts"))
            terms["uniformity"] = (spread + uniformity_loss(items)) / 2
        weights = {"contrast": 1.0, "distillation": self.distillation, "uniformity": self.uniformity}
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}


class RetrievalTask(StageTask):
    """The training of the ranker `retrieval` for the loop.

    Args:
        module: The loss.
        data: Prepared data.
        arguments: Batch size, seed and size of the validation.
        positions: The latest positions of each training sequence that are targets; all where None.
        negatives: Items drawn from the catalogue for each batch, beside the targets of the others.
    """

    name = "retrieve"
    metric = "ndcg@10"
    varied_lengths = True
    may_be_cut = False  # the users of a process are told apart from each other
    of_batch = ("log_rates", "row_counts", *(f"item_{name}" for name in ROW_NAMES))

    def __init__(
        self,
        module: RetrievalModule,
        data: PreparedData,
        arguments: StageArguments,
        positions: int | None = None,
        negatives: int = 32,
    ) -> None:
        self.module: RetrievalModule = module
        self.ranker = module.ranker
        self.processor = module.ranker.processor
        self.content = {**data.digests, "domain": data.domain}
        self.batch_size, self.seed, self.negatives = global_batch_size(arguments), arguments.seed, negatives
        self.samples = Positions(data, positions)
        held_out = validation_targets(data)
        count = min(len(held_out), arguments.max_validation_users or len(held_out))
        rows = np.sort(np.random.default_rng(arguments.seed).permutation(len(held_out))[:count])
        self.validation = held_out.take(rows)
        self.validation_candidates = data.candidates("validation").take(rows)
        counts = np.bincount(self.samples.targets, minlength=data.num_items + 1)
        self._known = np.flatnonzero(counts)  # only what is a target somewhere is drawn as a negative
        self._shares = counts / counts.sum()

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each batch of an epoch, histories of similar length together."""
        lengths = np.minimum(self.samples.places, self.ranker.history_in_prompt)
        return bucketed_batches(lengths, self.batch_size, self.seed, epoch)

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return one training batch with fresh negatives."""
        samples = self.samples.take(examples)
        drawn = generator.choice(self._known, min(self.negatives, len(self._known)), replace=False)
        items = np.union1d(samples.targets, drawn)
        rate = len(samples) * self._shares[items] + len(drawn) / len(self._known)  # expected times in a batch
        seen = np.stack([np.isin(items, history) for history in samples.histories])
        columns = np.searchsorted(items, samples.targets)
        seen[np.arange(len(samples)), columns] = False
        history_ids, history_mask = pad_histories(samples.histories, self.processor.max_history_length)
        users = [self.ranker.user_prompt(history.tolist()) for history in samples.histories]
        return {
            "target_columns": torch.from_numpy(columns),
            "history_ids": history_ids,
            "history_mask": history_mask,
            "log_rates": torch.from_numpy(np.log(rate)).float(),
            "seen": torch.from_numpy(seen),
            **self._prompts("user", users),
            **self._prompts("item", [self.ranker.item_prompt(int(item)) for item in items]),
        }

    def share(self, examples: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return some users of a batch with all of its items, and how many users each process has."""
        batch = super().share(examples, rows, generator)
        world = process_state().num_processes
        if world > 1:
            batch["row_counts"] = torch.tensor([len(range(rank, len(examples), world)) for rank in range(world)])
        return batch

    @staticmethod
    def _prompts(side: str, prompts: Sequence[EncodedPrompt]) -> Batch:
        rows = left_padded([(prompt.tokens, prompt.slots) for prompt in prompts])
        return {f"{side}_{name}": value for name, value in rows.items()}

    @property
    def num_validation_examples(self) -> int:
        """The number of validation users."""
        return len(self.validation)

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return Hit@1, NDCG@10 and reciprocal rank of some validation users on their candidates."""
        candidates = self.validation_candidates.take(examples)
        known, places = np.unique(candidates.items, return_inverse=True)
        items = self.ranker.vectors_of_items(known.tolist())
        histories, parts = self.validation.take(examples).histories, []
        for start in range(0, len(examples), self.batch_size):
            rows = slice(start, start + self.batch_size)
            users = UserBatch.encode(self.module.model, self.processor, [h.tolist() for h in histories[rows]])
            listed = items[torch.from_numpy(places.reshape(candidates.items.shape)[rows]).to(items.device)]
            scores = torch.einsum("bd,bcd->bc", self.ranker.vectors(users), listed)
            parts.append(target_ranks(scores.float().cpu().numpy(), candidates.target_columns[rows]))
            self.progressed(min(start + self.batch_size, len(examples)))
        return validation_metrics(Ranks.concatenate(parts))
