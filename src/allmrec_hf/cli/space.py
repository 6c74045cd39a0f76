"""`allmrec space`: a page on which people try a checkpoint, here or as a Space of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .loading import (
    GgufFileOption,
    LlmOption,
    OtherLlmOption,
    TextEncoderOption,
    TrustOption,
    load_pipeline,
    named_llm,
)
from .options import ConfigOption, say, stderr, user_errors


def space(
    model: Annotated[str, typer.Option(help="Run folder or Hub id; `demo` is the one of this package.")] = "demo",
    compare: Annotated[
        str | None, typer.Option(help="A second checkpoint, likewise, to be put beside the first.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Serve nothing, and write the folder of a Space: app.py, requirements.txt, README.md. Models are then "
            "named by their Hub ids.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    text_encoder: TextEncoderOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    config: ConfigOption = None,
) -> None:
    """Serve a page on which people try a checkpoint; `pip install 'allmrec-hf[space]'`.

    **Examples**

    `allmrec space --model demo`

    `allmrec space --model runs/games --compare runs/games-large`

    `allmrec space --model org/a-llmrec-games --output space`
    """
    with user_errors():
        from ..errors import ALLMRecError
        from ..space.run_page import DEFAULT_TITLE, run_page
        from ..space.space_folder import write_space

        names = [model] if compare is None else [model, compare]
        if output is not None:
            if any((llm, gguf_file, text_encoder, allow_other_llm, trust_remote_code)):
                raise ALLMRecError(
                    "--output writes a page of what the repositories hold; --llm, --text-encoder and code of others "
                    "are for serving here"
                )
            written = write_space(output, names, title)
            say(f"wrote {', '.join(written)} to {output}")
            say(f"publish it: hf upload NAME/SPACE {output} . --repo-type space")
            return
        if compare is not None and (llm is not None or text_encoder is not None):
            raise ALLMRecError("--llm and --text-encoder are of one model; with two each has its own in its folder")
        named = named_llm(llm, gguf_file)
        run_page(
            names,
            lambda name: load_pipeline(name, named, text_encoder, trust_remote_code, allow_other_llm),
            title or DEFAULT_TITLE,
            host=host,
            port=port,
            started=lambda address: stderr.print(f"The page is at {address} (Ctrl+C ends it)", markup=False),
        )
