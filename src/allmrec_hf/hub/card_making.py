"""Make the card of a run, a checkpoint or a stored report: gather what is stored, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from ..errors import ALLMRecError, CheckpointError
from ..part_sources import DEMO, DEMO_PARTS, is_hub_id, public_name
from ..stored_values import json_value
from .card_data import CARD_DATA_FILE, ALLMRecCard, read_card
from .stored_reports import folder_reports, read_json, read_reports, stage_results

STAGES = ("backbone", "align", "warm-start", "project", "retrieve", "rank")
CARD_OPTIONS = {  # of a stage beside its loop's settings
    "align": ("fine_tune_text_encoder", "joint_dim", "matching_loss", "text_recommendation_weight"),
    "project": ("num_candidates", "history_in_prompt", "projection_loss"),
    "retrieve": ("num_llm_layers", "dim", "history_in_prompt", "history_titles", "num_negatives"),
}
TRAINED_ON = "Trained on the "  # begins the warning of a refit, which stays whatever a person warns of
OWN_LICENSE = "apache-2.0"  # of the tiny parts that come with this package
PARTS = {
    "language model": ("base_model_name_or_path", "language_model"),
    "text encoder": ("text_encoder_name_or_path", "text_encoder"),
}


@dataclass(frozen=True)
class CardFacts:
    """What a person says for a card; what is None or empty is left as it is stored.

    Attributes:
        name: The model's name.
        repo_id: The checkpoint's id on the Hub.
        dataset_id: The data's id on the Hub.
        llm_id: The LLM's id on the Hub.
        text_encoder_id: The text encoder's.
        license: Licence of what was trained.
        part_licenses: Licences of what it was made from: `language model`, `text encoder`, `data`.
        dataset_source: Where the data came from, in words.
        method: The checkpoint's key under `methods` of its reports.
        backbone_method: The backbone's.
        language: Language codes of the titles.
        warnings: Sentences a reader must see first.
        not_for: What it must not be used for.
    """

    name: str | None = None
    repo_id: str | None = None
    dataset_id: str | None = None
    llm_id: str | None = None
    text_encoder_id: str | None = None
    license: str | None = None
    part_licenses: Mapping[str, str] | None = None
    dataset_source: str | None = None
    method: str | None = None
    backbone_method: str | None = None
    language: Sequence[str] = ()
    warnings: Sequence[str] = ()
    not_for: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option in ("repo_id", "dataset_id", "llm_id", "text_encoder_id"):
            value = getattr(self, option)
            if value is not None and (value == DEMO or not is_hub_id(value)) and (option, value) != ("repo_id", DEMO):
                raise ALLMRecError(
                    f"--{option.replace('_', '-').replace('repo-id', 'repo')} takes an id of the Hub, such as "
                    f"ORG/NAME, not {value!r}"
                )

    def put_into(self, card: ALLMRecCard) -> ALLMRecCard:
        """Return the card with what is said."""
        same = ("name", "repo_id", "dataset_id", "license", "dataset_source", "method", "backbone_method")
        changes: dict[str, Any] = {name: getattr(self, name) for name in same if getattr(self, name) is not None}
        for name in ("language", "warnings", "not_for"):
            if getattr(self, name):
                kept = [warning for warning in card.warnings if warning.startswith(TRAINED_ON)]
                changes[name] = [*(kept if name == "warnings" else []), *getattr(self, name)]
        if self.llm_id is not None:
            changes["base_model"] = self.llm_id
        if self.text_encoder_id is not None:
            changes["text_encoder"] = self.text_encoder_id
        changes["part_licenses"] = {**card.part_licenses, **(self.part_licenses or {})}
        return replace(card, **changes)


def card_stages(card: ALLMRecCard) -> list[str]:
    """Return the stages that a card's model went through, in order, that before stage 2 among them."""
    return [
        stage for stage in STAGES if stage in card.training or (stage == "warm-start" and "project" in card.training)
    ]


def make_card(source: Path, reports: Iterable[Path] = (), facts: CardFacts | None = None) -> ALLMRecCard:
    """Return the card of a run folder or a checkpoint, from what is stored.

    Args:
        source: A folder with `model_card.json`, or that file; what a run folder holds of its stages and evaluations is
            read too.
        reports: Further stored reports, files or folders, see `stored_reports.read_reports`.
        facts: What a person says.

    Raises:
        CheckpointError: when there is no card data, or a report cannot be read.
        DataError: when a per-user table is not that of its report.
        ALLMRecError: when a report holds no method of this checkpoint.
    """
    folder = source if source.is_dir() else source.parent
    card = read_card(source)
    if source.is_dir():
        card = _with_options(_with_config(card, folder), folder)
        if found := stage_results(folder, card_stages(card)):
            card = replace(card, stage_results=found)
        for report in folder_reports(folder):
            card = card.with_report(report)
    for path in reports:
        for report in read_reports(path):
            card = card.with_report(report)
    card = (facts or CardFacts()).put_into(card)
    return _with_method(card)


