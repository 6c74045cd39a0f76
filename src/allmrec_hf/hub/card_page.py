"""The page of a model card: what the template is filled with, every string from outside escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PureWindowsPath
from typing import Any

from ..evaluation.evaluation_report import about_ties, describe, format_markdown, group_names
from ..hub_upload import escape, plain
from ..part_sources import DEMO, is_hub_id
from .card_data import LIBRARY_NAME, ALLMRecCard

TEMPLATE_FILE = "model_card_template.md"
HERE = "."  # the folder that the page lies in
UNKNOWN = "unknown"
NOT_STORED = "not stored"
PROTOCOLS = {
    "candidates": "Among given candidates",
    "full": "From the whole catalogue",
    "paper": "Titles that the LLM writes",
}
RANKERS = {
    "likelihood": "It ranks items by the likelihood of their titles.",
    "likelihood_sum": "It ranks items by the likelihood of their titles.",
    "likelihood_mean": "It ranks items by the mean likelihood of their titles' tokens.",
    "likelihood_calibrated": "It ranks items by what the user adds to the likelihood of their titles.",
    "likelihood_vector_gain": "It ranks items by what the vectors add to the likelihood of their titles.",
    "zero_shot": "It ranks candidates by how much likelier the history's titles make theirs to the LLM as it is.",
    "letter": "It ranks candidates by the likelihood of the letter before each.",
    "retrieval": "Items are ranked by how near their vectors are to the LLM's last hidden state after the history.",
    **dict.fromkeys(
        ("fusion", "fusion_sum"), "Items are ranked by a weighted sum of the scores of backbone, texts, words{llm}."
    ),
    "fusion_ranks": "Items are ranked by their places in the lists of backbone, texts, words{llm}.",
    "cf": "By default it ranks items by the backbone's scores alone.",
    "text": "By default it ranks items by their texts alone.",
    "words": "By default it ranks items by the rare words that their texts share with the history's.",
}
MEANINGS = {
    "coverage": "share of the catalogue that stands in some user's list",
    "popularity_lift": "how much more popular a list's items are than those of its user's history, as a share of these",
    "novelty": "mean information of a place in bits; more popular items have less",
    "share of cold": "share of the places that cold items have",
    "share of never_seen": "share of the places of items without any interaction",
    "diversity": "one less the similarity of the categories of two items of a list",
    "miscalibration": "divergence of a list's categories from the history's, in nats; 0 is the user's own mixture",
}


def on_the_hub(name: str) -> bool:
    """Tell whether a name is an id of the Hub; a relative path such as `models/opt` looks like one, but is there."""
    return is_hub_id(name) and not Path(name).exists()


def _shown_source(name: str | None) -> str:
    """Return a Hub id as it is, and of a path (of any system) only its last part: folders are not published."""
    if name is None:
        return "unknown"
    if PureWindowsPath(name).name == DEMO:
        return f"{DEMO} (comes with {LIBRARY_NAME})"
    if on_the_hub(name):
        return escape(name)
    return f"{escape(PureWindowsPath(name).name)} (a local folder)"


def template_text() -> str:
    """Return the packaged template."""
    return resources.files(__package__).joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")


def template_values(card: ALLMRecCard) -> dict[str, Any]:
    """Return what the template is filled with.

    Raises:
        ALLMRecError: when a stored evaluation does not hold the card's method.
    """
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
        "without_llm": card.without_llm,
        "base_model": _shown_source(card.base_model),
        "parts": _parts(card),
        "llm_note": _llm_note(card),
        "ranker_sentence": _ranker_sentence(card),
        "not_for": [escape(use, 1000) for use in card.not_for],
        "model_literal": json.dumps(card.repo_id or HERE),
        "history_literal": json.dumps(card.example_history)
        if card.example_history
        else "recommend.processor.catalog.item_ids[:2]",
        "dataset_sentence": _dataset_sentence(card),
        "counts": [(escape(name.replace("_", " ")), _number(value)) for name, value in card.counts.items()],
        "training": stages,
        "stage_results": [_stage_cells(stage, result) for stage, result in card.stage_results.items()],
        "seeds": ", ".join(f"{escape(purpose)} {_number(seed, '')}" for purpose, seed in card.seeds.items()),
        "evaluations": [_evaluation_values(card, report) for report in card.reports],
        "biases": _biases(card),
        "num_items": f"{items:,} " if items is not None else "",
        "license_sentence": escape(card.license) if card.license else "No licence was stated for this checkpoint.",
        "licenses": _licenses(card),
        "versions": ", ".join(f"{escape(name)} {escape(version)}" for name, version in card.versions.items()),
    }


def _ranker_sentence(card: ALLMRecCard) -> str:
    sentence = RANKERS.get(card.ranker or "likelihood", f"By default it ranks by {escape(card.ranker)}.")
    if card.without_llm:
        return sentence.replace(", words{llm}", " and words")
    return sentence.replace("{llm}", " and the LLM's rankers")


def _number(value: object, separator: str = ",") -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
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
    if not (card.backbone_only or card.without_llm):
        parts.append(("large language model, frozen", llm, card.base_model_parameters))
    if card.text_encoder:
        source = _shown_source(card.text_encoder)
        parts.append(("text encoder, fine-tuned in stage 1 or frozen", source, card.text_encoder_parameters))
    return [
        {"role": role, "what": what, "parameters": UNKNOWN if number is None else _number(number)}
        for role, what, number in parts
    ]


def _llm_note(card: ALLMRecCard) -> str:
    if card.backbone_only:
        return ""
    if card.without_llm:
        return "No language model is needed, neither to load it nor to recommend."
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


def _stage_cells(stage: str, result: Mapping[str, Any]) -> list[str]:
    seconds = result.get("seconds")
    cells = [escape(stage), *(_known(result.get(name)) for name in ("steps", "epochs"))]
    cells.append(UNKNOWN if seconds is None else f"{seconds:,.1f}")
    return [*cells, *(_known(result.get(name)) for name in ("device", "processes"))]


def _known(value: object) -> str:
    return UNKNOWN if value is None else escape(_number(value))


def _licenses(card: ALLMRecCard) -> list[tuple[str, str]]:
    names = [("what was trained here", card.license)]
    if not (card.backbone_only or card.without_llm):
        names.append((f"language model, {_shown_source(card.base_model)}", card.part_licenses.get("language model")))
    if card.text_encoder:
        names.append((f"text encoder, {_shown_source(card.text_encoder)}", card.part_licenses.get("text encoder")))
    names.append((f"data, {escape(card.dataset_name or UNKNOWN)}", card.part_licenses.get("data")))
    return [(part, escape(license) if license else UNKNOWN) for part, license in names]


def _evaluation_values(card: ALLMRecCard, report: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: values for name, values in report.items() if name != "beyond_accuracy"}
    escaped = dict(shown, methods={escape(name): groups for name, groups in report["methods"].items()})
    if "shuffled" in report:
        escaped["shuffled"] = {escape(name): groups for name, groups in report["shuffled"].items()}
    items = ", ".join(f"{group['items']:,} {name.replace('_', ' ')}" for name, group in report["groups"].items())
    heading = PROTOCOLS.get(report["protocol"], report["protocol"])
    if "scenario" in report:
        heading += f", scenario {report['scenario']['label']}"
    backbone = card.backbone_in(report)
    compared = [card.method, *([] if backbone is None else [backbone])]
    stored = [method for method in compared if method in report.get("intervals", {})]
    about = "In brackets: 95 % bootstrap intervals over users." if stored else "Its report holds no intervals."
    if stored and len(stored) < len(compared):
        about = f"In brackets: 95 % bootstrap intervals over users; the report holds them of {escape(stored[0])} alone."
    if backbone is None and not card.backbone_only:
        about += " The backbone was not evaluated beside it."
    return {
        "heading": escape(f"{heading}, {report['split']} split"),
        "sentence": escape(describe(report), 1000),
        "ties": about_ties(report),
        "about_intervals": about,
        "groups": [_group_values(card, report, group, compared) for group in group_names(report)],
        "table": format_markdown(escaped),
        "item_groups": f"items: {items}",
        "digest": escape(report["candidates_sha256"]),
    }


def _group_values(card: ALLMRecCard, report: Mapping[str, Any], group: str, methods: list[str]) -> dict[str, Any]:
    own = report["methods"][card.method].get(group, {"users": 0})
    rows = []
    for metric in own:
        if metric in ("users", "ndcg@1"):
            continue
        cells = [metric]
        for method in methods:
            value = report["methods"][method].get(group, {}).get(metric)
            interval = report.get("intervals", {}).get(method, {}).get(group, {}).get(metric)
            cells.append("-" if value is None else f"{value:.4f}")
            if value is not None and interval is not None:
                cells[-1] += f" [{interval[0]:.4f}, {interval[1]:.4f}]"
        rows.append(cells)
    header = [escape(methods[0]), *(_as_backbone(method) for method in methods[1:])]
    return {"name": escape(group.replace("_", " ")), "users": f"{own['users']:,}", "header": header, "rows": rows}


def _as_backbone(method: str | None) -> str:
    return escape(method) if method == "backbone" else f"{escape(method)} (backbone)"


def _biases(card: ALLMRecCard) -> dict[str, Any] | None:
    report = next((one for one in card.reports if card.method in one.get("beyond_accuracy", {})), None)
    if report is None:
        return None
    measured = report["beyond_accuracy"]
    methods = [card.method, card.backbone_in(report), "popularity"]
    shown = [method for method in dict.fromkeys(methods) if method in measured]
    names = [name for name in measured[card.method] if name != "places"]
    rows = []
    for name in names:
        cells = [f"{measured[method][name]:.4f}" if name in measured[method] else "-" for method in shown]
        rows.append([escape(name.replace("_", " ")), *cells, MEANINGS.get(name, "")])
    places = int(measured[card.method]["places"])
    header = [_as_backbone(method) if method == methods[1] else escape(method) for method in shown]
    return {"places": places, "users": f"{report['users']:,}", "header": header, "rows": rows}
