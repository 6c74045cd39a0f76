"""Train the backbone of a run again on the items that stage 2 has seen too, for a fair comparison."""

from __future__ import annotations

from pathlib import Path

from ..catalog import CATALOG_FILE
from ..cf_encoder import CFEncoder, cf_config_from_dict
from ..data.prepared import PreparedData
from ..errors import CheckpointError
from ..stored_values import json_value
from .backbone_training import train_backbone
from .loop import RECORD_FILE
from .pretrained_backbone import check_same_catalog, load_backbone, save_backbone
from .run_record import RUN_FILE, check_same_data, read_run
from .stage_arguments import StageArguments
from .stage_length import as_long_as_best

FAIR_FOLDER = "backbone-train-validation"


def fair_backbone(run: Path, data: PreparedData) -> CFEncoder:
    """Return the run's backbone trained on train + validation, for as many epochs as were best on train alone.

    It is trained when first asked for, and kept in `backbone-train-validation/` of the run folder.

    Args:
        run: Run folder with the stage `backbone`.
        data: The data of the run.

    Raises:
        ALLMRecError: when the run was trained on other data.
        CheckpointError: when the folder holds no trained stage `backbone`.
    """
    if record := read_run(run / RUN_FILE):
        check_same_data(run, record, data, ["backbone"])
    if (run / "backbone" / CATALOG_FILE).exists():
        check_same_catalog(run, data)
    if (run / FAIR_FOLDER / "config.json").exists():
        return load_backbone(run / FAIR_FOLDER)
    path = run / "checkpoints" / "backbone" / RECORD_FILE
    try:
        arguments = StageArguments.from_dict(json_value(path.read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run} has no record of its stage backbone ({error}); the fair backbone is trained in the run's folder"
        ) from error
    trained = load_backbone(run / "backbone")
    cf_encoder = train_backbone(
        data,
        cf_config_from_dict(trained.config),
        arguments.replaced(**as_long_as_best(path)),
        run / "checkpoints" / FAIR_FOLDER,
        resume=True,
        split="train+validation",
        texts=trained,
    )
    save_backbone(cf_encoder, data.catalog, run / FAIR_FOLDER)
    return cf_encoder
