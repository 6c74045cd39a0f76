"""Write the folder of a Hugging Face Space: the page as an app, its requirements and the README with its header."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml

from .._version import __version__
from ..errors import DataError
from ..files import folder_written_whole

GRADIO_VERSION = "6.31.0"  # the one that the page is tested with
DEFAULT_TITLE = "What would they like next?"
DEMO = "demo"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_APP = '''"""The page of this Space: recommendations of {named}, with their reasons."""

from allmrec_hf.space.run_page import run_page

if __name__ == "__main__":
    run_page(
        {models},
        title={title},
        about={about},
    )
'''
_README = """---
{header}---

# {title}

Pick a few items and see what a recommender makes of them: the best items, the ranks that collaborative filtering, texts
and the language model each give, and what speaks for an item. Type a new item to see for whom it ranks high{compare}.
What visitors add stays in their visit.

The checkpoint: {links}.

Made by `allmrec space --output` of [allmrec-hf](https://github.com/allmrec-hf/allmrec-hf), A-LLMRec for the
Hugging Face stack. To run it on your own machine:

```bash
pip install -r requirements.txt 'gradio=={gradio}'
python app.py
```
"""
ABOUT_DEMO = "This demo's film world is invented: it shows the path, not a recommendation."


def checked_repository(model: str) -> str:
    """Return a model that a Space can load: a repository of the Hub, or the demo that comes with the package.

    Raises:
        DataError: when it is a folder of this machine, or no name of a repository.
    """
    if model == DEMO:
        return model
    if os.path.isdir(model):
        raise DataError(
            f"--model {model} is a folder of this machine, which a Space cannot read: push it first (allmrec push "
            f"--model {model} --repo NAME/REPOSITORY) and name that repository"
        )
    if not _REPOSITORY.fullmatch(model):
        raise DataError(f"--model {model} is no repository of the Hub; it is written NAME/REPOSITORY, or demo")
    return model


def write_space(directory: str | os.PathLike[str], models: list[str], title: str | None = None) -> list[str]:
    """Write `app.py`, `requirements.txt` and `README.md` and return their names.

    Args:
        directory: The folder; other files in it stay.
        models: One repository, or the two that are compared.
        title: The page's heading.

    Raises:
        DataError: when a model is no repository.
        ALLMRecError: when the folder cannot be written.
    """
    models = [checked_repository(model) for model in models]
    title = " ".join((title or DEFAULT_TITLE).split())
    about = ABOUT_DEMO if DEMO in models else ""
    repositories = [model for model in models if model != DEMO]
    header = {
        "title": title,
        "emoji": "🎬",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "short_description": "Recommendations of an LLM, and why",
        "tags": ["recommender-systems", "allmrec"],
        **({"models": repositories} if repositories else {}),
    }
    links = ", ".join(
        "the demo of allmrec-hf, whose film world is invented"
        if model == DEMO
        else f"[{model}](https://huggingface.co/{model})"
        for model in models
    )
    files = {
        "app.py": _APP.format(
            named=" and ".join(models), models=json.dumps(models), title=_literal(title), about=_literal(about)
        ),
        "requirements.txt": f"allmrec-hf[space]=={__version__}\n",
        "README.md": _README.format(
            header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000),
            title=title,
            links=links,
            gradio=GRADIO_VERSION,
            compare=", and put two checkpoints side by side" if len(models) > 1 else "",
        ),
    }
    with folder_written_whole(Path(directory)) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    return list(files)


def _literal(text: str) -> str:
    """Return a text as a literal of Python, in double quotes as ruff writes it."""
    return json.dumps(text, ensure_ascii=False)
