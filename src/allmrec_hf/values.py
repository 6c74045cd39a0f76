"""Values as they enter: how an id is spelt, what counts as missing, and plain text out of what shops write.

Readers, frames, records and requests all use these functions, so that an id is the same text whatever parser
read it, and a missing value is missing everywhere.
"""

import datetime
import html
import json
import logging
import math
import numbers
import unicodedata
import uuid
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from .errors import DataError

logger = logging.getLogger(__name__)

NULL_WORDS = frozenset(
    """nan NaN NAN -nan -NaN null NULL Null none None NONE NaT <NA> N/A n/a #N/A \\N [] {} [null] [None] [nan] [''] [""]
    """.split()  # noqa: SIM905 - a list of as many lines as words is harder to read
)
"""The texts that programs write for a missing value; the whole text must be one of these, in this case."""

SPACE = (
    " \t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200C)))
    + ("\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\x00")
)
"""The characters trimmed from both ends of a text: white space, zero-width space, byte order mark, NUL."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
EXACT_FLOATS = 2.0**53  # from here on a float no longer tells neighbouring integers apart

_ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"
_CODE = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"
_TAG_NAMES = (
    "a|abbr|acronym|address|article|aside|audio|b|base|basefont|big|blockquote|body|br|button|caption|center|cite|code|"
    "col|colgroup|dd|del|details|dfn|dir|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset|"
    "h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|meta|nav|noscript|object|"
    "ol|optgroup|option|p|param|picture|pre|q|s|samp|section|select|small|source|span|strike|strong|sub|summary|sup|svg|"
    "table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video|wbr"
)
_TAG = rf"(?is)<!--.*?-->|<!doctype[^<>]*>|</?(?:{_TAG_NAMES})(?:\s[^<>]*|/)?>"


def is_missing(value: Any) -> bool:
    """Tell whether a value is missing: None, NaN, NaT, pandas' NA, a blank text, a word of `NULL_WORDS`, an empty list.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), " ", "NULL", [], 0, "0", "Nan Goldin")]
        [True, True, True, True, True, False, False, False]
    """
    value = _plain(value)
    if value is None:
        return True
    if isinstance(value, str):
        text = value.strip(SPACE)
        return not text or text in NULL_WORDS
    if isinstance(value, (list, tuple, dict)):
        return all(is_missing(entry) for entry in value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)  # NaN of any library, numpy's NaT
    except ArithmeticError:  # a signalling NaN of Decimal
        return True
    except (TypeError, ValueError):
        return False


def _plain(value: Any) -> Any:
    """Return an array or tensor as what it holds (a list, or one value where it has no dimension), bytes as text."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else value[()]
    kind = type(value)
    if kind.__name__ in ("Tensor", "Parameter") and kind.__module__.startswith("torch"):
        return value.tolist()
    if kind.__name__ == "Series" and hasattr(value, "to_list"):
        return value.to_list()
    return value


def number_text(value: Any) -> str:
    """Return the one spelling of a finite number: digits without exponent, integral values without `.0`.

    Example:
        >>> [number_text(value) for value in (1, 1.0, 1e16, -0.0, 1e-7, 2**64 + 1)]
        ['1', '1', '10000000000000000', '0', '0.0000001', '18446744073709551617']
    """
    if isinstance(value, numbers.Integral):
        return str(int(value))
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    if exact == exact.to_integral_value():
        return str(int(exact))
    return format(exact, "f").rstrip("0")


