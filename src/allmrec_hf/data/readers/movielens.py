"""The files of MovieLens in their three layouts: 100K (`u.data`), 1M and 10M (`ratings.dat`), and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ...errors import DataError
from ..interactions import validate_interactions, validate_items
from ..times import BY_TIME, TimeRules
from .amazon_2018 import check_fixed_format, check_no_column_map
from .base import AS_FOUND, PathLike, RawData, TextFormat, existing_file, read_all
from .delimited import read_delimited
from .encoding import UTF8, UnreadableText

LAYOUTS = (("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


def read_movielens(
    interactions: PathLike,
    items: PathLike | None,
    columns: Mapping[str, str],
    max_bad_lines: float,
    text: TextFormat = AS_FOUND,
    rules: TimeRules = BY_TIME,
) -> RawData:
    """Read a MovieLens folder, or its file of ratings and its file of movies.

    The layout is detected from the first line, so files may be renamed. Without `items`, the file of movies beside the
    ratings is read. Genres become the column `category`, joined by `|`.

    Args:
        interactions: The unpacked folder, or the file of ratings.
        items: The file of movies, or None.
        columns: Must be empty: the layouts are fixed.
        max_bad_lines: The share of lines of CSV files that may have another number of fields.
        text: Only the encoding may be given; by default UTF-8, and Latin-1 where a file is no UTF-8.
        rules: How the order of interactions is determined.

    Raises:
        DataError: when a file is missing or of another layout.
    """
    check_no_column_map(columns, "movielens")
    check_fixed_format(text, "movielens")
    ratings, movies = _find_files(Path(interactions), items)
    rows = validate_interactions(_read_ratings(ratings, text.encoding, max_bad_lines), str(ratings), rules)
    if movies is None:
        return RawData(rows, None, ratings.parent.name or "movielens")
    catalog, merged = validate_items(_read_movies(movies, text.encoding, max_bad_lines), str(movies), "merge")
    return RawData(rows, catalog, ratings.parent.name or "movielens", 0, merged)


def _find_files(interactions: Path, items: PathLike | None) -> tuple[Path, Path | None]:
    """Return the files of ratings and movies."""
    if not interactions.is_dir():
        beside = [interactions.with_name(movies) for ratings, movies in LAYOUTS if interactions.name == ratings]
        movies = Path(items) if items is not None else next((path for path in beside if path.is_file()), None)
        return existing_file(interactions), None if movies is None else existing_file(movies)
    for ratings, movies_name in LAYOUTS:
        if (interactions / ratings).is_file():
            movies = Path(items) if items is not None else interactions / movies_name
            return interactions / ratings, existing_file(movies)
    raise DataError(f"{interactions} holds no ratings of MovieLens; expected one of {[pair[0] for pair in LAYOUTS]}")


def _read_ratings(path: Path, encoding: str | None, max_bad_lines: float) -> pl.DataFrame:
    """Return the ratings of any layout."""
    encoding = encoding or _encoding(path)
    content = read_all(path, encoding).decode()
    first = content[: content.find("\n")]
    if "::" in first:
        return _split_lines(content, "::", COLUMNS, path)
    if "\t" in first:
        return _split_lines(content, "\t", COLUMNS, path)
    if first.lower().startswith("userid"):
        return _csv(path, encoding, max_bad_lines).rename({"userId": "user_id", "movieId": "item_id"}, strict=False)
    raise DataError(f"{path}: {first[:80]!r} begins no file of ratings of MovieLens (u.data, ratings.dat, ratings.csv)")


def _read_movies(path: Path, encoding: str | None, max_bad_lines: float) -> pl.DataFrame:
    """Return the movies of any layout, genres as `category`."""
    encoding = encoding or _encoding(path)
    content = read_all(path, encoding).decode()
    first = content[: content.find("\n")]
    if "::" in first:
        return _split_lines(content, "::", ("item_id", "title", "category"), path)
    if first.lower().startswith("movieid"):
        return _csv(path, encoding, max_bad_lines).rename({"movieId": "item_id", "genres": "category"}, strict=False)
    if first.count("|") >= len(GENRES) + 4:
        names = ("item_id", "title", "release_date", "video_date", "url", *GENRES)
        movies = _split_lines(content, "|", names, path)
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
        category = pl.concat_str(flagged, separator="|", ignore_nulls=True).alias("category")
        return movies.select("item_id", "title", "release_date", category)
    raise DataError(f"{path}: {first[:80]!r} begins no file of movies of MovieLens (u.item, movies.dat, movies.csv)")


def _encoding(path: Path) -> str:
    """Return UTF-8, the encoding of the CSV layout, or Latin-1, that of the older ones, where a file is no UTF-8."""
    try:
        read_all(path)
    except UnreadableText:
        return "latin-1"
    return UTF8


def _split_lines(content: str, separator: str, names: tuple[str, ...], path: Path) -> pl.DataFrame:
    """Return the fields of lines that a separator of any length divides."""
    lines = pl.Series("line", content.rstrip("\n").split("\n"))
    parts = lines.str.split(separator)
    wrong = parts.list.len() != len(names)
    if wrong.any():
        number = (wrong.arg_max() or 0) + 1
        raise DataError(
            f"{path}: {int(wrong.sum())} of {len(lines)} lines have not the {len(names)} fields of this layout, first "
            f"line {number}: {lines[number - 1][:80]!r}; download the file again"
        )
    return parts.list.to_struct(fields=list(names)).struct.unnest()


def _csv(path: Path, encoding: str, max_bad_lines: float) -> pl.DataFrame:
    """Return a CSV file's columns as text."""
    text = TextFormat(delimiter=",", encoding=encoding)
    return read_delimited(path, ".csv", text, max_bad_lines, lambda names: {name: name for name in names})[0]
