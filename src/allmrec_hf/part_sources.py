"""Find an LLM, a text encoder or a checkpoint: in a folder of this machine, on the Hub, or the one named `demo`."""

import hashlib
import os
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .errors import CheckpointError
from .stored_values import json_value

END_BYTES = 2**20
DEMO = "demo"
"""In place of an id or path: the tiny LLM, text encoder or checkpoint that comes with this package."""
DEMO_PARTS = Path(__file__).parent / "demo"
LANGUAGE_MODEL_PART, TEXT_ENCODER_PART, CHECKPOINT_PART = "language_model", "text_encoder", "checkpoint"
TransportError: Any = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, whichever huggingface_hub uses

# -- names


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of an id on the Hub; a relative path such as `models/opt` may have it too."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not PureWindowsPath(name).is_absolute()


def _demo_part(part: str) -> Path:
    if not (DEMO_PARTS / part).is_dir():
        raise CheckpointError(f"`{DEMO}` names a part of the package, which is not installed: pip install allmrec-hf")
    return DEMO_PARTS / part


def located(name: str, part: str, folder: str | os.PathLike[str] | None = None) -> str:
    """Return what a loader takes: the absolute path of a folder, or a Hub id.

    A name that is a folder, inside `folder` or where the process runs, is that folder; a name that can only be a path
    is never looked up on the Hub.

    Args:
        name: An id, a path, or `demo`.
        part: `"language_model"`, `"text_encoder"` or `"checkpoint"`: which part `demo` is.
        folder: The checkpoint that a relative path starts from.

    Raises:
        FileNotFoundError: when a path leads to no folder.
    """
    if name == DEMO:
        return str(_demo_part(part))
    path = Path(name).expanduser()
    starts = [Path()] if is_hub_id(name) or folder is None else [Path(folder), Path()]
    for start in starts:
        if (start / path).is_dir():
            return str((start / path).resolve())
    if is_hub_id(name):
        return name
    raise FileNotFoundError(f"{name} is a file" if path.is_file() else f"there is no such folder: {name}")


def recorded(name: str, part: str) -> str:
    """Return the spelling of a name that holds wherever the process runs: folders by their absolute path.

    A path that leads nowhere, a Hub id and `demo` are returned as they are.
    """
    path = Path(name).expanduser()
    if name != DEMO and path.is_file():
        return str(path.absolute())  # of a GGUF file; a link in a cache of the Hub keeps its name
    if name == DEMO or not path.is_dir():
        return name
    path = path.resolve()
    return DEMO if path == (DEMO_PARTS / part).resolve() else str(path)


def named_part(name: str, part: str) -> str:
    """Return an id or path as it is, and for `demo` the folder of the tiny part that comes with this package.

    Args:
        name: Id, path or `demo`.
        part: `"language_model"` or `"text_encoder"`.
    """
    return str(DEMO_PARTS / part) if name == DEMO else name


def part_path(name: str, part: str) -> str:
    """Return what `named_part` does, and of a local folder the one spelling that tells it from others."""
    return named_part(recorded(name, part), part)


@cache
def part_name(name: str) -> str:
    """Return an id as it is, and for a folder or file its name with a digest: paths differ between machines.

    Of each file the size and both ends count; trained weights that are others differ there too.
    """
    folder = Path(name)
    if not folder.exists():
        return name
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read())
    return f"{DEMO if folder.parent == DEMO_PARTS else folder.name} ({digest.hexdigest()[:8]})"


def same_source(first: Any, second: Any, part: str) -> bool:
    """Tell whether two names are one source, as seen from where the process runs; values of no part are compared."""
    if not part or not isinstance(first, str) or not isinstance(second, str):
        return bool(first == second)
    return recorded(first, part) == recorded(second, part)


