"""The global time split: train before one date, validate between it and a second, test from the second on.

Unlike leave-one-out, no interaction of anybody that is trained on is later than any that is asked for, and users and
items that are first seen after a date are new to the method, as they are in practice.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from ..errors import DataError
from ..values import plain_number
from .interactions import ITEM_ID, SPLIT, TIMESTAMP, USER_ID
from .splits import ROW, SPLITS, sort_by_user_and_time, target_rows
from .times import FIRST_DIGITS, UNITS, RowCheck, TimeRules, whole_times

SplitKind = Literal["leave-one-out", "time"]
LEAVE_ONE_OUT: SplitKind = "leave-one-out"
DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class SplitRules:
    """How interactions are divided into training, validation and test.

    Attributes:
        kind: `"leave-one-out"` or `"time"`.
        test_from: With `"time"`, where the test begins: a share of the interactions, the latest (above 0, below 1); a
            date; or a time as the column `timestamp` has it. None takes a tenth.
        validation_from: The same for the validation, which ends where the test begins; a share is of all interactions.
            None takes as many interactions as the test has.
    """

    kind: SplitKind = LEAVE_ONE_OUT
    test_from: str | float | None = None
    validation_from: str | float | None = None

    def check(self, times: TimeRules) -> None:
        """Refuse what can be known to fail before anything is read.

        Raises:
            DataError: when the kind is unknown, a date is given to leave-one-out, a number is no share and no whole
                number, or the data have no times.
        """
        if self.kind not in get_args(SplitKind):
            raise DataError(f"split is {self.kind!r}; choose one of {list(get_args(SplitKind))}")
        given = {"test_from": self.test_from, "validation_from": self.validation_from}
        named = [name for name, value in given.items() if value is not None]
        if self.kind == LEAVE_ONE_OUT:
            if named:
                raise DataError(f"{' and '.join(named)}: a date belongs to split 'time'; give --split time, or no date")
            return
        if times.order == "file":
            raise DataError(
                "split 'time' needs times, and with order 'file' none are read; give data with timestamps, or split by "
                "leave-one-out"
            )
        for name in named:
            _share_or_time(given[name], name)


def plain_time(value: Any) -> str | float | None:
    """Return a share, a date or a time as text or a number of Python: also of NumPy, of pandas and of `datetime`."""
    if isinstance(value, (datetime.date, np.datetime64)):  # pandas' times are `datetime`
        return str(value).replace(" ", "T")
    return plain_number(value)


@dataclass(frozen=True)
class Cuts:
    """The two times at which interactions are divided, in the unit of the data.

    Attributes:
        validation_from: The earliest time of the validation part.
        test_from: The earliest time of the test part.
    """

    validation_from: int
    test_from: int

    def labels(self, timestamp: str = TIMESTAMP) -> pl.Expr:
        """Return the split of each interaction."""
        time = pl.col(timestamp)
        late = pl.when(time >= self.validation_from).then(pl.lit("validation")).otherwise(pl.lit("train"))
        return pl.when(time >= self.test_from).then(pl.lit("test")).otherwise(late).alias(SPLIT)

    def to_dict(self) -> dict[str, Any]:
        """Return what `dataset.json` keeps under `split`."""
        return {"kind": "time", "validation_from": self.validation_from, "test_from": self.test_from}

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> Cuts | None:
        """Return the cuts that `dataset.json` names; None of data that are split by leave-one-out.

        Raises:
            DataError: when it names a split that is neither.
        """
        split = info.get(SPLIT, {"kind": LEAVE_ONE_OUT})
        kind = split.get("kind") if isinstance(split, Mapping) else None
        if kind == LEAVE_ONE_OUT:
            return None
        times = [split.get(name) for name in ("validation_from", "test_from")] if kind == "time" else []
        if len(times) != 2 or any(type(time) is not int for time in times):
            raise DataError(
                f"dataset.json has the split {split!r}; expected {{'kind': 'leave-one-out'}} or a kind 'time' with "
                "whole numbers validation_from and test_from; prepare the data again"
            )
        return cls(times[0], times[1])


def find_cuts(times: pl.Series, rules: SplitRules) -> Cuts:
    """Return the times at which interactions are divided.

    Interactions of equal time are never divided: all of them belong to the later part.

    Args:
        times: The times of all interactions, whole numbers.
        rules: Where validation and test begin.

    Raises:
        DataError: when a date is not within the data, or a part would be empty.

    Example:
        >>> find_cuts(pl.Series(range(10)), SplitRules("time", test_from=0.2))
        Cuts(validation_from=6, test_from=8)
    """
    ordered = times.sort().to_numpy()
    asked = DEFAULT_SHARE if rules.test_from is None else rules.test_from
    test_from = _cut(ordered, asked, "test_from", len(ordered))
    before = int(np.searchsorted(ordered, test_from))
    if rules.validation_from is not None:
        validation_from = _cut(ordered, rules.validation_from, "validation_from", before)
    else:
        validation_from = int(ordered[max(2 * before - len(ordered), 0)])
    if validation_from <= ordered[0] or validation_from >= test_from:
        raise DataError(
            f"with the validation from {_shown(validation_from, ordered)} and the test from "
            f"{_shown(test_from, ordered)} one of the three parts is empty; the data go {_range(ordered)}, and "
            "training must begin before the validation, and that before the test (validation_from, test_from)"
        )
    return Cuts(validation_from, test_from)


def split_by_time(interactions: pl.DataFrame, cuts: Cuts) -> pl.DataFrame:
    """Sort interactions by user and time and add the column `split`.

    Raises:
        DataError: when nothing is before the validation, or no user has a validation or a test target.
    """
    result = sort_by_user_and_time(interactions).with_columns(cuts.labels())
    targets = target_rows(result)
    counts = dict(result.group_by(SPLIT).len().iter_rows())
    if not counts.get("train"):
        raise DataError(f"no interaction is before the validation (time {cuts.validation_from}); nothing to train on")
    for split in ("validation", "test"):
        if not (targets[SPLIT] == split).any():
            raise DataError(
                f"the {split} part has {counts.get(split, 0)} interactions, and no user has anything before one of "
                f"them to be asked with; begin the {split} at an earlier date or give it a larger share"
            )
    return result


def filter_by_the_past(
    interactions: pl.DataFrame, keep: Callable[[pl.DataFrame], pl.DataFrame], cuts: Cuts
) -> tuple[pl.DataFrame, int]:
    """Filter the interactions before the validation, and return those with the later ones, in their order.

    What comes later may not decide what is trained on, and an item that is first bought after the date is as rare as it
    is. But a user or an item that was there before the validation and that the filter dropped stays dropped: with its
    past forgotten it would pass for a new one.

    Args:
        interactions: All interactions.
        keep: The filter.
        cuts: Where the parts begin.

    Returns:
        What is kept, and how many of the later interactions are not.
    """
    numbered = interactions.with_row_index(ROW)
    is_early = pl.col(TIMESTAMP) < cuts.validation_from
    early, later = numbered.filter(is_early), numbered.filter(~is_early)
    kept, whole = keep(early), later.height
    for name in (USER_ID, ITEM_ID):
        later = later.filter(~pl.col(name).is_in(_new(early[name], kept[name]).implode()))
    return pl.concat([kept, later]).sort(ROW).drop(ROW), whole - later.height


def split_counts(interactions: pl.DataFrame, cuts: Cuts | None) -> dict[str, int]:
    """Return the interactions of each part, and who is not asked; of a time split also who and what is new.

    Args:
        interactions: With the column `split`; sorted by user and time.
        cuts: Of a time split; None for leave-one-out.
    """
    by_split = dict(interactions.group_by(SPLIT).len().iter_rows())
    counts = {split: int(by_split.get(split, 0)) for split in SPLITS}
    users = interactions[USER_ID].n_unique()
    if cuts is None:
        return counts | {"users_only_trained_on": users - counts["test"]}
    targets = target_rows(interactions)
    before, later = (interactions.filter(part) for part in (pl.col(SPLIT) != "test", pl.col(SPLIT) == "test"))
    test = targets.filter(pl.col(SPLIT) == "test")
    new_users, new_items = (_new(later[name], before[name]) for name in (USER_ID, ITEM_ID))
    asked_new = int(test[USER_ID].is_in(new_users.implode()).sum())
    return counts | {
        "validation_targets": targets.height - test.height,
        "test_targets": test.height,
        "test_targets_of_new_users": asked_new,
        "new_users_without_history": len(new_users) - asked_new,
        "items_first_seen_in_test": len(new_items),
        "test_targets_first_seen_in_test": int(test[ITEM_ID].is_in(new_items.implode()).sum()),
        "users_without_test_target": users - test.height,
    }


def _new(later: pl.Series, before: pl.Series) -> pl.Series:
    """Return the different values of the one that the other lacks."""
    found = later.unique()
    return found.filter(~found.is_in(before.unique().implode()))


def _share_or_time(value: Any, name: str) -> float | int | str:
    """Return a share as float, a time of the data as int, a date as text."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    if 0 < number < 1:
        return number
    if not number.is_integer() or number == 0:
        raise DataError(
            f"{name} is {value!r}; expected a share above 0 and below 1, a date such as 2018-01-01, or a whole number "
            "as the times of the data are"
        )
    return int(text) if text.lstrip("+-").isdigit() else int(number)


