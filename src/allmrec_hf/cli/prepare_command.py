"""`allmrec prepare`: prepare data from raw files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import ColumnOption, ConfigOption, JsonOption, SeedOption, column_map, emit, say, user_errors

Source = Literal["table", "amazon-2014", "amazon-2018", "amazon-2023", "movielens", "hub"]
Filter = Literal["k-core", "a-llmrec", "none"]
Quotes = Literal["auto", "csv", "none"]
Order = Literal["time", "file"]
Repeats = Literal["keep", "first", "last"]
KeepItems = Literal["interacted", "all"]
SplitKind = Literal["leave-one-out", "time"]


DelimiterOption = Annotated[
    str | None, typer.Option(help="Between fields of text tables: `;`, `::`, tab, ...; told from the files.")
]
EncodingOption = Annotated[
    str | None, typer.Option(help="Of text files, e.g. latin-1, cp1252, utf-16; UTF-8 by default.")
]
HeaderOption = Annotated[
    bool, typer.Option(help="Whether text tables begin with names; without: --column item_id=0 (from 0).")
]
QuotesOption = Annotated[
    Quotes, typer.Option(help="Quotation marks enclose fields (csv) or are text (none); auto: text in TSV.")
]


def prepare(
    interactions: Annotated[str, typer.Option(help="File of interactions, MovieLens folder, or Hub data set id.")],
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    items: Annotated[
        str | None, typer.Option(help="File or Hub data set of items: item_id, title, description.")
    ] = None,
    source: Annotated[Source, typer.Option(help="Layout of the files.")] = "table",
    k_core: Annotated[int, typer.Option(min=1, help="Least interactions of a user and of an item.")] = 5,
    filter: Annotated[Filter, typer.Option(help="Iterative k-core, the paper's one pass, or none.")] = "k-core",
    count_min_rating: Annotated[
        float | None, typer.Option(help="With a-llmrec: lower ratings do not count towards k (beauty, toys: 3).")
    ] = None,
    min_rating: Annotated[
        float | None, typer.Option(help="Leave out interactions with a lower rating, or none, before all else.")
    ] = None,
    repeats: Annotated[
        Repeats, typer.Option(help="Of several interactions of a user with an item keep all, the first or the last.")
    ] = "keep",
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates/--keep-duplicates", help="Rows equal in user, item, time and rating.")
    ] = True,
    order: Annotated[
        Order, typer.Option(help="By timestamp; `file`, for data without times: rows are in order of time.")
    ] = "time",
    time_format: Annotated[
        str | None, typer.Option(help="Of times written as text, e.g. '%d/%m/%Y %H:%M'; ISO dates need none.")
    ] = None,
    split: Annotated[
        SplitKind, typer.Option(help="Each user's last items held out, or `time`: train before a date, test after it.")
    ] = "leave-one-out",
    test_from: Annotated[
        str | None,
        typer.Option(help="With time: a date, a share (the latest), or a time as in the data. [default: 0.1]"),
    ] = None,
    validation_from: Annotated[
        str | None, typer.Option(help="The same, up to the test; by default as many interactions as the test has.")
    ] = None,
    keep_items: Annotated[
        KeepItems, typer.Option(help="Also keep items nobody interacted with: `all`.")
    ] = "interacted",
    column: ColumnOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the data in reports; the file's by default.")] = None,
    domain: Annotated[
        str | None, typer.Option(help="What an item is called in the prompt: movie, game, book, ...")
    ] = None,
    verbs: Annotated[
        str | None, typer.Option(help="What a user does and has done with it: read,read. Bought, if not known.")
    ] = None,
    num_candidates: Annotated[int, typer.Option(min=2, help="Candidates in a set, target included.")] = 20,
    seed: SeedOption = 0,
    max_bad_lines: Annotated[
        float, typer.Option(min=0, max=1, help="Share of lines that may be broken: no JSON, or ragged.")
    ] = 0.01,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = True,
    items_header: Annotated[
        bool | None, typer.Option(help="The same of the items' file, where it differs.", show_default=False)
    ] = None,
    quotes: QuotesOption = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace prepared data in the output folder.")] = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Turn raw interactions and items into prepared data: filtered, split, with a seeded candidate file.

    **Examples**

    `allmrec prepare --interactions sales.csv --items catalogue.csv --output data/shop`

    `allmrec prepare --source amazon-2018 --interactions reviews.json.gz --items meta.json.gz --output data/games`

    `allmrec prepare --interactions log.parquet --items items.parquet --column user_id=customer --output data/shop`

    `allmrec prepare --interactions u.tsv --no-header --column user_id=0 --column item_id=1 --order file --output out`

    `allmrec prepare --interactions ratings.csv --min-rating 4 --time-format '%d/%m/%Y' --output data/liked`

    `allmrec prepare --interactions sales.csv --split time --test-from 2024-01-01 --output data/shop`
    """
    with user_errors():
        from ..data.data_report import format_report
        from ..data.prepare import prepare as run

        data = run(
            interactions,
            items,
            output=output,
            source=source,
            k_core=k_core,
            filter=filter,
            count_min_rating=count_min_rating,
            keep_items=keep_items,
            name=name,
            domain=domain,
            verbs=None if verbs is None else tuple(verbs.split(",")),  # type: ignore[arg-type]
            seed=seed,
            num_candidates=num_candidates,
            columns=column_map(column),
            max_bad_lines=max_bad_lines,
            overwrite=overwrite,
            delimiter=delimiter,
            encoding=encoding,
            header=header,
            items_header=items_header,
            quotes=quotes,
            drop_duplicates=drop_duplicates,
            min_rating=min_rating,
            repeats=repeats,
            order=order,
            time_format=time_format,
            split=split,
            test_from=test_from,
            validation_from=validation_from,
        )
        emit(data.info) if json_output else say(f"{format_report(data.info)}\n\nPrepared data are in {output}.")
