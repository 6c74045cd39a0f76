"""What every push to the Hub shares: the upload itself, its errors, and text that a card shows as it is."""

import html
import json
import logging
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects

from .errors import ALLMRecError
from .part_sources import TransportError, one_line

logger = logging.getLogger(__name__)
WAITS_S = (1.0, 2.0, 4.0)  # before each further attempt
LONGEST_WAIT_S = 120.0  # that the Hub may ask for
_PASSING = (408, 429, 500, 502, 503, 504)
_COMMIT = re.compile(r"/api/(?:model|dataset|space)s/[^/]+/[^/]+/commit/")
_REPEATED_BY_CLIENT = re.compile(r"/api/(?:model|dataset|space)s/[^/]+/[^/]+/preupload/|.*\.git/info/lfs/|/(?!api/)")
_HEAD_MOVED = 412
_MARKUP = re.compile(r"([\\`*_\[\]|~$]|:(?=//)|(?<=www)\.)")  # the last two turn bare addresses into links
_READ_FOR_ONE_SHOWN = 10  # characters of a text that becomes one line, whose runs of blanks become one
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_REMEDIES = {
    401: "log in with `hf auth login` or give a token that may write there",
    403: "give a token that may write there, or log in with `hf auth login`",
    404: "look at the name and the revision, and whether the token may see the repository (`hf auth login`)",
    429: "too many requests; wait a while and push again",
}


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

    What the Hub answers in passing (too many requests, errors of its own, broken connections) is tried again. The files
    are committed at once or not at all, and once: after a broken connection the next attempt compares the files with
    those of the branch, so a commit whose answer was lost is not made a second time. A pull request is not opened again
    where its answer was lost.

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
        **commit: Passed to `HfApi.create_commit`, such as `commit_message` and `create_pr`.

    Returns:
        The addresses of the repository (of the branch, where one is given, or of the pull request that was opened) and
        of the commit.

    Raises:
        ALLMRecError: when the id is malformed, the Hub refuses or cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token)
    kind: Any = {} if repo_type == "model" else {"repo_type": repo_type}
    if files is None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    commit = {"commit_message": "Upload files", **commit}
    try:
        url = _repeated(lambda: _created(api, repo_id, private, kind))
        repo_id = getattr(url, "repo_id", repo_id)  # with the namespace
        if revision is not None and not revision.startswith("refs/pr"):
            _repeated(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True, **kind))

        def commit_once() -> Any:
            head: Any = api.repo_info(repo_id, revision=revision, **kind)
            there = [entry.rfilename for entry in head.siblings or []]
            gone = set(filter_repo_objects(there, allow_patterns=list(replaced or []))) - {*files, ".gitattributes"}
            operations = [CommitOperationDelete(name) for name in sorted(gone)]
            added = [CommitOperationAdd(name, folder / name) for name in files]
            with warnings.catch_warnings(), _cause_of_upload_errors():
                warnings.filterwarnings("ignore", message=".*commit a data file")  # the catalogue belongs to the model
                return api.create_commit(
                    repo_id, [*operations, *added], revision=revision, parent_commit=head.sha, **kind, **commit
                )

        done = _repeated(commit_once, once=bool(commit.get("create_pr")))
    except HFValidationError as error:
        raise ALLMRecError(f"{repo_id!r} is no repository id; it looks like namespace/name: {error}") from error
    except (HfHubHTTPError, TransportError, ConnectionError, json.JSONDecodeError) as error:
        raise _explained(error, api.endpoint, repo_id, bool(commit.get("create_pr"))) from error
    except ValueError as error:
        told = one_line(error)
        raise ALLMRecError(f"the Hub does not accept the files of {folder}: {told} Nothing was committed") from error
    logger.info("uploaded %s to %s", folder, url)
    if getattr(done, "pr_url", None):
        return str(done.pr_url), str(done)
    return (str(url) if revision is None else f"{url}/tree/{revision}"), str(done)


def _created(api: HfApi, repo_id: str, private: bool | None, kind: dict[str, Any]) -> Any:
    """Return the address of a repository, which is made where there is none."""
    try:
        return api.create_repo(repo_id, private=private, exist_ok=True, **kind)
    except (HFValidationError, json.JSONDecodeError):
        raise
    except ValueError:  # of an existing one, the client reads addresses of huggingface.co only where it may make none
        if not api.repo_exists(repo_id, **kind):
            raise
        return f"{api.endpoint}/{'datasets/' if kind else ''}{repo_id}"


