"""The model card as data: training and evaluation fill it, one template renders it.

`card_data` is its content, `card_page` what the template is filled with, `eval_results` the Hub's form of its numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..checkpoint_code import EVAL_RESULTS_FILE, README_FILE
from ..errors import ALLMRecError, CheckpointError
from ..files import written_whole
from ..hub_upload import escape, plain
from ..part_sources import DEMO, is_hub_id
from .card_data import CARD_DATA_FILE, LIBRARY_NAME, PIPELINE_TAG, ALLMRecCard, read_card
from .card_page import UNKNOWN, on_the_hub, template_text, template_values
from .eval_results import eval_results_text, evaluation_results

CARD_FILE = README_FILE
__all__ = [
    "CARD_DATA_FILE",
    "CARD_FILE",
    "ALLMRecCard",
    "card_files",
    "escape",
    "evaluation_results",
    "read_card",
    "render_card",
    "write_card",
]


def render_card(card: ALLMRecCard) -> str:
    """Return the README of a checkpoint: metadata, then the filled template.

    Every string that came from outside is escaped, so no name or id can change the page.

    Raises:
        CheckpointError: when what is stored of the card has another form than a card or a report.
    """
    try:
        return _page(card)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, ALLMRecError):
            raise
        raise CheckpointError(
            f"the card of {plain(card.name)} or a report in it has another form than this version writes ({error!r}); "
            "write both again"
        ) from error


def _page(card: ALLMRecCard) -> str:
    results = evaluation_results(card)
    tags = [PIPELINE_TAG, "collaborative-filtering", plain(card.cf_backbone)]
    data = ModelCardData(
        model_name=plain(card.name) if results else None,
        base_model=card.base_model if card.base_model and _named_on_the_hub(card.base_model) else None,
        datasets=card.dataset_id if card.dataset_id and is_hub_id(card.dataset_id) else None,
        eval_results=results or None,
        language=[plain(code) for code in card.language] or None,
        library_name=LIBRARY_NAME,
        license=plain(card.license or UNKNOWN),
        pipeline_tag=None if card.backbone_only else PIPELINE_TAG,
        tags=tags if card.backbone_only else [*tags, "a-llmrec"],
    )
    content = ModelCard.from_template(data, template_str=template_text(), **template_values(card)).content
    return re.sub(r"\n{3,}", "\n\n", content).rstrip() + "\n"


def _named_on_the_hub(name: str) -> bool:
    return name != DEMO and on_the_hub(name)


def card_files(card: ALLMRecCard) -> dict[str, str]:
    """Return every file of a card as path -> text: the page, its data, and the evaluation results where there are any.

    Raises:
        ALLMRecError: when a stored evaluation does not hold the card's method.
    """
    files = {CARD_FILE: render_card(card)}
    results = eval_results_text(card)
    if results is not None:
        files[EVAL_RESULTS_FILE] = results
    files[CARD_DATA_FILE] = json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n"
    return files


def write_card(card: ALLMRecCard, directory: str | Path) -> Path:
    """Write `README.md`, `.eval_results/` and, as the source of their numbers, `model_card.json`; return the README."""
    directory = Path(directory)
    files = card_files(card)
    if EVAL_RESULTS_FILE not in files:
        (directory / EVAL_RESULTS_FILE).unlink(missing_ok=True)  # of an earlier evaluation
    for name, text in sorted(files.items()):
        with written_whole(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return directory / CARD_FILE
