"""Train a finished run again on more interactions, with what its validation chose: the model that one ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData, TargetSplit
from ..errors import ALLMRecError
from ..stored_values import json_value
from .arguments import ALLMRecTrainingArguments
from .devices import process_state
from .loop import RECORD_FILE
from .pretrained_backbone import import_backbone_module
from .run import Run
from .run_record import RUN_FILE, begun_stages, check_same_data, read_run
from .section_arguments import SECTIONS
from .stage_arguments import LOOPS, STEPS
from .stage_length import as_long_as_best

Known = Literal["train+validation", "all"]
MOVED = {"llm": ("name",), "align": ("text_encoder",)}  # what may lie elsewhere now than when the run was trained
IN_TRAINING: dict[str, tuple[TargetSplit, ...]] = {
    "train+validation": ("validation",),
    "all": ("validation", "test"),
}


def finished_stages(folder: Path, data: PreparedData) -> tuple[str, ...]:
    """Return the finished stages of a run that can be trained again.

    Args:
        folder: The run.
        data: What it was trained on.

    Raises:
        ALLMRecError: when it was trained on other data or by another number of processes, is not finished, or did not
            train its backbone itself.
    """
    run = Run(data, ALLMRecTrainingArguments(folder))
    record = run.record()
    if not record:
        raise ALLMRecError(f"{folder} has no {RUN_FILE}, so it is no run; give the output folder of `allmrec train`")
    if record["data"].get("in_training"):
        raise ALLMRecError(f"{folder} was trained by refit, without a validation; refit the run that it was made from")
    done, begun = [stage for stage in STEPS if run.is_done(stage)], begun_stages(record)
    unfinished = [stage for stage in begun if stage not in done]
    if unfinished or not done:
        raise ALLMRecError(
            f"{folder} is not finished (stage {(unfinished or ['backbone'])[0]}); go on with `allmrec train --resume` "
            "first"
        )
    check_same_data(folder, record, data, done)
    now = process_state().num_processes
    if record["processes"] != now:
        raise ALLMRecError(
            f"{folder} was trained by {record['processes']} processes and this is one of {now}, whose batches would be "
            "others; start refit with as many"
        )
    if module := record["arguments"]["backbone"].get("module"):
        import_backbone_module(module)
    if not (run.stage_folder("backbone") / RECORD_FILE).exists():
        raise ALLMRecError(
            f"the backbone of {folder} was not trained there, so nothing says how it is trained again; train one with "
            "`allmrec train --stage backbone`"
        )
    return tuple(done)


def check_output(folder: Path, output: Path, on: str) -> None:
    """Check that a refit goes into a folder of its own, or goes on with one on the same interactions.

    Raises:
        ALLMRecError: when it does not.
    """
    if output.resolve() == folder.resolve():
        raise ALLMRecError(f"the output {output} is the run itself; choose another folder")
    before = read_run(output / RUN_FILE)
    if before and tuple(before["data"].get("in_training", ())) != IN_TRAINING[on]:
        raise ALLMRecError(f"{output} was trained on other interactions than {on}; choose another output folder")


def has_loaded_text_encoder(folder: Path) -> bool:
    """Tell whether a run's text encoder was an object, which no name leads to."""
    return _config(folder / "align").text_encoder_name_or_path is None


def refit_arguments(folder: Path, output: Path, args: ALLMRecTrainingArguments) -> ALLMRecTrainingArguments:
    """Return the settings of a finished run without its validations, each stage as long as was best.

    Stage 2 learns from the last training items, since no held-out ones are left. A schedule of the learning rate ends
    where the stage does.

    Args:
        folder: The run.
        output: The folder of the new one.
        args: Where LLM and text encoder lie now, as far as it names them; and sections that `run.json` lacks, as that
            of an earlier version may.

    Raises:
        CheckpointError: when a stage has no record.
    """
    record = read_run(folder / RUN_FILE)
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        values = record["arguments"].get(name) or record.get("others", {}).get(name) or getattr(args, name).to_dict()
        moved = {option: args.given[name][option] for option in MOVED.get(name, ()) if option in args.given[name]}
        seen = _seen_in(folder) if name == "project" and name not in record["arguments"] else {}
        sections[name] = kind(**{**values, **seen, **moved})
    for name in set(LOOPS) & set(record["arguments"]):
        changes: dict[str, Any] = {}
        trained = folder / "checkpoints" / name
        if name == "retrieve" and sections[name].llm_depths is not None:
            layers = (_config(folder).rankers or {})["retrieval"]["num_llm_layers"]
            changes = {"llm_depths": None, "num_llm_layers": layers}
            trained = nested if (nested := trained / f"layers-{layers}").exists() else trained
        by_steps = name == "project" and sections[name].targets == "validation"  # its epochs are of other users
        if name == "project":
            changes["targets"] = "train"
        if name == "align":
            changes["metric_for_best_model"] = "loss"
        sections[name] = sections[name].replaced(**changes, **as_long_as_best(trained / RECORD_FILE, by_steps))
    return ALLMRecTrainingArguments(output, record["preset"], **sections)


def _seen_in(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint tells of the settings of a stage 2 that was not trained, which its rankers read."""
    path = folder / "processor_config.json"
    if not path.exists():
        if not (folder / "align").is_dir():
            return {}
        config = _config(folder / "align")
        return {name: getattr(config, name) for name in ("item_embedding", "score_normalization")}
    config, processor = _config(folder), json_value(path.read_text(encoding="utf-8"))
    names = ("item_embedding", "score_normalization", "projector", "projector_tokens")
    found = {name: getattr(config, name) for name in names} | {"seed": config.item_embedding_seed}
    return found | {name: processor[name] for name in ("history_in_prompt", "max_title_tokens") if name in processor}


def fitted_config(folder: Path) -> ALLMRecConfig | None:
    """Return the configuration of a run whose rankers stage `rank` has fitted; None where it has not."""
    config = _config(folder) if (folder / "rank" / "done").exists() else None
    return config if config is not None and "fusion" in (config.rankers or {}) else None


def _config(folder: Path) -> ALLMRecConfig:
    return ALLMRecConfig.from_pretrained(str(folder))  # type: ignore[return-value]
