from __future__ import annotations

import datetime as dt
import logging
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from allmrec_hf.data.interactions import validate_interactions
from allmrec_hf.data.splits import leave_one_out
from allmrec_hf.data.times import TimeRules, strptime_format
from allmrec_hf.errors import DataError

MAY_31 = 1_685_491_200  # 2023-05-31 00:00 UTC in seconds


def times(values: Any, time_format: str | None = None) -> list[int]:
    series = values if isinstance(values, pl.Series) else pl.Series(values, strict=False)
    ids = [str(number) for number in range(len(series))]
    frame = pl.DataFrame({"user_id": ids, "item_id": ids, "timestamp": series})
    return validate_interactions(frame, "T", TimeRules("time", time_format))["timestamp"].to_list()


def nanoseconds(*values: int) -> pl.Series:
    return pl.Series(list(values)).cast(pl.Datetime("ns"))


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        ([10.25, 10.5], [10_250, 10_500]),
        ([1_700_000_000.123456, 1_700_000_000.123457], [1_700_000_000_123_456, 1_700_000_000_123_457]),
        ([-1.5, -1.25, 0.0], [-1500, -1250, 0]),
        ([1e15, 3.0], [10**15, 3]),
        (["1700000000.123456789", "3"], [1_700_000_000_123_456_789, 3 * 10**9]),
        (["1700000000000000001", "1700000000000000002"], [1_700_000_000_000_000_001, 1_700_000_000_000_000_002]),
        ([" 1.7e9", "+2", "-.5"], [1_700_000_000_000, 2000, -500]),
        ([dt.date(1970, 1, 2)], [86_400_000]),
        ([dt.datetime(1970, 1, 1, 0, 0, 1), dt.datetime(1970, 1, 1, 0, 0, 2)], [1000, 2000]),
        ([dt.datetime(1970, 1, 1, 0, 0, 1, 5), dt.datetime(1970, 1, 1, 0, 0, 1, 4)], [1_000_005, 1_000_004]),
        (nanoseconds(MAY_31 * 10**9 + 1, MAY_31 * 10**9), [MAY_31 * 10**9 + 1, MAY_31 * 10**9]),
        (pl.Series(["7", "8"], dtype=pl.Categorical), [7, 8]),
        (pl.Series([1.5, 2.5], dtype=pl.Float32), [1500, 2500]),
        (pl.Series(["1.5", "2"]).cast(pl.Decimal(10, 3)), [1500, 2000]),
    ],
)
def test_times_keep_their_order_at_full_resolution(values: Any, whole: list[int]) -> None:
    assert times(values) == whole


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        (["2023-05-31", "2023/6/1"], [MAY_31 * 1000, (MAY_31 + 86_400) * 1000]),
        (["2023-05-31T02:00:00Z", "2023-05-31 02:00+02:00"], [(MAY_31 + 7200) * 1000, MAY_31 * 1000]),
        (["20230531T000000-0130", "2023-05-31 00:00:00 UTC"], [(MAY_31 + 5400) * 1000, MAY_31 * 1000]),
        (["2023-05-31T00:00:00.000002", "2023-05-31T00:00:00,000001"], [MAY_31 * 10**6 + 2, MAY_31 * 10**6 + 1]),
        (["2023-05-31 00:00:00.5", "2023-05-31 00:00:00.25"], [MAY_31 * 1000 + 500, MAY_31 * 1000 + 250]),
        (["2023-05-31 00:00:00.123456789"], [MAY_31 * 10**9 + 123_456_789]),
        (["9999-12-31T00:00:00.000000001Z", "2023-05-31", "0001-01-01"], [3, 2, 1]),
    ],
)
def test_iso_dates_are_times(values: list[str], whole: list[int]) -> None:
    assert times(values) == whole


def test_zones_of_datetimes_count() -> None:
    zone = ZoneInfo("Europe/Berlin")
    later = pl.Series([dt.datetime(2023, 5, 31, 2, 0, tzinfo=zone), dt.datetime(2023, 5, 31, 3, 0, tzinfo=zone)])
    assert times(later) == [MAY_31 * 1000, (MAY_31 + 3600) * 1000]


@pytest.mark.parametrize(
    ("values", "time_format", "whole"),
    [
        (["31/05/2023", "01/06/2023"], "%d/%m/%Y", [MAY_31 * 1000, (MAY_31 + 86_400) * 1000]),
        (["5/31/2023 12:30 AM", "5/31/2023 12:30 PM"], "%m/%d/%Y %I:%M %p", [1_685_493_000_000, 1_685_536_200_000]),
        (
            ["31.05.2023 00:00:00.5", "31.05.2023 00:00:00.25"],
            "%d.%m.%Y %H:%M:%S.%f",
            [MAY_31 * 1000 + 500, MAY_31 * 1000 + 250],
        ),
        (["Wed May 31 02:00:00 +0200 2023"], "%a %b %d %H:%M:%S %z %Y", [MAY_31 * 1000]),
        ([20230531, 20230601], "%Y%m%d", [MAY_31 * 1000, (MAY_31 + 86_400) * 1000]),
        (["May 31, 2023", "Jan 1, 1066"], "%b %d, %Y", [MAY_31 * 1000, -28_527_465_600_000]),
    ],
)
def test_dates_of_any_format_are_times(values: list[Any], time_format: str, whole: list[int]) -> None:
    assert times(values, time_format) == whole


