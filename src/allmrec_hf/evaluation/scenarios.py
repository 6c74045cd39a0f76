"""Scenarios: named, seeded ways to divide prepared data into users to train on and users to evaluate.

Each returns an `EvaluationSplit`; `docs/scenarios.md` defines them all. Evaluated users keep their candidates of the
original data, so every method in every scenario ranks the same candidate sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.prepared import PreparedData
from ..data.splits import MIN_INTERACTIONS
from ..data.subsets import (
    joint_catalog,
    num_interactions,
    prefixed,
    resplit_by_time,
    users_with_targets,
    with_recent,
    with_shuffled_histories,
    with_users,
    without,
)
from ..data.time_split import SplitRules
from ..data.times import BY_TIME
from ..errors import ALLMRecError, DataError
from .evaluator import EvaluationResult, evaluate
from .protocol import Ranker, TargetSplit
from .warmth import history_groups

TRAINED_ON, LEFT_OUT = "trained on", "left out"
UNLABELLED = {"label": False}  # of a parameter that a whole suite has in common


@dataclass(frozen=True)
class EvaluationSplit:
    """The data to train on and the data to evaluate in a scenario; both share one catalogue object.

    Attributes:
        training: What methods may be trained on: its users, interactions and validation targets.
        evaluation: The users to evaluate, with the histories, targets and candidates they are asked with.
        description: The scenario's name, label and parameters, and what is in both parts; plain values for reports.
        history_buckets: Edges of the history length groups; empty for none.
    """

    training: PreparedData
    evaluation: PreparedData
    description: Mapping[str, Any]
    history_buckets: Sequence[int] = ()

    def groups(self, split: TargetSplit = "test") -> dict[str, NDArray[np.bool_]]:
        """Return `(U,)` masks of the evaluated users by whether they were trained on; none where all are alike."""
        if self.training is self.evaluation:
            return {}
        users = self.evaluation.candidates(split).users.tolist()
        known = [self.training.user_number(self.evaluation.user_ids[user]) is not None for user in users]
        trained = np.array(known, dtype=np.bool_)
        return {} if trained.all() or not trained.any() else {TRAINED_ON: trained, LEFT_OUT: ~trained}

    def evaluate(
        self, rankers: Sequence[Ranker], protocol: str = "candidates", split: TargetSplit = "test", **options: Any
    ) -> EvaluationResult:
        """Evaluate rankers that were trained on `training`; the report has the description under `scenario`.

        Args:
            rankers: The methods.
            protocol: As in `evaluator.evaluate`.
            split: `"test"` or `"validation"`.
            **options: Further arguments of `evaluator.evaluate`, e.g. `max_users`.
        """
        result = evaluate(
            rankers,
            self.evaluation,
            protocol,
            split,
            known=self.training,
            groups=self.groups(split),
            history_buckets=self.history_buckets or None,
            **options,
        )
        return replace(result, report={**result.report, "scenario": dict(self.description)})


@dataclass(frozen=True)
class Scenario(ABC):
    """A way to split; its fields are its parameters.

    Attributes:
        name: Its name in suites and reports.
        num_domains: How many data sets it takes.
    """

    name: ClassVar[str]
    num_domains: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if hasattr(self, "seed"):
            _check_whole(self.name, "seed", self.seed, 0)

    @abstractmethod
    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        """Return the evaluation split, whose description `split` completes."""

    def split(self, *domains: PreparedData) -> EvaluationSplit:
        """Return what to train on and whom to evaluate.

        Args:
            *domains: The prepared data; for `cross-domain` those to train on, then those to evaluate.

        Raises:
            DataError: when the data do not allow the scenario, e.g. because too few users fit it.
        """
        if len(domains) != self.num_domains:
            raise DataError(
                f"scenario {self.name} takes {self.num_domains} data sets, {len(domains)} were given"
                + (" (train on the first, evaluate on the second)" if self.num_domains > 1 else "")
            )
        made = self._make(*domains)
        for part, data, split in (("training", made.training, "validation"), ("evaluation", made.evaluation, "test")):
            if not len(data.candidates(split)):  # type: ignore[arg-type]
                raise DataError(
                    f"scenario {self.label} of {data.name}: none of the {data.num_users} users of the {part} part has "
                    f"{MIN_INTERACTIONS} interactions, at least 1 is needed"
                )
        return replace(made, description={**self.describe(), **_counts(made), **made.description})

    @property
    def label(self) -> str:
        """Return the name with the parameters that tell it from others of its kind, such as `few-shot-256`."""
        words = [self.name]
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if parameter.default is MISSING:
                words.append(str(value))
            elif value != parameter.default and parameter.metadata != UNLABELLED:
                words.append(f"{parameter.name.replace('_', '-')}-{value}")
        return "-".join(words)

    def describe(self) -> dict[str, Any]:
        """Return name, label and parameters as plain values."""
        return {"scenario": self.name, "label": self.label, "parameters": asdict(self)}

    def _note(self, part: str) -> dict[str, Any]:
        """Return what `info` of a part says about its origin."""
        return {"scenario": {**self.describe(), "part": part}}


@dataclass(frozen=True)
class Overall(Scenario):
    """Train on everybody, evaluate everybody; groups by warmth of the target and by history length."""

    name: ClassVar[str] = "overall"
    history_buckets: Sequence[int] = field(default=(5, 10, 20, 50), metadata=UNLABELLED)

    def __post_init__(self) -> None:
        if self.history_buckets not in ((), []):
            history_groups([], self.history_buckets)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        return EvaluationSplit(data, data, {}, self.history_buckets)


@dataclass(frozen=True)
class ColdUsers(Scenario):
    """Hold the users with exactly so many interactions out of training, and evaluate them."""

    name: ClassVar[str] = "cold-users"
    num_interactions: int = 3
    min_users: int = field(default=50, metadata=UNLABELLED)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole(self.name, "num_interactions", self.num_interactions, MIN_INTERACTIONS)
        _check_whole(self.name, "min_users", self.min_users, 1)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        lengths = num_interactions(data)
        asked = set(users_with_targets(data))
        cold = [user for user, length in lengths.items() if length == self.num_interactions and user in asked]
        if len(cold) < self.min_users:
            raise DataError(
                f"{data.name} has {len(cold)} users with exactly {self.num_interactions} interactions, scenario "
                f"{self.name} needs {self.min_users} (min_users); prepare with a weaker filter, or use cold-users-cut, "
                "which cuts the histories of held-out users"
            )
        return _held_out(self, data, cold)


@dataclass(frozen=True)
class ColdUsersCut(Scenario):
    """Hold a seeded share of the users out of training, and evaluate them with their last interactions only."""

    name: ClassVar[str] = "cold-users-cut"
    share: float = 0.2
    num_interactions: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.name, self.share)
        _check_whole(self.name, "num_interactions", self.num_interactions, MIN_INTERACTIONS)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        pool = users_with_targets(data)
        held_out = _drawn(pool, round(self.share * len(pool)), self.seed)
        if not held_out:
            raise DataError(
                f"{data.name}: a share of {self.share:g} of {len(pool)} users with targets is nobody; scenario "
                f"{self.name} needs at least 1"
            )
        split = _held_out(self, data, held_out)
        return replace(split, evaluation=with_recent(split.evaluation, self.num_interactions))


@dataclass(frozen=True)
class FewShot(Scenario):
    """Train on so many users, nested for one seed; evaluate those outside the largest number of the list."""

    name: ClassVar[str] = "few-shot"
    num_users: int
    largest: int | None = field(default=None, metadata=UNLABELLED)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_whole(self.name, "num_users", self.num_users, 1)
        if self.largest is not None:
            _check_whole(self.name, "largest", self.largest, self.num_users)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        pool, largest = users_with_targets(data), self.largest or self.num_users
        if largest >= len(pool):
            raise DataError(
                f"scenario {self.name} asks for {largest} training users, and {data.name} has {len(pool)} users with "
                f"{MIN_INTERACTIONS} interactions, of whom at least 1 has to be left to evaluate; take at most "
                f"{max(len(pool) - 1, 0)}"
            )
        order = _drawn(pool, len(pool), self.seed)
        training = with_users(data, order[: self.num_users], self._note("training"))
        return EvaluationSplit(training, with_users(data, order[largest:], self._note("evaluation")), {})


@dataclass(frozen=True)
class Share(Scenario):
    """Train on a share of the users, nested for one seed; evaluate all, so that every share has the same questions."""

    name: ClassVar[str] = "share"
    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.name, self.share)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        chosen = _drawn(data.user_ids, round(self.share * data.num_users), self.seed)
        if not chosen:
            raise DataError(
                f"{data.name}: a share of {self.share:g} of {data.num_users} users is nobody; scenario {self.name} "
                "needs at least 1"
            )
        evaluation = with_users(data, data.user_ids, self._note("evaluation"))
        return EvaluationSplit(with_users(data, chosen, self._note("training")), evaluation, {})


@dataclass(frozen=True)
class TimeSplit(Scenario):
    """Train before a date, validate up to a second and test from there on, whatever split the data were given."""

    name: ClassVar[str] = "time-split"
    test_from: str | float = 0.1
    validation_from: str | float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rules().check(BY_TIME)

    def _rules(self) -> SplitRules:
        return SplitRules("time", self.test_from, self.validation_from)

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        part = resplit_by_time(data, self._rules(), self.seed, self._note("training and evaluation"))
        return EvaluationSplit(part, part, {"split": part.info["split"], "counts": part.info["counts"]})


@dataclass(frozen=True)
class ShuffledHistories(Scenario):
    """Train and evaluate with every user's training part in a random order; targets and candidates stay."""

    name: ClassVar[str] = "shuffled-histories"
    seed: int = 0

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        (data,) = domains
        part = with_shuffled_histories(data, self.seed, self._note("training and evaluation"))
        return EvaluationSplit(part, part, {})


