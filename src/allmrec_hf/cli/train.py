"""`allmrec train`: the three stages, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .declared import SectionedCommand, sections_of, with_declared_options
from .import_backbone import import_users_module
from .loading import TrustOption
from .options import ConfigOption, JsonOption, emit, say, user_errors

__all__ = ["SectionedCommand", "train"]


@with_declared_options
def train(
    data: Annotated[Path, typer.Option(help="Folder of `allmrec prepare`.")],
    output: Annotated[Path, typer.Option(help="Run folder; it becomes a loadable checkpoint.")],
    stage: Annotated[
        Literal["backbone", "align", "project", "retrieve", "rank", "all"],
        typer.Option(help="One stage, or all that the rankers need, in order."),
    ] = "all",
    preset: Annotated[
        Literal["default", "paper", "quick"],
        typer.Option(help="`default`: strongest; `paper`: as published; `quick`: minutes on two cores."),
    ] = "default",
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run in the output folder.")] = False,
    train_share: Annotated[
        float | None, typer.Option(help="Train on this share of the users, drawn with seed 0; the same items.")
    ] = None,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
    **options: Any,
) -> None:
    """Train the backbone, the alignment and the projection; the LLM stays frozen.

    An option that is not given has the preset's value. `--config FILE` takes a YAML file with the sections `data`,
    `backbone`, `align`, `project`, `retrieve`, `rank` and `llm`.

    **Examples**

    `allmrec train --data data/games --backbone sasrec --llm facebook/opt-1.3b --output runs/games`

    `allmrec train --data data/games --stage backbone --preset quick --output runs/backbone`

    `allmrec train --data data/games --llm facebook/opt-1.3b --output runs/games --resume`

    `allmrec train --data data/games --backbone runs/backbone/backbone --llm facebook/opt-1.3b --output runs/games`

    `allmrec train --data data/games --llm facebook/opt-1.3b --output runs/games --project.learning-rate 1e-4`

    `allmrec train --data data/games --llm facebook/opt-1.3b --output runs/games --rankers retrieval,fusion`
    """
    with user_errors():
        from ..data.prepared import PreparedData
        from ..evaluation.scenarios import scenario
        from ..evaluation.shares import leave
        from ..training.arguments import ALLMRecTrainingArguments
        from ..training.devices import process_state
        from ..training.stage_arguments import RUN_WIDE
        from ..training.trainer import ALLMRecTrainer

        sections = sections_of(options)
        if sections["backbone"].get("module") is not None:
            import_users_module(sections["backbone"]["module"])
        run_wide = {name: options[name] for name in RUN_WIDE}
        values: dict[str, Any] = {**sections, **run_wide}
        args = ALLMRecTrainingArguments(output, preset, **values)
        stages = args.rank.steps() if stage == "all" else (stage,)
        _check_together(args, stages)
        share = None if train_share is None else scenario("share", share=train_share)
        prepared = PreparedData.load(data)
        prepared = prepared if share is None else share.split(prepared).training
        trainer = ALLMRecTrainer(args=args, data=prepared, trust_remote_code=trust_remote_code)
        trainer.train(stages, resume_from_checkpoint=resume)
        state = process_state()
        leave()
        if not state.is_main_process:
            return
        if json_output:
            emit({"output": str(output), "stages": list(stages)})
        else:
            say(f"Trained {', '.join(stages)}. The checkpoint is in {output}.")


def _check_together(args: Any, stages: tuple[str, ...]) -> None:
    """Check options that cannot work together, before the data are read."""
    from importlib.util import find_spec

    from ..errors import ALLMRecError
    from ..training.devices import check_possible_here

    with_llm = [stage for stage in stages if stage in ("project", "retrieve")]
    if with_llm:
        if args.llm.name is None:
            raise ALLMRecError(
                f"stage {with_llm[0]} needs an LLM: --llm ID_OR_PATH, such as facebook/opt-1.3b; without one give "
                "--stage backbone or --stage align"
            )
        args.project.template("item")  # which domain does not matter to the slots
    elif args.llm.include_llm and "rank" not in stages:
        raise ALLMRecError("--include-llm saves the LLM that stage project trains with; it needs that stage")
    if args.backbone.trained is not None and args.backbone.options:
        raise ALLMRecError(
            f"the backbone of --backbone {args.backbone.name} has its own config; leave out "
            f"{sorted(args.backbone.options)} (--backbone.options)"
        )
    if args.backbone.trained is None and args.backbone.missing_items != "refuse":
        raise ALLMRecError(
            "--backbone.missing-items says what happens to items that a trained backbone lacks; --backbone names none"
        )
    if args.llm.load_in_8bit and find_spec("bitsandbytes") is None:
        raise ALLMRecError("--llm.load-in-8bit needs bitsandbytes: pip install 'allmrec-hf[quantization]'")
    for section, name, needs, wanted in (
        ("project", "projector_tokens", "projector", "resampler"),
        ("align", "matching_temperature", "matching_loss", "infonce"),
        ("project", "listwise_temperature", "projection_loss", "listwise"),
    ):
        if name in args.given[section] and getattr(getattr(args, section), needs) != wanted:
            flag, other = name.replace("_", "-"), needs.replace("_", "-")
            raise ALLMRecError(f"--{section}.{flag} is for --{section}.{other} {wanted}, which is not given")
    of_fusion = [name for name in ("cold_weight", "fusion_parts", "num_candidates") if name in args.given["rank"]]
    if of_fusion and "rank" not in stages:
        raise ALLMRecError(
            f"--rank.{of_fusion[0].replace('_', '-')} is for the ranker fusion, which is not trained here; name it in "
            "--rankers, or give --stage rank"
        )
    for stage in (stage for stage in stages if stage in args.stages):
        steps = args.stages[stage]
        least, most = steps.min_steps, steps.max_steps
        if "min_steps" in args.given[stage] and least is not None and most is not None and least > most:
            raise ALLMRecError(
                f"--{stage}.min-steps {least} is above --{stage}.max-steps {most}; give one, or other values"
            )
        check_possible_here(steps)
