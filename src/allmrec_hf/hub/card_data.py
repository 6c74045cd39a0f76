"""The content of a model card: what training and evaluation know, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..stored_values import json_value
from .stored_reports import report_key, single_reports

CARD_DATA_FILE = "model_card.json"
LIBRARY_NAME = "allmrec-hf"
PIPELINE_TAG = "recommendation"


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
        text_encoder_parameters: Its number of parameters.
        ranker: What ranks by default, such as `fusion`; None is the likelihood of titles.
        rankers: Every ranker that was trained.
        dataset_name: The data's name in words.
        dataset_id: Its id on the Hub, where it has one.
        dataset_source: Where the data came from.
        counts: Data counts: `users`, `items`, `interactions` and whatever else is known.
        training: Settings of each stage: stage -> setting -> value.
        stage_results: What each stage took: stage -> `steps`, `epochs`, `seconds`, `device`, ...
        seeds: Seeds by purpose.
        versions: Library versions.
        evaluation: `EvaluationResult.to_dict()`, or None where nothing was measured.
        further_evaluations: Reports of other protocols, splits or scenarios; that of protocol `full` has the biases.
        method: This model's key under `methods` of every report.
        backbone_method: The backbone's key there; None looks for the backbone's name.
        warnings: Sentences a reader must see first, such as that the data's world is invented.
        license: Licence id of the Hub, such as `apache-2.0`, of what was trained; None states that none was given.
        part_licenses: Licences of what it was made from: `language model`, `text encoder`, `data`; one that is missing
            is told to be unknown.
        not_for: What it must not be used for, beside what every card says.
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
    text_encoder_parameters: int | None = None
    ranker: str | None = None
    rankers: list[str] = field(default_factory=list)
    dataset_name: str | None = None
    dataset_id: str | None = None
    dataset_source: str | None = None
    counts: dict[str, int | float] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    stage_results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    further_evaluations: list[dict[str, Any]] = field(default_factory=list)
    method: str = "a-llmrec"
    backbone_method: str | None = None
    warnings: list[str] = field(default_factory=list)
    license: str | None = None
    part_licenses: dict[str, str] = field(default_factory=dict)
    not_for: list[str] = field(default_factory=list)
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
        return cls(**{name: _of_kind(name, value, _KINDS_OF_FIELDS.get(name)) for name, value in values.items()})

    @property
    def without_llm(self) -> bool:
        """Whether it ranks, and no LLM takes part in it."""
        return self.ranker is not None and self.base_model is None and not self.includes_base_model

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Every evaluation report, of one protocol each, the main one first.

        Of the whole catalogue that a report of candidates holds, only what is about this model.
        """
        stored = self._stored_reports
        own = [report_key(report) for report in stored]
        return [
            report for report in single_reports(stored) if self.method in report["methods"] or report_key(report) in own
        ]

    @property
    def _stored_reports(self) -> list[dict[str, Any]]:
        return [*([] if self.evaluation is None else [self.evaluation]), *self.further_evaluations]

    def with_report(self, report: Mapping[str, Any]) -> ALLMRecCard:
        """Return a card with a report, in the place of one of the same data, split, protocol and scenario.

        The main report is one of given candidates where there is any.
        """
        kept = [one for one in self._stored_reports if report_key(one) != report_key(report)]
        ordered = sorted([*kept, dict(report)], key=lambda one: (one["protocol"] != "candidates", "scenario" in one))
        return replace(self, evaluation=ordered[0], further_evaluations=ordered[1:])

    def of_method(self, method: str) -> ALLMRecCard:
        """Return a card of another method, with the reports that hold it."""
        bare = replace(self, method=method, evaluation=None, further_evaluations=[])
        for report in self._stored_reports:
            bare = bare.with_report(report) if method in report["methods"] else bare
        return bare

    def backbone_in(self, report: Mapping[str, Any]) -> str | None:
        """Return the backbone's key under a report's methods; None where it was not evaluated."""
        methods = report["methods"]
        if self.backbone_method is not None:
            return self.backbone_method if self.backbone_method in methods else None
        names = [self.cf_backbone, "backbone", *(name for name in methods if name.startswith(f"{self.cf_backbone}, "))]
        return next((name for name in names if name in methods and name != self.method), None)


_TEXT, _NUMBER = str | None, int | None
_KINDS_OF_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("name", "cf_backbone", "method"), str),
    **dict.fromkeys(("base_model", "base_model_revision", "base_model_file", "text_encoder", "ranker"), _TEXT),
    **dict.fromkeys(("dataset_name", "dataset_id", "dataset_source", "backbone_method", "license", "repo_id"), _TEXT),
    **dict.fromkeys(("base_model_parameters", "cf_parameters", "text_encoder_parameters"), _NUMBER),
    **dict.fromkeys(("includes_base_model", "backbone_only"), bool),
    **dict.fromkeys(("trained_parameters", "counts", "training", "stage_results", "seeds", "versions"), dict),
    **dict.fromkeys(("rankers", "further_evaluations", "warnings", "not_for", "language", "example_history"), list),
    "part_licenses": dict,
    "evaluation": dict | None,
}


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return a field's value.

    Raises:
        CheckpointError: when it is of another kind than the field's.
    """
    if kind is not None and not isinstance(value, kind):
        raise CheckpointError(f"the card's field {name!r} is a {type(value).__name__}; write the card again")
    return value


def read_card(directory: str | Path) -> ALLMRecCard:
    """Read the card that `write_card` stored, to add to it.

    Args:
        directory: The folder, or the card's own JSON file.

    Raises:
        CheckpointError: when there is none, or it is no JSON of a card.
    """
    path = Path(directory) if Path(directory).suffix == ".json" else Path(directory) / CARD_DATA_FILE
    try:
        values = json_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no {path.name} in {path.parent}; write_card makes one") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); write the card again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected the fields of a card; write it again")
    try:
        return ALLMRecCard.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