def _cut(ordered: np.ndarray, value: str | float, name: str, end: int) -> int:
    """Return the time of the data at which a part begins that ends behind `end` interactions."""
    asked = _share_or_time(value, name)
    if isinstance(asked, float):
        return int(ordered[max(end - max(1, round(asked * len(ordered))), 0)])
    cut = _in_unit_of(ordered, asked) if isinstance(asked, int) else _time_of_date(asked, ordered, name)
    if not ordered[0] < cut <= ordered[-1]:
        raise DataError(
            f"{name} {value} is not within the data, which go {_range(ordered)}; choose a later time than the first "
            "and none beyond the last"
        )
    return cut


def _time_of_date(text: str, ordered: np.ndarray, name: str) -> int:
    """Return a date in the unit of the data, rounded up to it."""
    digits = _digits(ordered)
    if digits is None:
        raise DataError(
            f"{name} is {text!r}, but the times of the data, {ordered[0]} to {ordered[-1]}, are not seconds (or "
            "milliseconds, ...) since 1970; give a share, or a whole number as they are"
        )

    def check(wrong: pl.Series, *_: Any) -> None:
        if wrong.fill_null(True).any():
            raise DataError(
                f"{name} is {text!r}; expected a share above 0 and below 1, a date such as 2018-01-01 or "
                "2018-01-01T12:00:00Z, or a whole number as the times of the data are"
            )

    checked: RowCheck = check
    found = int(whole_times(pl.Series(name, [text]), "the command", checked)[0])
    fraction = re.search(r"[.,](\d+)", text)
    finest = len(fraction[1].rstrip("0")) if fraction else 0
    scale = next(unit for unit in (3, 6, 9) if finest <= unit)  # of what `whole_times` returns for one date
    nanos = found * 10 ** (9 - scale)
    return int(-(-nanos // 10 ** (9 - digits)))


def _digits(ordered: np.ndarray) -> int | None:
    """Return 0, 3, 6 or 9 for times in seconds, milliseconds, micro- or nanoseconds since 1970; None for others."""
    size = abs(int(ordered[len(ordered) // 2]))
    return _digits_of(size)


def _digits_of(size: int) -> int | None:
    ends = (*FIRST_DIGITS[1:], 2**63)
    found = [3 * place for place, (low, high) in enumerate(zip(FIRST_DIGITS, ends, strict=True)) if low <= size < high]
    return found[0] if found else None


def _in_unit_of(ordered: np.ndarray, asked: int) -> int:
    """Return a time since 1970 in the unit of the data, which is finer than theirs where they have fractions."""
    digits, own = _digits(ordered), _digits_of(abs(asked))
    return asked if digits is None or own is None or own >= digits else asked * 10 ** (digits - own)


def _shown(time: int, ordered: np.ndarray) -> str:
    digits = _digits(ordered)
    if digits is None:
        return str(time)
    try:
        date = np.datetime_as_string(np.datetime64(int(time) // 10**digits, "s"))
    except (ValueError, OverflowError):
        return str(time)
    return f"{time} ({date}Z, as {UNITS[digits // 3]} since 1970)"


def _range(ordered: np.ndarray) -> str:
    return f"from {_shown(int(ordered[0]), ordered)} to {_shown(int(ordered[-1]), ordered)}"
