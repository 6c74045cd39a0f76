"""The three stages in order, into one run folder that is itself a loadable checkpoint.

```
runs/x/cf/        the backbone alone      runs/x/align/    after stage 1, without LLM
runs/x/           the latest stage's model, processor, card and `run.json`
```
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig

from ..cf_encoder import CFEncoder, CFEncoderConfig, cf_config_from_dict, cf_encoder_class
from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..hub.card import write_card
from ..language_model import context_length
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import public_name
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import PromptTemplate
from . import checkpoint
from .alignment import AlignmentModule, AlignmentTask, refuse_other_table
from .arguments import STAGES, StageArguments, preset
from .backbones import (
    backbone_type,
    fit_to_catalog,
    import_backbone_module,
    load_trained_backbone,
    refuse_other_backbone,
    refuse_other_catalog,
    save_backbone,
)
from .cf_encoder import train_cf_encoder
from .cost import projection_cost, tell_projection_cost, warn_of_few_steps
from .devices import place, process_state
from .loop import CHECKPOINTS_FOLDER, run_stage
from .parts import (
    check_llm,
    fill_item_table,
    load_llm,
    load_text_encoder,
    model_card,
    text_dim,
    with_absolute_paths,
    without_trust,
)
from .projection import ProjectionModule, ProjectionTask, candidate_items, candidate_samples
from .provenance import write_record
from .run_record import (
    RUN_FILE,
    data_record,
    plain_settings,
    read_run,
    refuse_changes,
    refuse_other_data,
    settings_of,
)
from .settings import DEFAULT_BACKBONE, SETTINGS_OF_STAGE, RunSettings
from .trained import load_target_counts
from .warm_start import warm_start

logger = logging.getLogger(__name__)


def train(
    data: PreparedData,
    output_dir: str | Path,
    settings: RunSettings,
    stages: tuple[str, ...] = STAGES,
    arguments: dict[str, StageArguments] | None = None,
    preset_name: str = "default",
    resume: bool = False,
    text_table: torch.Tensor | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Train the given stages in order and leave a loadable checkpoint in `output_dir`.

    Args:
        data: Prepared data.
        output_dir: The run folder; it must be empty or new, unless `resume` is set or earlier stages are in it.
        settings: What the run is made of.
        stages: Of `"cf"`, `"align"`, `"project"`; a later stage alone builds on what the folder holds, and `"align"`
            with `settings.cf_checkpoint` on that backbone.
        arguments: The loop's settings by stage; those of the preset where not given.
        preset_name: See `settings.run_settings`.
        resume: Go on where an interrupted run stopped; finished stages are not trained again.
        text_table: `(N + 1, d_text)`, what the frozen text encoder makes of the catalogue, row 0 zeros, where several
            runs share it; where not given, stage 1 encodes every text.
        trust_remote_code: Run code that comes with the LLM, its tokenizer or the text encoder; no file of the run
            remembers it.

    Raises:
        ALLMRecError: when the folder is not empty, an earlier stage is missing, or a part cannot be loaded.
    """
    run = _Run(data, Path(output_dir), settings, preset_name, arguments or {}, resume, text_table, trust_remote_code)
    stages = run.prepare(stages)
    for stage in STAGES:
        if stage in stages:
            logger.info("stage %s", stage)
            getattr(run, f"stage_{stage}")()
    return run.output


