"""The base of backbones with user vectors: they train on interactions and compute each user from the history.

While training, each user has a row in `user_embedding`. A checkpoint holds no such row: every user, trained or new,
is FOLDED IN, which means that the vector is worked out from the items of the history with all else fixed. A trained
user, a new user and one whose history has grown are served alike, and no checkpoint carries what a user did.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.utils import logging

from .cf_encoder import CFEncoder, CFEncoderConfig
from .errors import ALLMRecError, DataError
from .indices import check_padded

logger = logging.get_logger(__name__)

MIN_L2 = 1e-4  # without any penalty a vector that ranks its whole history first would grow without end
NEWTON_STEPS = 6  # at the weights of the penalty that train well, they reach single precision
_CACHED_VALUES = 2**20  # numbers that stay in a CPU's cache
_MAX_VALUES = 2**25  # numbers of one kind that are held at once elsewhere: 128 MB in float32


@strict
class UserVectorConfig(CFEncoderConfig):
    """Hold what backbones with per-user vectors add to every backbone's config.

    Args:
        l2: Weight of `(|u|^2 + |q_target|^2 + mean_k |q_negative_k|^2) / 2`, which each sample adds to the loss.
    """

    l2: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.l2, (int, float)) and not 0 <= self.l2 < float("inf"):
            raise ALLMRecError(f"{type(self).__name__}.l2 must be a finite number of 0 or more, got {self.l2}")
        super().__post_init__(**kwargs)


@strict
class ContrastingUserConfig(UserVectorConfig):
    """Hold what backbones add that fold users in against a fixed set of items.

    Args:
        num_contrast_items: J, items at most that stand for the negatives which training samples.
    """

    num_contrast_items: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_at_least_one("num_contrast_items")
        super().__post_init__(**kwargs)


class UserVectorEncoder(CFEncoder):
    """Train one vector for each user, then serve every user by fold-in of the history.

    A backbone implements `fold_in`, and overrides `training_vectors` where what is scored is not what the two tables
    hold. The order of a history does not matter. The user representation carries no gradient.
    """

    trains_on: ClassVar[Literal["sequences", "interactions"]] = "interactions"
    _keys_to_ignore_on_save = {"user_embedding.weight"}
    config: UserVectorConfig
    user_embedding: nn.Embedding | None  # (U, d_cf), only while training

    def __init__(self, config: UserVectorConfig) -> None:
        super().__init__(config)
        self.user_embedding = None

    def fold_in(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Return user vectors `(B, d_cf)` of histories `(B, H)`; `real` `(B, H)` is False where there is no item.

        Where no item is real, the result is the neutral user.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement fold_in")

    def fold_in_values(self, length: int) -> int:
        """Return how many numbers `fold_in` holds for one history of a length; batches are cut accordingly."""
        return length * self.config.hidden_size

    @torch.no_grad()
    def encode_users(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return user representations `(B, d_cf)` of histories `(B, L)`; an empty one gives the neutral user.

        Only the `max_history_length` most recent items are read.
        """
        return self._folded_in(*self._recent(item_ids, attention_mask))

    @torch.no_grad()
    def states_at(self, item_ids: Tensor, attention_mask: Tensor | None, wanted: Tensor) -> Tensor:
        """Return `(P, d_cf)`: for each wanted position the user of the history up to it, zeros at padding."""
        item_ids, real = self._recent(item_ids, attention_mask)
        rows, ends = wanted.nonzero(as_tuple=True)
        columns = torch.arange(item_ids.shape[1], device=item_ids.device)
        prefixes = real[rows] & (columns <= ends.unsqueeze(1))  # (P, L)
        states = self._folded_in(item_ids[rows], prefixes)
        return states * real[rows, ends].unsqueeze(1)

    @torch.no_grad()
    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return `(B, L, d_cf)`, the user after each item: one fold-in for each real position."""
        _, real = self._recent(item_ids, attention_mask)
        states = self.item_embeddings.new_zeros(*item_ids.shape, self.config.hidden_size)
        states[real] = self.states_at(item_ids, real, real)
        return states

    def start_training(self, users: Tensor, items: Tensor, num_users: int) -> None:
        """Make one vector for each user, drawn as other fresh weights are; see `CFEncoder.start_training`.

        Raises:
            DataError: when there is no interaction, or a user number or catalogue index is out of range.
        """
        _check_interactions(users, items, num_users, self.num_items)
        table = nn.Embedding(num_users, self.config.hidden_size)
        nn.init.normal_(table.weight, std=float(self.config.initializer_range))
        self.user_embedding = table.to(self.item_embeddings)

    def end_training(self) -> None:
        """Drop the user vectors."""
        self.user_embedding = None

    def user_vectors(self) -> Tensor:
        """Return the vectors `(U, d_cf)` of the training users, which exist only while training.

        Raises:
            ALLMRecError: when the model is not in training.
        """
        if self.user_embedding is None:
            raise ALLMRecError(
                f"{type(self).__name__} has no user vectors: call start_training(users, items, num_users) first; a "
                "trained backbone serves users by encode_users"
            )
        return self.user_embedding.weight

    def training_vectors(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return users `(B, d_cf)`, targets `(B, d_cf)` and negatives `(B, K, d_cf)`: as scored, and as penalised."""
        vectors = (
            nn.functional.embedding(batch["users"], self.user_vectors()),
            self.item_embedding(batch["targets"]),
            self.item_embedding(batch["negatives"].view(len(batch["targets"]), -1)),
        )
        return vectors, vectors

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over interactions, the penalty of the vectors included.

        Args:
            batch: `users (B,)` user numbers, `targets (B,)` catalogue indices, `negatives (B, K)` items that the user
                has never seen, or `(B,)` for one.

        Returns:
            A scalar.
        """
        missing = sorted({"users", "targets", "negatives"} - set(batch))
        if missing:
            raise DataError(f"{type(self).__name__} trains on users, targets and negatives; the batch lacks {missing}")
        for name in ("targets", "negatives"):
            check_padded(batch[name], self.num_items, name, look=not self.training)
        (users, targets, negatives), penalised = self.training_vectors(batch)
        positive = self.score_vectors(users, targets)
        negative = self.score_vectors(users.unsqueeze(1), negatives)  # (B, K)
        loss = self.sampled_loss(positive, negative).mean()
        if not self.config.l2:
            return loss
        user, target, negative = (vectors.float().square().sum(-1) for vectors in penalised)
        return loss + float(self.config.l2) / 2 * (user + target + negative.mean(-1)).mean()

    def _recent(self, item_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return histories and what is real in them: known items, of which the most recent ones."""
        real = self.real_items(item_ids, attention_mask) & (item_ids != 0)
        limit = self.config.max_history_length
        if item_ids.shape[1] > limit:
            recent = real.flip(1).cumsum(1).flip(1) <= limit
            if not bool((recent | ~real).all()):
                logger.warning_once(f"histories are cut to the {limit} most recent items (max_history_length)")
            real = real & recent
        return item_ids, real

    def _folded_in(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Fold histories in, those of similar length together and not all at once."""
        item_ids = (item_ids * real).sort(dim=1).values  # one order for all orders; padding comes first
        real = item_ids > 0
        lengths = real.sum(1)
        users = torch.zeros(len(item_ids), self.config.hidden_size, device=item_ids.device)
        rows = lengths.argsort(stable=True)
        sorted_lengths = lengths[rows].tolist()
        limit = _CACHED_VALUES if item_ids.device.type == "cpu" else _MAX_VALUES
        start = 0
        while start < len(rows):
            stop = self._chunk_end(sorted_lengths, start, limit)
            chunk, width = rows[start:stop], max(1, sorted_lengths[stop - 1])
            with torch.autocast(item_ids.device.type, enabled=False):  # nothing in half precision can be solved
                users[chunk] = self.fold_in(item_ids[chunk, -width:], real[chunk, -width:])
            start = stop
        return users.to(self.item_embeddings.dtype)

    def _chunk_end(self, sorted_lengths: list[int], start: int, limit: int) -> int:
        """Return how far histories of ascending length, from `start`, fit into one chunk; at least one always does."""
        stop = start + 1
        while stop < len(sorted_lengths):
            values = (stop + 1 - start) * self.fold_in_values(max(1, sorted_lengths[stop]))
            if values > limit:
                break
            stop += 1
        return stop


class ContrastingUserEncoder(UserVectorEncoder):
    """Fold users in by minimising the training loss over the user's vector, with all else fixed.

    What training samples anew for each interaction is a fixed set here: `contrast_items`, spread evenly over the
    items that were trained, those of the history left out. The result is a function of the history alone.
    """

    config: ContrastingUserConfig
    contrast_items: Tensor  # (J,) catalogue indices, 0 where there are fewer items than J

    def _init_contrast(self) -> None:
        """Register the fixed set, of the whole catalogue as long as nothing is trained."""
        self.register_buffer("contrast_items", torch.zeros(self.config.num_contrast_items, dtype=torch.long))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and not getattr(self.contrast_items, "_is_hf_initialized", False):  # not read from a file
            self._set_contrast(torch.arange(1, self.config.num_items + 1))

    @torch.no_grad()
    def _set_contrast(self, items: Tensor) -> None:
        size = len(self.contrast_items)
        if len(items) > size:
            items = items[torch.arange(size, device=items.device) * len(items) // size]
        self.contrast_items.zero_()
        self.contrast_items[: len(items)] = items.to(self.contrast_items.device)

    def start_training(self, users: Tensor, items: Tensor, num_users: int) -> None:
        """Make user vectors, and take the contrast from the items seen in training."""
        super().start_training(users, items, num_users)
        self._set_contrast(items.unique())

    @torch.no_grad()
    def renumber_items(self, rows: Tensor) -> None:
        """Keep the contrast where its items went, see `CFEncoder.renumber_items`; of those dropped it loses them.

        Where all of them are dropped, it is spread over the items that are left.
        """
        rows = rows.to(self.contrast_items.device)
        new = rows.new_zeros(max(int(rows.max()), int(self.contrast_items.max())) + 1)
        new[rows] = torch.arange(1, len(rows) + 1, device=rows.device)
        new[0] = 0
        kept = new[self.contrast_items]
        kept = kept[kept > 0]
        self._set_contrast(kept if len(kept) else rows.nonzero().flatten() + 1)

    def fold_in_values(self, length: int) -> int:
        """Return how many numbers `fold_in` holds for one history of a length."""
        width = self.config.hidden_size
        return max(length * len(self.contrast_items), length * width, width * width)

    def contrast(self, item_ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contrast's catalogue indices `(J,)` and which of them `(B, J)` a history does not hold."""
        items = self.contrast_items[self.contrast_items > 0]
        columns = torch.full((self.num_items + 1,), len(items), device=items.device)
        columns[items] = torch.arange(len(items), device=items.device)
        used = torch.ones(len(item_ids), len(items) + 1, dtype=torch.bool, device=items.device)
        used.scatter_(1, columns[item_ids * real], False)  # the spare column takes what is no contrast item
        return items, used[:, :-1]

    def solved(self, item_ids: Tensor, real: Tensor, start: Tensor, l2: float) -> Tensor:
        """Return the users `(B, d_cf)`, in float32, that minimise the pairwise loss of their histories `(B, H)`.

        Minimised, over u, is `sum_{i in H} (mean_{j in J} softplus(u.q_j - u.q_i) + l2 / 2 |u - start|^2)`, which is
        convex; Newton's method solves it. An item seen twice counts twice, as it does in training.
        """
        items, used = self.contrast(item_ids, real)
        own = self.item_embedding(item_ids).float() * real.unsqueeze(-1)  # (B, H, d_cf)
        ridge = l2 * real.sum(1).clamp(min=1).float()
        problem = _PairwiseProblem(own, real, self.item_embedding(items).float(), used, start, ridge)
        users = start
        for _ in range(NEWTON_STEPS):
            users = users + problem.step(users)
        return users


class _PairwiseProblem:
    """The convex problems of B users, each with its own items and a shared contrast.

    Args:
        own: `(B, H, d_cf)` vectors of each history, zeros at padding.
        real: `(B, H)`.
        other: `(J, d_cf)` vectors of the contrast.
        used: `(B, J)` False at contrast items that a history holds.
        start: `(B, d_cf)` what the penalty pulls towards.
        ridge: `(B,)` weight of the penalty, `|u - start|^2 / 2`.
    """

    def __init__(self, own: Tensor, real: Tensor, other: Tensor, used: Tensor, start: Tensor, ridge: Tensor) -> None:
        self.own, self.other, self.start, self.ridge = own, other, start, ridge.unsqueeze(1)
        self.share = 1 / used.sum(1, keepdim=True).clamp(min=1)  # (B, 1) what one contrast item weighs
        # Infinite margins give what does not count the probability 0.
        self.own_offset = torch.zeros_like(real, dtype=own.dtype).masked_fill(~real, float("inf"))
        self.other_offset = torch.zeros_like(used, dtype=own.dtype).masked_fill(~used, float("-inf"))
        self.squares = (other.unsqueeze(2) * other.unsqueeze(1)).flatten(1)  # (J, d_cf^2)

    def step(self, users: Tensor) -> Tensor:
        """Return a step `(B, d_cf)` that lowers every user's objective, and is Newton's own near the minimum.

        Where the objective still falls at the end of Newton's step, that step is taken. Elsewhere it is cut: the third
        derivative along it is at most R times the second, with R the largest change of any margin, and so a share of
        `log(1 + R) / R` of the step cannot overshoot (Bach, arXiv 0910.4627).
        """
        misses = self._misses(users)
        direction = newton_direction(self._hessian(misses), self._gradient(users, misses))
        end = users + direction
        slope = (self._gradient(end, self._misses(end)) * direction).sum(1, keepdim=True)
        own = torch.einsum("bhd,bd->bh", self.own, direction)
        other = direction @ self.other.T
        rise = (own - self.own_offset).amax(1) - (other - self.other_offset).amin(1)
        fall = (other + self.other_offset).amax(1) - (own + self.own_offset).amin(1)
        largest = torch.maximum(rise, fall).clamp(min=1e-6).unsqueeze(1)
        return direction * torch.where(slope <= 0, 1.0, largest.log1p() / largest)

    def _misses(self, users: Tensor) -> Tensor:
        """Return how likely each pair is the wrong way round, `(B, H, J)`."""
        own = torch.einsum("bhd,bd->bh", self.own, users) + self.own_offset
        other = users @ self.other.T + self.other_offset
        return (other.unsqueeze(1) - own.unsqueeze(2)).sigmoid_()

    def _gradient(self, users: Tensor, misses: Tensor) -> Tensor:
        pull = misses.sum(1) @ self.other - torch.einsum("bh,bhd->bd", misses.sum(2), self.own)
        return self.share * pull + self.ridge * (users - self.start)

    def _hessian(self, misses: Tensor) -> Tensor:
        batch, length, width = self.own.shape
        weights = misses - misses.square()
        mixed = (weights.view(batch * length, -1) @ self.other).view(batch, length, width)
        cross = self.own.transpose(1, 2) @ (mixed - 0.5 * weights.sum(2, keepdim=True) * self.own)
        hessian = (weights.sum(1) @ self.squares).view(batch, width, width) - cross - cross.transpose(1, 2)
        hessian = hessian * self.share.unsqueeze(2)
        hessian.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return hessian


def newton_direction(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Return `-hessian^-1 gradient` for positive definite `(B, d, d)` and `(B, d)`."""
    factor = torch.linalg.cholesky_ex(hessian)[0]
    return -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)


def _check_interactions(users: Tensor, items: Tensor, num_users: int, num_items: int) -> None:
    if users.ndim != 1 or users.shape != items.shape:
        raise DataError(
            f"users and items must be two vectors of one length E, got {tuple(users.shape)} and {tuple(items.shape)}"
        )
    if not len(users):
        raise DataError("there is no training interaction; user vectors cannot be trained")
    for name, values, low, high in (("user number", users, 0, num_users - 1), ("catalogue index", items, 1, num_items)):
        found_low, found_high = (int(bound) for bound in values.aminmax())
        if found_low < low or found_high > high:
            found = found_low if found_low < low else found_high
            raise DataError(f"a training interaction has the {name} {found}; it must be between {low} and {high}")
