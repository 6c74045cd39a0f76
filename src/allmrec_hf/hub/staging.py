"""Stage a run folder for upload: the checkpoint as it is, or a copy that carries its parts or names their Hub ids."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint_code import generated_card, update_json
from ..endpoint_handler import HANDLER_FILE, write_endpoint_files
from ..errors import ALLMRecError, CheckpointError
from ..gguf_files import split_gguf
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import DEMO, is_hub_id
from ..sharing import check_no_local_parts, check_no_machine_paths, local_parts
from ..stored_values import json_value
from .card import CARD_DATA_FILE, CARD_FILE, ALLMRecCard, card_files, read_card, render_card, write_card

logger = logging.getLogger(__name__)
_REMEDIES = {
    "llm": "upload its weights too with --include-llm (include_llm=True), or name the same LLM on the Hub with "
    "--llm-id ORG/NAME (llm_id=)",
    "text_encoder": "upload it too with --include-text-encoder (include_text_encoder=True), or name the same one on "
    "the Hub with --text-encoder-id ORG/NAME (text_encoder_id=)",
}
_NOT_CARRIED = "The checkpoint does not carry the language model; loading fetches it under its own id and licence."
_CARRIED = "The checkpoint carries the language model's weights."


@dataclass(frozen=True)
class Sharing:
    """The way in which others get the parts that a light checkpoint does not hold.

    Attributes:
        include_llm: Put the LLM into the copy.
        llm_id: The LLM's id on the Hub; of one in a GGUF file ORG/NAME/FILE.gguf.
        include_text_encoder: Put the text encoder into the copy.
        text_encoder_id: Its id on the Hub.
        llm: Where to read the LLM, where it is not where the checkpoint says.
        text_encoder: Likewise.
        trust_remote_code: Run code that comes with them.
    """

    include_llm: bool = False
    llm_id: str | None = None
    include_text_encoder: bool = False
    text_encoder_id: str | None = None
    llm: str | None = None
    text_encoder: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for option, name in (("--llm-id", self.llm_id), ("--text-encoder-id", self.text_encoder_id)):
            if name is not None and (name == DEMO or not is_hub_id(split_gguf(name)[0])):
                raise ALLMRecError(f"{option} takes an id of the Hub, such as ORG/NAME, not {name!r}")


@contextmanager
def shareable(directory: Path, files: Sequence[str], sharing: Sharing, repo_id: str | None = None) -> Iterator[Path]:
    """Give the folder whose files can be uploaded: `directory`, or a temporary copy with the parts as chosen.

    A card that was rendered from its data, and not changed by hand, is rendered again for the copy: its example names
    the repository, and its evaluation results lie beside it.

    Args:
        directory: The checkpoint.
        files: Its files, as relative POSIX paths.
        sharing: How others get its parts.
        repo_id: The repository it goes to.

    Raises:
        ALLMRecError: when others could not load it, or a file names a path of this machine.
        CheckpointError: when a part that is to be included cannot be loaded.
    """
    config = json_value((directory / "config.json").read_text(encoding="utf-8"))
    is_ours = isinstance(config, dict) and config.get("model_type") == "a-llmrec"
    known = [str(directory), str(directory.resolve()), *local_parts(directory).values(), *_paths_of_the_run(directory)]
    has_handler = (directory / HANDLER_FILE).exists()
    card = _own_card(directory)
    if card is not None and repo_id is not None:
        card.repo_id = repo_id
    as_it_is = card is None or card_files(card) == {name: _text(directory / name) for name in card_files(card)}
    if (not is_ours and as_it_is) or (sharing == Sharing() and has_handler and as_it_is):
        check_no_local_parts(directory, _REMEDIES)
        check_no_machine_paths(directory, files, known)
        yield directory
        return
    given = {
        "llm": sharing.include_llm or sharing.llm_id is not None,
        "text_encoder": sharing.include_text_encoder or sharing.text_encoder_id is not None,
    }
    check_no_local_parts(directory, _REMEDIES, without=[part for part, choice in given.items() if choice])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in files:
            _link(directory / name, folder / name)
        if sharing != Sharing() and is_ours:
            _change(directory, folder, config, sharing)
        if card is not None:
            changed = read_card(folder)
            changed.repo_id = card.repo_id
            write_card(changed, folder)
        if not has_handler and is_ours:  # of a version before there was one
            write_endpoint_files(folder, bool(config.get("code_exported")))
        copied = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        check_no_machine_paths(folder, copied, known)
        yield folder


def _own_card(directory: Path) -> ALLMRecCard | None:
    """Return the data of a card that is as they were rendered; None of one that was changed by hand, or has none.

    A card of an earlier version was rendered otherwise; it counts as changed.
    """
    if not (directory / CARD_DATA_FILE).exists():
        return None
    card = read_card(directory)
    if _text(directory / CARD_FILE) in (None, render_card(card)):
        return card
    logger.warning(
        "%s is pushed as it is: it is not what %s gives; `allmrec card %s` writes it again",
        directory / CARD_FILE,
        CARD_DATA_FILE,
        directory,
    )
    return None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def _paths_of_the_run(directory: Path) -> list[str]:
    try:
        sections = json_value((directory / "run.json").read_text(encoding="utf-8"))["arguments"].values()
        values = [value for section in sections for value in section.values()]
        return [value for value in values if isinstance(value, str) and Path(value).is_absolute()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":  # large, and never changed in place
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(source, target)


def _change(directory: Path, folder: Path, config: dict[str, Any], sharing: Sharing) -> None:
    before = dict(config)
    adds_llm = sharing.include_llm and not config.get("language_model_included")
    adds_encoder = sharing.include_text_encoder and not config.get("text_encoder_included")
    if adds_llm or adds_encoder:
        includes_llm = adds_llm or bool(config.get("language_model_included"))
        wanted = (sharing.llm or "auto") if includes_llm else None
        trust = sharing.trust_remote_code
        if adds_llm and config.get("llm_dim") is None:
            raise CheckpointError(f"{directory} has no part that was trained for an LLM, so there is none to include")
        model = ALLMRecModel.from_pretrained(
            directory, language_model=wanted, text_encoder=sharing.text_encoder, trust_remote_code=trust, dtype="auto"
        )
        model.config.text_encoder_included = adds_encoder or model.config.text_encoder_included
        model.save_pretrained(folder, include_llm=includes_llm)
    named = {"base_model_name_or_path": sharing.llm_id, "text_encoder_name_or_path": sharing.text_encoder_id}
    ids: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if sharing.llm_id is not None and sharing.llm_id != config.get("base_model_name_or_path"):
        name, gguf_file = split_gguf(sharing.llm_id)
        ids |= {"base_model_name_or_path": name, "base_model_gguf_file": gguf_file, "base_model_revision": None}
    update_json(folder / "config.json", ids)
    _change_card(folder, before, json_value((folder / "config.json").read_text(encoding="utf-8")))


def _change_card(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Let the card say what the checkpoint now carries and names; words written by hand stay."""
    readme = folder / CARD_FILE
    text = readme.read_text(encoding="utf-8") if readme.exists() else None
    if (folder / CARD_DATA_FILE).exists():
        card = read_card(folder)
        rendered = render_card(card)
        card.base_model, card.base_model_revision = after["base_model_name_or_path"], after["base_model_revision"]
        card.base_model_file = after.get("base_model_gguf_file")
        card.includes_base_model = after["language_model_included"]
        card.text_encoder = after["text_encoder_name_or_path"]
        write_card(card, folder)
        if text is None or text == rendered:
            return
    elif text in (None, _generated(before), _generated(after)):
        readme.write_text(_generated(after), encoding="utf-8")
        return
    if after["language_model_included"]:
        text = text.replace(_NOT_CARRIED, _CARRIED)
    readme.write_text(text, encoding="utf-8")


def _generated(config: dict[str, Any]) -> str:
    cf_config = config["cf_config"]
    return generated_card(
        config.get("base_model_name_or_path"),
        str(cf_config["model_type"]),
        int(cf_config["num_items"]),
        bool(config.get("language_model_included")),
    )
