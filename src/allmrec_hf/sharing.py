"""Find what must not be published with a checkpoint: paths and parts that only this machine has, and secrets."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ALLMRecError
from .part_sources import LANGUAGE_MODEL_PART, is_of_this_machine
from .stored_values import json_value

_POSIX = re.compile(r"(?<![\w/.:~&#-])/(?:[^\s\"'`<>|*?,;:()\[\]{}\\/]+/)+[^\s\"'`<>|*?,;:()\[\]{}\\/]*")
_OTHERS = re.compile(r"\b[A-Za-z]:\\{1,2}[^\s\"'`<>|*?,;]+|\bfile://[^\s\"'`<>]+")
_HOMES = frozenset(("home", "Users", "root", "tmp", "mnt", "media", "private", "scratch", "workspace"))
_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": re.compile(r"\b(?:ghp|gho|ghs|ghu)_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{50,}\b"),
    "an API key": re.compile(r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}\b"),
    "an AWS key id": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
LARGEST_FILE = 50 * 10**9  # bytes that the Hub takes in one file
_WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_TEXT_SUFFIXES = (".json", ".md", ".txt", ".jinja", ".py", ".yaml", ".yml")


def machine_paths(folder: Path, files: Iterable[str], known: Iterable[str | None] = ()) -> list[tuple[str, str]]:
    """Return the paths of this machine that text files name, as pairs of file and path.

    A path of this machine is absolute and exists here, or lies in a usual home or temporary folder, or in one of the
    known folders. In vocabularies and in code only the known folders count.

    Args:
        folder: Where the files are.
        files: Their relative POSIX paths; those of other kinds than text are left out.
        known: Folders that must not be named.
    """
    roots = [str(Path(name).expanduser()) for name in known if name and Path(name).expanduser().is_absolute()]
    roots = [root for root in {*roots, *(str(Path(root).resolve()) for root in roots)} if len(Path(root).parts) > 2]
    found = []
    for name in files:
        path = PurePosixPath(name)
        if path.suffix not in _TEXT_SUFFIXES:
            continue
        foreign = path.suffix == ".py" or (path.parts[0] == LANGUAGE_MODEL_PART and path.suffix != ".json")
        strict = path.name not in _WORDS and not foreign
        for text in _texts(folder / name):
            named = next((root for root in roots if root in text), None)
            if named is None and strict:
                named = next((path for path in _paths_in(text) if _is_of_this_machine(path)), None)
            if named is not None:
                found.append((name, named))
                break
    return found


def _texts(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            yield from _strings(json_value(text))
            return
        except ValueError:
            pass
    yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _paths_in(text: str) -> Iterator[str]:
    for pattern in (_POSIX, _OTHERS):
        for match in pattern.finditer(text):
            yield match[0].rstrip(".")


def _is_of_this_machine(path: str) -> bool:
    if not path.startswith("/"):
        return True
    parts = PurePosixPath(path).parts
    if parts[1] in _HOMES:
        return True
    try:
        return Path(path).exists()
    except OSError:
        return False


def check_no_machine_paths(folder: Path, files: Iterable[str], known: Iterable[str | None] = ()) -> None:
    """Check that no text file to publish names a path of this machine.

    Raises:
        ALLMRecError: when one does; the message names files and paths.
    """
    found = machine_paths(folder, files, known)
    if found:
        told = "; ".join(f"{name}: {path}" for name, path in found[:3])
        raise ALLMRecError(
            f"{len(found)} files name paths of this machine and are not published ({told}); take the paths out"
        )


def check_no_secrets(folder: Path, files: Iterable[str]) -> None:
    """Check that no text file to publish holds what looks like a token or a private key; vocabularies are left out.

    Raises:
        ALLMRecError: when one does; the message names the file and the kind, never the secret.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.suffix not in _TEXT_SUFFIXES or path.name in _WORDS:
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        kind = next((kind for kind, pattern in _SECRETS.items() if pattern.search(text)), None)
        if kind is not None:
            raise ALLMRecError(
                f"{name} holds what looks like {kind} and is not published; take it out, and revoke it if it was shown"
            )


def check_sizes(folder: Path, files: Iterable[str], largest: int = LARGEST_FILE) -> None:
    """Check that the Hub takes every file.

    Raises:
        ALLMRecError: when a file is larger than `largest` bytes.
    """
    for name in files:
        size = (folder / name).stat().st_size
        if size > largest:
            raise ALLMRecError(
                f"{name} has {size / 1e9:.1f} GB and the Hub takes files up to {largest / 1e9:.0f} GB; save the model "
                "in smaller shards (save_pretrained(..., max_shard_size='5GB'))"
            )


# -- parts that only this machine has


def local_parts(folder: Path) -> dict[str, str]:
    """Return the parts that a checkpoint neither carries nor names on the Hub: `"llm"`, `"text_encoder"` -> folder.

    Args:
        folder: A folder with `config.json`; of one that is no A-LLMRec checkpoint, nothing is returned.
    """
    try:
        config = json_value((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or config.get("model_type") != "a-llmrec":
        return {}
    fields = {
        "llm": ("base_model_name_or_path", "language_model_included"),
        "text_encoder": ("text_encoder_name_or_path", "text_encoder_included"),
    }
    return {
        part: config[name]
        for part, (name, carried) in fields.items()
        if not config.get(carried) and is_of_this_machine(config.get(name), folder)
    }


def check_no_local_parts(folder: Path, remedies: dict[str, str], without: Iterable[str] = ()) -> None:
    """Check that others can load a checkpoint: that its LLM and text encoder lie in no folder of this machine only.

    Args:
        folder: The checkpoint.
        remedies: What to do about each part.
        without: Parts of which it does not matter.

    Raises:
        ALLMRecError: when the LLM or the text encoder lies in a folder of this machine only.
    """
    words = {"llm": "its LLM", "text_encoder": "its text encoder"}
    found = {part: name for part, name in local_parts(folder).items() if part not in without}
    if found:
        told = "; ".join(f"{words[part]} from the folder {name}: {remedies[part]}" for part, name in found.items())
        raise ALLMRecError(f"nobody else could load this checkpoint, because it has {told}. Nothing was uploaded")
