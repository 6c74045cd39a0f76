"""`allmrec prepare`: raw files to prepared data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import ColumnOption, ConfigOption, JsonOption, column_map, emit, say, user_errors


class Source(str, Enum):
    """Where the data come from."""

    table = "table"
    amazon_2018 = "amazon-2018"
    amazon_2023 = "amazon-2023"
    movielens = "movielens"
    hub = "hub"


class Filter(str, Enum):
    """How users and items with few interactions are dropped."""

    k_core = "k-core"
    a_llmrec = "a-llmrec"
    none = "none"


class KeepItems(str, Enum):
    """Which items of the metadata stay."""

    interacted = "interacted"
    all = "all"


def prepare(
    interactions: Annotated[str, typer.Option(help="File of interactions, MovieLens folder, or Hub data set id.")],
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    items: Annotated[
        str | None, typer.Option(help="File or Hub data set of items: item_id, title, description.")
    ] = None,
    source: Annotated[Source, typer.Option(help="Layout of the files.")] = Source.table,
    k_core: Annotated[int, typer.Option(help="Least interactions of a user and of an item.")] = 5,
    filter: Annotated[Filter, typer.Option(help="Iterative k-core, the paper's one pass, or none.")] = Filter.k_core,
    count_min_rating: Annotated[
        float | None, typer.Option(help="With a-llmrec: lower ratings do not count towards k (beauty, toys: 3).")
    ] = None,
    keep_items: Annotated[
        KeepItems, typer.Option(help="Also keep items nobody interacted with: `all`.")
    ] = KeepItems.interacted,
    column: ColumnOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the data in reports; the file's by default.")] = None,
    domain: Annotated[str | None, typer.Option(help="movie, game or item: the words of the prompt.")] = None,
    num_candidates: Annotated[int, typer.Option(help="Candidates in a set, target included.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the candidates.")] = 0,
    max_bad_lines: Annotated[float, typer.Option(help="Share of JSON lines that may be broken.")] = 0.01,
    overwrite: Annotated[bool, typer.Option(help="Replace prepared data in the output folder.")] = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Turn raw interactions and items into prepared data: filtered, split, with a seeded candidate file.

    **Examples**

    `allmrec prepare --interactions sales.csv --items catalogue.csv --output data/shop`

    `allmrec prepare --source amazon-2018 --interactions reviews.json.gz --items meta.json.gz --output data/games`

    `allmrec prepare --interactions log.parquet --items items.parquet --column user_id=customer --output data/shop`
    """
    with user_errors():
        from ..data.prepare import prepare as run
        from ..data.report import format_report

        data = run(
            interactions,
            items,
            output=output,
            source=source.value,
            k_core=k_core,
            filter=filter.value,
            count_min_rating=count_min_rating,
            keep_items=keep_items.value,
            name=name,
            domain=domain,
            seed=seed,
            num_candidates=num_candidates,
            columns=column_map(column),
            max_bad_lines=max_bad_lines,
            overwrite=overwrite,
        )
        emit(data.info) if json_output else say(f"{format_report(data.info)}\n\nPrepared data are in {output}.")
