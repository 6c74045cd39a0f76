"""`allmrec train`: the three stages, resumable."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cf_encoder import MODEL_TYPE_PREFIX, cf_encoder_types
from .import_cf import MissingItems, import_users_module
from .loading import TrustOption
from .options import ConfigOption, JsonOption, SeedOption, emit, say, user_errors

if TYPE_CHECKING:
    from ..training.arguments import StageArguments
    from ..training.settings import RunSettings

BACKBONES = [name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types()]


class Stage(str, Enum):
    """What is trained."""

    cf = "cf"
    align = "align"
    project = "project"
    all = "all"


class Preset(str, Enum):
    """Bundles of settings."""

    default = "default"
    paper = "paper"
    quick = "quick"


class Positions(str, Enum):
    """Which positions of a sequence stage 1 trains on."""

    last = "last"
    all = "all"


class Targets(str, Enum):
    """Whose items stage 2 learns to name."""

    validation = "validation"
    train = "train"


class Loss(str, Enum):
    """The loss of stage 2."""

    lm = "lm"
    listwise = "listwise"


class ItemEmbedding(str, Enum):
    """Which joint embedding stands for an item."""

    auto = "auto"
    cf = "cf"
    text = "text"
    random = "random"


class MatchingLoss(str, Enum):
    """How stage 1 brings both sides of an item together."""

    mse = "mse"
    infonce = "infonce"


class ProjectorKind(str, Enum):
    """What maps vectors into the LLM."""

    mlp = "mlp"
    linear = "linear"
    resampler = "resampler"


class Tracker(str, Enum):
    """Where metrics go."""

    none = "none"
    tensorboard = "tensorboard"
    wandb = "wandb"


class Precision(str, Enum):
    """Mixed precision of the loop."""

    no = "no"
    fp16 = "fp16"
    bf16 = "bf16"


def train(
    data: Annotated[Path, typer.Option(help="Folder of `allmrec prepare`.")],
    output: Annotated[Path, typer.Option(help="Run folder; it becomes a loadable checkpoint.")],
    cf: Annotated[
        str | None, typer.Option(help=f"CF backbone: {', '.join(BACKBONES)}, or one of your own; sasrec by default.")
    ] = None,
    cf_checkpoint: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a trained backbone, used instead of training one.")
    ] = None,
    missing_items: Annotated[
        MissingItems, typer.Option(help="Items of the data that --cf-checkpoint lacks: refuse, or zeros (cold items).")
    ] = MissingItems.refuse,
    cf_module: Annotated[
        str | None,
        typer.Option(help="Python module with a backbone of your own, imported first; this runs its code."),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the frozen causal LM or its adapter; `demo`: the package's tiny one."),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="sentence-transformers id or folder; all-MiniLM-L6-v2 by default; `demo`: the tiny one."),
    ] = None,
    stage: Annotated[Stage, typer.Option(help="One stage, or all three in order.")] = Stage.all,
    preset: Annotated[
        Preset, typer.Option(help="`default`: strongest; `paper`: as published; `quick`: minutes on two cores.")
    ] = Preset.default,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run in the output folder.")] = False,
    seed: SeedOption = 0,
    train_share: Annotated[
        float | None, typer.Option(help="Train on this share of the users, drawn with seed 0; the same items.")
    ] = None,
    cf_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the backbone's config; repeat.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each trained stage; the preset's by default.")
    ] = None,
    min_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps that the epochs of each trained stage should come to.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each trained stage at most.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which each trained stage ends with what it has.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Users in a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of each trained stage.")] = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(min=1, help="Batches for one optimizer step.")
    ] = None,
    save_every_minutes: Annotated[
        float | None, typer.Option(help="Minutes of training between checkpoints at most; 10 in every preset.")
    ] = None,
    mixed_precision: Annotated[Precision | None, typer.Option(help="no, fp16 or bf16.")] = None,
    report_to: Annotated[Tracker, typer.Option(help="Experiment tracker.")] = Tracker.none,
    fine_tune_text_encoder: Annotated[
        bool | None, typer.Option("--fine-tune-text-encoder/--frozen-text-encoder", help="Stage 1; the preset's.")
    ] = None,
    positions: Annotated[Positions, typer.Option(help="Stage 1: last position of a user, or all.")] = Positions.last,
    joint_dim: Annotated[int, typer.Option(min=1, help="Width of the joint space.")] = 128,
    alpha: Annotated[float, typer.Option(help="Stage 1: weight of the item reconstruction.")] = 0.5,
    beta: Annotated[float, typer.Option(help="Stage 1: weight of the text reconstruction.")] = 0.5,
    matching: Annotated[float, typer.Option(help="Stage 1: weight of the matching of both sides.")] = 1.0,
    recommendation: Annotated[float, typer.Option(help="Stage 1: weight of the recommendation loss.")] = 1.0,
    matching_loss: Annotated[
        MatchingLoss, typer.Option(help="Stage 1: mse (the paper's) or infonce.")
    ] = MatchingLoss.mse,
    matching_temperature: Annotated[float, typer.Option(help="Stage 1: temperature of infonce.")] = 0.07,
    targets: Annotated[
        Targets | None, typer.Option(help="Stage 2: validation items (unseen by the backbone) or last training items.")
    ] = None,
    num_candidates: Annotated[
        int | None,
        typer.Option(min=2, help="Stage 2: candidates in a prompt; 20, or fewer where the data's sets are smaller."),
    ] = None,
    history_in_prompt: Annotated[
        int | None, typer.Option(min=1, help="Stage 2: the latest history items that a prompt names; 10 by default.")
    ] = None,
    projection_loss: Annotated[Loss | None, typer.Option(help="Stage 2: lm (the paper's) or listwise.")] = None,
    cross_reconstruction: Annotated[
        float | None, typer.Option(help="Stage 1: weight of the CF embedding decoded from text; 0 in the paper.")
    ] = None,
    warm_start_steps: Annotated[
        int | None, typer.Option(min=0, help="Stage 2: steps of the projectors' warm start; 0 in the paper.")
    ] = None,
    item_embedding: Annotated[
        ItemEmbedding | None,
        typer.Option(help="Vectors from CF, text, by rule (text where the backbone was not trained), or random."),
    ] = None,
    no_user_representation: Annotated[
        bool, typer.Option("--no-user-representation", help="Stage 2: no user vector in the prompt.")
    ] = False,
    no_joint_embedding: Annotated[
        bool, typer.Option("--no-joint-embedding", help="Stage 2: no item vectors in the prompt.")
    ] = False,
    projector: Annotated[
        ProjectorKind, typer.Option(help="Stage 2: mlp (the paper's), linear or resampler.")
    ] = ProjectorKind.mlp,
    projector_tokens: Annotated[int, typer.Option(min=1, help="Stage 2: learned queries of the resampler.")] = 8,
    dtype: Annotated[str | None, typer.Option(help="dtype of the LLM, such as bfloat16.")] = None,
    device_map: Annotated[str | None, typer.Option(help="device_map of the LLM, such as auto.")] = None,
    load_in_8bit: Annotated[bool, typer.Option(help="Quantize the LLM (extra `quantization`).")] = False,
    trust_remote_code: TrustOption = False,
    checkpoint_activations: Annotated[bool, typer.Option(help="Stage 2: less memory, more time.")] = False,
    include_llm: Annotated[bool, typer.Option(help="Save the LLM's weights too.")] = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Train the CF backbone, the alignment and the projection; the LLM stays frozen.

    **Examples**

    `allmrec train --data data/games --cf sasrec --llm facebook/opt-1.3b --output runs/games`

    `allmrec train --data data/games --stage cf --preset quick --output runs/backbone`

    `allmrec train --data data/games --llm facebook/opt-1.3b --output runs/games --resume`

    `allmrec train --data data/games --cf-checkpoint runs/backbone/cf --llm facebook/opt-1.3b --output runs/games`

    `allmrec train --data data/games --cf-module my_backbone --cf my-backbone --stage cf --output runs/mine`
    """
    with user_errors():
        from ..cf_encoder import cf_encoder_class
        from ..data.prepared import PreparedData
        from ..errors import ALLMRecError
        from ..evaluation.scenarios import scenario
        from ..training.arguments import STAGES
        from ..training.arguments import preset as stage_preset
        from ..training.devices import process_state
        from ..training.run import train as run
        from ..training.settings import DEFAULT_BACKBONE, run_settings

        if min_steps is not None and max_steps is not None and min_steps > max_steps:
            raise ALLMRecError(f"--min-steps {min_steps} is above --max-steps {max_steps}; give one, or other values")
        if cf_module is not None:
            import_users_module(cf_module)
        llm_options: dict[str, Any] = {
            name: value for name, value in (("dtype", dtype), ("device_map", device_map)) if value is not None
        }
        if load_in_8bit:
            from importlib.util import find_spec

            from transformers import BitsAndBytesConfig

            if find_spec("bitsandbytes") is None:
                raise ALLMRecError("--load-in-8bit needs bitsandbytes: pip install 'allmrec-hf[quantization]'")
            llm_options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        given: dict[str, Any] = {
            "text_encoder": text_encoder,
            "fine_tune_text_encoder": fine_tune_text_encoder,
            "targets": targets and targets.value,
            "item_embedding": item_embedding and item_embedding.value,
            "projection_loss": projection_loss and projection_loss.value,
            "cross_reconstruction": cross_reconstruction,
            "warm_start_steps": warm_start_steps,
            "history_in_prompt": history_in_prompt,
        }
        settings = run_settings(preset.value, cf)
        of_preset = {} if cf_checkpoint is not None else settings.cf_options or {}
        settings = replace(
            settings,
            cf_options={**of_preset, **_options(cf_option or [])},
            cf_checkpoint=cf_checkpoint,
            missing_items=missing_items.value,
            cf_module=cf_module,
            llm=llm,
            llm_options=llm_options,
            joint_dim=joint_dim,
            alpha=alpha,
            beta=beta,
            matching=matching,
            recommendation=recommendation,
            matching_loss=matching_loss.value,
            matching_temperature=matching_temperature,
            no_user_representation=no_user_representation,
            no_joint_embedding=no_joint_embedding,
            projector=projector.value,
            projector_tokens=projector_tokens,
            positions=positions.value,
            checkpoint_activations=checkpoint_activations,
            include_llm=include_llm,
            **{name: value for name, value in given.items() if value is not None},
        )
        stages = STAGES if stage is Stage.all else (stage.value,)
        loop: dict[str, Any] = {
            "epochs": epochs,
            "min_steps": min_steps,
            "max_steps": max_steps,
            "time_limit_s": time_limit,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "save_every_minutes": save_every_minutes,
            "mixed_precision": mixed_precision and mixed_precision.value,
        }
        loop = {name: value for name, value in loop.items() if value is not None}
        share = None if train_share is None else scenario("share", share=train_share)
        trains_cf = cf_checkpoint is None and "cf" in stages  # else the run may name the module of --cf only later
        recipe = cf_encoder_class(cf or DEFAULT_BACKBONE).training_recipe if trains_cf else {}
        arguments = {
            name: stage_preset(preset.value, name, recipe if name == "cf" else None).replaced(
                seed=seed, report_to=report_to.value, **loop
            )
            for name in STAGES
        }
        _check_together(settings, stages, arguments)
        prepared = PreparedData.load(data)
        prepared = prepared if share is None else share.split(prepared).training
        count = num_candidates or min(settings.num_candidates, int(prepared.info["num_candidates"]))
        settings = replace(settings, num_candidates=count)
        trust = trust_remote_code
        run(prepared, output, settings, stages, arguments, preset.value, resume, trust_remote_code=trust)
        state = process_state()
        if state.num_processes > 1:  # else a process that ends first may take the others' connections with it
            state.wait_for_everyone()
            state.destroy_process_group()
        if not state.is_main_process:
            return
        if json_output:
            emit({"output": str(output), "stages": list(stages)})
        else:
            say(f"Trained {', '.join(stages)}. The checkpoint is in {output}.")


