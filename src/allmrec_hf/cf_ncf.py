"""NCF: neural matrix factorisation, a product and a tower side by side (He et al., WWW 2017, arXiv 1708.05031)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from .cf_encoder import register_cf_encoder
from .cf_user_vectors import MIN_L2, ContrastingUserConfig, ContrastingUserEncoder, newton_direction
from .errors import ALLMRecError

FOLD_IN_STEPS = 6
_CACHED_VALUES = 2**20  # numbers that stay in a CPU's cache


@strict
class NCFConfig(ContrastingUserConfig):
    """Describe a NeuMF backbone, `model_type` "allmrec-ncf".

    Half of `hidden_size` belongs to the product (GMF), half to the tower (MLP). Other arguments are those of
    `ContrastingUserConfig`.

    Args:
        num_layers: Layers of the tower; it reads `hidden_size` numbers, and each layer halves their count.
        loss: `bce` with `num_negatives` sampled items, as in the paper.

    Example:
        >>> NCFConfig(num_items=100, hidden_size=32).tower
        [32, 16, 8, 4]
    """

    model_type: ClassVar[str] = "allmrec-ncf"

    num_layers: int = 3
    loss: Literal["bce"] = "bce"
    num_negatives: int = 4
    l2: float | int = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        layers, width = self.num_layers, self.hidden_size
        self.check_at_least_one("num_layers")
        if isinstance(layers, int) and isinstance(width, int) and width % 2**layers:
            raise ALLMRecError(
                f"hidden_size must be a multiple of {2**layers} for a tower of num_layers {layers}, got {width}"
            )
        super().__post_init__(**kwargs)

    @property
    def tower(self) -> list[int]:
        """Return the widths of the tower, from its input to its last layer."""
        return [self.hidden_size // 2**layer for layer in range(self.num_layers + 1)]


class NCFModel(ContrastingUserEncoder):
    """Score an item by a weighted product with the user's vector plus a tower over both, not by a dot product.

    Both tables hold `[GMF half ; MLP half]`. Fold-in minimises, over u, what training minimises for a user with the
    history H and K negatives for each item:
    `sum_{i in H} (softplus(-s(u, i)) + K mean_{j in J} softplus(s(u, j)))`, plus a penalty of the distance from the
    average trained user, which an empty history gives. An item seen twice counts twice.

    Example:
        >>> model = NCFModel(NCFConfig(num_items=100, hidden_size=32)).eval()
        >>> users = model.encode_users(torch.tensor([[0, 5, 9], [3, 4, 8]]))
        >>> users.shape, model.score(users).shape
        (torch.Size([2, 32]), torch.Size([2, 101]))
    """

    scores_by_dot_product: ClassVar[bool] = False
    config_class = NCFConfig
    config: NCFConfig
    training_recipe: ClassVar[Mapping[str, Any]] = {
        "per_device_train_batch_size": 1024,
        "learning_rate": 1e-3, "num_train_epochs": 100, "eval_epochs": 4, "early_stopping_patience": 4,
    }  # fmt: skip
    mean_user: Tensor  # (d_cf,) of the trained users

    def __init__(self, config: NCFConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        sizes = config.tower
        self.tower = nn.ModuleList([nn.Linear(sizes[i], sizes[i + 1]) for i in range(config.num_layers)])
        self.prediction = nn.Linear(config.hidden_size // 2 + sizes[-1], 1)
        self.register_buffer("mean_user", torch.zeros(config.hidden_size))
        self._init_contrast()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # small weights would let next to nothing through three layers
            init.xavier_uniform_(module.weight)
        if module is self:
            init.zeros_(self.mean_user)

    @torch.no_grad()
    def update_tables(self) -> None:
        """Keep the average training user: fold-in starts there; outside training there is nothing to do."""
        if self.user_embedding is not None:
            self.mean_user.copy_(self.user_embedding.weight.mean(0))

    def score_vectors(self, users: Tensor, items: Tensor) -> Tensor:
        """Score item vectors `(..., d_cf)` for users `(..., d_cf)`, which broadcast, giving `(...)`."""
        product = (self._product_part(users) * self._halves(items)[0]).sum(-1)
        return product + self._tower_scores(*self._tower_parts(users, items)) + self.prediction.bias

    def score_range(self, users: Tensor, start: int, stop: int) -> Tensor:
        """Score the items `start..stop - 1` for users `(B, d_cf)`, giving `(B, stop - start)`.

        The first layer of the tower is worked out once for each user and once for each item, the rest in slices.
        """
        items = self.item_embeddings[start:stop]
        scores = self._product_part(users) @ self._halves(items)[0].T + self.prediction.bias
        step = max(1, _CACHED_VALUES // max(1, len(items) * self.config.tower[1]))
        user_part, item_part = self._tower_parts(users, items)
        tower = [self._tower_scores(part.unsqueeze(1), item_part) for part in user_part.split(step)]
        return scores + torch.cat(tower) if tower else scores

    @property
    def layers(self) -> list[nn.Linear]:
        """The layers of the tower, from the first to the last."""
        return cast("list[nn.Linear]", list(self.tower))

    def _halves(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        product, tower = vectors.chunk(2, dim=-1)
        return product, tower

    def _product_part(self, users: Tensor) -> Tensor:
        """Return the GMF half of users times the weights of the product."""
        return self._halves(users)[0] * self.prediction.weight[0, : self.config.hidden_size // 2]

    def _tower_parts(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return what users and items add to the tower's first layer."""
        first = self.layers[0]
        of_users, of_items = first.weight.chunk(2, dim=1)
        user_part = F.linear(self._halves(users)[1], of_users, first.bias)
        return user_part, F.linear(self._halves(items)[1], of_items)

    def _tower_scores(self, user_part: Tensor, item_part: Tensor) -> Tensor:
        states = (user_part + item_part).relu()
        for layer in self.layers[1:]:
            states = layer(states).relu()
        return states @ self.prediction.weight[0, self.config.hidden_size // 2 :]

    def fold_in_values(self, length: int) -> int:
        """Return how many numbers `fold_in` holds for one history of a length."""
        return (length + len(self.contrast_items) + self.config.hidden_size) * self.config.hidden_size

    def fold_in(self, item_ids: Tensor, real: Tensor) -> Tensor:
        """Return user vectors `(B, d_cf)` of histories `(B, H)`, in float32.

        A tower of rectifiers is linear in u piece by piece, so the Hessian of the objective is that of a logistic
        regression on the score's gradients. Its Newton steps are damped (Levenberg and Marquardt) for each user, and
        one that raises the objective is not taken.
        """
        problem = _PointwiseProblem(self, item_ids, real)
        users = self.mean_user.float().expand(len(item_ids), -1)
        value, gradient, hessian = problem.derivatives(users)
        damping = problem.ridge * 0.1
        for _ in range(FOLD_IN_STEPS):
            trial = users + newton_direction(hessian + torch.diag_embed(damping.expand_as(users)), gradient)
            new = problem.derivatives(trial)
            better = (new[0] < value).unsqueeze(1)
            users, gradient = trial.where(better, users), new[1].where(better, gradient)
            value, hessian = new[0].minimum(value), new[2].where(better.unsqueeze(2), hessian)
            damping = damping * torch.where(better, 0.1, 10.0)
        return users


class _PointwiseProblem:
    """The problems of B users, each with its own items and a shared contrast.

    Args:
        model: The trained model; its weights are read as float32.
        item_ids: `(B, H)` histories.
        real: `(B, H)`.
    """

    def __init__(self, model: NCFModel, item_ids: Tensor, real: Tensor) -> None:
        config = model.config
        contrast, used = model.contrast(item_ids, real)
        rows = torch.cat([item_ids * real, contrast.expand(len(item_ids), -1)], dim=1)  # (B, R), R = H + J
        lengths = real.sum(1, keepdim=True)
        share = lengths * config.num_negatives / used.sum(1, keepdim=True).clamp(min=1)
        self.weights = torch.cat([real.float(), used * share], dim=1)  # (B, R)
        self.targets = torch.cat([real, torch.zeros_like(used)], dim=1).float()
        self.prior = model.mean_user.float()
        self.ridge = max(float(config.l2), MIN_L2) * lengths.clamp(min=1)  # (B, 1)
        self.layers = [(layer.weight.float(), layer.bias.float()) for layer in model.layers]
        self.prediction, self.bias = model.prediction.weight[0].float(), model.prediction.bias.float()
        product, tower = model.item_embedding(rows).float().chunk(2, dim=-1)
        half = config.hidden_size // 2
        self.product = product * self.prediction[:half]  # (B, R, d_cf / 2), the score's gradient by the GMF half
        first, bias = self.layers[0]
        self.item_part = F.linear(tower, first[:, half:], bias)  # (B, R, width)

    def derivatives(self, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective `(B,)`, its gradient `(B, d_cf)` and Hessian `(B, d_cf, d_cf)`."""
        scores, slopes = self._scores(users)
        away = users - self.prior
        losses = F.softplus(scores) - self.targets * scores
        value = (self.weights * losses).sum(1) + 0.5 * (self.ridge * away.square()).sum(1)
        chance = scores.sigmoid()
        residual = self.weights * (chance - self.targets)
        gradient = torch.einsum("br,brd->bd", residual, slopes) + self.ridge * away
        curvature = (self.weights * chance * (1 - chance)).sqrt().unsqueeze(2)
        scaled = slopes * curvature
        return value, gradient, scaled.transpose(1, 2) @ scaled + torch.diag_embed(self.ridge.expand_as(users))

    def _scores(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `(B, R)` and their gradients by the user's vector `(B, R, d_cf)`."""
        half = users.shape[1] // 2
        first = self.layers[0][0][:, :half]
        states = (self.item_part + (users[:, half:] @ first.T).unsqueeze(1)).relu_()
        passed = [states > 0]
        for weight, bias in self.layers[1:]:
            states = F.linear(states, weight, bias).relu_()
            passed.append(states > 0)
        scores = (self.product @ users[:, :half].unsqueeze(2)).squeeze(2) + states @ self.prediction[half:] + self.bias
        slopes = passed[-1] * self.prediction[half:]
        for (weight, _), open_units in zip(self.layers[:0:-1], passed[-2::-1], strict=True):
            slopes = (slopes @ weight) * open_units
        return scores, torch.cat([self.product, slopes @ first], dim=2)


register_cf_encoder(NCFConfig, NCFModel)
