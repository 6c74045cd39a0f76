"""What every push to the Hub shares: the upload itself, its errors, and text that a card shows as it is."""

import html
import logging
import re
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .errors import ALLMRecError
from .part_sources import TransportError

logger = logging.getLogger(__name__)
_MARKUP = re.compile(r"([\\`*_\[\]|~$]|:(?=//)|(?<=www)\.)")  # the last two turn bare addresses into links
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def upload(
    folder: Path,
    repo_id: str,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    files: Sequence[str] | None = None,
    replaced: Sequence[str] | None = None,
    **commit: Any,
) -> tuple[str, str]:
    """Upload a folder in one commit to a repository, which is made where there is none.

    Args:
        folder: The folder.
        repo_id: `namespace/name`.
        repo_type: What the repository holds.
        private: Whether a new repository is private; None leaves it to the namespace. An existing one keeps its state.
        token: An access token; None takes the stored one.
        revision: A branch, made from `main` where it does not exist, or a pull request's reference; None is `main`.
        endpoint: The address of a Hub of one's own; None takes `HF_ENDPOINT` or huggingface.co.
        files: The relative paths of what is uploaded; None takes every file.
        replaced: Patterns of files to delete from the repository where the upload does not hold them.
        **commit: Passed to `HfApi.upload_folder`, such as `commit_message` and `create_pr`.

    Returns:
        The addresses of the repository (of the branch, where one is given, or of the pull request that was opened) and
        of the commit.

    Raises:
        ALLMRecError: when the id is malformed, the Hub refuses or cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token)
    kind: Any = {} if repo_type == "model" else {"repo_type": repo_type}
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True, **kind)
        repo_id = getattr(url, "repo_id", repo_id)  # with the namespace
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True, **kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*commit a data file")  # the catalogue belongs to the model
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                allow_patterns=None if files is None else [_literal(name) for name in files],
                delete_patterns=None if replaced is None else list(replaced),
                **kind,
                **commit,
            )
    except HFValidationError as error:
        raise ALLMRecError(f"{repo_id!r} is no repository id; it looks like namespace/name: {error}") from error
    except HfHubHTTPError as error:
        raise ALLMRecError(
            f"the Hub refused {repo_id!r}: {error}; log in with `hf auth login` or give a token that may write there"
        ) from error
    except (TransportError, ConnectionError) as error:
        raise ALLMRecError(f"the Hub at {api.endpoint} cannot be reached: {error}; try again later") from error
    except ValueError as error:
        raise ALLMRecError(f"the Hub does not accept the files of {folder}: {error}") from error
    logger.info("uploaded %s to %s", folder, url)
    if getattr(done, "pr_url", None):
        return str(done.pr_url), str(done)
    return (str(url) if revision is None else f"{url}/tree/{revision}"), str(done)


def _literal(name: str) -> str:
    """Return a glob pattern that matches one name only."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def plain(text: object, max_characters: int = 300) -> str:
    """Return text on one line; control, line-break and text-direction characters become spaces, longer text is cut."""
    line = "".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in str(text))
    line = " ".join(line.split())
    return line if len(line) <= max_characters else line[: max_characters - 1].rstrip() + "…"


def escape(text: object, max_characters: int = 300) -> str:
    """Return text that Markdown and HTML show as it is: as `plain` does, with markup characters escaped.

    Example:
        >>> escape("<b>A|B</b>")
        '&lt;b&gt;A\\\\|B&lt;/b&gt;'
    """
    return _MARKUP.sub(r"\\\1", html.escape(plain(text, max_characters), quote=False)).replace("@", "&#64;")
