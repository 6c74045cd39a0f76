"""Parts that several methods of the same data and seed share: trained once, stored in `Setting.parts`."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from ..cf_encoder import CFEncoder, cf_encoder_class
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..files import folder_written_whole, written_whole
from ..training.alignment import text_embedding_table
from ..training.arguments import StageArguments, preset
from ..training.fair import fair_backbone
from ..training.parts import load_backbone, load_text_encoder
from ..training.run import train
from ..training.run_record import RUN_FILE, read_run, refuse_other_data
from ..training.settings import SETTINGS_OF_STAGE, RunSettings, run_settings
from .method import Method, Setting

SETTINGS_FILE = "method.json"


def stage_arguments(setting: Setting, stage: str) -> StageArguments:
    """Return the loop's settings of a stage: the preset's, the backbone's recipe and the suite's budget."""
    recipe = cf_encoder_class(setting.backbone).training_recipe if stage == "cf" else None
    return preset(setting.preset, stage, recipe).replaced(**{"seed": setting.seed, **setting.budget.get(stage, {})})


def backbone_run(data: PreparedData, setting: Setting) -> Path:
    """Return the run folder with the trained stage `cf` of the setting's backbone."""
    return run_until(data, setting, run_settings(setting.preset, setting.backbone), "cf")


def trained_backbone(data: PreparedData, setting: Setting) -> CFEncoder:
    """Return the setting's backbone, trained on the training part."""
    return load_backbone(backbone_run(data, setting) / "cf").eval()


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
        noted = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ALLMRecError(f"{path} is damaged ({error}); train into another folder") from error
    values = {name: (noted.get(name), own.get(name)) for name in {**noted, **own}}
    changed = [f"{name} {before!r} -> {now!r}" for name, (before, now) in values.items() if before != now]
    if changed:
        raise ALLMRecError(f"{path} has other settings: {'; '.join(changed[:5])}; train into another folder")


def run_until(data: PreparedData, setting: Setting, settings: RunSettings, stage: str) -> Path:
    """Return a run folder of A-LLMRec that is trained up to `"cf"` or `"align"`, shared by all who need the same.

    Args:
        data: Training data.
        setting: Seed, preset and budget.
        settings: What the run is made of; only what its stages up to `stage` depend on tells runs apart.
        stage: The last stage trained.
    """
    stages = ("cf", "align")[: ("cf", "align").index(stage) + 1]
    settings = replace(settings, cf=settings.cf or setting.backbone, text_encoder=setting.text_encoder, llm=None)
    names = [name for done in stages for name in SETTINGS_OF_STAGE[done]]
    arguments = {done: stage_arguments(replace(setting, backbone=str(settings.cf)), done) for done in stages}
    facts = {
        "settings": {name: getattr(settings, name) for name in names},  # apart: `cf` is a setting and a stage
        "stages": {done: loop.to_dict() for done, loop in arguments.items()},
    }
    folder = setting.parts / f"{stage}-{digest_of_facts(facts)}"
    if stage == "align" and not (folder / "cf" / "config.json").exists():
        with folder_written_whole(folder) as temporary:  # the backbone is the same for every alignment
            unneeded = shutil.ignore_patterns("step-*", "best-*", "cf-train-validation*", ".*")
            shutil.copytree(run_until(data, setting, settings, "cf"), temporary, dirs_exist_ok=True, ignore=unneeded)
    if not (folder / stage / "config.json").exists():
        resume = folder.exists() if stage == "cf" else (folder / "checkpoints" / stage).exists()
        frozen = stage == "align" and not settings.fine_tune_text_encoder
        table = text_embeddings(data, setting) if frozen else None
        trust = setting.trust_remote_code
        train(data, folder, settings, (stage,), arguments, setting.preset, resume, table, trust_remote_code=trust)
    else:
        refuse_other_data(folder, read_run(folder / RUN_FILE), data, stages)
    return folder


def digest_of_facts(facts: dict[str, Any]) -> str:
    """Return twelve hexadecimal digits over facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
