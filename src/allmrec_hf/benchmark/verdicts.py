"""Derive alarms and verdicts from the figures, by rules fixed before any figure is seen.

Every rule looks at one metric, see `verdict_metric`, over all users of a scenario. `docs/statistics.md` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

from ..cf_encoder import MODEL_TYPE_PREFIX, cf_encoder_types
from ..errors import DataError
from ..evaluation.significance import ROUNDING
from ..evaluation.warmth import OVERALL
from .result_tables import SIGNIFICANT, Tables, by_scenario, chance, headline, labels_in_order, measured
from .runs import BenchmarkRun

LARGE_LLM = 1_000_000_000
CONTROLS = ("popularity", "text-cosine", "no-llm", "random-llm", "fair-backbone", "leak-alarm")
LLM_CONTROLS = ("random-llm", "no-llm")
OF_LLM = (*LLM_CONTROLS, "fair-backbone")
BACKBONE_ALONE = "the backbone alone"
UNTRAINED = ("random-llm", "leak-alarm")
Status = Literal["alarm", "against", "missing", "note", "quiet", "good"]
STATUSES: tuple[Status, ...] = ("alarm", "against", "missing", "note", "quiet", "good")
LEAK, MISSING_CONTROLS, CREDIT, FAIRNESS, LLM_SIZE, SEEDS = (
    "Leak alarm",
    "Controls",
    "Credit to the LLM",
    "Fair backbone",
    "Size of the LLM",
    "Seeds",
)


@dataclass(frozen=True)
class Verdict:
    """One sentence that the figures allow.

    Attributes:
        subject: What it is about.
        status: `alarm`: the numbers cannot be trusted; `against`: a claim fails; `missing`: it cannot be said;
            `note`: a limit of what can be said; `quiet`: nothing to report; `good`: a claim holds.
        where: The dataset and scenario, or empty for the whole report.
        text: The sentence, with its figures.
    """

    subject: str
    status: Status
    where: str
    text: str


@dataclass(frozen=True)
class _Scene:
    """A dataset and scenario, as the rules look at it."""

    where: str
    runs: Mapping[str, BenchmarkRun]  # the first of each label
    means: Mapping[str, Mapping[str, Any]]  # rows of `Tables.results` by label
    against: Mapping[str, Mapping[str, Any]]  # rows of `Tables.comparisons` of the reference by label
    reference: str | None
    metric: str

    def of_method(self, method: str) -> list[str]:
        """Return the labels of a method, its ablations left out."""
        return [
            label
            for label, run in self.runs.items()
            if run.key.method == method and label != self.reference and not run.details.get("ablation_of")
        ]


def verdicts(runs: Sequence[BenchmarkRun], tables: Tables, reference: str | None) -> list[Verdict]:
    """Return all alarms and verdicts, by subject; within one, the worst first."""
    scenes = _scenes(runs, tables, reference)
    has_llm = reference is None or _has_llm(runs, reference)
    found = [_leak(scene) for scene in scenes]
    found += [_controls(scene, has_llm) for scene in scenes]
    if reference is None:
        text = "no method under test was run, so no claim about one is made"
        found.append(Verdict(CREDIT, "missing", "", text))
    elif has_llm:
        tested = [scene for scene in scenes if scene.reference is not None]
        found += [rule(scene) for scene in tested for rule in (_credit, _fairness)]
    else:
        text = f"{reference}, the method under test, has no LLM: credit, its size and the fair backbone are not asked"
        found.append(Verdict(CREDIT, "note", "", text))
    found += [_llm_size(runs, reference)] if has_llm else []
    found.append(_seeds(runs))
    subjects = (LEAK, MISSING_CONTROLS, CREDIT, FAIRNESS, LLM_SIZE, SEEDS)
    found = _folded(found, len(scenes))
    return sorted(found, key=lambda verdict: (subjects.index(verdict.subject), STATUSES.index(verdict.status)))


def _folded(found: Sequence[Verdict], num_scenes: int) -> list[Verdict]:
    """Return one verdict for each sentence, with the places it holds for; other figures make another sentence."""
    places: dict[Verdict, list[str]] = {}
    for verdict in found:
        places.setdefault(replace(verdict, where=""), []).append(verdict.where)
    return [
        replace(verdict, where="all scenarios" if 1 < num_scenes == len(where) else "; ".join(where))
        for verdict, where in places.items()
    ]


def _has_llm(runs: Sequence[BenchmarkRun], label: str) -> bool:
    return any(run.details.get("llm_parameters") for run in runs if run.key.label == label)


def verdict_metric(runs: Sequence[BenchmarkRun]) -> str:
    """Return the metric that verdicts look at: Hit@1, the paper's, unless the runs lack it."""
    return headline(measured(runs))[0]


