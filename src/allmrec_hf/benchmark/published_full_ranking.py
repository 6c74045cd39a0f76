"""Published figures of full ranking on the Amazon 2014 sequences of S3-Rec: leave-one-out, seen items left out.

Nothing here was measured by this project. Every user has one target, so their Recall@10 is Hit@10.
"""

from __future__ import annotations

from .published import PublishedValue, published_values

S3REC = "s3rec"
SCENARIO = "overall"
_RECBOARD = "RecBoard (github.com/MTandHJ/RecBoard), 5 seeds"
_CE = "logs of github.com/MTandHJ/CE-SCE-LLMRec, 64-d"
_ESASREC = "github.com/blondered/transformer_benchmark (arXiv 2508.06450)"
_PAPERS = "the papers and re-runs with Cornac"
_RERUN = "one re-run"
# By data set, label and source: (NDCG@10, Recall@10); None where it was not published.
_FIGURES: dict[str, tuple[tuple[str, str, float, float | None], ...]] = {
    "beauty": (
        ("sasrec", _CE, 0.0597, 0.0986),
        ("sasrec, binary cross entropy", _RECBOARD, 0.0354, 0.0668),
        ("sasrec, sampled softmax", _ESASREC, 0.0531, 0.0921),
        ("ligr", _ESASREC, 0.0523, 0.0928),
        ("hstu", _RECBOARD, 0.0543, 0.0945),
        ("bsarec", _RECBOARD, 0.0610, 0.1002),
        ("tiger", _PAPERS, 0.0384, 0.0648),
        ("rpg", _PAPERS, 0.0464, 0.0809),
        ("e4srec", _RERUN, 0.0434, 0.0749),
        ("llm-srec", _RERUN, 0.0424, 0.0756),
    ),
    "sports": (
        ("sasrec, binary cross entropy", _RECBOARD, 0.0200, 0.0373),
        ("sasrec, sampled softmax", _ESASREC, 0.0314, 0.0569),
        ("ligr", _ESASREC, 0.0323, 0.0560),
        ("hstu", _RECBOARD, 0.0332, 0.0587),
        ("bsarec", _RECBOARD, 0.0348, 0.0603),
        ("tiger", _PAPERS, 0.0225, None),
        ("rpg", _PAPERS, 0.0263, None),
        ("e4srec", _RERUN, 0.0211, None),
        ("llm-srec", _RERUN, 0.0235, None),
    ),
    "toys": (
        ("sasrec, binary cross entropy", _RECBOARD, 0.0432, 0.0766),
        ("sasrec, sampled softmax", _ESASREC, 0.0580, 0.0970),
        ("ligr", _ESASREC, 0.0538, 0.0939),
        ("hstu", _RECBOARD, 0.0598, 0.0997),
        ("bsarec", _RECBOARD, 0.0663, 0.1078),
        ("tiger", _PAPERS, 0.0432, None),
        ("rpg", _PAPERS, 0.0490, None),
        ("e4srec", _RERUN, 0.0475, None),
        ("llm-srec", _RERUN, 0.0479, None),
    ),
}
FULL_RANKING_DATASETS = tuple(_FIGURES)


def published_figures(name: str | None) -> list[PublishedValue]:
    """Return the figures that a suite's `published` names, none for None."""
    return full_ranking_values() if name == S3REC else published_values(name or "")


def full_ranking_values() -> list[PublishedValue]:
    """Return every figure, metric by metric, with its source.

    Example:
        >>> [value.value for value in full_ranking_values() if (value.dataset, value.label) == ("toys", "bsarec")]
        [0.0663, 0.1078]
    """
    return [
        PublishedValue(dataset, SCENARIO, "overall", label, value, metric, source)
        for dataset, rows in _FIGURES.items()
        for number, metric in enumerate(("ndcg@10", "hit@10"))
        for label, source, *values in rows
        if (value := values[number]) is not None
    ]
