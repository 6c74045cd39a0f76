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

Format = Literal["onnx", "openvino", "faiss", "usearch", "pgvector", "vllm"]
Prompts = Literal["letter", "generate"]


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
    no_text_encoder: Annotated[
        bool,
        typer.Option("--no-text-encoder", help="Of onnx and openvino: leave out the text encoder and new items."),
    ] = False,
    prompts: Annotated[
        Prompts, typer.Option(help="Of vllm: prompts that ask for a candidate's letter, or for a title.")
    ] = "letter",
    num_candidates: Annotated[
        int, typer.Option(min=1, help="Of vllm: candidates that are retrieved where the users bring none.")
    ] = 20,
    num_permutations: Annotated[
        int, typer.Option(min=1, help="Of vllm with letters: prompts of a user, the candidates in other orders.")
    ] = 1,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Write a checkpoint for another runtime: graphs, item vectors, or prompts.

    `onnx` and `openvino` are graphs of the backbone, of new items' texts and of the ranker retrieval's items; `faiss`,
    `usearch` and `pgvector` hold item vectors; `vllm` the prompts as vectors (safetensors).

    What the written files rank is compared with what this package ranks, on real users: below a mean top-10 overlap of
    0.99 the export is refused with the number, and nothing is written.

    **Examples**

    `allmrec export --model demo --format onnx --output exports/onnx`

    `allmrec export --model demo --format faiss --output exports/faiss`

    `allmrec export --model runs/games --data data/games --format pgvector --output exports/sql`
    """
    with user_errors():
        from ..data.storage import check_output
        from ..exporting.export_checkpoint import ExportOptions, check_format, export_model, load_for_export
        from ..exporting.export_record import RECORD_FILE
        from ..exporting.export_users import export_users

        check_format(format)
        check_output(output, overwrite, RECORD_FILE)
        options = ExportOptions(tuple(ranker or ()), not no_text_encoder, prompts, num_candidates, num_permutations)
        given = {
            "text_encoder": text_encoder,
            "trust_remote_code": trust_remote_code,
            "allow_other_llm": allow_other_llm,
        }
        with checkpoint_of_all_stages(model) as path:
            loaded, processor = load_for_export(path, format, options.rankers, named_llm(llm, gguf_file), **given)
        found = export_users(processor.catalog, path, users, data, max_users)
        record = export_model(loaded, processor, format, output, found, overwrite, options)
        if json_output:
            emit(record)
            return
        for part in record["parts"]:
            gate = part["gate"]
            say(f"{part['name']:<14} top-{gate['top_k']} overlap {gate['overlap']:.4f} on {gate['users']} users")
        say(f"The export is in {output}; export.json says what its files are")
