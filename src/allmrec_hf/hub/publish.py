"""Upload a checkpoint folder to a repository on the Hub."""

from __future__ import annotations

import logging
import os
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint_code import EVAL_RESULTS_FILE
from ..errors import CheckpointError
from ..hub_upload import upload
from ..sharing import check_no_secrets, check_sizes
from ..stored_values import json_value
from .staging import Sharing, shareable

logger = logging.getLogger(__name__)

TOP_LEVEL_PATTERNS = (
    "README.md",
    "LICENSE*",
    "model_card.json",
    "evaluation*.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "items.parquet",
    "targets.parquet",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "*.py",
    "requirements.txt",
)
SUBFOLDERS = ("text_encoder", "language_model")
SUBFOLDER_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".md", ".py")
_REPLACED = ["*.safetensors", "*.safetensors.index.json", EVAL_RESULTS_FILE]


def checkpoint_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the files of a folder that make up a checkpoint, as sorted relative paths.

    Only what loading needs or a reader wants is named: a run's training checkpoints, logs, temporary, hidden and
    pickled files, and links that lead out of the folder, are not.

    Raises:
        CheckpointError: when the folder is no checkpoint: no readable `config.json`, or no weights.
    """
    root = Path(directory)
    if not root.is_dir():
        raise CheckpointError(f"{root} is no folder; give the folder of a trained model")
    found = []
    for path in sorted(root.rglob("*")):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if path.is_file() and path.resolve().is_relative_to(root.resolve()) and _belongs(relative):
            found.append(str(relative))
    try:
        json_value((root / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{root} holds no config.json; give the folder of a trained model") from error
    except ValueError as error:
        raise CheckpointError(f"{root / 'config.json'} is no JSON ({error}); save the model again") from error
    if not any(fnmatchcase(name, "model*.safetensors") for name in found):
        raise CheckpointError(f"{root} holds no weights (model*.safetensors); save the model again")
    return found


def _belongs(relative: PurePosixPath) -> bool:
    if str(relative) == EVAL_RESULTS_FILE:
        return True
    if any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
        return False
    if len(relative.parts) == 1:
        return any(fnmatchcase(relative.name, pattern) for pattern in TOP_LEVEL_PATTERNS)
    return relative.parts[0] in SUBFOLDERS and relative.suffix in SUBFOLDER_SUFFIXES


def planned_upload(directory: str | os.PathLike[str], repo_id: str | None = None, **sharing: Any) -> dict[str, int]:
    """Return what `push_checkpoint` would upload: each file's path in the repository and its bytes; nothing is sent.

    Args:
        directory: The checkpoint's folder.
        repo_id: The repository that the card will name in its example.
        **sharing: Fields of `staging.Sharing`.

    Raises:
        CheckpointError: when the folder is no checkpoint, or a part to be included cannot be loaded.
        ALLMRecError: when the push would be refused for what the files hold.
    """
    files = checkpoint_files(directory)
    with shareable(Path(directory), files, Sharing(**sharing), repo_id) as folder:
        return {name: (folder / name).stat().st_size for name in _checked_files(folder)}


def _checked_files(folder: Path) -> list[str]:
    files = checkpoint_files(folder)
    check_no_secrets(folder, files)
    check_sizes(folder, files)
    return files


def push_checkpoint(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    commit_message: str = "Upload an A-LLMRec checkpoint",
    create_pr: bool = False,
    **sharing: Any,
) -> str:
    """Upload a checkpoint to a model repository, made where it does not exist, and return its address.

    A light checkpoint whose LLM or text encoder lies in a folder of this machine is refused: nobody else could load it.
    No path of this machine is published: a text file that names one is refused too, as are a file that holds what looks
    like a token or a private key, and a file that the Hub does not take for its size.

    The repository then holds the weights of this checkpoint only: weight files of an earlier push that it does not
    have are removed. Other files of the repository stay.

    Args:
        directory: The checkpoint's folder; see `checkpoint_files` for what is uploaded.
        repo_id: `namespace/name`.
        private: Whether a new repository is private; None leaves it to the namespace. An existing one keeps its state.
        token: An access token; None takes the stored one.
        revision: The branch, made from `main` where it does not exist; None is `main`.
        endpoint: The address of a Hub of one's own; None takes `HF_ENDPOINT` or huggingface.co.
        commit_message: The first line of the commit.
        create_pr: Open a pull request instead of committing to the branch; its address is returned.
        **sharing: Fields of `staging.Sharing`: `include_llm` and `include_text_encoder` upload these parts too,
            `llm_id` and `text_encoder_id` name them on the Hub.

    Raises:
        CheckpointError: when the folder is no checkpoint, or a part to be included cannot be loaded.
        ALLMRecError: when others could not load it, a file names a path of this machine, the id is malformed, or the
            Hub refuses.
    """
    choices = Sharing(**sharing)
    files = checkpoint_files(directory)
    with shareable(Path(directory), files, choices, repo_id) as folder:
        files = _checked_files(folder)
        if "README.md" not in files:
            logger.warning("%s has no README.md: the repository will have no model card", directory)
        return upload(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            endpoint=endpoint,
            files=files,
            replaced=_REPLACED,
            commit_message=commit_message,
            create_pr=create_pr,
        )[0]
