"""`allmrec serve`: answer requests over HTTP, or as the tools of an assistant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .loading import (
    GgufFileOption,
    LlmOption,
    OtherLlmOption,
    TextEncoderOption,
    TrustOption,
    load_pipeline,
    located_checkpoint,
    named_llm,
)
from .options import ConfigOption, user_errors

DEFAULT_NAME = "default"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Run folder, Hub id or `demo`; NAME=FOLDER for several, the first answers where none is named."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Be the tools of an assistant on standard input and output, in place of HTTP.")
    ] = False,
    state: Annotated[
        Path, typer.Option(help="Folder of added items and stored histories, one for each service.")
    ] = Path("allmrec-state"),
    store: Annotated[
        str | None, typer.Option(help="Store of user histories: sqlite (in --state), or redis://HOST:PORT/0.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Tokens for reading, one a line; chmod 600.")] = None,
    write_token_file: Annotated[
        Path | None, typer.Option(help="Tokens for writing (items, events, reloads), which may read as well.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Listen to other machines without tokens; something else checks them.")
    ] = False,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Estimated tokens that the LLM reads in one batch; one request may be more.")
    ] = 8192,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that a request waits for others to join its batch.")
    ] = 5.0,
    queue_size: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come back.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request is given up.")] = 30.0,
    max_body_kb: Annotated[int, typer.Option(min=1, help="Size of a request, in kB.")] = 1024,
    log_histories: Annotated[
        bool, typer.Option("--log-histories", help="Put what is asked, and so histories, into the log.")
    ] = False,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    config: ConfigOption = None,
) -> None:
    """Serve models over HTTP; `pip install 'allmrec-hf[serve]'`. The log is JSON on standard error.

    **Examples**

    `allmrec serve --model demo`

    `allmrec serve --model games=runs/games --model books=org/a-llmrec-books --host 0.0.0.0 --token-file tokens`

    `allmrec serve --model runs/games --mcp`
    """
    with user_errors():
        from ..errors import ALLMRecError

        try:
            from ..serving.http_server import ModelSource, ServiceSettings, serve_http
            from ..serving.micro_batches import QueueSettings
            from ..serving.service_log import setup_service_log
        except ImportError as error:
            raise ALLMRecError(f"serving needs the package {error.name}: pip install 'allmrec-hf[serve]'") from error
        sources = named_sources(model)
        if len(sources) > 1 and (llm is not None or text_encoder is not None):
            raise ALLMRecError("--llm and --text-encoder are of one model; with several each has its own in its folder")
        named = named_llm(llm, gguf_file)

        def loader(source: str) -> Any:
            return lambda: load_pipeline(source, named, text_encoder, trust_remote_code, allow_other_llm)

        models = {name: ModelSource(located_checkpoint(source), loader(source)) for name, source in sources.items()}
        settings = ServiceSettings(
            host,
            port,
            state,
            store,
            token_file,
            write_token_file,
            anonymous,
            QueueSettings(batch_tokens, batch_wait_ms / 1000, queue_size, timeout),
            max_body_kb * 1024,
            log_histories,
        )
        setup_service_log(log_histories)
        if mcp:
            from ..serving.mcp_tools import serve_mcp

            serve_mcp(models, settings)
        else:
            serve_http(models, settings)


def named_sources(given: list[str] | None) -> dict[str, str]:
    """Return names and sources from the values of `--model`: `NAME=FOLDER`, or a folder, which is called `default`.

    Raises:
        ALLMRecError: when two have one name.
    """
    from ..errors import ALLMRecError

    found: dict[str, str] = {}
    for value in given or ["demo"]:
        name, sep, source = value.partition("=")
        if not sep or Path(value).exists():
            name, source = DEFAULT_NAME, value
        if name in found:
            raise ALLMRecError(f"two models are called {name!r}; name them with --model NAME=FOLDER")
        if not source:
            raise ALLMRecError(f"--model {value} names no folder; it is NAME=FOLDER or a folder")
        found[name] = source
    return found