def _with_config(card: ALLMRecCard, folder: Path) -> ALLMRecCard:
    """Return a card of an earlier version with what the checkpoint's configuration and the run say beside it."""
    try:
        config = json_value((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return card
    if not isinstance(config, dict) or config.get("model_type") != "a-llmrec":
        return card
    licenses = {**known_licenses(config, {"source": card.dataset_source}), **card.part_licenses}
    ranks = config.get("llm_dim") is not None or "fusion" in (config.get("rankers") or {})
    ranker = (card.ranker or config.get("ranker")) if ranks else None
    return replace(card, part_licenses=licenses, ranker=ranker)


def _with_options(card: ALLMRecCard, folder: Path) -> ALLMRecCard:
    """Return a card of an earlier version with the options of its stages that `run.json` holds."""
    if not (folder / "run.json").is_file():
        return card
    sections = read_json(folder / "run.json").get("arguments", {})
    training = {
        stage: {**_options(sections.get(stage, {}), CARD_OPTIONS.get(stage, ())), **settings}
        for stage, settings in card.training.items()
    }
    return replace(card, training={stage: {**card.training[stage], **values} for stage, values in training.items()})


def _options(section: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: section[name] for name in names if section.get(name) is not None}


def _with_method(card: ALLMRecCard) -> ALLMRecCard:
    """Return a card of the reports that hold its method, found by the ranker's name where the stored one is in none."""
    if card.evaluation is None:
        return card
    known = card.evaluation["methods"]
    names = [card.method, f"a-llmrec {card.ranker}", str(card.ranker), "a-llmrec", card.cf_backbone, "backbone"]
    for name in names[: None if card.backbone_only else 4]:
        if name in known:
            return card.of_method(name)
    raise ALLMRecError(
        f"no method of the report is this checkpoint ({', '.join(dict.fromkeys(names[:4]))}); it holds "
        f"{sorted(known)}: say which with --method"
    )


def known_licenses(config: Mapping[str, Any] | None, data_info: Mapping[str, Any]) -> dict[str, str]:
    """Return the licences of parts that are stored somewhere here; nothing is asked over the network.

    A part's licence is read from the metadata of its card, in its folder or in the cache of the Hub, or from
    `part.json`; the data's from `license` in `dataset.json`.

    Args:
        config: The content of a model's `config.json`; None of a backbone alone.
        data_info: The content of `dataset.json`.
    """
    found = {}
    for part, (field, folder) in PARTS.items():
        name = (config or {}).get(field)
        license = None if name is None else _license_of(str(name), folder)
        if license is not None:
            found[part] = license
    if isinstance(data_info.get("license"), str):
        found["data"] = data_info["license"]
    elif data_info.get("source") == "allmrec_hf.data.synthetic":
        found["data"] = OWN_LICENSE
    return found


def _license_of(name: str, part: str) -> str | None:
    if public_name(name) == f"./{DEMO}" or Path(name) == DEMO_PARTS / part:
        return OWN_LICENSE
    folder = Path(name).expanduser()
    if (folder / "part.json").is_file():
        license = read_json(folder / "part.json").get("licence")
        if isinstance(license, str):
            return license.lower()
    readme: Any = folder / "README.md"
    if not folder.is_dir():
        readme = try_to_load_from_cache(name, "README.md") if is_hub_id(name) else None
    try:
        license = ModelCard.load(Path(readme)).data.license if isinstance(readme, (str, Path)) else None
    except (OSError, ValueError):
        return None
    return license if isinstance(license, str) else None


def is_card_folder(source: Path) -> bool:
    """Tell whether a folder holds the data of a model card."""
    return (source / CARD_DATA_FILE).is_file()


def check_source(source: Path) -> None:
    """Check that there is something to make a card of.

    Raises:
        CheckpointError: when there is none.
    """
    if source.is_dir() and not is_card_folder(source):
        raise CheckpointError(
            f"{source} holds no {CARD_DATA_FILE}; give the folder of `allmrec train`, or a checkpoint that was saved "
            "with its card"
        )
    if not source.exists():
        raise CheckpointError(f"there is no {source}; give a run folder or a checkpoint")
