"""`allmrec import-backbone`, and what the commands share about backbones from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import ConfigOption, JsonOption, emit, say, user_errors

Source = Literal["recbole", "authors"]
MissingItems = Literal["refuse", "zeros"]


def import_users_module(name: str) -> None:
    """Import a module that the user named, from the working folder or from `sys.path`; this runs its code.

    Raises:
        ALLMRecError: when it cannot be imported.
    """
    from ..training.pretrained_backbone import import_backbone_module

    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    import_backbone_module(name)


def import_backbone(
    source: Annotated[
        Source, typer.Option(help="recbole: RecBole's SASRec; authors: the program published with arXiv 2404.11343.")
    ],
    checkpoint: Annotated[Path, typer.Option(help="The file with the weights, such as saved/SASRec-....pth.")],
    data: Annotated[Path, typer.Option(help="Folder of `allmrec prepare`; the backbone gets its catalogue.")],
    output: Annotated[Path, typer.Option(help="Folder for the backbone; it must be empty or new.")],
    item_ids: Annotated[
        Path | None, typer.Option(help="Item id of each row: text, JSON or parquet, as a list or with row numbers.")
    ] = None,
    missing_items: Annotated[
        MissingItems, typer.Option(help="Items of the data that the weights lack: refuse, or zeros (cold items).")
    ] = "refuse",
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where the file does not say.")] = None,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Import a backbone trained with another program; no code of its file is run.

    **Example**

    `allmrec import-backbone --source recbole --checkpoint saved/SASRec.pth --item-ids item_ids.json --data data/games
    --output runs/recbole`
    """
    with user_errors():
        from ..data.prepared import PreparedData
        from ..errors import ALLMRecError
        from ..training import importing
        from ..training.pretrained_backbone import save_backbone

        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ALLMRecError(f"the output {output} is a file or a folder that is not empty; choose another")
        catalog = PreparedData.load(data).catalog
        cf_encoder, missing, dropped = importing.import_backbone(
            source, checkpoint, catalog, item_ids, missing_items, num_heads
        )
        save_backbone(cf_encoder, catalog, output)
        if json_output:
            emit(
                {
                    "output": str(output),
                    "model_type": cf_encoder.config.model_type,
                    "items": len(catalog),
                    "missing": len(missing),
                    "dropped": dropped,
                }
            )
            return
        say(f"Imported {cf_encoder.config.model_type} with {len(catalog)} items to {output}.")
        if missing or dropped:
            say(f"{len(missing)} items of the data were missing (cold now), {dropped} others were dropped.")
