"""Measure how certain a difference between two methods is: intervals, paired tests, multiple-comparison correction.

Everything is paired: both methods answered for the same users, and what is drawn is users. `docs/statistics.md` says
which question each test answers and which it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr  # the binomial distribution; scipy.stats takes a second to import

from ..errors import ALLMRecError, DataError

CONFIDENCE = 0.95
NUM_RESAMPLES = 2_000
NUM_SIGN_FLIPS = 50_000
EXACT_USERS = 12  # up to 4,096 sign patterns are all tried; above that they are drawn
_CHUNK_NUMBERS = 4_000_000  # numbers drawn at a time: bounds the memory, not the result
ROUNDING = 1e-9  # means of per-user metrics nearer than this are equal; no difference of methods is so small
_TIE = 1e-5  # as a share of the sum of all sizes: more than single precision loses, far less than a sum varies


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval.

    Attributes:
        mean: The mean over users.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the whole interval lies on one side of 0."""
        return self.low > ROUNDING or self.high < -ROUNDING


def bootstrap_means(values: ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Return the means of users drawn with replacement, `(num_resamples, M)`, the same draws for every column.

    Because the draws are shared, the difference of two columns is a paired bootstrap of their difference.

    Args:
        values: `(U, M)`, a row for each user and a column for each quantity.
        num_resamples: How often U users are drawn.
        seed: Seed of the draws.

    Raises:
        ALLMRecError: when there are no users, or a value is not a finite number.
    """
    values = _checked(values, 2)
    users = len(values)
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // users)
    means = np.empty((num_resamples, values.shape[1]))
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        drawn = generator.integers(0, users, (rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)  # (rows, U) times drawn
        means[start : start + rows] = times.astype(np.float64) @ values / users
    return means


def percentile_interval(mean: float, resampled: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval between the outer percentiles of resampled means.

    Raises:
        ALLMRecError: when the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ALLMRecError(f"confidence must be between 0 and 1; got {confidence}")
    outside = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(resampled, dtype=np.float64), [outside, 1 - outside])
    return Interval(float(mean), float(low), float(high))


def mean_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean of per-user values `(U,)` with its bootstrap interval.

    Raises:
        ALLMRecError: when there are no users, or a value is not a finite number.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    values = _checked(values, 1)
    return percentile_interval(values.mean(), bootstrap_means(values[:, None], num_resamples, seed), confidence)


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of `first - second`, both `(U,)` in the same order of users, with its bootstrap interval.

    Raises:
        ALLMRecError: when the two are not paired, there are no users, or a value is not a finite number.
    """
    return mean_interval(_differences(first, second), confidence, num_resamples, seed)


def randomisation_test(
    first: ArrayLike, second: ArrayLike, num_sign_flips: int = NUM_SIGN_FLIPS, seed: int = 0
) -> float:
    """Return the two-sided p value of "it does not matter which method is called which", paired by user.

    Raises:
        ALLMRecError: when the two are not paired, there are no users, or a value is not a finite number.

    Example:
        >>> randomisation_test([1, 1, 1, 1], [0, 0, 0, 0])  # exact: 2 of 16 sign patterns are as extreme
        0.125
    """
    return float(sign_flip_tests(_differences(first, second)[:, None], num_sign_flips, seed)[0])


def sign_flip_tests(differences: ArrayLike, num_sign_flips: int = NUM_SIGN_FLIPS, seed: int = 0) -> NDArray[np.float64]:
    """Return two-sided p values `(M,)` of paired differences `(U, M)`; each sign is flipped with probability 1/2.

    Users without a difference change no sum. A column with at most `EXACT_USERS` others is tested exactly, over all
    sign patterns; any other by drawn patterns, counting the observed one among them (the `+ 1` of numerator and
    denominator), so that no p value is below `1 / (num_sign_flips + 1)`.

    Raises:
        ALLMRecError: when there are no users, or a value is not a finite number.
    """
    differences = _checked(differences, 2)
    p_values = np.ones(differences.shape[1])
    counts = (differences != 0).sum(axis=0)
    for column in np.flatnonzero((counts > 0) & (counts <= EXACT_USERS)):
        p_values[column] = _exact_p(differences[differences[:, column] != 0, column])
    drawn = np.flatnonzero(counts > EXACT_USERS)
    if len(drawn):
        p_values[drawn] = _drawn_p(differences[:, drawn], num_sign_flips, seed)
    return p_values


def mcnemar(first_hits: ArrayLike, second_hits: ArrayLike) -> float:
    """Return McNemar's exact two-sided p value of two 0/1 vectors `(U,)`, paired by user.

    Only users whom one method hits and the other misses count: they are compared with throws of a fair coin.

    Raises:
        ALLMRecError: when the two are not paired or hold anything but 0 and 1.

    Example:
        >>> mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])  # four discordant users, all on one side: 2 / 2**4
        0.125
    """
    differences = _differences(first_hits, second_hits)
    for hits in (first_hits, second_hits):
        if not np.isin(np.asarray(hits), (0, 1)).all():
            raise ALLMRecError("McNemar's test compares hits, 0 or 1 for each user; test other values by randomisation")
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p values of a family of comparisons, corrected by Holm's step-down method, in the order given.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be below the one before it or above 1.

    Raises:
        ALLMRecError: when a value is no probability.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ALLMRecError(f"p values lie between 0 and 1; got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


def average_over_seeds(values: Sequence[ArrayLike]) -> tuple[NDArray[np.float64], list[float]]:
    """Return per-user values `(U,)` averaged over S seeds, and the S means over users.

    Averages are rounded to twelve digits, so that a value that all seeds share stays equal to itself: a difference that
    is nothing but rounding would have the same sign for every user, and the sign flip test would believe it.

    Raises:
        ALLMRecError: when there are no seeds, or they have different numbers of users.
    """
    arrays = [_checked(seed_values, 1) for seed_values in values]
    if not arrays or len({len(array) for array in arrays}) > 1:
        counts = [len(array) for array in arrays]
        raise ALLMRecError(f"seeds of one method must have the same users; got {counts} users")
    return np.asarray(np.mean(arrays, axis=0), dtype=np.float64).round(12), [float(array.mean()) for array in arrays]


def deviation(means: Sequence[float]) -> float | None:
    """Return the sample standard deviation over seeds; None for one seed, which has none."""
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def check_same_users(first: pl.DataFrame, second: pl.DataFrame, names: tuple[str, str], columns: list[str]) -> None:
    """Check that two tables of per-user results hold the same users (and targets) in the same order.

    Args:
        first: A row for each user.
        second: The same of the other method.
        names: What to call the two in the message.
        columns: The columns that must be equal, the user's id first.

    Raises:
        DataError: telling how many users each has, how many both have, and where they first differ.
    """
    if first.select(columns).equals(second.select(columns)):
        return
    users = (first[columns[0]], second[columns[0]])
    both = len(set(users[0]) & set(users[1]))
    found = f"{names[0]} has {len(users[0]):,} users, {names[1]} {len(users[1]):,}, {both:,} are in both"
    if len(first) == len(second) == both:
        differ = [name for name in columns if not first[name].equals(second[name])]
        found += f", but {', '.join(differ)} differ or stand in another order"
    raise DataError(
        f"a paired comparison needs the same users with the same targets in the same order: {found}; "
        "evaluate both on the same candidate file"
    )


def _exact_p(differences: NDArray[np.float64]) -> float:
    patterns = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1  # (2**U, U)
    sums = np.abs((2 * patterns - 1) @ differences)
    return float((sums >= _threshold(differences[:, None])[0]).mean())


def _drawn_p(differences: NDArray[np.float64], num_sign_flips: int, seed: int) -> NDArray[np.float64]:
    users = len(differences)
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // users)
    threshold, total = _threshold(differences), differences.sum(axis=0)
    single = differences.astype(np.float32)
    extreme = np.zeros(differences.shape[1], dtype=np.int64)
    for start in range(0, num_sign_flips, chunk):
        rows = min(chunk, num_sign_flips - start)
        octets = generator.integers(0, 256, (rows, -(-users // 8)), dtype=np.uint8)
        kept = np.unpackbits(octets, axis=1, count=users).astype(np.float32)  # (rows, U) 1 where the sign is kept
        extreme += (np.abs(2 * (kept @ single) - total) >= threshold).sum(axis=0)
    return (extreme + 1) / (num_sign_flips + 1)


def _threshold(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `(M,)` the observed absolute sums, less what rounding may take from an equal one."""
    return np.abs(differences.sum(axis=0)) - _TIE * np.abs(differences).sum(axis=0)


def _differences(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    first, second = _checked(first, 1), _checked(second, 1)
    if len(first) != len(second):
        raise ALLMRecError(
            f"a paired comparison needs the same users in the same order; got {len(first)} and {len(second)} users"
        )
    return first - second


def _checked(values: ArrayLike, dimensions: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions:
        shape = "(U,)" if dimensions == 1 else "(U, M)"
        raise ALLMRecError(f"per-user values must be {shape}; got {array.shape}")
    if len(array) == 0:
        raise ALLMRecError("there are no users to compare")
    if not np.isfinite(array).all():
        raise ALLMRecError(f"{int((~np.isfinite(array)).sum())} of {array.size} per-user values are not finite numbers")
    return array