def _check_together(settings: RunSettings, stages: tuple[str, ...], arguments: dict[str, StageArguments]) -> None:
    """Refuse options that cannot work together, before the data are read."""
    from ..errors import ALLMRecError
    from ..training.devices import check_possible_here
    from ..training.settings import RunSettings as Settings

    plain = Settings()
    if "project" in stages:
        if settings.llm is None:
            raise ALLMRecError(
                "stage project needs an LLM: --llm ID_OR_PATH, such as facebook/opt-1.3b; without one give --stage cf "
                "or --stage align"
            )
        settings.template("item")  # which domain does not matter to the slots
    elif settings.include_llm:
        raise ALLMRecError("--include-llm saves the LLM that stage project trains with; it needs that stage")
    if settings.cf_checkpoint is not None and settings.cf_options:
        raise ALLMRecError(
            f"the backbone of --cf-checkpoint has its own config; leave out {sorted(settings.cf_options)} (--cf-option)"
        )
    if settings.cf_checkpoint is None and settings.missing_items != plain.missing_items:
        raise ALLMRecError("--missing-items says what happens to items that --cf-checkpoint lacks; give both or none")
    for name, value, needs, wanted in (
        ("projector_tokens", settings.projector_tokens, "projector", "resampler"),
        ("matching_temperature", settings.matching_temperature, "matching_loss", "infonce"),
    ):
        if value != getattr(plain, name) and getattr(settings, needs) != wanted:
            flag, other = name.replace("_", "-"), needs.replace("_", "-")
            raise ALLMRecError(f"--{flag} is for --{other} {wanted}, which is not given")
    for stage in stages:
        check_possible_here(arguments[stage])


def _options(pairs: list[str]) -> dict[str, Any]:
    from ..errors import ALLMRecError

    options = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ALLMRecError(f"--cf-option takes NAME=VALUE, such as hidden_size=128; got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
