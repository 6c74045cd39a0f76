"""Readers of raw interactions and items; a new source is a new file here and one line in `READERS`."""

from __future__ import annotations

from .amazon_2018 import read_amazon_2018
from .amazon_2023 import read_amazon_2023
from .base import PathLike, Quotes, RawData, Reader, TextFormat
from .frames import is_frame, read_frames
from .hub import read_hub
from .movielens import read_movielens
from .table_files import read_tables

READERS: dict[str, Reader] = {
    "table": read_tables,
    "amazon-2014": read_amazon_2018,
    "amazon-2018": read_amazon_2018,
    "amazon-2023": read_amazon_2023,
    "movielens": read_movielens,
    "hub": read_hub,
    "frames": read_frames,
}

__all__ = [
    "READERS",
    "PathLike",
    "Quotes",
    "RawData",
    "Reader",
    "TextFormat",
    "is_frame",
    "read_amazon_2018",
    "read_amazon_2023",
    "read_frames",
    "read_hub",
    "read_movielens",
    "read_tables",
]
