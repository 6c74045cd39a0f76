"""The model card as data: training and evaluation fill it, one template renders it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import ALLMRecError, CheckpointError
from ..evaluation.evaluation_report import about_ties, describe, format_markdown
from ..files import written_whole
from ..hub_upload import escape, plain
from ..part_sources import is_hub_id

CARD_FILE = "README.md"
CARD_DATA_FILE = "model_card.json"
TEMPLATE_FILE = "model_card_template.md"
LIBRARY_NAME = "allmrec-hf"
PIPELINE_TAG = "recommendation"
_SLUG = re.compile(r"[^a-z0-9._-]+")
_METRIC = re.compile(r"(hit|ndcg)@(\d+)|mrr|valid")


@dataclass
class ALLMRecCard:
    """The content of a model card; every field but the name is optional, and a missing one is left out of the card.

    Attributes:
        name: The model's name.
        base_model: Id or path of the frozen LLM.
        base_model_revision: Its revision.
        base_model_file: The GGUF file in it that the LLM is.
        base_model_parameters: Its number of parameters.
        includes_base_model: Whether the checkpoint carries the LLM's weights.
        cf_backbone: The collaborative-filtering backbone, such as `sasrec`.
        backbone_only: Whether the checkpoint is the backbone alone, without aligner, projectors and LLM.
        cf_parameters: Its number of parameters.
        trained_parameters: Parameters of aligner and projectors, by part.
        text_encoder: Id or path of the text encoder.
        dataset_name: The data's name in words.
        dataset_id: Its id on the Hub, where it has one.
        dataset_source: Where the data came from.
        counts: Data counts: `users`, `items`, `interactions` and whatever else is known.
        training: Settings of each stage: stage -> setting -> value.
        seeds: Seeds by purpose.
        versions: Library versions.
        evaluation: `EvaluationResult.to_dict()`, or None where nothing was measured.
        method: This model's key under `evaluation["methods"]`.
        warnings: Sentences a reader must see first, such as that the data's world is invented.
        license: Licence id of the Hub, such as `apache-2.0`; None states that none was given.
        language: Language codes of the titles.
        example_history: Item ids for the usage example.
        repo_id: The checkpoint's id on the Hub, for the usage example.
    """

    name: str
    base_model: str | None = None
    base_model_revision: str | None = None
    base_model_file: str | None = None
    base_model_parameters: int | None = None
    includes_base_model: bool = False
    cf_backbone: str = "sasrec"
    backbone_only: bool = False
    cf_parameters: int | None = None
    trained_parameters: dict[str, int] = field(default_factory=dict)
    text_encoder: str | None = None
    dataset_name: str | None = None
    dataset_id: str | None = None
    dataset_source: str | None = None
    counts: dict[str, int | float] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    method: str = "a-llmrec"
    warnings: list[str] = field(default_factory=list)
    license: str | None = None
    language: list[str] = field(default_factory=list)
    example_history: list[str] = field(default_factory=list)
    repo_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ALLMRecCard:
        """Build a card from its stored form; fields of a newer version are refused by name."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown or "name" not in values:
            raise CheckpointError(f"not a model card of this version: name is required, unknown fields {unknown}")
        return cls(**values)


def _on_the_hub(name: str) -> bool:
    """Tell whether a name is an id of the Hub; a relative path such as `models/opt` looks like one, but is there."""
    return is_hub_id(name) and not Path(name).exists()


def _shown_source(name: str | None) -> str:
    """Return a Hub id as it is, and of a path (of any system) only its last part: folders are not published."""
    if name is None:
        return "unknown"
    if _on_the_hub(name):
        return escape(name)
    return f"{escape(PureWindowsPath(name).name)} (a local folder)"


def template_text() -> str:
    """Return the packaged template."""
    return resources.files(__package__).joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")


def evaluation_results(card: ALLMRecCard) -> list[EvalResult]:
    """Return the model's own numbers for `model-index`, unrounded: overall, and each group that has users.

    Raises:
        ALLMRecError: when the stored evaluation does not hold the card's method.
    """
    report = card.evaluation
    if report is None:
        return []
    if card.method not in report["methods"]:
        raise ALLMRecError(f"the evaluation has no method {card.method!r}; it has {sorted(report['methods'])}")
    protocol: dict[str, Any] = {
        key: report[key] for key in ("protocol", "num_candidates", "num_retrieved", "seed") if key in report
    }
    name = plain(card.dataset_name or report["dataset"])
    results = []
    for group, metrics in report["methods"][card.method].items():
        for metric in sorted(filter(_METRIC.fullmatch, metrics)):
            label = metric.replace("ndcg", "NDCG").replace("hit", "Hit").replace("mrr", "MRR")
            results.append(
                EvalResult(
                    task_type=PIPELINE_TAG,
                    task_name="Recommendation",
                    dataset_type=plain(card.dataset_id or _SLUG.sub("-", name.lower()).strip("-") or "interactions"),
                    dataset_name=name,
                    dataset_config=group,
                    dataset_split=report["split"],
                    dataset_args=protocol,
                    metric_type=metric,
                    metric_name=f"{label} ({group.replace('_', ' ')} targets)" if group != "overall" else label,
                    metric_value=metrics[metric],
                )
            )
    return results