@dataclass(frozen=True)
class CrossDomain(Scenario):
    """Train on one data set, evaluate on another; ids get the name of their data set as a prefix."""

    name: ClassVar[str] = "cross-domain"
    num_domains: ClassVar[int] = 2
    overlap: Literal["error", "drop"] = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap not in ("error", "drop"):
            raise ALLMRecError(f"scenario {self.name}: overlap is {self.overlap!r}; choose 'error' or 'drop'")

    def _make(self, *domains: PreparedData) -> EvaluationSplit:
        source, target = domains
        prefixes = [f"{data.name}:" for data in domains]
        if prefixes[0].startswith(prefixes[1]) or prefixes[1].startswith(prefixes[0]):
            raise DataError(
                f"scenario {self.name}: the domains are called {source.name!r} and {target.name!r}, which does not "
                "keep their ids apart; give them names of their own when they are prepared"
            )
        users = sorted(set(source.user_ids) & set(target.user_ids))
        items = sorted(set(source.catalog.item_ids) & set(target.catalog.item_ids))
        if users or items:
            source = self._without_shared(source, target, users, items)
        catalog = joint_catalog([source.catalog, target.catalog], prefixes)
        words = {"domain": source.domain}  # those of the prompt the methods were trained with
        return EvaluationSplit(
            prefixed(source, prefixes[0], catalog, self._note("training")),
            prefixed(target, prefixes[1], catalog, {**self._note("evaluation"), **words}),
            {
                "trained_on": source.name,
                "evaluated_on": target.name,
                "shared_users_dropped": len(users),
                "shared_items_dropped": len(items),
            },
        )

    def _without_shared(
        self, source: PreparedData, target: PreparedData, users: list[str], items: list[str]
    ) -> PreparedData:
        if self.overlap == "drop":
            return without(source, users, items, self.seed)
        raise DataError(
            f"scenario {self.name}: {source.name} and {target.name} share {len(users)} user ids (first {users[:5]}) "
            f"and {len(items)} item ids (first {items[:5]}), so the evaluated domain would not be new; overlap='drop' "
            f"removes them from {source.name}, splits it again and draws its candidates anew"
        )