def stored(name: str | None, part: str, folder: str | os.PathLike[str], carried: bool) -> str | None:
    """Return what a checkpoint's config says of a part's origin.

    Args:
        name: Id, path or `demo`.
        part: As for `located`.
        folder: The checkpoint's folder; a path inside it is written relative to it, so that both can be moved.
        carried: Whether the checkpoint carries the part: of a folder only the name is told then.
    """
    if name is None:
        return None
    name = recorded(name, part)
    path = Path(name)
    if name == DEMO or not path.is_absolute():
        return name
    if carried:
        return f"./{path.name}"
    inside = Path(folder).resolve()
    return f"./{path.relative_to(inside).as_posix()}" if path.is_relative_to(inside) else name


def is_of_this_machine(name: str | None, folder: str | os.PathLike[str] | None = None) -> bool:
    """Tell whether a name is a folder of this machine (or can be nothing else), which others do not have.

    Args:
        name: What a config says of a part's origin.
        folder: The checkpoint that a relative path starts from.
    """
    if name is None or name == DEMO:
        return False
    return not is_hub_id(name) or any((start / name).is_dir() for start in (Path(folder or ""), Path()))


def public_name(name: str | None) -> str | None:
    """Return an id as it is, and of a path (of any system) only its last part, as `./name`."""
    if name is None or (name != DEMO and is_hub_id(name) and not Path(name).is_dir()):
        return name
    return f"./{PureWindowsPath(name).name}"


# -- the Hub


def require_found(name: str, file: str = "config.json", **hub: Any) -> None:
    """Refuse a name that is neither a folder nor a repository the Hub has; asked once, never again and again.

    Args:
        name: What `located` returned.
        file: A file to ask for; that the repository lacks it is no error.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`; others are left out.

    Raises:
        FileNotFoundError: when it cannot be had; the message says why, on one line.
    """
    if Path(name).is_dir():
        return
    revision, cache_dir = hub.get("revision"), hub.get("cache_dir") or constants.HF_HUB_CACHE
    file = f"{hub['subfolder']}/{file}" if hub.get("subfolder") else file
    if not is_hub_id(name):
        raise FileNotFoundError(f"there is no such folder, and an id of the Hub looks like ORG/NAME, not {name!r}")
    if isinstance(try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision), str):
        return
    if constants.is_offline_mode() or hub.get("local_files_only"):
        if (Path(cache_dir) / f"models--{name.replace('/', '--')}").is_dir():
            return
        raise FileNotFoundError(
            f"there is no folder {name}, the cache {cache_dir} does not hold it, and the Hub is not asked (offline)"
        )
    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision), token=hub.get("token"))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{name} is gated: ask for access at {constants.ENDPOINT}/{name}, and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a folder {name} nor a repository {name} on {constants.ENDPOINT} (or it is private: log "
            "in with `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision}") from error
    except EntryNotFoundError:
        return
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{constants.ENDPOINT} refused {name}: {one_line(error)}") from error
    except (TransportError, OSError) as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and {constants.ENDPOINT} cannot be reached ({one_line(error)})"
        ) from error


def require_own_weights(name: str, subfolder: str | None = None) -> None:
    """Refuse a folder whose index of weights names files of other folders; of a repository, the Hub's client does.

    Args:
        name: What `located` returned.
        subfolder: Where in the folder the weights are.

    Raises:
        FileNotFoundError: when the index names such a file.
    """
    index = Path(name) / (subfolder or "") / "model.safetensors.index.json"
    try:
        files = set(json_value(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # there is none, or whoever loads the weights says what is wrong with it
    for file in files:
        if PureWindowsPath(str(file)).name != str(file):
            raise FileNotFoundError(
                f"its index {index.name} takes weights from {str(file)[:100]!r}, which is not a file of that folder; "
                "load a checkpoint whose weights are all its own"
            )


def one_line(error: BaseException, max_characters: int = 500) -> str:
    """Return an error's message on one line; of a refusal to run code of others, what to do about it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError) and "trust_remote_code" in text:
        return (
            "it comes with code of its own, which runs only where you allow it: read that code, then pass "
            "trust_remote_code=True (--trust-remote-code on the command line)"
        )
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"
