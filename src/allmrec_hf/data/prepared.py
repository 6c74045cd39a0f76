"""Prepared data: interactions with their split, the catalogue, the candidate file and the facts about them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from ..catalog import CATALOG_FILE, ItemCatalog
from ..errors import DataError
from ..files import PARQUET_ERRORS, check_rows
from ..prompt import domain_words
from ..stored_values import json_value
from ..values import id_text
from .digests import content_digests
from .interactions import ITEM_ID, SPLIT, TIMESTAMP, USER_ID
from .splits import MIN_INTERACTIONS, SPLITS
from .storage import replaced_folder
from .time_split import Cuts

if TYPE_CHECKING:
    from datasets import DatasetDict

INTERACTIONS_FILE = "interactions.parquet"
CANDIDATES_FILE = "candidates.parquet"
INFO_FILE = "dataset.json"
FORMAT = 1
TARGET_SPLITS = ("validation", "test")
INTERACTION_SCHEMA = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, SPLIT: pl.String}
CANDIDATE_SCHEMA = {SPLIT: pl.String, USER_ID: pl.String, "target": pl.String, "candidates": pl.List(pl.String)}
Split = Literal["train", "validation", "test"]
TargetSplit = Literal["validation", "test"]
TrainSplit = Literal["train", "train+validation"]


@dataclass(frozen=True)
class CandidateSet:
    """The candidates of one split, one row per user with a target.

    Attributes:
        users: (R,) int64 user numbers.
        targets: (R,) int64 catalogue indices.
        items: (R, C) int64 catalogue indices, shuffled, the target among them.
    """

    users: np.ndarray
    targets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        """Return R, the number of users with a target."""
        return len(self.users)

    @property
    def target_columns(self) -> np.ndarray:
        """Return (R,) the column of `items` in which the target stands."""
        return (self.items == self.targets[:, None]).argmax(axis=1)

    def take(self, rows: np.ndarray) -> CandidateSet:
        """Return the candidates of some rows, in their order."""
        return CandidateSet(self.users[rows], self.targets[rows], self.items[rows])


class PreparedData:
    """Interactions, catalogue and candidates, ready for training and evaluation.

    Users are numbered `0..num_users - 1` in the order of the file, items by their catalogue index `1..N`.

    Args:
        interactions: `user_id`, `item_id`, `timestamp`, maybe `rating`, `split`; sorted by user and time.
        catalog: Every item of the interactions, maybe more.
        candidates: `split`, `user_id`, `target`, `candidates` (list of item ids).
        info: The content of `dataset.json`.
        directory: Where the data were loaded from or saved to.

    Raises:
        DataError: when the parts do not fit each other.

    Example:
        >>> from pathlib import Path
        >>> if Path("data/gift-cards").exists():  # what `allmrec prepare --output data/gift-cards` wrote
        ...     data = PreparedData.load("data/gift-cards")
        ...     shape = data.candidates("test").items.shape  # (users, C)
    """

    def __init__(
        self,
        interactions: pl.DataFrame,
        catalog: ItemCatalog,
        candidates: pl.DataFrame,
        info: Mapping[str, Any],
        directory: str | os.PathLike[str] = ".",
    ) -> None:
        _check_schema(interactions, INTERACTION_SCHEMA, INTERACTIONS_FILE)
        _check_schema(candidates, CANDIDATE_SCHEMA, CANDIDATES_FILE)
        self.interactions = interactions
        self.catalog = catalog
        self.candidate_frame = candidates
        self.info = dict(info)
        self.directory = Path(directory)
        self._item_ids = pl.Series(catalog.item_ids, dtype=pl.String)
        self._items = self._indices(interactions[ITEM_ID], INTERACTIONS_FILE)
        blocks = interactions[USER_ID].rle().struct.unnest()
        self.user_ids: list[str] = blocks["value"].to_list()
        self._user_index = {user_id: number for number, user_id in enumerate(self.user_ids)}
        self._ends = blocks["len"].cum_sum().to_numpy().astype(np.int64)
        self._starts = self._ends - blocks["len"].to_numpy().astype(np.int64)
        self.cuts = Cuts.of_info(self.info)
        self.in_training = self._in_training()
        self._check_order()
        self._part_ends, self._targets = self._parts()

    @property
    def name(self) -> str:
        """Return the name of the data."""
        return str(self.info["name"])

    @property
    def domain(self) -> str:
        """Return what an item is called in the prompt, such as `movie`."""
        return str(self.info["domain"])

    @property
    def verbs(self) -> tuple[str, str]:
        """Return what a user does with an item, and has done, such as `("watch", "watched")`."""
        verb, past = domain_words(self.domain, tuple(self.info["verbs"]) if "verbs" in self.info else None)[1:]
        return verb, past

    @property
    def num_users(self) -> int:
        """Return the number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Return N, the number of items of the catalogue."""
        return len(self.catalog)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Return a digest of each part of the content, see `digests.content_digests`."""
        return content_digests(self)

    def user_number(self, user_id: Any) -> int | None:
        """Return the number of a user id (text, or a number as `values.id_text` spells it), or None where unknown."""
        number = self._user_index.get(user_id) if isinstance(user_id, str) else None
        return number if number is not None else self._user_index.get(id_text(user_id) or "")

    def sequence(self, user: int) -> np.ndarray:
        """Return all catalogue indices (int64) of a user in time order: train, validation and test.

        Raises:
            DataError: when the number of the user is not in 0 to `num_users` - 1.
        """
        self._check_user(user)
        return self._items[self._starts[user] : self._ends[user]]

    def history(self, user: int, split: Split) -> np.ndarray:
        """Return the catalogue indices (int64) that are known before the target of a split, in time order.

        For `"train"` that is the training part. Under leave-one-out it is the same for `"validation"`, and all of a
        user with fewer than three interactions is training part. Under the time split a user who is new in a part has
        the first interaction of the part as history; a user without a target has all that is before the part.

        Raises:
            DataError: when the number of the user is not in 0 to `num_users` - 1.
        """
        self._check_user(user)
        target = -1 if split == "train" else int(self._targets[split][user])
        end = target if target >= 0 else self._part_ends["train+validation" if split == "test" else "train"][user]
        return self._items[self._starts[user] : end]

    def new_users(self, split: TargetSplit) -> np.ndarray:
        """Return `(num_users,)` True for users without any interaction before a split; none under leave-one-out."""
        part: TrainSplit = "train" if split == "validation" else "train+validation"
        return np.asarray(self._part_ends[part] == self._starts)

    def _check_user(self, user: int) -> None:
        if not 0 <= user < self.num_users:
            raise DataError(
                f"there is no user {user}; numbers go from 0 to {self.num_users - 1}, and user_number gives that of "
                "an id"
            )

    def sequences(self, split: TrainSplit = "train") -> list[np.ndarray]:
        """Return per user the catalogue indices to train on: `"train"`, or `"train+validation"` for one item more.

        Under the time split that is all before the validation, or before the test; nothing of users who are new then.
        """
        ends = self._part_ends[_checked(split)]  # type: ignore[index]
        return [self._items[start:end] for start, end in zip(self._starts, ends, strict=True)]

    def candidates(self, split: TargetSplit) -> CandidateSet:
        """Return the candidate sets of `"validation"` or `"test"`."""
        if split not in TARGET_SPLITS:
            raise DataError(f"there are no candidates of split {split!r}; choose one of {list(TARGET_SPLITS)}")
        return self._candidate_sets[split]

    def item_counts(self, split: TrainSplit = "train") -> np.ndarray:
        """Return (N + 1,) int64: interactions per catalogue index in `"train"` or `"train+validation"`."""
        splits = ["train"] if _checked(split) == "train" else ["train", "validation"]
        counted = self._items[self.interactions[SPLIT].is_in(splits).to_numpy()]
        return np.bincount(counted, minlength=self.num_items + 1).astype(np.int64)

    def split_frame(self, split: str) -> pl.DataFrame:
        """Return the interactions of one split, without the column `split`."""
        return self.interactions.filter(pl.col(SPLIT) == split).drop(SPLIT)

    def to_dataset_dict(self) -> DatasetDict:
        """Return the interactions as a `datasets.DatasetDict` with the splits train, validation and test."""
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset(self.split_frame(split).to_arrow()) for split in SPLITS})  # type: ignore[arg-type]

    def save(self, directory: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the four files into a new folder, all or nothing, and return its path.

        Raises:
            DataError: when the folder is not empty and `overwrite` is False, or holds no prepared data to replace.
            ALLMRecError: when the disk is full or cannot be written; nothing half-written is left.
        """
        output = Path(directory)
        with replaced_folder(output, overwrite, INFO_FILE) as temporary:
            self.interactions.write_parquet(temporary / INTERACTIONS_FILE)
            self.catalog.frame.write_parquet(temporary / CATALOG_FILE)
            self.candidate_frame.write_parquet(temporary / CANDIDATES_FILE)
            text = json.dumps(self.info, indent=2, ensure_ascii=False) + "\n"
            (temporary / INFO_FILE).write_text(text, encoding="utf-8")
        self.directory = output
        return output

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> PreparedData:
        """Read a folder that `prepare` wrote.

        Raises:
            DataError: when a file is missing, damaged, of a newer format, or does not fit the others.
        """
        directory = Path(directory)
        names = (INTERACTIONS_FILE, CATALOG_FILE, CANDIDATES_FILE, INFO_FILE)
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            what = "lacks" if directory.is_dir() else "does not exist; it should hold"
            raise DataError(f"{directory} {what} {missing}; make prepared data with `allmrec prepare`")
        info = read_info(directory / INFO_FILE)
        interactions, items, candidates = (read_parquet(directory / name) for name in names[:3])
        return cls(interactions, ItemCatalog(items, saved=True), candidates, info, directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the data as a data set of the Hub and return its address; see `hub_layout.push`."""
        from .hub_layout import push

        return push(self, repo_id, **kwargs)

    @classmethod
    def load_from_hub(cls, repo_id: str, **kwargs: Any) -> PreparedData:
        """Download data that `push_to_hub` uploaded; see `hub_layout.pull`."""
        from .hub_layout import pull

        return pull(repo_id, **kwargs)

    @cached_property
    def _candidate_sets(self) -> dict[str, CandidateSet]:
        """Return the candidate sets of both splits, checked."""
        return {split: self._candidate_set(split) for split in TARGET_SPLITS}

    def _candidate_set(self, split: str) -> CandidateSet:
        """Return the candidate set of one split, with ids turned into numbers."""
        rows = self.candidate_frame.filter(pl.col(SPLIT) == split)
        width = int(self.info["num_candidates"])
        if rows.height and (rows["candidates"].list.len() != width).any():
            raise DataError(
                f"{CANDIDATES_FILE} of {self.directory} has sets of other than {width} items; prepare again"
            )
        numbers = [self._user_index.get(user_id, -1) for user_id in rows[USER_ID].to_list()]
        users = np.array(numbers, dtype=np.int64)
        targets = self._indices(rows["target"], CANDIDATES_FILE)
        items = self._indices(rows["candidates"].explode(), CANDIDATES_FILE) if rows.height else np.zeros(0, np.int64)
        found = CandidateSet(users, targets, items.reshape(-1, width))
        known = users >= 0
        places = self._targets[split][users[known]]
        held_out = np.where(places >= 0, self._items[places], 0)
        if not known.all() or (held_out != targets).any() or not (found.items == targets[:, None]).any(axis=1).all():
            raise DataError(
                f"{CANDIDATES_FILE} of {self.directory} does not belong to its {INTERACTIONS_FILE} (split {split}: "
                "unknown users, or targets that are not the users' held-out items); prepare again"
            )
        return found

    def _indices(self, ids: pl.Series, where: str) -> np.ndarray:
        """Return catalogue indices of item ids."""
        indices = ids.replace_strict(
            self._item_ids, pl.int_range(1, len(self.catalog) + 1, eager=True), default=0, return_dtype=pl.Int64
        )
        unknown = ids.filter(indices == 0)
        if len(unknown):
            raise DataError(
                f"{where} of {self.directory} names {unknown.n_unique()} items that {CATALOG_FILE} lacks, first "
                f"{unknown.unique(maintain_order=True).head(5).to_list()}; prepare again"
            )
        return indices.to_numpy()

    def _check_order(self) -> None:
        """Check that users are in one block each and that the splits are those of leave-one-out, or of the dates."""
        if len(self._user_index) != len(self.user_ids):
            raise DataError(f"{INTERACTIONS_FILE} of {self.directory} is not sorted by user; prepare again")
        if not self.user_ids:
            raise DataError(f"{INTERACTIONS_FILE} of {self.directory} is empty; prepare again")
        times = self.interactions[TIMESTAMP].to_numpy()
        if self.cuts is not None:
            late = np.diff(times, prepend=times[:1]) < 0
            late[self._starts] = False
            labels = self.interactions.select(self.cuts.labels())[SPLIT]
            labels = labels.replace(self.in_training, ["train"] * len(self.in_training))
            if late.any() or (labels != self.interactions[SPLIT]).any():
                raise DataError(
                    f"{INTERACTIONS_FILE} of {self.directory} is not split by the times that {INFO_FILE} names "
                    f"(validation from {self.cuts.validation_from}, test from {self.cuts.test_from}), or not sorted by "
                    "time; prepare again"
                )
            return
        expected = np.zeros(len(self._items), dtype=np.int8)
        long_enough = self._ends - self._starts >= MIN_INTERACTIONS
        expected[self._ends[long_enough] - 1] = SPLITS.index("test")
        expected[self._ends[long_enough] - 2] = SPLITS.index("validation")
        expected[np.isin(expected, [SPLITS.index(split) for split in self.in_training])] = 0
        if (self._split_numbers() != expected).any():
            raise DataError(
                f"the column split of {INTERACTIONS_FILE} of {self.directory} is not leave-one-out (last = test, last "
                "but one = validation, for users with three interactions); prepare again"
            )

    def _in_training(self) -> list[str]:
        """Return the parts that `subsets.with_more_training` has made part of the training."""
        splits = self.info.get("in_training") or []
        if not isinstance(splits, list) or not all(split in TARGET_SPLITS for split in splits):
            raise DataError(
                f"{INFO_FILE} of {self.directory} has in_training {splits!r}; expected a list of "
                f"{list(TARGET_SPLITS)}; prepare again"
            )
        return splits

    def _split_numbers(self) -> np.ndarray:
        """Return the place in `SPLITS` of each interaction's split; 3 for any other text."""
        numbers = self.interactions[SPLIT].replace_strict(list(SPLITS), [0, 1, 2], default=3, return_dtype=pl.Int8)
        return numbers.to_numpy()

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return by training part where it ends for each user, and by split the row of each user's target, or -1."""
        numbers = self._split_numbers()
        upto = [np.concatenate([[0], np.cumsum(numbers <= number)]) for number in (0, 1)]
        ends = {
            part: self._starts + total[self._ends] - total[self._starts]
            for part, total in zip(("train", "train+validation"), upto, strict=True)
        }
        targets = {}
        for split, begin, end in (
            ("validation", ends["train"], ends["train+validation"]),
            ("test", ends["train+validation"], self._ends),
        ):
            place = np.where(begin == self._starts, begin + 1, begin)  # something has to come before it
            targets[split] = np.where(place < end, place, -1)
        return ends, targets


def read_info(path: Path) -> dict[str, Any]:
    """Return the content of `dataset.json`.

    Raises:
        DataError: when it is no JSON, lacks keys or is of a newer format.
    """
    try:
        info = json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable JSON file ({error}); prepare the data again") from error
    keys = ("format", "name", "domain", "num_candidates")
    missing = [key for key in keys if key not in info] if isinstance(info, dict) else list(keys)
    if not missing and (type(info["num_candidates"]) is not int or not 0 < info["num_candidates"] < 2**31):
        raise DataError(
            f"{path}: num_candidates is {info['num_candidates']!r}, no number of candidates; prepare the data again"
        )
    if missing:
        raise DataError(f"{path} lacks {missing}; is it prepared data? Prepare it again")
    if info["format"] != FORMAT:
        raise DataError(f"{path} has format {info['format']}, but this version reads {FORMAT}; update or prepare again")
    return info


def read_parquet(path: Path) -> pl.DataFrame:
    """Return a parquet file.

    Raises:
        DataError: when it is truncated or no parquet file.
    """
    try:
        check_rows(path)
        return pl.read_parquet(path)
    except PARQUET_ERRORS as error:
        raise DataError(
            f"{path} is no readable parquet file of prepared data; it is missing, truncated or damaged: prepare or "
            "download the data again"
        ) from error


def _check_schema(frame: pl.DataFrame, schema: Mapping[str, Any], where: str) -> None:
    """Raise when columns are missing or of another type."""
    wrong = [
        f"{name} ({frame.schema.get(name, 'missing')} instead of {kind})"
        for name, kind in schema.items()
        if frame.schema.get(name) != kind
    ]
    if wrong:
        raise DataError(f"{where} has wrong columns: {', '.join(wrong)}; prepare the data again")


def _checked(split: str) -> str:
    """Return the name of a training part."""
    if split not in ("train", "train+validation"):
        raise DataError(f"there is no training part {split!r}; choose 'train' or 'train+validation'")
    return split