def render_card(card: ALLMRecCard) -> str:
    """Return the README of a checkpoint: metadata, then the filled template.

    Every string that came from outside is escaped, so no name or id can change the page.
    """
    results = evaluation_results(card)
    tags = [PIPELINE_TAG, "collaborative-filtering", plain(card.cf_backbone)]
    data = ModelCardData(
        model_name=plain(card.name) if results else None,
        base_model=card.base_model if card.base_model and _on_the_hub(card.base_model) else None,
        datasets=card.dataset_id if card.dataset_id and is_hub_id(card.dataset_id) else None,
        eval_results=results or None,
        language=[plain(code) for code in card.language] or None,
        library_name=LIBRARY_NAME,
        license=card.license and plain(card.license),
        pipeline_tag=None if card.backbone_only else PIPELINE_TAG,
        tags=tags if card.backbone_only else [*tags, "a-llmrec"],
    )
    content = ModelCard.from_template(data, template_str=template_text(), **_template_values(card)).content
    return re.sub(r"\n{3,}", "\n\n", content).rstrip() + "\n"


def write_card(card: ALLMRecCard, directory: str | Path) -> Path:
    """Write `README.md` and, as the source of its numbers, `model_card.json` into a checkpoint; return the README."""
    directory = Path(directory)
    text = render_card(card)
    with written_whole(directory / CARD_DATA_FILE) as temporary:
        temporary.write_text(json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with written_whole(directory / CARD_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return directory / CARD_FILE


def read_card(directory: str | Path) -> ALLMRecCard:
    """Read the card that `write_card` stored, to add to it.

    Raises:
        CheckpointError: when there is none, or it is no JSON of a card.
    """
    path = Path(directory) / CARD_DATA_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no {CARD_DATA_FILE} in {directory}; write_card makes one") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); write the card again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected the fields of a card; write it again")
    return ALLMRecCard.from_dict(values)


def _template_values(card: ALLMRecCard) -> dict[str, Any]:
    items = card.counts.get("items")
    stages = [
        {"name": escape(stage), "settings": [(escape(key), escape(_number(value))) for key, value in settings.items()]}
        for stage, settings in card.training.items()
    ]
    # A JSON string of ASCII characters is a Python literal too, and holds no line break that could end the code block.
    return {
        "name": escape(card.name),
        "warnings": [escape(warning, 1000) for warning in card.warnings],
        "cf_backbone": escape(card.cf_backbone),
        "backbone_only": card.backbone_only,
        "base_model": _shown_source(card.base_model),
        "parts": _parts(card),
        "llm_note": _llm_note(card),
        "model_literal": json.dumps(card.repo_id or "path/to/this/folder"),
        "history_literal": json.dumps(card.example_history or ["ITEM-ID-1", "ITEM-ID-2"]),
        "dataset_sentence": _dataset_sentence(card),
        "counts": [(escape(name.replace("_", " ")), _number(value)) for name, value in card.counts.items()],
        "training": stages,
        "seeds": ", ".join(f"{escape(purpose)} {_number(seed, '')}" for purpose, seed in card.seeds.items()),
        "evaluation": _evaluation_values(card),
        "num_items": f"{items:,} " if items is not None else "",
        "license_sentence": escape(card.license) if card.license else "No licence was stated for this checkpoint.",
        "versions": ", ".join(f"{escape(name)} {escape(version)}" for name, version in card.versions.items()),
    }


def _number(value: object, separator: str = ",") -> str:
    return f"{value:{separator}}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def _parts(card: ALLMRecCard) -> list[dict[str, str]]:
    llm = _shown_source(card.base_model)
    if card.base_model_file:
        llm += f", file {escape(card.base_model_file)}"
    if card.base_model_revision:
        llm += f", revision {escape(card.base_model_revision)}"
    parts = [
        ("collaborative filtering, frozen after stage 0", escape(card.cf_backbone), card.cf_parameters),
        *((escape(name), "trained", number) for name, number in card.trained_parameters.items()),
    ]
    if not card.backbone_only:
        parts.append(("large language model, frozen", llm, card.base_model_parameters))
    if card.text_encoder:
        parts.append(("text encoder, fine-tuned in stage 1 or frozen", _shown_source(card.text_encoder), None))
    return [
        {"role": role, "what": what, "parameters": "unknown" if number is None else _number(number)}
        for role, what, number in parts
    ]


def _llm_note(card: ALLMRecCard) -> str:
    if card.backbone_only:
        return ""
    if card.includes_base_model:
        return "The checkpoint carries the language model's weights."
    return "The checkpoint does not carry the language model; loading fetches it under its own id and licence."


def _dataset_sentence(card: ALLMRecCard) -> str:
    if not card.dataset_name:
        return "The training data was not recorded."
    sentence = f"Trained on {escape(card.dataset_name)}"
    if card.dataset_id:
        sentence += f" ({escape(card.dataset_id)} on the Hub)"
    return sentence + (f", from {escape(card.dataset_source)}." if card.dataset_source else ".")


def _evaluation_values(card: ALLMRecCard) -> dict[str, str] | None:
    report = card.evaluation
    if report is None:
        return None
    escaped = dict(report, methods={escape(name): groups for name, groups in report["methods"].items()})
    groups = ", ".join(f"{group['items']:,} {name.replace('_', ' ')}" for name, group in report["groups"].items())
    return {
        "sentence": escape(describe(report), 1000),
        "ties": about_ties(report),
        "table": format_markdown(escaped),
        "groups": f"items: {groups}",
        "digest": escape(report["candidates_sha256"]),
    }
