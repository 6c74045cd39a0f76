"""Check everything that a run's later stages would fail on, before anything is trained."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig

from ..cf_encoder import MODEL_TYPE_PREFIX, CFEncoder, CFEncoderConfig, cf_config_from_dict, cf_encoder_class
from ..data.prepared import PreparedData
from ..errors import ALLMRecError, DataError
from ..language_model import check_depth, num_layers
from ..ranker_fusion import FUSIONS, WITHOUT_LLM
from ..ranker_zero_shot import ZeroShot
from .devices import check_possible_here, process_state
from .llms import check_llm
from .loop import CHECKPOINTS_FOLDER
from .pretrained_backbone import (
    backbone_type,
    check_same_backbone,
    check_same_catalog,
    fit_to_catalog,
    import_backbone_module,
    load_trained_backbone,
)
from .projection import candidate_items, candidate_samples
from .run import Run
from .run_record import (
    RUN_FILE,
    SECTIONS_OF_STAGE,
    begun_stages,
    check_same_arguments,
    check_same_data,
    with_absolute_paths,
)
from .section_arguments import SECTIONS, LLMArguments, is_backbone_name, split_names
from .stage_arguments import LOOPS, STEPS
from .trained import load_target_counts


def check_run(run: Run, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages to train; the process that writes checks them, and all raise what it finds.

    Args:
        run: The run; it takes over what its folder says of earlier stages.
        stages: The stages asked for.

    Raises:
        ALLMRecError: when something of them cannot be trained.
    """
    found: list[ALLMRecError | None] = [None]
    try:
        llm, plain = run.args.llm, LLMArguments()
        named = [name for name in run.args.given["llm"] if getattr(llm, name) != getattr(plain, name)]
        stages = _inherit(run, stages)
        if "rank" in stages and not (run.args.rank.asks_llm or _reads(run, stages)):
            _leave_out_llm(run, named)
        if run.writes:
            _check(run, stages)
    except ALLMRecError as error:
        found = [error]
    own = found[0]
    if process_state().num_processes > 1:  # none may wait for another that has given up
        broadcast_object_list(found)
    if (told := found[0] or own) is not None:
        raise told
    return stages


