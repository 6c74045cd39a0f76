"""The published figures of arXiv 2404.11343: counts of its data sets and Hit@1 of every table.

Nothing here was measured by this project. The data sets are those of the Amazon review data of 2018 after the authors'
filter; Hit@1 is over one target and 19 random items. "beauty" is Luxury_Beauty.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2404.11343"
HIT = "hit@1"


@dataclass(frozen=True)
class PublishedCounts:
    """Counts of one data set after the authors' filter."""

    users: int
    items: int
    interactions: int
    mean_length: float


@dataclass(frozen=True)
class PublishedValue:
    """One published figure.

    Attributes:
        dataset: Name of the data set of the targets.
        scenario: Label of the scenario as in suites, such as `few-shot-256`.
        group: `overall`, `warm` or `cold` targets.
        label: Label of the method as in the suites that come with this package.
        value: The figure.
        metric: Which metric it is.
        source: Where it was published, unless that is arXiv 2404.11343.
    """

    dataset: str
    scenario: str
    group: str
    label: str
    value: float
    metric: str = HIT
    source: str = ""


COUNTS = {
    "movies": PublishedCounts(297_498, 59_944, 3_409_147, 11.46),
    "games": PublishedCounts(64_073, 33_614, 598_509, 8.88),
    "beauty": PublishedCounts(9_930, 6_141, 63_953, 6.44),
    "toys": PublishedCounts(30_831, 61_081, 282_213, 9.15),
}
DATASETS = tuple(COUNTS)
TEXT = "a-llmrec (text)"

_METHODS = (
    *("ncf", "nextitnet", "gru4rec", "sasrec", "morec", "ctrl", "recformer", "llm-only", "tallrec", "mlp-llm"),
    "a-llmrec",
)
_OVERALL = {
    "movies": (0.4273, 0.5855, 0.5215, 0.6154, 0.4130, 0.3467, 0.4865, 0.0121, 0.2345, 0.5838, 0.6237),
    "games": (0.3159, 0.4305, 0.4026, 0.5402, 0.4894, 0.2354, 0.4925, 0.0168, 0.4403, 0.4788, 0.5282),
    "beauty": (0.2957, 0.4231, 0.4131, 0.5298, 0.4997, 0.3963, 0.4878, 0.0120, 0.5542, 0.5548, 0.5809),
    "toys": (0.1849, 0.1415, 0.1673, 0.2359, 0.1728, 0.1344, 0.2871, 0.0141, 0.0710, 0.3225, 0.3336),
}
# Of each method by data set: (cold, warm) targets.
_COLD_WARM = {
    "sasrec": {"movies": (0.259, 0.679), "games": (0.199, 0.576), "beauty": (0.119, 0.631)},
    "a-llmrec": {"movies": (0.571, 0.688), "games": (0.426, 0.597), "beauty": (0.561, 0.641)},
    TEXT: {"movies": (0.577, 0.680), "games": (0.436, 0.579), "beauty": (0.559, 0.641)},
}
_COLD_USERS = {
    "sasrec": {"movies": 0.259, "games": 0.405, "beauty": 0.446},
    "a-llmrec": {"movies": 0.527, "games": 0.416, "beauty": 0.534},
}
# Of each method by data set: with 256 and with 128 training users.
_FEW_SHOT = {
    "sasrec": {"movies": (0.211, 0.154), "games": (0.140, 0.109), "beauty": (0.224, 0.181)},
    TEXT: {"movies": (0.296, 0.272), "games": (0.261, 0.184), "beauty": (0.361, 0.349)},
}
_CROSS_DOMAIN = {"sasrec": 0.0506, "a-llmrec": 0.0901, TEXT: 0.1203}
_ABLATIONS = {
    "without matching": {"movies": 0.5838, "beauty": 0.5548, "toys": 0.3225},
    "without reconstruction": {"movies": 0.5482, "beauty": 0.5327, "toys": 0.3204},
    "without recommendation loss": {"movies": 0.6130, "beauty": 0.5523, "toys": 0.1541},
    "frozen text encoder": {"movies": 0.6173, "beauty": 0.5565, "toys": 0.1720},
    "without user representation": {"movies": 0.5925, "games": 0.5121, "beauty": 0.5547, "toys": 0.3217},
    "without joint embedding": {"movies": 0.1224, "games": 0.4773, "beauty": 0.5213, "toys": 0.2831},
    "random joint embedding": {"movies": 0.1200, "games": 0.4729, "beauty": 0.5427, "toys": 0.0776},
    "a-llmrec on nextitnet": {"beauty": 0.5642, "toys": 0.3203},
    "a-llmrec on gru4rec": {"beauty": 0.5542, "toys": 0.3089},
    "a-llmrec on ncf": {"beauty": 0.5431, "toys": 0.3263},
    "a-llmrec, all positions": {"beauty": 0.6002},
}
OVERALL, COLD_USERS, FEW_SHOT, CROSS_DOMAIN = "overall", "cold-users", "few-shot", "cross-domain"


def published_values(dataset: str) -> list[PublishedValue]:
    """Return every published figure whose targets are of one data set; none for a name that is not the paper's.

    Example:
        >>> values = published_values("beauty")
        >>> [value.value for value in values if value.label == "sasrec" and value.group == "cold"]
        [0.119]
    """
    if dataset not in COUNTS:
        return []
    found = [
        PublishedValue(dataset, OVERALL, "overall", label, value)
        for label, value in zip(_METHODS, _OVERALL[dataset], strict=True)
    ]
    for label, values in _COLD_WARM.items():
        for group, value in zip(("cold", "warm"), values.get(dataset, ()), strict=False):
            found.append(PublishedValue(dataset, OVERALL, group, label, value))
    for label, by_dataset in _COLD_USERS.items():
        if dataset in by_dataset:
            found.append(PublishedValue(dataset, COLD_USERS, "overall", label, by_dataset[dataset]))
    for label, shots in _FEW_SHOT.items():
        for num_users, value in zip((256, 128), shots.get(dataset, ()), strict=False):
            found.append(PublishedValue(dataset, f"{FEW_SHOT}-{num_users}", "overall", label, value))
    if dataset == "games":
        for label, value in _CROSS_DOMAIN.items():
            found.append(PublishedValue(dataset, f"{CROSS_DOMAIN}-movies-games", "overall", label, value))
    found += [
        PublishedValue(dataset, OVERALL, "overall", label, by_dataset[dataset])
        for label, by_dataset in _ABLATIONS.items()
        if dataset in by_dataset
    ]
    return found
