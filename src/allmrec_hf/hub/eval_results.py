"""Evaluation results as the Hub reads them: `.eval_results/*.yaml`, and `model-index` while the library reads both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..errors import ALLMRecError
from ..evaluation.task_results import TaskResult, task_results
from ..hub_upload import plain
from ..part_sources import is_hub_id
from .card_data import PIPELINE_TAG, ALLMRecCard

_SLUG = re.compile(r"[^a-z0-9._-]+")
_METRIC = re.compile(r"(hit|ndcg)@(\d+)|mrr|valid")


def dataset_slug(name: str) -> str:
    """Return a data set's name in the letters of an id.

    Example:
        >>> dataset_slug("Amazon Office Products 2018")
        'amazon-office-products-2018'
    """
    return _SLUG.sub("-", name.lower()).strip("-.")[:90].replace("--", "-").strip("-.") or "interactions"


def evaluation_results(card: ALLMRecCard) -> list[EvalResult]:
    """Return the model's own numbers for `model-index`, unrounded: of every report and group that has users.

    Raises:
        ALLMRecError: when a stored evaluation does not hold the card's method.
    """
    return [result for number, report in enumerate(card.reports) for result in _of_report(card, report, number > 0)]


def _of_report(card: ALLMRecCard, report: Mapping[str, Any], further: bool) -> list[EvalResult]:
    check_method(card, report)
    protocol: dict[str, Any] = {
        key: report[key] for key in ("protocol", "num_candidates", "num_retrieved", "seed") if key in report
    }
    if "scenario" in report:
        protocol["scenario"] = report["scenario"]["label"]
    name = plain(card.dataset_name or report["dataset"])
    of = [report["protocol"], *([protocol["scenario"]] if "scenario" in protocol else [])]  # else one set of arguments
    suffix = f", {', '.join(of)}" if further else ""
    results = []
    for group, metrics in report["methods"][card.method].items():
        for metric in sorted(filter(_METRIC.fullmatch, metrics)):
            label = metric.replace("ndcg", "NDCG").replace("hit", "Hit").replace("mrr", "MRR")
            results.append(
                EvalResult(
                    task_type=PIPELINE_TAG,
                    task_name="Recommendation",
                    dataset_type=plain(card.dataset_id or dataset_slug(name)),
                    dataset_name=name,
                    dataset_config=group + suffix,
                    dataset_split=report["split"],
                    dataset_args=protocol,
                    metric_type=metric,
                    metric_name=f"{label} ({group.replace('_', ' ')} targets)" if group != "overall" else label,
                    metric_value=metrics[metric],
                )
            )
    return results


def check_method(card: ALLMRecCard, report: Mapping[str, Any]) -> None:
    """Check that a report holds the card's method.

    Raises:
        ALLMRecError: naming the methods that it holds.
    """
    if card.method not in report["methods"]:
        raise ALLMRecError(f"the evaluation has no method {card.method!r}; it has {sorted(report['methods'])}")


def result_entries(card: ALLMRecCard) -> list[EvalResultEntry]:
    """Return the model's numbers on the tasks of the data set's `eval.yaml`, with interval and backbone in the notes.

    Of reports on the test split of the data as they are; those of scenarios, which change the data, are no task of it.

    Raises:
        ALLMRecError: when a stored evaluation does not hold the card's method.
    """
    entries = []
    known = card.dataset_id if card.dataset_id and is_hub_id(card.dataset_id) else None
    for report in card.reports:
        check_method(card, report)
        name = known or dataset_slug(plain(card.dataset_name or report["dataset"]))
        for result in task_results(report, card.method):
            notes = _notes(card, report, result, known is not None)
            entries.append(EvalResultEntry(dataset_id=name, task_id=result.task, value=result.value, notes=notes))
    return entries


def _notes(card: ALLMRecCard, report: Mapping[str, Any], result: TaskResult, known: bool) -> str:
    group, metric = result.group, result.metric
    users = report["methods"][card.method][group]["users"]
    parts = [f"{users} users"]
    if report["users"] < report["users_available"]:
        parts[0] += f" of a sample of {report['users']} of {report['users_available']} (seed {report['seed']})"
    interval = report.get("intervals", {}).get(card.method, {}).get(group, {}).get(metric)
    if interval is not None:
        parts.append(f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}")
    backbone = card.backbone_in(report)
    value = report["methods"].get(backbone, {}).get(group, {}).get(metric)
    if backbone is not None and value is not None:
        parts.append(f"backbone {plain(card.cf_backbone)} {value:.4f}")
    if report["protocol"] == "candidates":
        parts.append(f"{report['num_candidates']} seeded candidates, SHA-256 {report['candidates_sha256']}")
    else:
        parts.append(f"first {report['num_retrieved']} of {report['num_items']} items")
    if not known:
        parts.append("the data set was not recorded as one of the Hub: this id is its name")
    return "; ".join(parts)


def eval_results_text(card: ALLMRecCard) -> str | None:
    """Return the file of evaluation results; None where no task was evaluated."""
    entries = result_entries(card)
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000)
