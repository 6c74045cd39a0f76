"""`allmrec refit`: a finished run trained again on more interactions, to ship it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .loading import TrustOption
from .options import ConfigOption, JsonOption, emit, say, user_errors


def refit(
    run: Annotated[Path, typer.Option(help="A finished run folder of `allmrec train`.")],
    data: Annotated[Path, typer.Option(help="The data that it was trained on.")],
    output: Annotated[Path, typer.Option(help="The new run folder; it becomes a loadable checkpoint.")],
    on: Annotated[
        Literal["train+validation", "all"],
        typer.Option(help="`all` interactions, to ship it; `train+validation`, to measure that on test users."),
    ] = "all",
    llm: Annotated[str | None, typer.Option(help="Where the run's LLM lies now, if it was moved.")] = None,
    text_encoder: Annotated[str | None, typer.Option(help="The same of its text encoder.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted refit in the output folder.")] = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Train a finished run again on more interactions, with what its validation chose.

    Each stage is trained from its beginning, for as long as its best validation was late; depth, weights of the fusion
    and default ranker are taken over. The figures to quote are those of the first run.

    **Example**

    `allmrec refit --run runs/games --data data/games --output runs/games-all`
    """
    with user_errors():
        from ..data.prepared import PreparedData
        from ..evaluation.shares import leave
        from ..training.arguments import ALLMRecTrainingArguments
        from ..training.devices import process_state
        from ..training.trainer import ALLMRecTrainer

        first = ALLMRecTrainer(
            llm,
            args=ALLMRecTrainingArguments(run),
            data=PreparedData.load(data),
            text_encoder=text_encoder,
            trust_remote_code=trust_remote_code,
        )
        again = first.refit(output, on, resume_from_checkpoint=resume)
        state = process_state()
        leave()
        if not state.is_main_process:
            return
        known = {"train+validation": "train and validation", "all": "all interactions"}[on]
        if json_output:
            emit({"output": str(output), "on": on, "in_training": again.data.in_training})
        else:
            say(f"Trained {run} again on {known}. The checkpoint is in {output}.")