def _inherit(run: Run, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Take over the folder's arguments of the stages before the first one to be trained; return the stages to train."""
    unknown = set(stages) - set(STEPS)
    if unknown or not stages:
        raise ALLMRecError(f"unknown stages {sorted(unknown)}; known are {', '.join(STEPS)}, in this order")
    if run.output.exists() and not run.output.is_dir():
        raise ALLMRecError(f"the output {run.output} is a file; give a folder")
    if run.args.backbone.module is not None:
        import_backbone_module(run.args.backbone.module)
    run.args = with_absolute_paths(run.args)
    before = run.record()
    elsewhere = run.args.backbone.trained is not None or run.parts.backbone is not None
    if elsewhere and "align" in stages and not (run.output / "backbone" / "config.json").exists():
        stages = ("backbone", *(stage for stage in stages if stage != "backbone"))
    earlier = STEPS[: min(map(STEPS.index, stages))] if before else ()
    if "backbone" in earlier and "backbone" in before["arguments"] and "name" in run.args.given["backbone"]:
        name = run.args.backbone.name
        kind = name if is_backbone_name(name) else None
        recorded = before["arguments"]["backbone"]["name"]
        check_same_backbone(run.output, recorded, before.get("model_type"), name, kind)
    taken: dict[str, Any] = {}
    for stage in earlier:
        for section in SECTIONS_OF_STAGE[stage]:
            recorded = before["arguments"].get(section)
            if recorded is None or (section == "llm" and not (recorded["name"] or recorded["include_llm"])):
                continue  # not trained, or without an LLM so far
            taken[section] = SECTIONS[section](**recorded)
    run.args = run.args.replaced(**taken)
    if run.args.backbone.module is not None:
        import_backbone_module(run.args.backbone.module)
    run.model_type = _model_type(run, before)
    if "num_candidates" not in run.args.given["project"]:
        most = int(run.data.info["num_candidates"])
        if run.args.project.num_candidates > most:
            run.args = run.args.replaced(project={"num_candidates": most})
    return stages


def _reads(run: Run, stages: tuple[str, ...]) -> bool:
    """Tell whether a stage around the LLM is trained, or will be."""
    return any(run.is_done(stage) or stage in stages for stage in ("project", "retrieve"))


def _leave_out_llm(run: Run, named: list[str]) -> None:
    """Check the options of a fusion without an LLM, and take out what a preset or an earlier run said of one.

    Args:
        run: The run.
        named: Options of the LLM that this run was given.
    """
    given = {f"llm.{name}" for name in named}
    if given or run.parts.llm is not None:
        raise ALLMRecError(
            "--rankers fusion alone is a fusion without an LLM, on which options of one have no effect "
            f"({', '.join(sorted(given)) or 'llm='}); leave them out, or name a ranker that asks the LLM too, such as "
            "--rankers retrieval,fusion"
        )
    rank = run.args.rank
    parts = split_names(rank.fusion_parts or "")
    rankers = (*FUSIONS, *WITHOUT_LLM)
    wrong = [name for name in parts if name not in WITHOUT_LLM]
    wrong += [] if rank.ranker in (None, *rankers) else [str(rank.ranker)]
    if wrong:
        raise ALLMRecError(
            f"--rankers fusion alone has no {', '.join(wrong)}: it is made of {', '.join(WITHOUT_LLM)} "
            f"(--rank.fusion-parts), and ranks by {', '.join(rankers)} (--rank.ranker)"
        )
    run.args = run.args.replaced(llm={"name": None, "include_llm": False})


def _model_type(run: Run, before: dict[str, Any]) -> str:
    if run.parts.backbone is not None:
        return str(run.parts.backbone.config.model_type).removeprefix(MODEL_TYPE_PREFIX)
    name = run.args.backbone.name
    if is_backbone_name(name):
        return name.removeprefix(MODEL_TYPE_PREFIX)
    if before.get("model_type") and before["arguments"].get("backbone", {}).get("name") == name:
        return str(before["model_type"])
    if "/" not in name and not Path(name).is_dir():
        cf_encoder_class(name)  # raises: no backbone has this name
    return backbone_type(name)


def _check(run: Run, stages: tuple[str, ...]) -> None:
    _check_backbone(run, stages)
    first = min(stages, key=STEPS.index)
    needed = {"backbone": None, "align": "backbone"}.get(first, "align")
    alone = ZeroShot.kind in split_names(run.args.rank.rankers) or not run.args.rank.asks_llm
    if first == "rank" and not alone and not _reads(run, stages):
        raise ALLMRecError(
            f"stage rank puts together what stage project or retrieve trains, and {run.output} holds neither; run one "
            "into the same folder first, or name in --rankers what is not trained: zero_shot, or fusion alone, which "
            "needs no LLM"
        )
    if needed is not None and not (run.output / needed / "config.json").exists():
        raise ALLMRecError(
            f"stage {first} builds on stage {needed}, which {run.output} does not hold; "
            f"run `allmrec train --stage {needed}` into the same folder first, or --stage all"
        )
    if needed is not None:
        check_same_catalog(run.output, run.data)
    if needed is None and not run.resume and run.output.exists() and any(run.output.iterdir()):
        raise ALLMRecError(
            f"the output folder {run.output} is not empty; choose another, or pass --resume "
            "(resume_from_checkpoint=True) to go on with that run"
        )
    _check_resumed(run, stages)
    _check_parts(run, stages)
    for stage in LOOPS:
        if stage in stages:
            check_possible_here(run.args.stages[stage])


def _check_resumed(run: Run, stages: tuple[str, ...]) -> None:
    before = run.record()
    begun = {stage: run.is_done(stage) for stage in STEPS if run.has_begun(stage)}
    if before:
        check_same_data(run.output, before, run.data, list(begun))
    if run.resume and "backbone" in begun and (run.output / "backbone" / "config.json").exists():
        check_same_catalog(run.output, run.data)
    if run.resume and before:
        noted = {stage: done for stage, done in begun.items() if stage in begun_stages(before)}
        processes = process_state().num_processes
        check_same_arguments(run.output / RUN_FILE, before, run.args, run.data.name, processes, noted)
    elif run.resume and (run.output / "config.json").exists():
        raise ALLMRecError(f"{run.output} has no {RUN_FILE}, so it is no run to go on with; choose another folder")
    again = [stage for stage in stages if (run.stage_folder(stage) / CHECKPOINTS_FOLDER).exists()]
    if again and not run.resume:
        raise ALLMRecError(
            f"{run.output} holds an earlier run of stage {again[0]}; pass --resume (resume_from_checkpoint=True) to go "
            "on with it, or choose another folder"
        )


def _check_backbone(run: Run, stages: tuple[str, ...]) -> None:
    """Check that the backbone has its options, and that a trained one fits the data."""
    backbone, given = run.args.backbone, run.parts.backbone
    if given is None and backbone.trained is None:
        backbone_config(run)
        if backbone.missing_items != "refuse":
            raise ALLMRecError(
                "backbone.missing_items says what happens to items that a trained backbone lacks; --backbone names none"
            )
        return
    if backbone.options:
        raise ALLMRecError(
            f"a trained backbone has its own config; leave out {sorted(backbone.options)} (backbone.options), which "
            "only a backbone trained here takes"
        )
    if given is not None and given.num_items != run.data.num_items:
        raise DataError(
            f"the backbone given has {given.num_items} items and {run.data.name} has {run.data.num_items}; give one "
            "trained on these data, or its folder, whose items are matched by id"
        )
    if given is None and "backbone" in stages and not run.is_behind("backbone"):
        run.parts.backbone = fitted_backbone(str(backbone.trained), run.model_type, run.data, backbone.missing_items)


def fitted_backbone(name: str, model_type: str, data: PreparedData, missing_items: Any) -> CFEncoder:
    """Return a trained backbone, its items those of the data."""
    loaded, catalog = load_trained_backbone(name, model_type)
    fitted = fit_to_catalog(loaded, catalog.item_ids, data.catalog, missing_items, name).cf_encoder
    fitted.target_counts = load_target_counts(name, data.catalog)
    return fitted


def backbone_config(run: Run) -> CFEncoderConfig:
    """Return the config of a backbone that is to be trained.

    Raises:
        ALLMRecError: when it lacks one of the options; the message lists those it has.
    """
    config_class = cf_encoder_class(run.model_type).config_class
    options = run.args.backbone.options or {}
    known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - (known - {"num_items"}))
    if unknown:
        own = sorted(known - {"num_items"} - {field.name for field in fields(PreTrainedConfig)})  # type: ignore[arg-type]
        raise ALLMRecError(f"the backbone {run.model_type} has no options {unknown}; it has {', '.join(own)}")
    values = {"model_type": config_class.model_type, "num_items": run.data.num_items, **options}
    return cf_config_from_dict(values)