def _scenes(runs: Sequence[BenchmarkRun], tables: Tables, reference: str | None) -> list[_Scene]:
    scenes = []
    for (dataset, scenario), members in by_scenario(runs).items():
        metric = verdict_metric(members)
        place = {"dataset": dataset, "scenario": scenario, "group": OVERALL, "metric": metric}
        present = labels_in_order(members)
        found = reference if reference in present else None
        means = {row["label"]: row for row in tables.results.filter(**place).iter_rows(named=True)}
        rows = tables.comparisons.filter(**place, reference=reference) if found else tables.comparisons.clear()
        against = {row["label"]: row for row in rows.iter_rows(named=True)}
        broken = [label for label, row in means.items() if not _finite(row, "mean", "low", "high")]
        broken += [label for label, row in against.items() if not _finite(row, "difference", "low", "high", "p_holm")]
        if broken:
            raise DataError(f"{dataset}, {scenario}: {metric} of {', '.join(broken)} is no finite number")
        scenes.append(_Scene(f"{dataset}, {scenario}", present, means, against, found, metric))
    return scenes


def _finite(row: Mapping[str, Any], *names: str) -> bool:
    return all(isfinite(row[name]) for name in names)


def _leak(scene: _Scene) -> Verdict:
    labels = scene.of_method("leak-alarm")
    if not labels:
        text = "leak-alarm was not run: a leak of the target into the prompt or the candidates would go unnoticed"
        return Verdict(LEAK, "missing", scene.where, text)
    random_order = chance(next(iter(scene.runs.values())), scene.metric)
    limit, source = random_order, "chance"
    cosines = scene.of_method("text-cosine")
    for label in cosines:
        if scene.means[label]["mean"] > limit:
            limit, source = scene.means[label]["mean"], f"raw text cosine ({label})"
    row = max((scene.means[label] for label in labels), key=lambda found: found["low"])
    facts = (
        f"an untrained LLM that reads text only reaches {name(scene.metric)} {_mean(row)}; "
        f"{source} gives {limit:.4f}{'' if cosines else ' (raw text cosine was not run)'}"
    )
    if not row["low"] <= limit + ROUNDING:
        return Verdict(LEAK, "alarm", scene.where, f"LEAK: {facts}. Trust no figure of this scenario until explained")
    if row["low"] > random_order + ROUNDING:
        text = f"{facts}: above chance, which random weights have no reason to be; look at what the prompt gives away"
        return Verdict(LEAK, "note", scene.where, text)
    return Verdict(LEAK, "quiet", scene.where, facts)


def _controls(scene: _Scene, has_llm: bool) -> Verdict:
    """Return which controls are missing; a method under test without an LLM needs only those of any recommender."""
    own = None if scene.reference is None else scene.runs[scene.reference].key.method
    wanted = [method for method in CONTROLS if has_llm or method not in OF_LLM]
    missing = [method for method in wanted if method != own and not scene.of_method(method)]
    missing += [] if own in _backbones() or _backbone(scene) else [BACKBONE_ALONE]
    if not missing:
        text = f"all were run: {', '.join(wanted)} and the backbone alone"
        return Verdict(MISSING_CONTROLS, "quiet", scene.where, text)
    text = f"not run: {', '.join(missing)}. What they would show is not known"
    if has_llm and {*LLM_CONTROLS, BACKBONE_ALONE} & {*missing}:
        text = f"not run: {', '.join(missing)}. Nothing can be credited to the LLM on the strength of this report"
    return Verdict(MISSING_CONTROLS, "missing", scene.where, text)


