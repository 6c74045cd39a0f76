"""Backbones trained with other programs: their weights under our names, their items matched by id.

Two layouts are known. `"recbole"` is the checkpoint file of RecBole's SASRec, `"authors"` that of the program published
with arXiv 2404.11343, which is also the layout of a state dict saved by the SASRec program it builds on. No code of a
file is run; `torch_archive` says how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

from ..catalog import ItemCatalog
from ..cf_encoder import build_cf_encoder
from ..errors import ALLMRecError, CheckpointError, DataError
from ..files import PARQUET_ERRORS
from ..stored_values import json_value
from ..values import id_text
from .pretrained_backbone import FittedBackbone, MissingItems, fit_to_catalog
from .torch_archive import TorchArchive, as_mapping

Source = Literal["recbole", "authors"]
SOURCES = ("recbole", "authors")
_RECBOLE_SETTINGS = {
    "num_heads": "n_heads",
    "hidden_act": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attn_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
_RECBOLE_LOSSES = {"CE": "cross_entropy", "BPR": "bpr"}
_HOW_TO_LIST = {
    "recbole": "a RecBole checkpoint does not hold item ids; in RecBole, write them with "
    '`json.dump(list(dataset.field2id_token["item_id"]), open("item_ids.json", "w"))` and pass --item-ids',
    "authors": "the checkpoint does not hold item ids; write lines of item_id<TAB>row, with the number that the "
    "training data gave each item, and pass --item-ids",
}


def import_backbone(
    source: Source,
    checkpoint: str | Path,
    catalog: ItemCatalog,
    item_ids: str | Path | None,
    missing_items: MissingItems = "refuse",
    num_heads: int | None = None,
) -> FittedBackbone:
    """Turn trained weights of another program into a backbone for a catalogue.

    Args:
        source: `"recbole"` or `"authors"`.
        checkpoint: The file that the program saved.
        catalog: The items of the data; the backbone gets their order.
        item_ids: File with the item id of each row; see `read_item_ids`.
        missing_items: What happens where the checkpoint lacks items of the catalogue; see `fit_to_catalog`.
        num_heads: Attention heads, where the file does not say (a bare state dict).

    Raises:
        CheckpointError: when the file is no such checkpoint.
        DataError: when the ids do not fit the rows, or items are missing.
    """
    if source not in SOURCES:
        raise ALLMRecError(f"unknown source {source!r} of weights; known are {', '.join(SOURCES)}")
    archive = TorchArchive(Path(checkpoint))  # first: who gave a wrong file should not write item ids for it
    if item_ids is None:
        raise DataError(_HOW_TO_LIST[source])
    config, weights = _read_recbole(archive) if source == "recbole" else _read_authors(archive, num_heads)
    config["num_items"] = len(weights["item_embedding.weight"]) - 1
    cf_encoder = build_cf_encoder(config)
    weights["item_embedding.weight"][0] = 0  # RecBole gives padding random numbers, which nothing of a history reads
    try:
        cf_encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: its tensors do not fit each other: {error}") from error
    ids = read_item_ids(Path(item_ids), cf_encoder.num_items)
    return fit_to_catalog(cf_encoder, ids, catalog, missing_items, str(checkpoint))


def _read_recbole(archive: TorchArchive) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = as_mapping(archive.content) or {}
    if not {"state_dict", "config"} <= set(content):
        raise CheckpointError(
            f"{archive.path} is no checkpoint of RecBole: of its entries state_dict and config it has "
            f"{sorted({'state_dict', 'config'} & set(content))}; for the published program's, use --source authors"
        )
    settings = as_mapping((as_mapping(content["config"]) or {}).get("final_config_dict")) or {}
    if settings.get("model", "SASRec") != "SASRec":
        raise CheckpointError(f"{archive.path} holds RecBole's {settings['model']}; only its SASRec can be imported")
    lacking = sorted({*_RECBOLE_SETTINGS.values()} - set(settings))
    if lacking:
        raise CheckpointError(f"the config in {archive.path} lacks the settings {lacking} of RecBole's SASRec")
    weights = recbole_weights(archive.tensors(content["state_dict"]), str(archive.path))
    config = {ours: settings[theirs] for ours, theirs in _RECBOLE_SETTINGS.items()}
    config |= {
        "model_type": "recbole-sasrec",
        "num_layers": _count_layers(weights),
        "hidden_size": weights["item_embedding.weight"].shape[1],
        "inner_size": weights["layers.0.feed_forward_inner.weight"].shape[0],
        "max_history_length": weights["position_embedding.weight"].shape[0],
        "loss": _RECBOLE_LOSSES.get(str(settings.get("loss_type")), "cross_entropy"),
    }
    return config, weights


def _read_authors(archive: TorchArchive, num_heads: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content, arguments = archive.content, {}
    if isinstance(content, (list, tuple)) and len(content) == 2:  # settings and state dict
        arguments = as_mapping((as_mapping(content[0]) or {}).get("args")) or {}
        content = content[1]
    if {"state_dict", "config"} <= set(as_mapping(content) or {}):
        raise CheckpointError(f"{archive.path} is a checkpoint of RecBole; use --source recbole")
    weights = authors_weights(archive.tensors(content), str(archive.path))
    heads = arguments.get("num_heads", num_heads)
    if heads is None:
        raise CheckpointError(
            f"{archive.path} does not say how many attention heads it was trained with; pass --num-heads (1 by default "
            "in that program)"
        )
    positions = weights["position_embedding.weight"].shape[0]
    if arguments.get("maxlen", positions) != positions:
        raise CheckpointError(
            f"{archive.path} has {positions} positions for histories of {arguments['maxlen']} items: it was trained by "
            "another version of the program, which treats padding differently"
        )
    config = {
        "model_type": "sasrec",
        "num_layers": _count_layers(weights),
        "num_heads": heads,
        "hidden_size": weights["item_embedding.weight"].shape[1],
        "max_history_length": positions,
        "dropout": arguments.get("dropout_rate", 0.5),
        "loss": "bce",
        "attend_padding": True,
    }
    return config, weights


def recbole_weights(state: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, Tensor]:
    """Return the state dict of `RecBoleSASRecModel` for one of RecBole's SASRec.

    Raises:
        CheckpointError: when it is another model's.
    """
    names = {"item_embedding.weight": "item_embedding.weight", "position_embedding.weight": "position_embedding.weight"}
    names |= {f"input_norm.{kind}": f"LayerNorm.{kind}" for kind in ("weight", "bias")}
    for layer in range(_count_layers(state, "trm_encoder.layer.")):
        attention, feed_forward = (
            f"trm_encoder.layer.{layer}.{part}" for part in ("multi_head_attention", "feed_forward")
        )
        parts = {
            **{name: f"{attention}.{name}" for name in ("query", "key", "value")},
            "output": f"{attention}.dense",
            "attention_norm": f"{attention}.LayerNorm",
            "feed_forward_inner": f"{feed_forward}.dense_1",
            "feed_forward_outer": f"{feed_forward}.dense_2",
            "feed_forward_norm": f"{feed_forward}.LayerNorm",
        }
        names |= _both_kinds(layer, parts)
    return _renamed(state, names, where, "SASRec of RecBole")


def authors_weights(state: Mapping[str, Tensor], where: str = "the state dict") -> dict[str, Tensor]:
    """Return the state dict of `SASRecModel` for one of the program published with arXiv 2404.11343.

    Its attention keeps query, key and value in one tensor, and its feed-forward layers are convolutions of width 1.

    Raises:
        CheckpointError: when it is another model's.
    """
    unpacked: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".in_proj_" in name and value.shape[0] % 3 == 0:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                unpacked[name.replace("in_proj_", f"{part}.")] = piece
        elif name.startswith("forward_layers.") and value.ndim == 3 and value.shape[-1] == 1:
            unpacked[name] = value.squeeze(-1)
        else:
            unpacked[name] = value
    names = {"item_embedding.weight": "item_emb.weight", "position_embedding.weight": "pos_emb.weight"}
    names |= {f"final_norm.{kind}": f"last_layernorm.{kind}" for kind in ("weight", "bias")}
    for layer in range(_count_layers(state, "attention_layers.")):
        parts = {
            "attention_norm": f"attention_layernorms.{layer}",
            **{f"attention.{name}": f"attention_layers.{layer}.{name}" for name in ("query", "key", "value")},
            "attention.output": f"attention_layers.{layer}.out_proj",
            "feed_forward_norm": f"forward_layernorms.{layer}",
            "feed_forward_inner": f"forward_layers.{layer}.conv1",
            "feed_forward_outer": f"forward_layers.{layer}.conv2",
        }
        names |= _both_kinds(layer, parts)
    return _renamed(unpacked, names, where, "SASRec of the published program")


def _both_kinds(layer: int, parts: Mapping[str, str]) -> dict[str, str]:
    return {
        f"layers.{layer}.{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
    }


def _count_layers(state: Mapping[str, Tensor], prefix: str = "layers.") -> int:
    return max(1, len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}))


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str], where: str, what: str) -> dict[str, Tensor]:
    missing, unknown = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    tables = ("item_embedding.weight", "position_embedding.weight", "layers.0.feed_forward_inner.weight")
    if missing or unknown or any(state[names[name]].ndim != 2 for name in tables):
        raise CheckpointError(
            f"{where} holds no {what}: {len(missing)} of its {len(names)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    return {ours: state[theirs].to(torch.float32, copy=True).contiguous() for ours, theirs in names.items()}


def read_item_ids(path: Path, num_items: int) -> list[str | None]:
    """Return the item id of each row 1..N of an item table; None for rows without one.

    The file is a list in the order of the rows, with row 0 (padding) or without it, or a table of ids and rows:

    - `.json`: a list of ids, or a mapping of ids to rows
    - `.parquet`: a column `item_id`, and `row` where it is not in the order of the rows
    - any other: a line for each id, or lines of `item_id<TAB>row`

    Args:
        path: The file.
        num_items: N.

    Raises:
        DataError: when it cannot be read, an id or a row occurs twice, or a row is none of the table.
    """
    try:
        listed = _listed(path)
    except (*PARQUET_ERRORS, ValueError) as error:
        raise DataError(f"the item ids in {path} cannot be read: {error}") from error
    if isinstance(listed, list):
        if len(listed) not in (num_items, num_items + 1):
            raise DataError(
                f"{path} lists {len(listed)} item ids for an item table of {num_items} items (or {num_items + 1} rows "
                "with padding); give the ids of the data the checkpoint was trained on, in the order of its rows"
            )
        pairs = list(enumerate(listed[len(listed) - num_items :], start=1))
    else:
        pairs = [(row, item_id) for item_id, row in listed if row != 0]
    ids: list[str | None] = [None] * num_items
    for row, item_id in pairs:
        if type(row) is not int or not 1 <= row <= num_items:
            raise DataError(
                f"{path} gives the item {item_id!r} the row {row!r}; the item table has rows 1..{num_items}"
            )
        if ids[row - 1] is not None:
            raise DataError(f"{path} gives the row {row} to two items, {ids[row - 1]!r} and {item_id!r}")
        ids[row - 1] = id_text(item_id)
    known = [item_id for item_id in ids if item_id is not None]
    if len(set(known)) != len(known):
        twice = [item_id for item_id, count in Counter(known).items() if count > 1][:5]
        raise DataError(f"{path} holds item ids more than once: {twice}")
    return ids


def _listed(path: Path) -> list[Any] | tuple[tuple[Any, Any], ...]:
    """Return a list of ids in the order of the rows, or a tuple of pairs of id and row."""
    if path.suffix == ".json":
        value = json_value(path.read_text(encoding="utf-8"))
        if not isinstance(value, (list, dict)):
            raise ValueError("it is neither a list of ids nor a mapping of ids to rows")
        return value if isinstance(value, list) else tuple(value.items())
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
        if "item_id" not in frame.columns:
            raise ValueError(f"it has no column item_id; its columns are {frame.columns}")
        return tuple(frame.select("item_id", "row").rows()) if "row" in frame.columns else frame["item_id"].to_list()
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if all("\t" in line for line in lines):
        pairs = (line.rsplit("\t", 1) for line in lines)
        return tuple((item_id, int(row)) for item_id, row in pairs)
    return lines
