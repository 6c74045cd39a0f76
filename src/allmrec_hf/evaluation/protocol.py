"""The interfaces of rankers and data that the evaluator needs; any object with these members can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

History = NDArray[np.int64]
TargetSplit = Literal["validation", "test"]
TrainSplit = Literal["train", "train+validation"]


@runtime_checkable
class Ranker(Protocol):
    """A method that scores candidates and retrieves from the whole catalogue.

    Attributes:
        name: The method's name in tables and reports, unique within one evaluation.

    A method whose LLM reads a prompt for each item says so by an attribute `ranks_catalogue` that is False.
    """

    name: str

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Return `(B, C)` scores, higher is better, of `candidates (B, C)` after B histories in time order."""
        ...

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        """Return the best `(B, k)` catalogue indices and their `(B, k)` scores, k <= top_k.

        Items of the user's own history are left out. Index 0 with score `-inf` fills a row that has fewer than k.
        """
        ...


@runtime_checkable
class TitleGenerator(Protocol):
    """A ranker that can also write its recommendation as free text, for the paper's protocol.

    A ranker whose prompt shows titles in another form than the catalogue's offers `prompt_title(index) -> str` too; an
    answer is then compared with that form.
    """

    def generate_titles(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> list[str]:
        """Return B generated titles, without the quotes around them."""
        ...


class CandidateRows(Protocol):
    """The candidates of one split: users, targets and candidate items."""

    @property
    def users(self) -> NDArray[np.int64]:
        """`(R,)` user numbers."""
        ...

    @property
    def targets(self) -> NDArray[np.int64]:
        """`(R,)` catalogue indices."""
        ...

    @property
    def items(self) -> NDArray[np.int64]:
        """`(R, C)` catalogue indices, the target once in each row."""
        ...


class Titles(Protocol):
    """The part of the item catalogue that evaluation reads."""

    def title(self, index: int) -> str:
        """Return the title of a catalogue index."""
        ...

    def item_id(self, index: int) -> str:
        """Return the item id of a catalogue index."""
        ...


class EvaluationData(Protocol):
    """The part of a prepared data folder that evaluation reads; `PreparedData` has it."""

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """The facts that the preparation stored."""
        ...

    @property
    def catalog(self) -> Titles:
        """The item catalogue."""
        ...

    @property
    def user_ids(self) -> Sequence[str]:
        """The user id of each user number."""
        ...

    @property
    def num_items(self) -> int:
        """N, the number of items."""
        ...

    def history(self, user: int, split: TargetSplit) -> History:
        """Return the items of a user before the split's target, in time order."""
        ...

    def candidates(self, split: TargetSplit) -> CandidateRows:
        """Return the seeded candidates of a split."""
        ...

    def item_counts(self, split: TrainSplit) -> NDArray[np.int64]:
        """Return `(N + 1,)` interactions of each item within "train" or "train+validation"."""
        ...


@runtime_checkable
class KnowsNewUsers(Protocol):
    """Data that tell which users a split is the first to know, as those of a time split do."""

    def new_users(self, split: TargetSplit) -> NDArray[np.bool_]:
        """Return `(num_users,)` True for users without any interaction before the split."""
        ...


def ranks_catalogue(ranker: Ranker) -> bool:
    """Tell whether a method ranks the whole catalogue without an LLM pass for each item."""
    return bool(getattr(ranker, "ranks_catalogue", True))
