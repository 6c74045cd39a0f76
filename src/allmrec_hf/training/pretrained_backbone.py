"""Load a pretrained backbone and match its items by id to those of the data."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig
from transformers.utils import cached_file

from ..catalog import CATALOG_FILE, ItemCatalog
from ..cf_encoder import (
    MODEL_TYPE_PREFIX,
    CFEncoder,
    CFEncoderConfig,
    build_cf_encoder,
    cf_encoder_class,
    cf_encoder_types,
)
from ..data.digests import other_items
from ..data.prepared import PreparedData
from ..errors import ALLMRecError, CheckpointError, DataError
from ..files import folder_written_whole
from ..part_sources import CHECKPOINT_PART, one_line, require_found, same_source
from .finite import not_finite
from .load_errors import DAMAGED
from .trained import save_target_counts

logger = logging.getLogger(__name__)

MissingItems = Literal["refuse", "zeros"]


class FittedBackbone(NamedTuple):
    """A backbone whose rows are in the order of a catalogue.

    Attributes:
        cf_encoder: The backbone, in eval mode.
        missing: Ids of the catalogue's items that it lacks; their rows are zeros.
        dropped: How many of its items the catalogue lacks.
    """

    cf_encoder: CFEncoder
    missing: list[str]
    dropped: int


def import_backbone_module(name: str) -> None:
    """Import a Python module that registers a backbone of one's own; this runs its code.

    Args:
        name: The module as in `import NAME`, found on `sys.path`.

    Raises:
        ALLMRecError: when there is no such module, or its import fails.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ALLMRecError(
            f"the module {name!r} (--backbone-module, --backbone.module) cannot be imported: {error!r}; give its name "
            f"as in `import {name}`, from the folder that holds it or with that folder on PYTHONPATH"
        ) from error


def load_backbone(directory: Path) -> CFEncoder:
    """Return the backbone saved in a folder, in eval mode."""
    backbone: CFEncoder = AutoModel.from_pretrained(str(directory))
    return backbone.eval()


def load_trained_backbone(name: str, cf: str | None = None) -> tuple[CFEncoder, ItemCatalog]:
    """Return a trained backbone and its catalogue.

    Args:
        name: Folder or Hub id with `config.json`, `model.safetensors` and `items.parquet`, such as `backbone/` of
            a run.
        cf: The backbone that it must be; any where not given.

    Raises:
        ALLMRecError: when its `model_type` is unknown; the message lists the known ones.
        CheckpointError: when it is another backbone, has no catalogue, or its weights do not fit its config.
    """
    cf_encoder = load_backbone_alone(name, cf)
    try:
        where = name if Path(name).is_dir() else cached_file(name, CATALOG_FILE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} has no {CATALOG_FILE}, so its items cannot be matched by id: {error}") from error
    catalog = ItemCatalog.load(str(where))
    if len(catalog) != cf_encoder.num_items:
        raise CheckpointError(
            f"{name} is damaged: its backbone has {cf_encoder.num_items} items and its catalogue {len(catalog)}"
        )
    cf_encoder.config._name_or_path = ""  # a checkpoint that contains it names no folder of this machine
    return cf_encoder, catalog


def load_backbone_alone(name: str, cf: str | None = None) -> CFEncoder:
    """Return a trained backbone, in eval mode, without asking for its catalogue; see `load_trained_backbone`.

    Raises:
        ALLMRecError: when its `model_type` is unknown; the message lists the known ones.
        CheckpointError: when it is another backbone, its weights do not fit its config, or they are not finite.
    """
    cf_class = _class_of(name, cf)
    try:
        cf_encoder: CFEncoder = cf_class.from_pretrained(name)
    except CheckpointError:
        raise
    except DAMAGED as error:
        raise CheckpointError(f"{name} cannot be loaded as a {_short(cf_class)} backbone: {error}") from error
    _check_finite(cf_encoder, name)
    return cf_encoder.eval()