class _Run:
    """One run: its folder, and what earlier stages left for later ones."""

    def __init__(
        self,
        data: PreparedData,
        output: Path,
        settings: RunSettings,
        preset_name: str,
        arguments: dict[str, StageArguments],
        resume: bool,
        text_table: torch.Tensor | None,
        trust_remote_code: bool,
    ) -> None:
        self.data = data
        self.output = output
        self.settings = with_absolute_paths(settings)
        self.preset = preset_name
        self.given_arguments = arguments
        self.arguments: dict[str, StageArguments] = {}
        self.resume = resume
        self.text_table = text_table
        self._trust = without_trust(settings.llm_options, trust_remote_code)[1]
        self._elsewhere: CFEncoder | None = None
        self.writes = process_state().is_main_process  # of several processes, all train and one writes

    # -- before anything is trained

    def prepare(self, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Return the stages to run; the process that writes checks them, and all raise what it refuses."""
        refusal: list[ALLMRecError | None] = [None]
        try:
            stages = self.inherit(stages)
            if self.writes:
                self.check(stages)
        except ALLMRecError as error:
            refusal = [error]
        own = refusal[0]
        if process_state().num_processes > 1:  # none may wait for another that has given up
            broadcast_object_list(refusal)
        if (told := refusal[0] or own) is not None:
            raise told
        return stages

    def inherit(self, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Take over what the folder says of the stages before the first one to be run; return the stages to run."""
        unknown = set(stages) - set(STAGES)
        if unknown or not stages:
            raise ALLMRecError(f"unknown stages {sorted(unknown)}; known are {', '.join(STAGES)}, in this order")
        if self.output.exists() and not self.output.is_dir():
            raise ALLMRecError(f"the output {self.output} is a file; give a folder")
        settings, before = self.settings, read_run(self.output / RUN_FILE)
        if (
            settings.cf_checkpoint is not None
            and "align" in stages
            and not (self.output / "cf" / "config.json").exists()
        ):
            stages = ("cf", *(stage for stage in stages if stage != "cf"))
        earlier = STAGES[: min(map(STAGES.index, stages))] if before else ()
        if "cf" in earlier:
            refuse_other_backbone(self.output, before["settings"], settings.cf, settings.cf_checkpoint)
        for stage in earlier:
            names = [name for name in SETTINGS_OF_STAGE[stage] if name in before["settings"]]
            self.settings = replace(self.settings, **{name: before["settings"][name] for name in names})
        if self.settings.cf_module is not None:
            import_backbone_module(self.settings.cf_module)
        self.settings = replace(self.settings, cf=self._cf_name(before))
        recipe = cf_encoder_class(str(self.settings.cf)).training_recipe
        for stage in STAGES:
            if stage in earlier and stage in before["stages"]:
                self.arguments[stage] = StageArguments.from_dict(before["stages"][stage])
            else:
                chosen = preset(self.preset, stage, recipe if stage == "cf" else None)
                self.arguments[stage] = self.given_arguments.get(stage) or chosen
        return stages

    def _cf_name(self, before: dict[str, Any]) -> str:
        name, checkpoint = self.settings.cf, self.settings.cf_checkpoint
        if checkpoint is None:
            return name or DEFAULT_BACKBONE
        if name is None and before.get("settings", {}).get("cf_checkpoint") == checkpoint:
            return str(before["settings"]["cf"])
        return name or backbone_type(checkpoint)

    def check(self, stages: tuple[str, ...]) -> None:
        self._check_backbone(stages)
        first = min(stages, key=STAGES.index)
        needed = {"cf": None, "align": "cf", "project": "align"}[first]
        if needed is not None and not (self.output / needed / "config.json").exists():
            raise ALLMRecError(
                f"stage {first} builds on stage {needed}, which {self.output} does not hold; "
                f"run `allmrec train --stage {needed}` into the same folder first, or --stage all"
            )
        if needed is not None:
            refuse_other_catalog(self.output, self.data)
        if needed is None and not self.resume and self.output.exists() and any(self.output.iterdir()):
            raise ALLMRecError(
                f"the output folder {self.output} is not empty; choose another, or pass --resume to go on with that run"
            )
        if "project" in stages and self.settings.llm is None:
            raise ALLMRecError("stage project needs an LLM: --llm ID_OR_PATH, such as facebook/opt-1.3b")
        before = read_run(self.output / RUN_FILE)
        begun = {stage: self._is_done(stage) for stage in STAGES if self._has_begun(stage)}
        if before:
            refuse_other_data(self.output, before, self.data, list(begun))
        if self.resume and "cf" in begun and (self.output / "cf" / "config.json").exists():
            refuse_other_catalog(self.output, self.data)
        if self.resume and before:
            now = {"data": data_record(self.data), "settings": plain_settings(self.settings)}
            refuse_changes(self.output / RUN_FILE, before, now, self.arguments, begun)
        elif self.resume and (self.output / "config.json").exists():
            raise ALLMRecError(f"{self.output} has no {RUN_FILE}, so it is no run to go on with; choose another folder")
        again = [stage for stage in stages if (self._stage_directory(stage) / CHECKPOINTS_FOLDER).exists()]
        if again and not self.resume:
            raise ALLMRecError(
                f"{self.output} holds an earlier run of stage {again[0]}; pass --resume to go on with it, or choose "
                "another folder"
            )
        self._check_parts(stages)

    def _check_backbone(self, stages: tuple[str, ...]) -> None:
        """Refuse options that the backbone does not have, and a trained one that does not fit the data."""
        if self.settings.cf_checkpoint is None:
            self._cf_config()
        elif self.settings.cf_options:
            raise ALLMRecError(
                f"the backbone in {self.settings.cf_checkpoint} has its own config; leave out "
                f"{sorted(self.settings.cf_options)} (--cf-option), which only a backbone trained here takes"
            )
        elif "cf" in stages and not self._finished("cf"):
            self._backbone_from_elsewhere()

    def _backbone_from_elsewhere(self) -> CFEncoder:
        if self._elsewhere is None:  # else it was loaded, and warned of, when it was checked
            name, missing_items = str(self.settings.cf_checkpoint), self.settings.missing_items
            loaded, catalog = load_trained_backbone(name, self.settings.cf)
            fitted = fit_to_catalog(loaded, catalog.item_ids, self.data.catalog, missing_items, name)
            self._elsewhere = fitted.cf_encoder
            self._elsewhere.target_counts = load_target_counts(name, self.data.catalog)
        return self._elsewhere

    def _check_parts(self, stages: tuple[str, ...]) -> None:
        """Refuse what a later stage would fail on, before hours are spent on an earlier one."""
        if "align" in stages and not self._finished("align"):
            load_text_encoder(self.settings.text_encoder, self._trust)
        if "project" not in stages:
            return
        words = self._prompt().to_dict().values()
        options = self.settings.llm_options or {}
        check_llm(str(self.settings.llm), self.settings.llm_revision, options, self._trust, words)
        samples, _ = candidate_samples(self.data, self.settings.targets, self.arguments["project"])
        known = len(candidate_items(self.data, samples))
        if self.settings.num_candidates > known:
            raise ALLMRecError(
                f"a training prompt lists {self.settings.num_candidates} candidates (num_candidates), but only {known} "
                f"items of {self.data.name} are targets in training; lower num_candidates"
            )

    def _cf_config(self) -> CFEncoderConfig:
        config_class = cf_encoder_class(str(self.settings.cf)).config_class
        options = self.settings.cf_options or {}
        known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
        unknown = sorted(set(options) - (known - {"num_items"}))
        if unknown:
            own = sorted(known - {"num_items"} - {field.name for field in fields(PreTrainedConfig)})  # type: ignore[arg-type]
            raise ALLMRecError(f"the CF backbone {self.settings.cf} has no options {unknown}; it has {', '.join(own)}")
        values = {"model_type": config_class.model_type, "num_items": self.data.num_items, **options}
        return cf_config_from_dict(values)

    def _note(self, stage: str) -> None:
        """Write `run.json` before a stage is trained: with its settings, beside those of stages that have begun."""
        if not self.writes:
            return
        before = read_run(self.output / RUN_FILE)
        others = [other for other in STAGES if other != stage and self._has_begun(other)]
        own, noted = plain_settings(self.settings), before.get("settings", {})
        values = settings_of([stage], own) | settings_of(others, own | noted)
        loops = before.get("stages", {}) | {stage: self.arguments[stage].to_dict()}
        record = {
            "data": data_record(self.data),
            "preset": self.preset,
            "settings": {name: values[name] for name in own if name in values},
            "stages": {name: loops[name] for name in STAGES if name in loops and name in (stage, *others)},
        }
        write_record(self.output / RUN_FILE, record)

    def _is_done(self, stage: str) -> bool:
        """Tell whether the folder holds a finished stage; `config.json` is the last file of a stage to be written."""
        where = self.output / stage if stage != "project" else self.output / "project" / "done"
        return (where / "config.json").exists() or where.is_file()

    def _has_begun(self, stage: str) -> bool:
        """Tell whether something of a stage was trained that `--resume` would go on with."""
        folders = ("warm-start", "project") if stage == "project" else (stage,)
        return self._is_done(stage) or any(
            checkpoint.latest(self._stage_directory(name) / CHECKPOINTS_FOLDER) for name in folders
        )

    def _finished(self, stage: str) -> bool:
        """Tell whether a resumed run has this stage behind it."""
        return self.resume and self._is_done(stage)

    def _stage_directory(self, stage: str) -> Path:
        return self.output / "checkpoints" / stage

    # -- the stages

    def stage_cf(self) -> None:
        if self._finished("cf"):
            return
        self._note("cf")
        if self.settings.cf_checkpoint is not None:
            cf_encoder = self._backbone_from_elsewhere()
        else:
            self._tell_recipe()
            cf_encoder = train_cf_encoder(
                self.data, self._cf_config(), self.arguments["cf"], self._stage_directory("cf"), self.resume
            )
        if self.writes:
            for directory in (self.output, self.output / "cf"):  # the stage's own folder last: it says "finished"
                save_backbone(cf_encoder, self.data.catalog, directory)
                if directory == self.output:
                    self._write_card(cf_encoder, None)
        process_state().wait_for_everyone()

    def _tell_recipe(self) -> None:
        recipe = cf_encoder_class(str(self.settings.cf)).training_recipe
        own, plain = self.arguments["cf"], preset(self.preset, "cf")
        taken = [
            f"{name} {value}" for name, value in recipe.items() if getattr(plain, name) != getattr(own, name) == value
        ]
        if taken:
            logger.info("stage cf takes what suits %s: %s", self.settings.cf, ", ".join(taken))

    def _load_cf(self) -> CFEncoder:
        cf_encoder = cf_encoder_class(str(self.settings.cf)).from_pretrained(str(self.output / "cf")).eval()
        cf_encoder.config._name_or_path = ""  # a checkpoint that contains it names no folder of this machine
        cf_encoder.target_counts = load_target_counts(str(self.output / "cf"), self.data.catalog)
        return cf_encoder

    def stage_align(self) -> None:
        if self._finished("align"):
            return
        self._note("align")
        cf_encoder, text_encoder = self._load_cf(), load_text_encoder(self.settings.text_encoder, self._trust)
        fine_tune = self.settings.fine_tune_text_encoder
        width = text_dim(text_encoder)
        config = ALLMRecConfig(
            cf_config=cf_encoder.config,
            joint_dim=self.settings.joint_dim,
            text_dim=width,
            text_encoder_name_or_path=self.settings.text_encoder,
            text_encoder_included=fine_tune,
            item_embedding=self.settings.item_embedding,
            score_normalization=self.settings.score_normalization,
        )
        arguments = self.arguments["align"]
        torch.manual_seed(arguments.seed)
        model = ALLMRecModel(config)
        model.cf_encoder.load_state_dict(cf_encoder.state_dict())
        model.cf_encoder.target_counts = cf_encoder.target_counts
        model.attach_text_encoder(text_encoder)
        texts = self.data.catalog.texts()
        if self.text_table is not None and not fine_tune:
            refuse_other_table(self.text_table, text_encoder, texts)
        module = AlignmentModule(
            model.cf_encoder,
            model.aligner,
            texts,
            text_encoder,
            fine_tune,
            **self.settings.alignment_loss(),
            text_table=self.text_table,
        )
        task = AlignmentTask(module, self.data, self.settings.positions, arguments)
        run_stage(task, arguments, self._stage_directory("align"), self.resume)
        fill_item_table(model.cpu(), self.data, module.embedding_table())
        if self.writes:
            model.save_pretrained(self.output)
            self._write_card(model.cf_encoder, model)
            model.save_pretrained(self.output / "align")
        process_state().wait_for_everyone()

    def stage_project(self) -> None:
        if self._finished("project"):
            return
        self._note("project")
        model = ALLMRecModel.from_pretrained(self.output / "align", language_model=None)
        language_model, tokenizer = load_llm(
            str(self.settings.llm), self.settings.llm_revision, self.settings.llm_options or {}, self._trust
        )
        arguments = self.arguments["project"]
        torch.manual_seed(arguments.seed)
        model.config.base_model_name_or_path = self.settings.llm
        model.config.base_model_revision = self.settings.llm_revision
        for name in ("item_embedding", "score_normalization", "projector", "projector_tokens"):
            setattr(model.config, name, getattr(self.settings, name))
        model.config.item_embedding_seed = arguments.seed
        model.attach_language_model(language_model)
        processor = self._processor(tokenizer, model)
        model.config.tokenizer_fingerprint = processor.fingerprint
        if self.settings.checkpoint_activations:
            model.checkpoint_activations()
        module = ProjectionModule(model, self.settings.projection_loss, self.settings.temperature)
        task = ProjectionTask(
            module, processor, self.data, self.settings.targets, self.settings.num_candidates, arguments
        )
        if self.settings.warm_start_steps:
            warm_start(task, self.data, self.settings, arguments, self._stage_directory("warm-start"), self.resume)
        model.user_projector.requires_grad_(self._prompt().has_user_slot)  # what no prompt shows is not trained
        model.item_projector.requires_grad_(self._prompt().has_item_slots)
        place(module, process_state().device)
        cost = projection_cost(task, arguments, process_state().device)
        if self.writes:
            tell_projection_cost(cost, task, arguments)
        result = run_stage(task, arguments, self._stage_directory("project"), self.resume)
        if self.writes and result.stopped_by == "time_limit":
            warn_of_few_steps(result.steps, arguments, cost.step_seconds)
        if self.writes:
            processor.save_pretrained(self.output)
            model.save_pretrained(self.output, include_llm=self.settings.include_llm)
            self._write_card(model.cf_encoder, model)
            (self.output / "project").mkdir(exist_ok=True)
            (self.output / "project" / "done").touch()
        process_state().wait_for_everyone()

    def _processor(self, tokenizer: Any, model: ALLMRecModel) -> ALLMRecProcessor:
        processor = ALLMRecProcessor(
            tokenizer,
            self._prompt().to_dict(),
            history_in_prompt=self.settings.history_in_prompt,
            max_history_length=model.cf_encoder.config.max_history_length,
            max_length=context_length(model.language_model),
        )
        processor.catalog = self.data.catalog
        return processor

    def _prompt(self) -> PromptTemplate:
        return self.settings.template(self.data.domain)

    def _write_card(self, cf_encoder: CFEncoder, model: ALLMRecModel | None) -> None:
        card = model_card(cf_encoder, model, self.data, self.arguments)
        if self.settings.cf_checkpoint is not None:  # no loop of this run trained it
            card.training["cf"] = {"trained backbone": public_name(self.settings.cf_checkpoint)}
            card.seeds.pop("cf", None)
        write_card(card, self.output)
