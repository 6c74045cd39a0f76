"""Load checkpoints and serve the page: what `app.py` of a Space calls, and `allmrec space`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import pipeline

from ..errors import ALLMRecError
from ..modeling_allmrec import ALLMRecModel
from ..pipeline_recommendation import RecommendationPipeline
from ..processing_allmrec import ALLMRecProcessor
from .space_folder import ABOUT_DEMO, DEFAULT_TITLE, DEMO

DEMO_CHECKPOINT = str(Path(__file__).resolve().parents[1] / "demo" / "checkpoint")


def load_checkpoint(name: str) -> RecommendationPipeline:
    """Return the pipeline of a folder, a repository of the Hub, or `demo`.

    Raises:
        ALLMRecError: when it cannot be loaded.
    """
    path = DEMO_CHECKPOINT if name == DEMO else name
    model = ALLMRecModel.from_pretrained(path)
    loaded: RecommendationPipeline = pipeline(  # type: ignore[call-overload]
        "recommendation", model=model, processor=ALLMRecProcessor.from_pretrained(path)
    )
    return loaded


def short_names(names: Sequence[str]) -> list[str]:
    """Return what the page calls checkpoints: a repository as it is, a folder by its last part."""
    short = [Path(name).name if Path(name).is_dir() else name for name in names]
    return short if len(set(short)) == len(short) else [str(name) for name in names]


def run_page(
    names: Sequence[str],
    load: Callable[[str], RecommendationPipeline] = load_checkpoint,
    title: str = DEFAULT_TITLE,
    about: str | None = None,
    host: str | None = None,
    port: int | None = None,
    started: Callable[[str], None] = print,
) -> None:
    """Serve the page until the process ends.

    Args:
        names: One checkpoint, or the two that are compared: folders, repositories of the Hub, or `demo`.
        load: Loads one by its name.
        title: The page's heading.
        about: What a visitor should know; by default what is to be said of the demo.
        host: See `page.launch_page`.
        port: Likewise.
        started: Told the address.

    Raises:
        ALLMRecError: when a checkpoint cannot be loaded, Gradio is not installed, or the port is in use.
    """
    try:
        from .page import build_page, launch_page
    except ImportError as error:
        raise ALLMRecError(f"the page needs the package {error.name}: pip install 'allmrec-hf[space]'") from error
    from .page_model import PageModel

    models = [PageModel(short, load(name)) for short, name in zip(short_names(names), names, strict=True)]
    told = about if about is not None else ABOUT_DEMO if DEMO in names else ""
    blocks = build_page(models, title, told)
    started(launch_page(blocks, host, port, wait=False))
    blocks.block_thread()
