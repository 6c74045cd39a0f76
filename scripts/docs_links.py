"""A hook of MkDocs: links from docs/ to other files of the repository lead to GitHub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def outside(page: Path, target: str) -> str | None:
    """Return the path in the repository of a link that leads out of docs/, or None for any other.

    Args:
        page: The page with the link.
        target: The link, relative to the page.
    """
    path = (page.parent / target).resolve()
    if path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
        return None
    return path.relative_to(ROOT).as_posix()


def on_page_markdown(markdown: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Return a page with the links that lead out of docs/ turned into links to GitHub."""
    source = Path(config.docs_dir) / page.file.src_uri

    def replaced(match: re.Match[str]) -> str:
        path = outside(source, match[1])
        return match[0] if path is None else f"]({config.repo_url.rstrip('/')}/blob/main/{path}"

    return _LINK.sub(replaced, markdown)