def _credit(scene: _Scene) -> Verdict:
    reference, backbone = str(scene.reference), _backbone(scene)
    if _leak(scene).status == "alarm":
        text = f"nothing is credited to the LLM of {reference}: the leak alarm fires, no figure here can be trusted"
        return Verdict(CREDIT, "missing", scene.where, text)
    controls_of = {method: _like_reference(scene, method) for method in LLM_CONTROLS}
    missing = [f"{method}{_told(scene, method)}" for method, labels in controls_of.items() if not labels]
    missing += [] if scene.of_method("leak-alarm") else ["leak-alarm"]
    if backbone is None or missing:
        absent = [*missing, *([] if backbone else [BACKBONE_ALONE])]
        text = f"nothing is credited to the LLM of {reference}: {' and '.join(absent)} missing"
        return Verdict(CREDIT, "missing", scene.where, text)
    gain = scene.against[backbone]
    over = f"over {backbone} ({name(scene.metric)} {_difference(gain)})"
    if not _beats(gain):
        return Verdict(CREDIT, "against", scene.where, f"{reference} has no significant gain {over}; nothing to credit")
    controls = [scene.against[label] for labels in controls_of.values() for label in labels]
    failed = [row for row in controls if not _beats(row)]
    if failed:
        which = " and ".join(f"{row['label']} ({_difference(row)})" for row in failed)
        text = f"the gain of {reference} {over} is NOT credited to the LLM: it does not beat {which}"
        return Verdict(CREDIT, "against", scene.where, text)
    which = " and ".join(f"{row['label']} ({_difference(row)})" for row in controls)
    text = f"the gain of {reference} {over} is credited to the LLM: it survives {which}"
    if scene.means[reference]["seeds"] == 1:
        return Verdict(CREDIT, "note", scene.where, f"{text}; one seed: luck of the training is not ruled out")
    return Verdict(CREDIT, "good", scene.where, text)


def _like_reference(scene: _Scene, method: str) -> list[str]:
    """Return the labels of a control with the reference's backbone, LLM and ranker; another's shows nothing."""
    reference = scene.runs[str(scene.reference)]
    own, names = reference.key.facts, ("backbone", "llm")
    return [
        label
        for label in scene.of_method(method)
        if all(scene.runs[label].key.facts.get(name) == own.get(name) for name in names)
        and _way(scene.runs[label]) == (_of_control(reference, method), _way(reference)[1])
    ]


def _way(run: BenchmarkRun) -> tuple[str, dict[str, Any]]:
    """Return by what a run ranks, and with which options of a fusion."""
    options = run.key.facts.get("options", {})
    first = "cosine" if run.key.method == "no-llm" else "likelihood"
    return options.get("ranker") or first, {name: options[name] for name in options if name.startswith("rank_")}


def _of_control(reference: BenchmarkRun, method: str) -> str:
    """Return by what a control of the reference ranks: as it does, but `no-llm`, which has no prompt, by cosine."""
    ranker = _way(reference)[0]
    return "cosine" if method == "no-llm" and ranker != "fusion" else ranker


def _told(scene: _Scene, method: str) -> str:
    ranker = _of_control(scene.runs[str(scene.reference)], method)
    return "" if ranker in ("likelihood", "cosine") else f" with the ranker {ranker}"


def _fairness(scene: _Scene) -> Verdict:
    labels = scene.of_method("fair-backbone")
    if not labels:
        text = f"fair-backbone missing: a gain of {scene.reference} may come from the data that stage 2 saw"
        return Verdict(FAIRNESS, "missing", scene.where, text)
    row = min((scene.against[label] for label in labels), key=lambda found: (_beats(found), found["difference"]))
    whom = f"{row['label']}, the backbone retrained on exactly the data that stage 2 saw"
    facts = f"{name(scene.metric)} {_difference(row)}"
    if _beats(row):
        text = f"{scene.reference} is above {whom}: {facts}"
        return Verdict(FAIRNESS, "missing" if _leak(scene).status == "alarm" else "good", scene.where, text)
    verb = "is BELOW" if row["difference"] < 0 and row["p_holm"] < SIGNIFICANT else "is not shown to be above"
    return Verdict(FAIRNESS, "against", scene.where, f"{scene.reference} {verb} {whom}: {facts}")


