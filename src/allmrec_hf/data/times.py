"""Convert times of interactions to whole numbers at full resolution, in the same order."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args

import polars as pl

from ..errors import DataError
from ..values import present_texts

logger = logging.getLogger(__name__)
Order = Literal["time", "file"]
RowCheck = Callable[[pl.Series, pl.Series, str, str, str], None]

EXACT = 2.0**53  # beyond it a float no longer tells neighbouring integers apart
HOW_TO_FORMAT = "--time-format FORMAT on the command line, time_format='%d/%m/%Y %H:%M' in Python"
DIGITS_OF_UNITS = (0, 3, 6, 9)  # whole, thousandths, millionths, milliardths
NANOS = 10**9
COMMON_DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
FIRST_DIGITS = (10**8, 10**11, 10**14, 10**17)  # unix times from March 1973 on, in each of the units

_WHOLE = r"^[+-]?\d+$"
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_PLAIN_NUMBER = r"^([+-]?)(\d*)(?:\.(\d*?)0*)?$"
_DATE = (
    r"^(?P<date>\d{4}([-/])\d{1,2}([-/])\d{1,2}|\d{8})"
    r"(?:[Tt ]\s*(?P<hour>\d{1,2}):?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<zone>[Zz]|UTC|GMT|[+-]\d\d:?\d\d|[+-]\d\d)?)?$"
)


@dataclass(frozen=True)
class TimeRules:
    """How the order of interactions is determined.

    Attributes:
        order: `"time"` by the column `timestamp`; `"file"` by the order of the rows, for data without times.
        time_format: The format of times written as text, in the signs of `strftime`; None for numbers and ISO dates.
    """

    order: Order = "time"
    time_format: str | None = None

    def check(self) -> None:
        """Check that the rules do not contradict each other.

        Raises:
            DataError: when the order is unknown, or a format is given for times that are not read.
        """
        if self.order not in get_args(Order):
            raise DataError(f"order is {self.order!r}; choose one of {list(get_args(Order))}")
        if self.time_format is not None and self.order == "file":
            raise DataError("time_format belongs to order 'time'; with order 'file' no times are read, so leave it out")
        if self.time_format is not None:
            strptime_format(self.time_format)


BY_TIME = TimeRules()


def whole_times(series: pl.Series, where: str, check: RowCheck, time_format: str | None = None) -> pl.Series:
    """Return times as int64 in which earlier is smaller and only equal times are equal.

    Dates and datetimes become milliseconds since 1970 UTC, or micro- or nanoseconds where some are finer. Numbers stay
    as they are where all are whole; otherwise all are thousandths, millionths or milliardths, whatever the finest of
    them needs. Where even these exceed 64 bits, times are replaced by their ranks.

    Args:
        series: Integers, floats, decimals, dates, datetimes, durations, or text of numbers or dates.
        where: What the table is called in an error.
        check: Raises where its first argument is true: `(wrong, values, where, what, advice)`.
        time_format: The format of texts, in the signs of `strftime`.

    Raises:
        DataError: when the column is of another type, or a time is missing, infinite or no time.
    """
    kind = series.dtype
    if kind in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if time_format is not None:
        return _formatted(series, where, check, time_format)
    if kind in (pl.Date, pl.Datetime, pl.Duration):
        times = _coarsest(series)
    elif kind.is_integer():
        times = _integers(series, where, check)
    elif kind.is_float():
        times = _floats(series, where, check)
    elif kind.is_decimal():
        times = _texts(series.cast(pl.String), where, check)
    elif series.dtype == pl.String:
        times = _texts(series, where, check)
    elif kind == pl.Null:
        times = series.cast(pl.Int64)
    else:
        raise DataError(f"column {series.name} of {where} has the wrong type {kind}; expected numbers, dates or text")
    check(times.is_null(), series, where, "null times", "an interaction needs a time; drop these rows")
    return times


def strptime_format(time_format: str) -> str:
    """Return a format of `strftime` as Polars takes it: decimals of a second are `%.f` there.

    Raises:
        DataError: when `%f` does not follow a point, or there is no sign at all.
    """
    translated = time_format.replace("%S.%f", "%S%.f").replace("%s.%f", "%s%.f").replace("%T.%f", "%T%.f")
    if re.search(r"(?<!%)%f", translated):
        raise DataError(f"time_format {time_format!r}: %f reads decimals of a second and must stand after `%S.`")
    if "%" not in translated:
        raise DataError(f"time_format {time_format!r} holds no sign such as %Y; expected e.g. '%d/%m/%Y %H:%M'")
    return translated


def _formatted(series: pl.Series, where: str, check: RowCheck, time_format: str) -> pl.Series:
    """Return times that are written in a format."""
    if series.dtype.is_integer():  # such as 20230501
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        raise DataError(
            f"column {series.name} of {where} has the type {series.dtype}, but time_format {time_format!r} is for "
            "text; leave it out"
        )
    texts = present_texts(series)
    check(texts.is_null(), series, where, "null times", "an interaction needs a time; drop these rows")
    chrono = strptime_format(time_format)
    try:
        micros = texts.str.to_datetime(chrono, time_unit="us", strict=False)
        nanos = texts.str.to_datetime(chrono, time_unit="ns", strict=False) if "%.f" in chrono else None
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"time_format {time_format!r} is no format of dates ({str(error).splitlines()[0]}); it needs the signs of "
            "a year, a month and a day, e.g. '%d/%m/%Y %H:%M'"
        ) from error
    advice = f"expected the format {time_format!r}"
    check(micros.is_null(), series, where, "times of another format", advice)
    if nanos is None or (nanos.dt.epoch("us") != micros.dt.epoch("us")).any():  # beyond 1677 to 2262
        return _coarsest(micros)
    return _coarsest(nanos)


def _coarsest(series: pl.Series) -> pl.Series:
    """Return dates, datetimes or durations as milliseconds, or as micro- or nanoseconds where some are finer."""
    if series.dtype == pl.Date:
        return series.cast(pl.Datetime("ms")).to_physical()
    unit = getattr(series.dtype, "time_unit", "us")
    times = series.to_physical()
    for _ in range(("ms", "us", "ns").index(unit)):
        if (times % 1000 != 0).any():
            break
        times = times // 1000
    return times


def _integers(series: pl.Series, where: str, check: RowCheck) -> pl.Series:
    """Return integers of any width."""
    times = series.cast(pl.Int64, strict=False)
    check(times.is_null() & series.is_not_null(), series, where, "times beyond 64 bits", "expected unix time")
    warn_of_mixed_units(times, where)
    return times


def _floats(series: pl.Series, where: str, check: RowCheck) -> pl.Series:
    """Return floats; their shortest decimal text tells which unit they need."""
    check(~series.is_finite() & series.is_not_null(), series, where, "NaN or infinite values", "drop these rows")
    check(series.abs() >= 2.0**63, series, where, "times beyond 64 bits", "expected unix time")
    exact = 2.0**24 if series.dtype == pl.Float32 else EXACT
    blurred = int((series.abs() > exact).sum())
    if blurred:
        logger.warning(
            "column %s of %s: %d of %d times are %s floats beyond 2**%d, which do not tell neighbouring times apart: "
            "their order was lost before they got here. Write times as integers or text",
            series.name,
            where,
            blurred,
            len(series),
            series.dtype,
            24 if series.dtype == pl.Float32 else 53,
        )
    whole = series.cast(pl.Int64, strict=False)
    if (series == series.floor()).all():
        warn_of_mixed_units(whole, where)
        return whole
    warn_of_mixed_units(whole, where)
    return _decimals(series.cast(pl.String))


def _texts(series: pl.Series, where: str, check: RowCheck) -> pl.Series:
    """Return times from texts of numbers or of ISO dates; each text is read by itself, so no other changes it."""
    times = series.str.strip_chars().cast(pl.Int64, strict=False)
    if not times.null_count():
        warn_of_mixed_units(times, where)
        return times
    texts = present_texts(series)
    check(texts.is_null(), series, where, "null times", "an interaction needs a time; drop these rows")
    is_number = texts.str.contains(_NUMBER)
    is_date = ~is_number & texts.str.contains(_DATE.replace("?P<", "?<"))
    check(
        ~is_number & ~is_date,
        series,
        where,
        "values that are no number and no ISO date",
        f"expected unix time, 2023-05-31 or 2023-05-31T18:30:00Z; for another format: {HOW_TO_FORMAT}",
    )
    dates = int(is_date.sum())
    check(
        is_number if dates else is_date,
        series,
        where,
        f"numbers among {dates} dates",
        "write all times as numbers of one unit, or all as dates",
    )
    if dates:
        return _iso_dates(texts, series, where, check)
    if not texts.str.contains(_WHOLE).all():
        warn_of_mixed_units(texts.cast(pl.Float64).cast(pl.Int64, strict=False), where)
        return _decimals(texts)
    times = texts.str.strip_prefix("+").cast(pl.Int64, strict=False)
    check(times.is_null(), series, where, "times beyond 64 bits", "expected unix time")
    warn_of_mixed_units(times.alias(series.name), where)
    return times


def _decimals(texts: pl.Series) -> pl.Series:
    """Return texts of decimal numbers as whole numbers of the unit that the finest of them needs, exactly."""
    exponent = texts.str.contains("[eE]")
    if exponent.any():
        plain = [format(Decimal(text), "f") if has else text for text, has in zip(texts, exponent, strict=True)]
        texts = pl.Series(texts.name, plain, dtype=pl.String)
    parts = texts.str.extract_groups(_PLAIN_NUMBER).struct.unnest()
    sign, whole, fraction = (parts.to_series(place).fill_null("") for place in range(3))
    longest = fraction.str.len_chars().max()
    finest = longest if isinstance(longest, int) else 0
    digits = next((unit for unit in DIGITS_OF_UNITS if unit >= finest), finest)
    scaled = sign.str.replace("+", "", literal=True) + whole + fraction.str.pad_end(digits, "0")
    times = scaled.cast(pl.Int64, strict=False).alias(texts.name)
    return _ranks(texts) if times.null_count() else times


def _ranks(texts: pl.Series) -> pl.Series:
    """Return the rank of each decimal number among all, from 0; equal numbers have equal ranks."""
    try:
        numbers = {text: Decimal(text) for text in texts.unique().to_list()}
    except InvalidOperation as error:
        raise DataError(f"column {texts.name} holds a time that is no number: {error}") from error
    rank = {number: place for place, number in enumerate(sorted(set(numbers.values())))}
    places = [rank[number] for number in numbers.values()]
    logger.warning("column %s: times are finer than 64 bits can hold and are replaced by their ranks", texts.name)
    return texts.replace_strict(list(numbers), places, return_dtype=pl.Int64)


def _iso_dates(texts: pl.Series, series: pl.Series, where: str, check: RowCheck) -> pl.Series:
    """Return ISO dates, with or without time of day and offset, as times since 1970 UTC."""
    for common in COMMON_DATES:  # all alike: faster, and the same times
        times = texts.str.to_datetime(common, time_unit="ms", strict=False)
        if not times.null_count():
            return times.to_physical()
    parts = texts.str.extract_groups(_DATE.replace("?P<", "?<")).struct.unnest()
    date = parts["date"].str.replace_all("/", "-")
    date = date.str.replace(r"^(\d{4})(\d\d)(\d\d)$", "$1-$2-$3")
    hour, minute, second = (parts[name].fill_null("00") for name in ("hour", "minute", "second"))
    clock = (date + " " + hour + ":" + minute + ":" + second).str.to_datetime(
        "%Y-%m-%d %H:%M:%S", time_unit="us", strict=False
    )
    check(
        clock.is_null(),
        series,
        where,
        "dates that do not exist",
        f"expected 2023-05-31 or 2023-05-31T18:30:00Z; for another format: {HOW_TO_FORMAT}",
    )
    zone = parts["zone"]
    naive = int(zone.is_null().sum())
    if 0 < naive < len(zone) and parts["hour"].is_not_null().all():
        logger.warning(
            "column %s of %s: %d of %d times have no offset and are taken as UTC, the others have one",
            series.name,
            where,
            naive,
            len(zone),
        )
    offset = zone.str.extract_groups(r"^([+-])(\d\d):?(\d\d)?$").struct.unnest()
    minutes = offset.to_series(1).cast(pl.Int64) * 60 + offset.to_series(2).fill_null("0").cast(pl.Int64)
    minutes = (minutes * (offset.to_series(0) + "1").cast(pl.Int64)).fill_null(0)
    seconds = clock.to_physical() // 10**6 - minutes * 60
    nanos = parts["fraction"].fill_null("").str.pad_end(9, "0").cast(pl.Int64)
    return _since_1970(seconds, nanos).alias(series.name)


def _since_1970(seconds: pl.Series, nanos: pl.Series) -> pl.Series:
    """Return seconds and nanoseconds as milliseconds, or as micro- or nanoseconds where some are finer."""
    for digits in (3, 6, 9):
        part = 10 ** (9 - digits)
        if not (nanos % part != 0).any() and not (seconds.abs() > 2**63 // 10**digits - 1).any():
            return seconds * 10**digits + nanos // part
    both = pl.DataFrame({"seconds": seconds, "nanos": nanos})
    return both.select(pl.struct("seconds", "nanos").rank("dense").cast(pl.Int64)).to_series()


def warn_of_mixed_units(times: pl.Series, where: str) -> None:
    """Log a warning where some whole times look like seconds since 1970 and others like milliseconds, or finer."""
    bounds = (*FIRST_DIGITS, 2**63 - 1)
    size = times.abs()
    counts = {
        unit: int(((size >= low) & (size < high)).sum())
        for unit, low, high in zip(UNITS, FIRST_DIGITS, bounds[1:], strict=True)
    }
    found = {unit: count for unit, count in counts.items() if count}
    if len(found) > 1:
        told = " and ".join(f"{count} like {unit}" for unit, count in found.items())
        logger.warning(
            "column %s of %s mixes units: of %d times %s look %s since 1970, so those of the finer unit count as "
            "later. Write all in one unit",
            times.name,
            where,
            len(times),
            sum(found.values()),
            told,
        )