def _repeated(step: Callable[[], Any], once: bool = False) -> Any:
    """Return what a step returns, which is tried again after what may pass.

    Args:
        step: Asks the Hub; what it does twice is done once.
        once: It commits, and must not where an earlier commit may have arrived.
    """
    for wait in (*WAITS_S, None):
        try:
            return step()
        except (HfHubHTTPError, TransportError, ConnectionError, json.JSONDecodeError) as error:
            if wait is None or not _may_pass(error) or (once and _may_be_done(error)):
                raise
            seconds = _asked_wait(error) or wait
            if seconds > LONGEST_WAIT_S:
                raise
            logger.warning("the Hub: %s; trying again in %g s", one_line(error, 200), seconds)
            time.sleep(seconds)
    return None


@contextmanager
def _cause_of_upload_errors() -> Iterator[None]:
    """Raise what broke the upload of a file; huggingface_hub wraps it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, (TransportError, ConnectionError)):
            raise error.__cause__ from error
        raise


def _may_pass(error: Exception) -> bool:
    """Tell whether to try again: not where huggingface_hub has done so itself, as it does for files but the commit."""
    path, status = _path(error), _status(error)
    if _REPEATED_BY_CLIENT.match(path):
        return False
    return status is None or status in _PASSING or (status == _HEAD_MOVED and bool(_COMMIT.match(path)))


def _may_be_done(error: Exception) -> bool:
    """Tell whether the Hub may have made the commit that this is the answer to."""
    status = _status(error)
    return bool(_COMMIT.match(_path(error))) and (status is None or status >= 500 or status == 408)


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _path(error: Exception) -> str:
    """Return the path of the request that failed; empty where it is not known."""
    try:
        asked: Any = error.response if isinstance(error, HfHubHTTPError) else error
        return str(asked.request.url.path)
    except (AttributeError, RuntimeError):
        return ""


def _asked_wait(error: Exception) -> float | None:
    """Return the seconds that the Hub asks to wait."""
    if not isinstance(error, HfHubHTTPError):
        return None
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None


def _explained(error: Exception, endpoint: str, repo_id: str, pull_request: bool) -> ALLMRecError:
    """Return the one error that tells what happened, what was committed and what to do."""
    status, told = _status(error), one_line(error)
    if not _may_be_done(error):
        state = "Nothing was committed"
    elif pull_request:
        state = f"Whether the pull request was opened is not known: look at {endpoint}/{repo_id}/discussions first"
    else:
        state = "Whether the commit arrived is not known; pushing again makes it once"
    if status is None:
        if isinstance(error, json.JSONDecodeError):
            return ALLMRecError(f"the Hub at {endpoint} gave an answer that is no JSON; try again later. {state}")
        return ALLMRecError(f"the Hub at {endpoint} cannot be reached: {told}; try again later. {state}")
    if status == _HEAD_MOVED:
        return ALLMRecError(f"{repo_id!r} changed again and again during the push; push again. {state}")
    if status >= 500 or status == 408:
        return ALLMRecError(f"the Hub at {endpoint} failed: {told}; try again later. {state}")
    remedy = _REMEDIES.get(status, "look at what it says")
    return ALLMRecError(f"the Hub refused {repo_id!r}: {told}; {remedy}. {state}")


def plain(text: object, max_characters: int = 300) -> str:
    """Return text on one line; control, line-break and text-direction characters become spaces, longer text is cut."""
    text = str(text)[: max_characters * _READ_FOR_ONE_SHOWN]
    line = "".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in text)
    line = " ".join(line.split())
    return line if len(line) <= max_characters else line[: max_characters - 1].rstrip() + "…"


def escape(text: object, max_characters: int = 300) -> str:
    """Return text that Markdown and HTML show as it is: as `plain` does, with markup characters escaped.

    Example:
        >>> escape("<b>A|B</b>")
        '&lt;b&gt;A\\\\|B&lt;/b&gt;'
    """
    return _MARKUP.sub(r"\\\1", html.escape(plain(text, max_characters), quote=False)).replace("@", "&#64;")