def _llm_size(runs: Sequence[BenchmarkRun], reference: str | None) -> Verdict:
    method = next((run.key.method for run in runs if run.key.label == reference), None)
    sizes = {
        (int(run.details["llm_parameters"]), str(run.details.get("llm", "an LLM")))
        for run in runs
        if run.details.get("llm_parameters") and run.key.method not in UNTRAINED and method in (None, run.key.method)
    }
    unresolved = "the paper's claim about large LLMs is neither confirmed nor refuted here"
    if not sizes:
        return Verdict(LLM_SIZE, "note", "", f"no run states the size of an LLM: {unresolved}")
    size, llm = max(sizes)
    text = f"the largest LLM used, {llm}, has {parameters(size)} parameters"
    if size < LARGE_LLM:
        return Verdict(LLM_SIZE, "note", "", f"{text}, fewer than 1 billion: {unresolved}")
    return Verdict(LLM_SIZE, "quiet", "", f"{text}; what is said of it holds for this LLM and these data")


def _seeds(runs: Sequence[BenchmarkRun]) -> Verdict:
    counts = {
        (run.key.dataset, run.key.scenario, run.key.label): len(
            {other.key.seed for other in runs if _same_place(run, other)}
        )
        for run in runs
    }
    low, high = min(counts.values()), max(counts.values())
    if high == 1:
        text = "one seed: intervals speak of other users, not of other training runs, whose spread is not known"
        return Verdict(SEEDS, "note", "", text)
    number = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    text = f"{number} for each method; intervals and tests speak of other users, ± of other training runs"
    return Verdict(SEEDS, "note" if low == 1 else "quiet", "", text)


def _same_place(one: BenchmarkRun, other: BenchmarkRun) -> bool:
    return (one.key.dataset, one.key.scenario, one.key.label) == (
        other.key.dataset,
        other.key.scenario,
        other.key.label,
    )


def _backbone(scene: _Scene) -> str | None:
    """Return the label of the backbone alone: the reference's own where it is known, else the best one."""
    known = _backbones()
    if scene.reference is not None:
        run = scene.runs[scene.reference]
        own = run.details.get("backbone") or run.key.facts.get("backbone")
        known = {own} if own else known
    labels = [label for method in sorted(known) for label in scene.of_method(method)]
    return max(labels, key=lambda label: float(scene.means[label]["mean"]), default=None)


def _backbones() -> set[str]:
    return {model_type.removeprefix(MODEL_TYPE_PREFIX) for model_type in cf_encoder_types()}


def _beats(row: Mapping[str, Any]) -> bool:
    """Tell whether the reference is significantly above the other over the users, and above it with every seed."""
    worst = row["worst_seed"]
    return bool(row["difference"] > 0 and row["p_holm"] < SIGNIFICANT and (worst is None or worst > ROUNDING))


def _mean(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.4f} (95 % interval {row['low']:.4f} to {row['high']:.4f})"


def _difference(row: Mapping[str, Any]) -> str:
    value, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
    worst = row["worst_seed"]
    turned = f", {signed(worst)} with the worst seed" if worst is not None and worst <= 0 < row["difference"] else ""
    return f"{value}, {low} to {high}, Holm p {p_value(row['p_holm'])}{turned}"


def name(metric: str) -> str:
    """Return a metric's name for readers."""
    return metric.replace("hit@", "Hit@").replace("ndcg@", "NDCG@").replace("mrr", "MRR")


def signed(value: float, digits: int = 4) -> str:
    """Return a number with its sign for readers; what rounds to zero is +0, whichever side it comes from."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def p_value(value: float | None) -> str:
    """Return a p value for readers."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def parameters(count: float) -> str:
    """Return a number of parameters for readers."""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"