def _check_finite(cf_encoder: CFEncoder, where: str) -> None:
    bad = not_finite(cf_encoder.named_parameters())
    if bad:
        raise CheckpointError(
            f"{where} holds values that are not finite, in {', '.join(bad[:3])}: its training came apart; train it anew"
        )


def backbone_type(name: str) -> str:
    """Return the name, such as `sasrec`, of the trained backbone in a folder or on the Hub.

    Raises:
        CheckpointError: when there is none, or its `model_type` is unknown.
    """
    return _short(_class_of(name, None))


def check_same_backbone(run: Path, recorded: str, model_type: str | None, asked: str, name: str | None) -> None:
    """Check that a later stage of a run is not asked for with another backbone than the run's.

    Args:
        run: The run folder.
        recorded: The backbone that its `run.json` names: a name, or where a trained one came from.
        model_type: What kind of backbone it is.
        asked: The backbone asked for.
        name: The name of the kind asked for; None where a trained one is asked for.

    Raises:
        CheckpointError: when the run holds another one; the message names both widths where an aligner is there.
    """
    if same_source(recorded, asked, CHECKPOINT_PART) or (name is not None and model_type == _plain(name)):
        return
    if name is not None:
        raise CheckpointError(
            f"{run} holds a {model_type} backbone, but {_plain(name)} was asked for (--backbone); train into another "
            "folder"
        )
    widths = ""
    if (run / "align" / "config.json").exists():
        aligned = PreTrainedConfig.get_config_dict(str(run / "align"))[0]["cf_config"]["hidden_size"]
        width = load_trained_backbone(asked)[0].config.hidden_size
        widths = f", and its aligner was trained for d_cf {aligned} where {asked} has d_cf {width}"
    raise CheckpointError(
        f"{run} holds a backbone already{widths}; stage align must be trained on the backbone it is used with: give "
        "--backbone with --stage align and another output folder"
    )


def check_same_catalog(run: Path, data: PreparedData) -> None:
    """Refuse to go on with a run whose backbone was trained on other items than the data's.

    Raises:
        ALLMRecError: when the catalogues differ; the message counts both and names missing items.
    """
    own, given = ItemCatalog.load(run / "backbone").item_ids, data.catalog.item_ids
    if own == given:
        return
    what = other_items(own, given) or f"{len(own) - len(given)} of its items are not in the data"
    raise ALLMRecError(
        f"the backbone in {run} was trained on another catalogue than that of {data.name}: {len(own)} items against "
        f"{len(given)}; {what}; give the data of the earlier stages, or train into another folder"
    )


def _plain(name: str) -> str:
    return name.removeprefix(MODEL_TYPE_PREFIX)