def _check_parts(run: Run, stages: tuple[str, ...]) -> None:
    """Check text encoder, LLM and candidates of later stages."""
    if "align" in stages and not run.is_behind("align"):
        run.load_text_encoder()
    reading: list[str] = [stage for stage in ("project", "retrieve") if stage in stages]
    if ZeroShot.kind in split_names(run.args.rank.rankers) and "rank" in stages:
        reading.append("rank")
    if not reading:
        return
    llm, project = run.args.llm, run.args.project
    words = run.prompt.to_dict().values()
    language_model = run.parts.llm
    if language_model is None:
        if llm.name is None:
            raise ALLMRecError(f"stage {reading[0]} needs an LLM: --llm ID_OR_PATH (llm=), such as facebook/opt-1.3b")
        device = process_state().device
        language_model = check_llm(llm.name, llm.revision, llm.loading_options(), run.trust, words, device)
    if "retrieve" in stages:
        layers = num_layers(language_model)
        for depth in run.args.retrieve.layers_of(layers):
            check_depth(layers if depth is None else depth, layers)
    if "project" not in stages:
        return
    samples, _ = candidate_samples(run.data, project.targets, project)
    known = len(candidate_items(run.data, samples))
    if project.num_candidates > known:
        raise ALLMRecError(
            f"a training prompt lists {project.num_candidates} candidates (num_candidates), but only {known} "
            f"items of {run.data.name} are targets in training; lower num_candidates"
        )