SCENARIOS: dict[str, type[Scenario]] = {
    kind.name: kind
    for kind in (Overall, ColdUsers, ColdUsersCut, FewShot, Share, TimeSplit, ShuffledHistories, CrossDomain)
}


def scenario(name: str, **parameters: Any) -> Scenario:
    """Return a scenario by name.

    Args:
        name: One of `SCENARIOS`.
        **parameters: Its fields.

    Raises:
        ALLMRecError: when the name or a parameter is unknown, missing or out of range; the known ones are listed.

    Example:
        >>> scenario("few-shot", num_users=256).label
        'few-shot-256'
    """
    if name not in SCENARIOS:
        raise ALLMRecError(f"unknown scenario {name!r}; known ones: {', '.join(SCENARIOS)}")
    kind = SCENARIOS[name]
    known = [parameter.name for parameter in fields(kind)]
    unknown = [parameter for parameter in parameters if parameter not in known]
    if unknown:
        raise ALLMRecError(f"scenario {name} has no parameters {unknown}; it has {', '.join(known)}")
    missing = [part.name for part in fields(kind) if part.default is MISSING and part.name not in parameters]
    if missing:
        raise ALLMRecError(f"scenario {name} needs the parameters {missing}; it has {', '.join(known)}")
    return kind(**parameters)


def _held_out(scenario: Scenario, data: PreparedData, user_ids: Sequence[str]) -> EvaluationSplit:
    """Return the evaluation split that evaluates some users and trains on all others."""
    left_out = set(user_ids)
    trained = [user for user in data.user_ids if user not in left_out]
    if not trained:
        raise DataError(
            f"{data.name}: scenario {scenario.label} holds out all {data.num_users} users; nobody is left to train on"
        )
    training = with_users(data, trained, scenario._note("training"))
    return EvaluationSplit(training, with_users(data, user_ids, scenario._note("evaluation")), {})


def _drawn(user_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """Return so many users; for one seed a smaller draw is the beginning of a larger one."""
    order = np.random.default_rng(seed).permutation(len(user_ids))
    return [user_ids[place] for place in order[:count]]


def _counts(split: EvaluationSplit) -> dict[str, int]:
    known = split.training.item_counts("train")
    return {
        "users_trained_on": split.training.num_users,
        "training_interactions": int(known.sum()),
        "users_evaluated": len(split.evaluation.candidates("test")),
        "items": split.training.num_items,
        "items_trained_on": int((known > 0).sum()),
    }


def _check_whole(scenario: str, parameter: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ALLMRecError(
            f"scenario {scenario}: {parameter} is {value!r}; it has to be a whole number of at least {least}"
        )


def _check_share(scenario: str, share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ALLMRecError(f"scenario {scenario}: share is {share!r}; it has to be a number above 0 and at most 1")