def _class_of(name: str, cf: str | None) -> type[CFEncoder]:
    wanted = None if cf is None else cf_encoder_class(cf)
    try:
        require_found(name)
        values, _ = PreTrainedConfig.get_config_dict(name)
    except DAMAGED as error:
        raise CheckpointError(f"there is no backbone at {name}: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"there is no backbone at {name}: its config.json is no JSON object")
    model_type = str(values.get("model_type", ""))
    if model_type == "a-llmrec":
        raise CheckpointError(f"{name} is a whole A-LLMRec model, not a backbone; of a run, give the folder backbone/")
    if model_type not in cf_encoder_types():
        known = ", ".join(map(_plain, cf_encoder_types()))
        raise CheckpointError(
            f"{name} has the model_type {model_type!r}, which is no known backbone; known ones: {known}; "
            "--backbone-module imports one of your own"
        )
    found = cf_encoder_class(model_type)
    if wanted is not None and wanted is not found:
        raise CheckpointError(
            f"{name} holds a {_short(found)} backbone, but {_short(wanted)} was asked for; leave the name out "
            f"or give a checkpoint of {_short(wanted)}"
        )
    return found


def _short(cf_class: type[CFEncoder]) -> str:
    return _plain(cf_class.config_class.model_type)


def fit_to_catalog(
    cf_encoder: CFEncoder,
    item_ids: Sequence[str | None],
    catalog: ItemCatalog,
    missing_items: MissingItems = "refuse",
    where: str = "the checkpoint",
) -> FittedBackbone:
    """Bring a backbone's items into the order of a catalogue, matched by their ids.

    Args:
        cf_encoder: The backbone.
        item_ids: The id of each of its items, in the order of its rows 1..N; None for one without a known id.
        catalog: The catalogue.
        missing_items: What happens where it lacks items of the catalogue: `"refuse"`, or `"zeros"` for rows of zeros;
            stage 1 takes such items for cold ones and gives them vectors decoded from their texts.
        where: What errors call the backbone.

    Raises:
        CheckpointError: when its weights are not finite.
        DataError: when it lacks items of the catalogue, all of them or with `"refuse"` some.
    """
    _check_finite(cf_encoder, where)
    row_of = {item_id: row for row, item_id in enumerate(item_ids, start=1) if item_id is not None}
    rows = torch.tensor([row_of.get(item_id, 0) for item_id in catalog.item_ids])  # (N of the catalogue,), 0: unknown
    missing = [item_id for item_id in catalog.item_ids if item_id not in row_of]
    dropped = cf_encoder.num_items - (len(catalog) - len(missing))
    if len(missing) == len(catalog) or (missing and missing_items == "refuse"):
        known = [item_id for item_id in item_ids if item_id is not None][:3]
        raise DataError(
            f"{where} has {len(row_of)} items and the data's catalogue {len(catalog)}, of which {len(missing)} are "
            f"missing there: {missing[:5]} (it has {known}, ...); give the data it was trained on, or train on yours"
            + (
                ""
                if len(missing) == len(catalog)
                else ", or take these items as cold ones with --backbone.missing-items zeros"
            )
        )
    if missing:
        logger.warning("%s lacks %d of %d items: %s; they are cold", where, len(missing), len(catalog), missing[:5])
    if dropped:
        logger.warning("%s has %d items that the data's catalogue lacks; they are dropped", where, dropped)
    if rows.tolist() != list(range(1, cf_encoder.num_items + 1)):
        cf_encoder = _reordered(cf_encoder, rows)
    return FittedBackbone(cf_encoder.eval(), missing, dropped)


@torch.no_grad()
def _reordered(cf_encoder: CFEncoder, rows: Tensor) -> CFEncoder:
    """Return a backbone whose item i is the old item `rows[i - 1]`, or zeros where that is 0."""
    config: Any = cf_encoder.config
    smaller, larger = _shapes(config, config.num_items), _shapes(config, config.num_items + 1)
    absent = (rows == 0).nonzero().flatten()
    state = {}
    for name, value in cf_encoder.state_dict().items():
        for dimension, (extent, grown) in enumerate(zip(smaller[name], larger[name], strict=True)):
            if extent == grown:
                continue
            padding = extent - config.num_items  # 1 where row 0 is padding, 0 where there is none
            index = torch.cat([torch.arange(padding), (rows - 1).clamp(min=0) + padding])
            value = value.index_select(dimension, index).index_fill(dimension, absent + padding, 0)
        state[name] = value
    fitted: Any = build_cf_encoder(_resized(config, len(rows)))
    fitted.to(cf_encoder.dtype).load_state_dict(state)
    fitted.renumber_items(rows)
    return fitted  # type: ignore[no-any-return]


def _resized(config: CFEncoderConfig, num_items: int) -> CFEncoderConfig:
    resized: CFEncoderConfig = type(config).from_dict({**config.to_dict(), "num_items": num_items})
    return resized


def _shapes(config: CFEncoderConfig, num_items: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a backbone's tensors: those that follow `num_items` hold something of each item."""
    with torch.device("meta"):
        model = build_cf_encoder(_resized(config, num_items))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def save_backbone(cf_encoder: CFEncoder, catalog: ItemCatalog, directory: Path) -> None:
    """Write a backbone, its catalogue and what it was trained on to a folder, whole or not at all."""
    with folder_written_whole(directory) as folder:
        cf_encoder.save_pretrained(str(folder))
        catalog.save(folder)
        save_target_counts(cf_encoder, catalog, folder)
