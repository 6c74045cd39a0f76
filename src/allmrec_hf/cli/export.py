"""`allmrec export`: write a checkpoint's parts for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .loading import (
    GgufFileOption,
    LlmOption,
    ModelOption,
    OtherLlmOption,
    TextEncoderOption,
    TrustOption,
    checkpoint_of_all_stages,
    named_llm,
)
from .options import ConfigOption, JsonOption, emit, say, user_errors

Format = Literal["faiss", "usearch", "pgvector"]


def export(
    format: Annotated[Format, typer.Option(help="What the files are for.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = None,
    users: Annotated[
        Path | None,
        typer.Option(
            help="Real users on whom the files are checked: parquet, or JSON lines, with history or titles. Without "
            "--users and --data the run's own folder data, or the demo's world."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared data whose test users they are, instead.")] = None,
    max_users: Annotated[int, typer.Option(min=1, help="Users at most.")] = 1000,
    ranker: Annotated[
        list[str] | None,
        typer.Option(help="Export this ranker alone, cf or retrieval; repeat. All that there are if not given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Write a checkpoint's item vectors for FAISS, usearch or PostgreSQL.

    What the written files rank is compared with what this package ranks, on real users: below a mean top-10 overlap of
    0.99 the export is refused with the number, and nothing is written.

    **Examples**

    `allmrec export --model demo --format faiss --output exports/faiss`

    `allmrec export --model runs/games --data data/games --format pgvector --output exports/sql`
    """
    with user_errors():
        from ..data.storage import check_output
        from ..exporting.export_checkpoint import check_format, export_model, load_for_export
        from ..exporting.export_record import RECORD_FILE
        from ..exporting.export_users import export_users

        check_format(format)
        check_output(output, overwrite, RECORD_FILE)
        rankers: list[str] = list(ranker or ())
        given = {
            "text_encoder": text_encoder,
            "trust_remote_code": trust_remote_code,
            "allow_other_llm": allow_other_llm,
        }
        with checkpoint_of_all_stages(model) as path:
            loaded, processor = load_for_export(path, format, rankers, named_llm(llm, gguf_file), **given)
        found = export_users(processor.catalog, path, users, data, max_users)
        record = export_model(loaded, processor, format, output, found, rankers, overwrite)
        if json_output:
            emit(record)
            return
        for part in record["parts"]:
            gate = part["gate"]
            say(f"{part['name']:<10} top-{gate['top_k']} overlap {gate['overlap']:.4f} on {gate['users']} users")
        say(f"The export is in {output}; export.json says what its files are")