@pytest.mark.parametrize(
    ("values", "time_format", "message"),
    [
        (["31/05/2023"], None, "1 values that are no number and no ISO date.*'31/05/2023'.*--time-format"),
        (["2023-02-30"], None, "1 dates that do not exist in 1 rows, first '2023-02-30'"),
        (["2023-05-31", "1700000000"], None, "1 numbers among 1 dates in 2 rows, first '1700000000' in data row 2"),
        (["1", " "], None, "1 null times in 2 rows, first ' '"),
        (["1", "NaT"], None, "1 null times in 2 rows, first 'NaT'"),
        (["9223372036854775808"], None, "1 times beyond 64 bits"),
        (["31/13/2023"], "%d/%m/%Y", "1 times of another format.*'31/13/2023'.*expected the format '%d/%m/%Y'"),
        (["1"], "%H", "time_format '%H' is no format of dates"),
        (["1"], "date", "time_format 'date' holds no sign such as %Y"),
        (["1"], "%Y %f", "%f reads decimals of a second"),
        ([1.5], "%Y", "has the type Float64, but time_format '%Y' is for text"),
    ],
)
def test_what_is_no_time_is_refused(values: list[Any], time_format: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        times(values, time_format)


def test_percent_signs_of_a_format_stay() -> None:
    assert strptime_format("%%f %Y") == "%%f %Y"


def test_floats_finer_than_any_unit_keep_their_order_as_ranks(caplog: pytest.LogCaptureFixture) -> None:
    assert times([1e15 + 0.5, 0.1 + 0.2, 0.3, 0.3]) == [2, 1, 0, 0]
    assert times(["1700000000000000000.5", "1700000000000000000.25"]) == [1, 0]
    assert "replaced by their ranks" in caplog.text


def test_one_fraction_does_not_make_the_other_texts_floats() -> None:
    whole = times(["1700000000000000001", "1700000000000000000", "1.5"])
    assert whole[2] < whole[1] < whole[0]


@pytest.mark.parametrize("kind", [pl.Int64, pl.String, pl.Float64])
def test_mixed_units_are_warned_of_with_counts(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    times(pl.Series([MAY_31, MAY_31 * 1000, MAY_31 * 1000 + 1, 0]).cast(kind))
    assert "of 4 times 3 look 1 like seconds and 2 like milliseconds since 1970" in caplog.text
    caplog.clear()
    times(pl.Series([MAY_31, MAY_31 + 1, 5]).cast(kind))
    assert not caplog.text


def test_floats_that_lost_their_order_before_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert times([1.7e18]) == [1_700_000_000_000_000_000]
    assert "1 of 1 times are Float64 floats beyond 2**53" in caplog.text
    caplog.clear()
    times(pl.Series([1.7e9], dtype=pl.Float32))
    assert "1 of 1 times are Float32 floats beyond 2**24" in caplog.text


def test_texts_with_and_without_offset_in_one_column_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert times(["2023-05-31T00:00:00Z", "2023-05-31T00:00:00"]) == [MAY_31 * 1000] * 2
    assert "1 of 2 times have no offset and are taken as UTC" in caplog.text


@pytest.mark.parametrize("step", [1, 1000, 10**6])
def test_the_test_target_is_the_last_event_whatever_the_resolution(step: int) -> None:
    moments = [MAY_31 * 10**9 + place * step for place in (3, 0, 2, 1)]
    seconds = [f"{moment // 10**9}.{moment % 10**9:09d}" for moment in moments]
    for column in (nanoseconds(*moments), pl.Series(moments), pl.Series(seconds), pl.Series(list(map(str, moments)))):
        frame = pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["d", "a", "c", "b"], "timestamp": column})
        assert leave_one_out(validate_interactions(frame, "T"))["item_id"].to_list() == ["a", "b", "c", "d"]


def test_equal_times_of_any_kind_keep_the_order_of_the_file() -> None:
    for column in (["2023-05-31"] * 3, [1.5] * 3, [dt.date(2023, 5, 31)] * 3, ["7", "7.0", "7e0"]):
        frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["q", "p", "o"], "timestamp": column})
        assert leave_one_out(validate_interactions(frame, "T"))["item_id"].to_list() == ["q", "p", "o"]


def test_reading_times_logs_nothing_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        times(["1700000000.5", "1700000001"])
        times(["2023-05-31", "2023-05-31T10:00"])
    assert not caplog.text