def value_text(value: Any) -> str | None:
    """Return a value of a JSON record as text, or None where it is NaN or null.

    A text stays as it is, a number is spelt by `number_text`, a truth value is `true` or `false`, and lists and objects
    are their JSON text with numbers spelt so too.

    Example:
        >>> value_text(1.0), value_text("1.0"), value_text([1.0, None]), value_text(float("nan"))
        ('1', '1.0', '[1, null]', None)
    """
    value = _plain(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is legal JSON but no legal text
    if isinstance(value, (Mapping, list, tuple)):
        return _json_text(value)
    if is_missing(value):
        return None
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return "true" if value else "false"
    if isinstance(value, (numbers.Real, Decimal)):
        return number_text(value) if math.isfinite(value) else None
    return str(value)


def _json_text(value: Any) -> str:
    """Return the JSON text of a nested value, numbers spelt by `number_text`."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key), ensure_ascii=False)}: {_json_text(entry)}" for key, entry in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_json_text, value)) + "]"
    text = value_text(value)
    if text is None:
        return "null"
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text


def id_text(value: Any) -> str | None:
    """Return the one spelling of an id, or None where it is missing.

    A text stays as it is (also `007` and `1.0`), but white space around it is trimmed and it is in Unicode's form NFC.
    A number is spelt by `number_text`, so 7, 7.0 and "7" are one id.

    Raises:
        DataError: when the value is neither text nor a whole number, e.g. 1.5, a truth value or a list.

    Example:
        >>> id_text(7), id_text(7.0), id_text(" 7 "), id_text("007"), id_text("nan")
        ('7', '7', '7', '007', None)
    """
    value = _plain(value)
    if is_missing(value) and not isinstance(value, (Mapping, list, tuple)):
        return None
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip(SPACE)
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    whole = not is_bool and isinstance(value, (numbers.Real, Decimal)) and math.isfinite(value) and value % 1 == 0
    if not whole:
        raise DataError(f"{value!r} ({type(value).__name__}) is no id; ids are text or integers")
    return number_text(value)


def plain_number(value: Any) -> Any:
    """Return a number of NumPy as Python's, which JSON can hold, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def id_texts(series: pl.Series) -> pl.Series:
    """Return a column of ids in their one spelling, see `id_text`; null where an id is missing.

    Raises:
        DataError: when the column's type can hold no ids; the message begins with the type.
    """
    kind = series.dtype
    if kind == pl.Null:
        return series.cast(pl.String)
    if kind == pl.Object:
        return pl.Series(series.name, [id_text(value) for value in series.to_list()], dtype=pl.String)
    if kind.is_float() or kind.is_decimal():
        return _float_ids(series)
    if kind.is_integer():
        return series.cast(pl.String)
    try:
        texts = series.cast(pl.String) if kind in (pl.String, pl.Categorical, pl.Enum, pl.Binary) else None
    except pl.exceptions.PolarsError:  # bytes that are no UTF-8
        texts = None
    if texts is None:
        raise DataError(f"{kind}; ids are text or integers")
    return present_texts(_composed(texts))


def _float_ids(series: pl.Series) -> pl.Series:
    """Spell ids that a parser made floats; warn where it has made several ids one."""
    if series.dtype.is_decimal():
        wrong = [value for value in series.drop_nulls().unique().to_list() if value != value.to_integral_value()]
        if wrong:
            raise DataError(f"{series.dtype}; ids are text or integers, not {wrong[0]}")
        return _spelt(series)
    fractions = series.filter(series.is_infinite() | (series.is_not_nan() & (series != series.floor())))
    if len(fractions):
        raise DataError(f"{series.dtype}; ids are text or integers, not {fractions[0]}")
    inexact = series.filter(series.is_not_nan() & (series.abs() > EXACT_FLOATS))
    if len(inexact):
        logger.warning(
            "%d ids of column %s are floats beyond 2**53, first %s: neighbouring ids may have become one before they "
            "got here; write ids as text or integers",
            inexact.n_unique(),
            series.name,
            number_text(inexact[0]),
        )
    return _spelt(series)


def _spelt(series: pl.Series) -> pl.Series:
    """Return floats or decimals as text, NaN as null; each distinct number is spelt once."""
    distinct = [value for value in series.unique().drop_nulls().to_list() if value == value]
    old = pl.Series(distinct, dtype=series.dtype)
    texts = pl.Series([number_text(v) if math.isfinite(v) else str(v) for v in distinct], dtype=pl.String)
    return series.replace_strict(old, texts, default=None, return_dtype=pl.String)


def _composed(texts: pl.Series) -> pl.Series:
    """Return texts in Unicode's form NFC, which ASCII is already."""
    return texts if (texts.str.len_bytes() == texts.str.len_chars()).all() else texts.str.normalize("NFC")


def present_texts(texts: pl.Series, words: bool = True) -> pl.Series:
    """Return texts trimmed, null where nothing is left or, with `words`, where a word of `NULL_WORDS` stands."""
    texts = texts.str.strip_chars(SPACE)
    missing = texts.is_in(["", *(sorted(NULL_WORDS) if words else [])])
    return texts.to_frame().select(pl.when(~missing).then(pl.col(texts.name))).to_series()


def plain_texts(texts: pl.Series) -> pl.Series:
    """Return texts as a person reads them: no HTML, white space collapsed, Unicode's form NFC; null where missing.

    Entities are unescaped twice, because crawled texts hold `&amp;quot;` for a quote. Only tags of HTML are stripped:
    `List<String>` and `<3` stay. A text that is a word of `NULL_WORDS` counts as missing.
    """
    for _ in range(2):
        texts = _unescaped(texts)
    if texts.str.contains("<", literal=True).any():
        texts = texts.str.replace_all(_CODE, " ").str.replace_all(_TAG, " ")
    return present_texts(_composed(texts).str.replace_all(r"[\s\x00]{2,}|[^\S ]|\x00", " "))


def _unescaped(texts: pl.Series) -> pl.Series:
    """Replace HTML entities by their characters; each distinct entity is looked up once."""
    if not texts.str.contains("&", literal=True).any():
        return texts
    found = (
        texts.filter(texts.str.contains("&", literal=True))
        .str.extract_all(_ENTITY)
        .explode()
        .drop_nulls()
        .unique()
        .sort()
        .to_list()
    )
    known = {entity: html.unescape(entity) for entity in found}
    changed = {entity: text for entity, text in known.items() if text != entity}
    if not changed:
        return texts
    return texts.str.replace_many(list(changed), list(changed.values()))


def text_values(series: pl.Series) -> pl.Series:
    """Return a column as text as it is, NaN as null; lists are joined with spaces, their missing entries left out.

    Raises:
        DataError: when the column's type can hold no text; the message begins with the type.
    """
    kind = series.dtype
    if kind == pl.Object:
        return pl.Series(series.name, [_record_text(value) for value in series.to_list()], dtype=pl.String)
    if isinstance(kind, (pl.List, pl.Array)) and not isinstance(kind.inner, (pl.List, pl.Array, pl.Struct)):
        rows = pl.DataFrame({"row": pl.int_range(len(series), eager=True), "text": series.alias("text")})
        entries = rows.explode("text")
        entries = entries.with_columns(text_values(entries["text"]))
        present = entries.filter(present_texts(entries["text"]).is_not_null())
        joined = present.group_by("row", maintain_order=True).agg(pl.col("text").str.join(" "))
        return rows.select("row").join(joined, on="row", how="left", maintain_order="left")["text"].alias(series.name)
    if kind.is_float() or kind.is_decimal():
        return _spelt(series)
    if isinstance(kind, (pl.List, pl.Array, pl.Struct)):
        raise DataError(f"{kind}; expected text or a list of texts")
    if kind == pl.Binary:  # text in parquet files of programs that do not mark it
        try:
            return series.cast(pl.String)
        except pl.exceptions.PolarsError:
            raise DataError(f"{kind} that is no UTF-8; expected text or a list of texts") from None
    return series.cast(pl.String)


def _is_unstorable(kind: Any) -> bool:
    if isinstance(kind, (pl.List, pl.Array)):
        return _is_unstorable(kind.inner)
    if isinstance(kind, pl.Struct):
        return not kind.fields or any(_is_unstorable(field.dtype) for field in kind.fields)
    return bool(kind == pl.Object)


def storable(series: pl.Series) -> pl.Series:
    """Return a column as parquet can hold it: objects, and mappings without any key, as text."""
    if not _is_unstorable(series.dtype):
        return series
    texts = [None if is_missing(value) else value_text(value) for value in series.to_list()]
    return pl.Series(series.name, texts, dtype=pl.String)


def _record_text(value: Any) -> str | None:
    """Return a title or description of a record as text; lists are joined with spaces."""
    value = _plain(value)
    if isinstance(value, (list, tuple)):
        parts = [value_text(entry) for entry in value if not is_missing(entry)]
        return " ".join(part for part in parts if part is not None) or None
    return None if is_missing(value) else value_text(value)


def records_frame(records: Iterable[Mapping[str, Any]], ids: Sequence[str], texts: Sequence[str]) -> pl.DataFrame:
    """Return records as a frame, whatever types a column mixes and whatever keys a record lacks.

    Args:
        records: Mappings from column names to values.
        ids: Columns of ids, spelt by `id_text`.
        texts: Columns of text; lists are joined with spaces.

    Raises:
        DataError: when an id is neither text nor a whole number, or they are no records.
    """
    rows = [_named(row) for row in as_records(records, "the records")]
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        if name in ids:
            columns.append(pl.Series(name, [id_text(value) for value in values], dtype=pl.String))
        elif name in texts:
            columns.append(pl.Series(name, [_record_text(value) for value in values], dtype=pl.String))
        else:
            columns.append(_any_column(name, values))
    return pl.DataFrame(columns)


def _named(row: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return a record whose keys are text."""
    return row if all(type(key) is str for key in row) else {str(key): value for key, value in row.items()}


def _exact_times(name: str, values: Sequence[Any]) -> pl.Series | None:
    """Return times of which some are finer than microseconds, in which Polars would keep them; else None.

    They are `datetime64` of NumPy, or pandas' Timestamps; those with an offset become UTC.
    """
    present = [value for value in values if not is_missing(value)]
    kind = (np.datetime64, datetime.datetime)
    if not present or not all(isinstance(value, kind) for value in present):
        return None
    try:
        fine = any(getattr(value, "nanosecond", 0) for value in present) or any(
            isinstance(value, np.datetime64) and value != value.astype("datetime64[us]") for value in present
        )
        if not fine:
            return None
        nanos = [None if is_missing(value) else _nanoseconds(value) for value in values]
        return pl.Series(name, nanos, dtype=pl.Int64).cast(pl.Datetime("ns"))
    except (OverflowError, pl.exceptions.PolarsError):
        raise DataError(f"the column {name!r} holds nanoseconds and times beyond 1677 to 2262, not both fit") from None


def _nanoseconds(value: Any) -> int:
    """Return a time of pandas, NumPy or Python as nanoseconds since 1970 UTC."""
    if isinstance(value, np.datetime64):
        unit, _ = np.datetime_data(value.dtype)
        if unit in ("ns", "ps", "fs", "as"):
            return int(value.astype("datetime64[ns]").astype(np.int64))
        return int(value.astype("datetime64[us]").astype(np.int64)) * 1000
    since = value.replace(tzinfo=value.tzinfo or datetime.timezone.utc) - _EPOCH
    whole = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
    return whole * 1000 + getattr(value, "nanosecond", 0)


def _any_column(name: str, values: Sequence[Any]) -> pl.Series:
    """Return values as a column of the type they share, NaN as null; as text where they share none."""
    exact = _exact_times(name, values)
    if exact is not None:
        return exact
    kept = (str, list, tuple, Mapping)
    clean = [None if not isinstance(value, kept) and is_missing(value) else value for value in values]
    column: pl.Series | None
    try:
        column = pl.Series(name, clean, strict=True)
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        numeric = all(value is None or type(value) in (int, float) for value in clean)
        column = pl.Series(name, clean, dtype=pl.Float64, strict=False) if numeric else None
    if column is None or column.dtype == pl.Object:
        return pl.Series(name, [value_text(value) for value in clean], dtype=pl.String)
    return column


def as_records(table: Any, where: str) -> list[Mapping[str, Any]]:
    """Return the rows of a list of mappings, or of any table that `as_frame` takes, as mappings.

    Raises:
        DataError: when it is neither.
    """
    library = type(table).__module__.split(".")[0]
    if library in ("polars", "pandas", "pyarrow", "datasets"):
        return list(as_frame(table, where).iter_rows(named=True))
    rows = list(table) if isinstance(table, Iterable) and not isinstance(table, (str, bytes, Mapping)) else None
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{where}: expected a list of mappings or a frame, found {str(table)[:80]!r}")
    return rows


def as_frame(table: Any, where: str) -> pl.DataFrame:
    """Return a table as a Polars frame: of Polars (eager or lazy), pandas, Arrow, `datasets.Dataset`, or records.

    Columns of pandas that mix types become text, each value spelt by `value_text`, missing values null.

    Raises:
        DataError: when it is no table.
    """
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    library = type(table).__module__.split(".")[0]
    if library == "datasets" and isinstance(table, Mapping):
        raise DataError(f"{where}: a {type(table).__name__} holds the splits {list(table)}; give one of them")
    if library == "datasets" and not hasattr(table, "__len__"):
        return records_frame(list(table), (), ())
    if library in ("pandas", "pyarrow"):
        names = [str(name) for name in (table.columns if library == "pandas" else table.schema.names)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{where}: the columns {repeated} stand more than once in {names}; rename all but one")
    if library == "pandas":
        return pl.DataFrame([_pandas_column(str(name), table.iloc[:, n]) for n, name in enumerate(table.columns)])
    if library == "datasets" and hasattr(table, "with_format"):
        table = table.with_format("arrow")[:]
    if hasattr(table, "__arrow_c_stream__"):
        return pl.DataFrame(table)
    if isinstance(table, Mapping):
        return pl.DataFrame([_any_column(str(name), list(values)) for name, values in table.items()])
    if isinstance(table, Iterable) and not isinstance(table, (str, bytes)):
        rows = list(table)
        if all(isinstance(row, Mapping) for row in rows):
            return records_frame(rows, (), ())
    raise DataError(
        f"{where}: {type(table).__name__} is no table; give a frame of Polars or pandas, or a list of mappings"
    )


def _pandas_column(name: str, column: Any) -> pl.Series:
    """Return a column of pandas."""
    if column.dtype == object:
        if any(isinstance(value, uuid.UUID) for value in column):  # Arrow would take their bytes
            return pl.Series(name, [value_text(value) for value in column.tolist()], dtype=pl.String)
        first = next((value for value in column if not is_missing(value)), None)
        exact = _exact_times(name, column.tolist()) if isinstance(first, (datetime.datetime, np.datetime64)) else None
        if exact is not None:
            return exact
    try:
        return pl.Series(name, pl.from_pandas(column, nan_to_null=True))
    except (TypeError, ValueError, NotImplementedError, pl.exceptions.PolarsError):  # as pyarrow's errors are
        return pl.Series(name, [value_text(value) for value in column.tolist()], dtype=pl.String)
