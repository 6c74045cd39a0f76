"""The tasks of prepared data as a benchmark of the Hub: what `eval.yaml` lists and evaluation results refer to.

A task is one protocol, group of targets and metric on the test split. The Hub's page "Evaluation Results" describes the
two files; a data set becomes a benchmark there once the Hub's maintainers have listed it.
"""

from __future__ import annotations

from typing import Any

import yaml

EVAL_FILE = "eval.yaml"
FRAMEWORK = "allmrec-hf"
GROUPS = ("overall", "warm", "cold", "never_seen")
METRICS = {"candidates": ("hit@1", "ndcg@10", "mrr"), "full": ("hit@10", "ndcg@10", "mrr")}
CONFIGS = {"candidates": "candidates", "full": "interactions"}  # of the data set's repository, by protocol
SPLIT = "test"


def task_id(protocol: str, metric: str, group: str) -> str:
    """Return the id of a task.

    Example:
        >>> task_id("candidates", "ndcg@10", "never_seen")
        'candidates_ndcg_at_10_never_seen'
    """
    return f"{protocol}_{metric.replace('@', '_at_')}_{group}"


def benchmark_tasks(num_candidates: int) -> list[dict[str, str]]:
    """Return the tasks: `id`, and the `config` and `split` of the repository with the targets.

    Args:
        num_candidates: C of the stored candidates; a cut-off above it says nothing.
    """
    return [
        {"id": task_id(protocol, metric, group), "config": CONFIGS[protocol], "split": SPLIT}
        for protocol, metrics in METRICS.items()
        for metric in metrics
        for group in GROUPS
        if protocol == "full" or "@" not in metric or int(metric.partition("@")[2]) <= num_candidates
    ]


def eval_yaml(name: str, description: str, num_candidates: int) -> str:
    """Return the text of `eval.yaml`.

    Args:
        name: The data's name.
        description: What is asked, in a sentence or two.
        num_candidates: C.
    """
    content: dict[str, Any] = {
        "name": name,
        "description": description,
        "evaluation_framework": FRAMEWORK,
        "tasks": benchmark_tasks(num_candidates),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
