"""Parts that several methods of the same data and seed share: trained once, stored in `Setting.parts`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..files import folder_written_whole, written_whole
from ..part_sources import part_name
from ..stored_values import json_value
from ..training.alignment import text_embedding_table
from ..training.arguments import ALLMRecTrainingArguments
from ..training.fair import fair_backbone
from ..training.pretrained_backbone import load_backbone
from ..training.run_record import RUN_FILE, check_same_data, read_run
from ..training.stage_arguments import STAGES, StageArguments
from ..training.text_encoders import load_text_encoder
from ..training.trainer import ALLMRecTrainer
from .method import Method, Setting

SETTINGS_FILE = "method.json"
DONE = {
    **{stage: f"{stage}/config.json" for stage in ("backbone", "align")},
    **{stage: f"{stage}/done" for stage in ("project", "retrieve", "rank")},
}


def run_arguments(setting: Setting) -> ALLMRecTrainingArguments:
    """Return the arguments of a run: the preset's, the backbone's recipe, the suite's budget, the setting's parts."""
    args = ALLMRecTrainingArguments(
        setting.folder,
        preset=setting.preset,
        seed=setting.seed,
        backbone={"name": setting.backbone},
        align={"text_encoder": setting.text_encoder},
        llm={"name": setting.llm, "include_llm": False},  # the frozen LLM is never saved again
    )
    return args.replaced(**{stage: dict(part) for stage, part in setting.budget.items()})


def stage_arguments(setting: Setting, stage: str) -> StageArguments:
    """Return the settings of a stage's loop: the preset's, the backbone's recipe and the suite's budget."""
    return run_arguments(setting).stages[stage].loop()


def backbone_run(data: PreparedData, setting: Setting) -> Path:
    """Return the run folder with the trained stage `backbone` of the setting's backbone."""
    return run_until(data, setting, run_arguments(setting), "backbone")


def trained_backbone(data: PreparedData, setting: Setting) -> CFEncoder:
    """Return the setting's backbone, trained on the training part."""
    return load_backbone(backbone_run(data, setting) / "backbone").eval()


def backbone_on_all_known(data: PreparedData, setting: Setting) -> CFEncoder:
    """Return the setting's backbone, trained on the training and validation part (the fair comparison)."""
    return fair_backbone(backbone_run(data, setting), data).eval()


def text_embeddings(data: PreparedData, setting: Setting) -> torch.Tensor:
    """Return `(N + 1, d_text)` embeddings of the catalogue by the text encoder as it comes, row 0 zeros.

    Each catalogue is encoded once for all who share the setting's `common`: a process that finds another at it waits.
    """
    texts = data.catalog.texts()
    digest = digest_of_facts({"text_encoder": setting.text_encoder, "texts": texts})
    path = (setting.common or setting.parts) / f"texts-{digest}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # the system lets go of it when its holder dies
        if not path.exists():
            table = text_embedding_table(load_text_encoder(setting.text_encoder, setting.trust_remote_code), texts)
            with written_whole(path) as temporary:
                save_file({"texts": table.contiguous()}, temporary)
    return load_file(path)["texts"]


def check_same_settings(method: Method, setting: Setting, llm: str | None = None) -> None:
    """Store the settings of a method in its folder, and check that a folder with stored settings has the same ones.

    Raises:
        ALLMRecError: when the stored settings differ or are damaged.
    """
    path = setting.folder / SETTINGS_FILE
    own = json.loads(json.dumps({"method": method.name, "llm": llm, **setting.options}, default=str))
    if not path.exists():
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
        return
    try:
        noted = dict(json_value(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ALLMRecError(f"{path} is damaged ({error}); train into another folder") from error
    values = {name: (noted.get(name), own.get(name)) for name in {**noted, **own}}
    changed = [f"{name} {before!r} -> {now!r}" for name, (before, now) in values.items() if before != now]
    if changed:
        raise ALLMRecError(f"{path} has other settings: {'; '.join(changed[:5])}; train into another folder")


def run_until(data: PreparedData, setting: Setting, args: ALLMRecTrainingArguments, stage: str) -> Path:
    """Return a run folder of A-LLMRec that is trained up to a stage, shared by all who need the same.

    Args:
        data: Training data.
        setting: Where runs are shared.
        args: The arguments; only those of the stages up to `stage`, and of the LLM where it has a part, tell runs
            apart.
        stage: The last stage trained: one of the paper's, or of those that `args.rank.rankers` need.
    """
    steps = STAGES if stage in STAGES else args.rank.steps()
    stages = steps[: steps.index(stage) + 1]
    facts = {name: getattr(args, name).to_dict() for name in stages}
    if "retrieve" in stages:
        facts["project"] = args.project.to_dict()  # whose item embeddings and lengths of titles it takes
    if {"project", "retrieve"} & set(stages):
        facts["llm"] = {**args.llm.to_dict(), "name": part_name(str(args.llm.source))}
    folder = setting.parts / f"{stage}-{digest_of_facts(facts)}"
    if (folder / DONE[stage]).exists():
        check_same_data(folder, read_run(folder / RUN_FILE), data, stages)
        return folder
    if len(stages) > 1 and not (folder / DONE[stages[-2]]).exists():
        with folder_written_whole(folder) as temporary:  # what comes before is the same for all that follows
            unneeded = shutil.ignore_patterns("step-*", "best-*", "backbone-train-validation*", ".*")
            earlier = run_until(data, setting, args, stages[-2])
            shutil.copytree(earlier, temporary, dirs_exist_ok=True, ignore=unneeded)
    frozen = stage in ("align", "rank") and not args.align.fine_tune_text_encoder
    trainer = ALLMRecTrainer(
        args=args.replaced(output_dir=folder),
        data=data,
        text_table=text_embeddings(data, setting) if frozen else None,
        trust_remote_code=setting.trust_remote_code,
    )
    own = [folder / "checkpoints" / name for name in (stage, *(["warm-start"] if stage == "project" else []))]
    resume = folder.exists() if stage == "backbone" else any(path.exists() for path in own)
    trainer.train(stage, resume_from_checkpoint=resume)
    if stage in ("project", "retrieve"):  # a large LLM's variants are many, and nothing goes on from here
        for path in own:
            shutil.rmtree(path, ignore_errors=True)
    return folder


def digest_of_facts(facts: dict[str, Any]) -> str:
    """Return twelve hexadecimal digits over facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
