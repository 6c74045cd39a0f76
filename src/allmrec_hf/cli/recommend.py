"""`allmrec recommend`, `allmrec add-items` and `allmrec push`: use a trained model."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer

from ..stored_values import json_value
from .loading import (
    GgufFileOption,
    LlmOption,
    ModelOption,
    OtherLlmOption,
    TextEncoderOption,
    TrustOption,
    load_pipeline,
    located_checkpoint,
    named_llm,
)
from .many_users import (
    EngineOption,
    MaxTokensOption,
    OverwriteOption,
    RowsPerPartOption,
    UsersOption,
    WorkersOption,
    recommend_for_users,
)
from .options import (
    ColumnOption,
    ConfigOption,
    JsonOption,
    PermutationsOption,
    column_map,
    emit,
    say,
    stderr,
    user_errors,
)
from .prepare_command import DelimiterOption, EncodingOption, HeaderOption, QuotesOption

if TYPE_CHECKING:
    from ..catalog import ItemCatalog
    from ..pipeline_recommendation import RecommendationPipeline

DEMO = "demo"
logger = logging.getLogger(__name__)
UNKNOWN = "unknown_history"


OnError = Literal["raise", "return"]
TitlesOption = Annotated[
    list[str] | None,
    typer.Option(help="The history by title in place of ids, oldest first; once for each title, or commas between."),
]
CandidateTitlesOption = Annotated[list[str] | None, typer.Option(help="The candidates by title in place of ids.")]


def _split(ids: str) -> list[str]:
    return [part.strip() for part in ids.split(",") if part.strip()]


def as_titles(catalog: ItemCatalog, given: list[str] | None) -> list[str] | None:
    """Return the titles of an option that may be repeated: each one title, or several with commas between.

    A value that is a title of the catalogue, commas and all, is that title.
    """
    if not given:
        return None
    return [
        title
        for value in given
        for title in ([value] if "," not in value or catalog.find_title(value) else _split(value))
    ]


def recommend(
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, with commas between. An id is never taken for a title.")
    ] = None,
    titles: TitlesOption = None,
    model: ModelOption = None,
    candidates: Annotated[
        str | None, typer.Option(help="Ids to rank; retrieved from the catalogue if not given.")
    ] = None,
    candidate_titles: CandidateTitlesOption = None,
    requests: Annotated[
        Path | None,
        typer.Option(help="Many requests instead: a JSON object a line, with history or titles; see below."),
    ] = None,
    users: UsersOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the results of --requests here, a line each; of --users as parquet.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="A request that cannot be served stops the command, or its error is its result.")
    ] = "raise",
    top_k: Annotated[int, typer.Option(min=1, help="Items to recommend.")] = 10,
    ranker: Annotated[
        str | None, typer.Option(help="What ranks, such as fusion; the checkpoint's own choice if not given.")
    ] = None,
    num_permutations: PermutationsOption = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Requests that the LLM reads at once, with --requests or --users.")
    ] = 16,
    max_tokens_per_batch: MaxTokensOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    rows_per_part: RowsPerPartOption = 2048,
    overwrite: OverwriteOption = False,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Recommend catalogue items after a history.

    A line of --requests may hold `history` or `titles`, `candidates` or `candidate_titles`, and keys of your own, such
    as `user_id`, which its result repeats. Its result holds `recommendations`, or with --on-error return `error`.

    A row of --users may hold the same as columns. The rows of its result stand in the same order, with your own
    columns, `recommendations`, and where these are missing or items of the history are unknown a `reason`. A run that
    was killed goes on where it was when the same command is given again.

    **Examples**

    `allmrec recommend --model runs/games --history B0001,B0002,B0003`

    `allmrec recommend --model runs/games --history B0001 --candidates B0007,B0008 --json`

    `allmrec recommend --model runs/films --titles "Toy Story (1995)" --titles "Heat (1995)"`

    `allmrec recommend --model runs/games --requests users.jsonl --output found.jsonl --on-error return`

    `allmrec recommend --model runs/games --users users.parquet --output found.parquet --max-tokens-per-batch 16384`
    """
    with user_errors():
        from ..errors import DataError

        many = [name for name, given in (("--requests", requests), ("--users", users)) if given is not None]
        if len(many) > 1:
            raise DataError("--requests and --users are two forms of the same; give one of them")
        if many and (history is not None or titles or candidates is not None or candidate_titles):
            raise DataError(f"{many[0]} holds the histories and candidates of all requests; leave the others out")
        if output is not None and not many:
            raise DataError("--output is for the results of --requests or --users")
        if users is None and (engine != "local" or workers is not None or overwrite):
            raise DataError("--engine, --workers and --overwrite are for --users")
        if workers is not None and engine != "ray":
            raise DataError("--workers is for --engine ray")
        if requests is not None and not requests.is_file():
            raise DataError(f"{requests} is no file; give JSON lines, one request each")
        if not many and history is None and not titles:
            raise DataError(
                "the history is empty; give --history ID,ID,..., --titles TITLE, --requests or --users FILE"
            )
        settings: dict[str, Any] = {"top_k": top_k, "num_permutations": num_permutations, "ranker": ranker}
        settings["max_tokens_per_batch"] = max_tokens_per_batch
        if users is not None:
            loading = {"llm": named_llm(llm, gguf_file), "trust_remote_code": trust_remote_code}
            loading["allow_other_llm"] = allow_other_llm
            settings["batch_size"] = batch_size
            recommend_for_users(
                users, output, model, loading, settings, engine, workers, rows_per_part, overwrite, json_output
            )
            return
        settings["on_error"] = on_error
        if requests is not None:
            pipe = load_pipeline(model, named_llm(llm, gguf_file), None, trust_remote_code, allow_other_llm)
            _recommend_all(pipe, requests, output, batch_size, settings)
            return
        pipe = load_pipeline(model, named_llm(llm, gguf_file), None, trust_remote_code, allow_other_llm)
        catalog = pipe.processor.catalog
        request = {
            "history": None if history is None else _split(history),
            "titles": as_titles(catalog, titles),
            "candidates": None if candidates is None else _split(candidates),
            "candidate_titles": as_titles(catalog, candidate_titles),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = pipe(request, **settings)
        if isinstance(found, dict):
            emit(found) if json_output else say(f"Error: {found['error']}")
            return
        resolved = pipe.resolve(request)
        if resolved.unknown_history:
            stderr.print(
                f"not in the catalogue, left out: {', '.join(resolved.unknown_history)}", markup=False, soft_wrap=True
            )
        if json_output:
            found = [{key: value for key, value in row.items() if key != UNKNOWN} for row in found]
            emit({"recommendations": found, "unknown_history": resolved.unknown_history, "notes": resolved.notes})
            return
        from ..prompt import clean_title

        width = max(len(item["item_id"]) for item in found)
        say(f"{'rank':>4}  {'score':>8}  {'item':<{width}}  title")
        for item in found:
            say(f"{item['rank']:>4}  {item['score']:>8.3f}  {item['item_id']:<{width}}  {clean_title(item['title'])}")


def _recommend_all(
    pipe: RecommendationPipeline, requests: Path, output: Path | None, batch_size: int, settings: dict[str, Any]
) -> None:
    """Serve a file of requests, a few at a time, and write one line of JSON for each."""
    from ..files import written_whole

    counts = {"requests": 0, "errors": 0}

    def served() -> Iterator[str]:
        for result in pipe(_lines(requests, settings["on_error"]), batch_size=batch_size, **settings):
            counts["requests"] += 1
            counts["errors"] += isinstance(result, dict)
            yield json.dumps(_result_line(result)) + "\n"

    if output is None:
        for line in served():
            click.echo(line, nl=False)
    else:
        with written_whole(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(served())
    told = f"{counts['requests']} requests" + (f", {counts['errors']} of them with an error" * bool(counts["errors"]))
    stderr.print(told + (f". Written to {output}." if output else "."), markup=False, soft_wrap=True)


def _result_line(result: Any) -> dict[str, Any]:
    """Return what the line of a request holds: its own keys, then `recommendations` or `error`."""
    from ..pipeline_recommendation import RESULT_KEYS

    rows = [result] if isinstance(result, dict) else result
    own = {key: value for key, value in rows[0].items() if key not in RESULT_KEYS}
    if isinstance(result, dict):
        return {**own, "error": result["error"]}
    unknown = {key: rows[0][key] for key in (UNKNOWN,) if key in rows[0]}
    ranked = [{key: row[key] for key in RESULT_KEYS if key in row and key != UNKNOWN} for row in rows]
    return {**own, **unknown, "recommendations": ranked}


def _lines(path: Path, on_error: str) -> Iterator[Any]:
    """Yield the requests of a file of JSON lines; what is no JSON is a request that cannot be served."""
    from ..errors import DataError

    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield json_value(line)
                except ValueError as error:
                    if on_error == "raise":
                        raise DataError(f"{path}, line {number}: no JSON ({error}); give one request a line") from error
                    yield f"line {number}, which is no JSON ({error})"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a file of JSON lines in UTF-8") from error


def add_items(
    model: Annotated[str, typer.Option(help="Run folder, Hub id, or `demo`.")],
    items: Annotated[Path, typer.Option(help="CSV, parquet or JSON lines with item_id, title, description.")],
    output: Annotated[Path | None, typer.Option(help="Write the grown checkpoint here; in place by default.")] = None,
    column: ColumnOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = True,
    quotes: QuotesOption = "auto",
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Add items by their text alone, without retraining; they can then be recommended.

    **Examples**

    `allmrec add-items --model runs/games --items new.csv --output runs/games-new`

    `allmrec add-items --model runs/shop --items new.csv --column item_id=sku --column title=name`

    `allmrec add-items --model runs/shop --items new.txt --delimiter tab --encoding latin-1`
    """
    with user_errors():
        from ..data.new_items import add_items as add
        from ..data.new_items import check_empty, read_new_items
        from ..data.readers.base import TextFormat
        from ..errors import ALLMRecError

        if output is None and (model == DEMO or not Path(model).is_dir()):
            raise ALLMRecError(f"{model} is no folder that could be changed in place; give --output")
        if output is not None:
            check_empty(output)
        rows = read_new_items(items, column_map(column), TextFormat(delimiter, encoding, header, None, quotes))
        pipe = load_pipeline(model, named_llm(llm, gguf_file), text_encoder, trust_remote_code, allow_other_llm)
        target = output or Path(model)
        added = add(pipe, rows)
        pipe.save_pretrained(target)
        if json_output:
            emit({"added": added, "items": len(pipe.processor.catalog), "output": str(target)})
        else:
            say(f"Added {len(added)} items; the catalogue has {len(pipe.processor.catalog)} now. Saved to {target}.")


def push(
    model: Annotated[str, typer.Option(help="Run folder, or `demo`.")],
    repo: Annotated[str, typer.Option(help="Repository on the Hub, such as org/a-llmrec-games.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="Open a pull request in place of a commit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every file with its size, checked as for a push; send nothing.")
    ] = False,
    include_llm: Annotated[bool, typer.Option("--include-llm", help="Upload the LLM's weights too.")] = False,
    llm_id: Annotated[
        str | None, typer.Option(help="Hub id of the LLM, where the run has it from a folder: others load it there.")
    ] = None,
    include_text_encoder: Annotated[
        bool, typer.Option("--include-text-encoder", help="Upload the text encoder too, where the run has it not.")
    ] = False,
    text_encoder_id: Annotated[
        str | None, typer.Option(help="Hub id of the text encoder, where the run has it from a folder.")
    ] = None,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Upload a run folder's checkpoint to the Hub, model card included; no path of this machine goes with it.

    **Examples**

    `allmrec push --model runs/games --repo org/a-llmrec-games`

    `allmrec push --model runs/games --repo org/a-llmrec-games --dry-run`

    `allmrec push --model runs/games --repo org/a-llmrec-games --include-llm`

    `allmrec push --model runs/games --repo org/a-llmrec-games --llm-id facebook/opt-1.3b`
    """
    with user_errors():
        from ..hub.publish import planned_upload, push_checkpoint

        folder = located_checkpoint(model) if model == DEMO else model
        sharing: dict[str, Any] = {
            "include_llm": include_llm,
            "llm_id": llm_id,
            "include_text_encoder": include_text_encoder,
            "text_encoder_id": text_encoder_id,
            "llm": named_llm(llm, gguf_file),
            "text_encoder": text_encoder,
            "trust_remote_code": trust_remote_code,
        }
        if dry_run:
            files = planned_upload(folder, repo, **sharing)
            if json_output:
                emit({"repository": repo, "files": files, "bytes": sum(files.values())})
                return
            for name, size in files.items():
                say(f"{size:>15,}  {name}")
            say(f"{sum(files.values()):>15,}  bytes in {len(files)} files for {repo}; nothing was sent")
            return
        address = push_checkpoint(
            folder, repo, private=private or None, revision=revision, create_pr=pull_request, **sharing
        )
        emit({"url": address}) if json_output else say(address)
