"""Evaluate rankers on the same users, targets and candidates: from scores to ranks to one report."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from ..data.digests import other_items
from ..data.versions import library_versions
from ..errors import ALLMRecError, DataError
from ..files import written_whole
from ..ranking import Ranks, summarize_ranks, target_ranks
from .beyond_accuracy import PLACES, beyond_accuracy, item_categories
from .evaluation_report import format_markdown, format_table
from .intervals import metric_intervals
from .protocol import EvaluationData, History, Ranker, TargetSplit, TitleGenerator, TrainSplit, ranks_catalogue
from .rankers import ShuffledHistories
from .retrieved import check_scores, retrieved_ranks
from .rows import Rows, count_seen_targets, further_members, select_rows
from .warmth import WarmthGroups

logger = logging.getLogger(__name__)

PROTOCOLS = ("candidates", "full", "paper")
SPLITS: dict[TargetSplit, TrainSplit] = {"validation": "train", "test": "train+validation"}
REPORT_FORMAT = 2
CUTOFFS = (1, 5, 10)
LISTED_GROUPS = ("cold", "never_seen")  # of whose items a report tells the share in the lists


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation: the report, and the rank of every user's target under every method.

    Attributes:
        report: Everything that goes into the JSON report; see `docs/evaluation.md` for each field.
        user_ids: R user ids, in the order of all arrays below.
        target_ids: R item ids.
        members: For each group, `(R,)` True where the user belongs to it.
        ranks: For each method, the R ranks of the target with its ties.
        answers: For each method that generated titles, its R answers.
    """

    report: dict[str, Any]
    user_ids: list[str]
    target_ids: list[str]
    members: Mapping[str, NDArray[np.bool_]]
    ranks: Mapping[str, Ranks]
    answers: Mapping[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain Python values, ready for JSON."""
        return cast("dict[str, Any]", json.loads(json.dumps(self.report)))

    def to_table(self) -> str:
        """Return an aligned text table."""
        return format_table(self.report)

    def to_markdown(self) -> str:
        """Return the same table in Markdown."""
        return format_markdown(self.report)

    def write_json(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all, and return the path."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(self.report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return Path(path)

    def per_user(self) -> pl.DataFrame:
        """Return one row for each user and method.

        Columns: user_id, target, a Boolean for each group, method, rank, tied, answer. `rank` is the mean place, `tied`
        the number of other candidates with the target's score; metrics can be made again from the two
        (`Ranks.of_expected`), not from the rank alone.
        """
        base = pl.DataFrame({"user_id": self.user_ids, "target": self.target_ids}).with_columns(
            pl.Series(group, mask) for group, mask in self.members.items() if group != "overall"
        )
        frames = [
            base.with_columns(
                pl.lit(method).alias("method"),
                pl.Series("rank", ranks.expected, dtype=pl.Float64),
                pl.Series("tied", ranks.tied.astype(np.int64), dtype=pl.Int64),
                pl.Series("answer", self.answers.get(method, [None] * len(ranks)), dtype=pl.String),
            )
            for method, ranks in self.ranks.items()
        ]
        return pl.concat(frames)

    def write_per_user(self, path: str | Path) -> Path:
        """Write `per_user` as parquet, whole or not at all, and return the path."""
        with written_whole(path) as temporary:
            self.per_user().write_parquet(temporary)
        return Path(path)


def evaluate(
    rankers: Sequence[Ranker],
    data: EvaluationData,
    protocol: str = "candidates",
    split: TargetSplit = "test",
    *,
    max_users: int | None = None,
    seed: int = 0,
    cutoffs: tuple[int, ...] | None = None,
    num_retrieved: int = 100,
    batch_size: int = 256,
    known: EvaluationData | None = None,
    groups: Mapping[str, ArrayLike] | None = None,
    history_buckets: Sequence[int] | None = None,
    shuffle_test: bool = False,
    full_ranking: bool = False,
) -> EvaluationResult:
    """Evaluate rankers side by side on the same users, targets and candidates.

    Processes of `accelerate launch` or `torchrun` that all call this share out batches of `batch_size` users, and each
    returns what one process would.

    Args:
        rankers: The methods, with names of their own each.
        data: The prepared data.
        protocol: `"candidates"`: each target among the stored, seeded candidates. `"full"`: each method retrieves from
            the whole catalogue, items the user has seen left out; a target that is not retrieved is a miss. `"paper"`:
            Hit@1 of the stored candidates, by exact match of the generated title where a method generates one.
        split: `"test"` or `"validation"`.
        max_users: Evaluate a seeded sample of this many users; None takes all.
        seed: Draws the sample, nothing else.
        cutoffs: The k of Hit@k and NDCG@k; the paper's protocol has Hit@1 only. None takes 1, 5 and 10, as far as there
            are so many candidates.
        num_retrieved: How many items each method retrieves under `"full"`.
        batch_size: Users given to a ranker at a time.
        known: The data that the methods were trained on, over the same catalogue, where they are not `data`; which
            items are warm, cold or never seen is counted there.
        groups: Further groups: name -> `(U,)` booleans, one for each user of `data.candidates(split)`, in their order.
        history_buckets: The largest history length of each bucket but the last, such as `(5, 10, 20)`; None has none.
        shuffle_test: Rank a second time after histories in random order, which goes into the report as `shuffled`.
        full_ranking: Under the protocol `"candidates"`, also rank the whole catalogue for the same users, by every
            method but those that ask an LLM for each item; its report goes into the report as `full_ranking`.

    Returns:
        The report and every user's ranks. Metrics are means over all orders of tied candidates.

    Raises:
        ALLMRecError: when an argument is out of range, or a ranker returns NaN or another shape; it is named.
        DataError: when the data's candidates do not hold each target exactly once, the split has no users, a cut-off is
            above the number of candidates, or `known` has another catalogue.
    """
    if shuffle_test and protocol == "paper":
        raise ALLMRecError(
            "the shuffle test compares ranks; the paper's protocol has none, so leave out one of the two"
        )
    _check_arguments(rankers, protocol, split, max_users, cutoffs, num_retrieved, batch_size, seed)
    _check_numbering(rankers, data)
    candidates = data.candidates(split)
    rows = select_rows(data, split, candidates, max_users, seed)
    cutoffs = _shown_cutoffs(cutoffs, protocol, rows)
    warmth = _warmth(data, known or data, split)
    members = warmth.members(rows.targets) | further_members(rows, groups or {}, history_buckets)

    ranks: dict[str, Ranks] = {}
    answers: dict[str, list[str]] = {}
    valid: dict[str, NDArray[np.float64]] = {}
    lists: dict[str, NDArray[np.int64]] = {}
    for ranker in rankers:
        logger.info("evaluating %s on %d users, protocol %s", ranker.name, len(rows.users), protocol)
        if protocol == "full":
            ranks[ranker.name], lists[ranker.name] = _full_ranks(ranker, rows, num_retrieved, batch_size)
        elif protocol == "paper" and isinstance(ranker, TitleGenerator):
            answers[ranker.name] = _generate(ranker, rows, batch_size)
            ranks[ranker.name], valid[ranker.name] = _match(ranker, rows, answers[ranker.name])
        else:
            ranks[ranker.name] = _candidate_ranks(ranker, rows, batch_size)
    if protocol == "paper":
        ranks = {name: _named_first(values) for name, values in ranks.items()}

    report: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "dataset": data.name,
        "split": split,
        "protocol": protocol,
        "users": len(rows.users),
        "users_available": len(candidates.users),
        "max_users": max_users,
        "num_items": data.num_items,
        "num_candidates": int(rows.items.shape[1]),
        "num_retrieved": num_retrieved if protocol == "full" else None,
        "seed": seed,
        "candidates_seed": data.info.get("seed"),
        "candidates_sha256": candidates_digest(data, split),
        "groups": warmth.describe(),
        "versions": library_versions(),
    }
    if protocol == "full":
        report["targets_already_seen"] = count_seen_targets(rows)
    report["chance"] = {
        group: _summarize(_chance_ranks(rows, protocol, num_retrieved)[mask], protocol, cutoffs, None)
        for group, mask in members.items()
    }
    report["methods"] = {
        name: {
            group: _summarize(values[mask], protocol, cutoffs, valid[name][mask] if name in valid else None)
            for group, mask in members.items()
        }
        for name, values in ranks.items()
    }
    report["intervals"] = metric_intervals(report["methods"], ranks, members, valid)
    if shuffle_test:
        report["shuffled"] = {
            ranker.name: {group: _summarize(values[mask], protocol, cutoffs, None) for group, mask in members.items()}
            for ranker in rankers
            for values in [_shuffled_ranks(ranker, rows, protocol, num_retrieved, batch_size, seed)]
        }
    whole = [ranker for ranker in rankers if ranks_catalogue(ranker)]
    if full_ranking and protocol == "candidates" and whole:
        report["full_ranking"] = evaluate(
            whole,
            data,
            "full",
            split,
            max_users=max_users,
            seed=seed,
            num_retrieved=num_retrieved,
            batch_size=batch_size,
            known=known,
            groups=groups,
            history_buckets=history_buckets,
            cutoffs=tuple(sorted({*CUTOFFS, *(k for k in cutoffs if k <= num_retrieved)})),
        ).report
    if lists:
        report["beyond_accuracy"] = _beyond_accuracy(lists, rows, warmth, (known or data).item_counts(SPLITS[split]))
    return EvaluationResult(
        report=report,
        user_ids=[data.user_ids[user] for user in rows.users],
        target_ids=[data.catalog.item_id(int(target)) for target in rows.targets],
        members=members,
        ranks=ranks,
        answers=answers,
    )


def candidates_digest(data: EvaluationData, split: TargetSplit) -> str:
    """Return the SHA-256 of all candidates of a split, over ids: one JSON line `[user_id, target, candidates]` a row.

    It depends on the content alone, not on how a version of parquet packs it, and covers all users, sampled or not.
    """
    candidates = data.candidates(split)
    digest = hashlib.sha256()
    for user, target, items in zip(
        candidates.users.tolist(), candidates.targets.tolist(), candidates.items.tolist(), strict=True
    ):
        ids = [data.catalog.item_id(item) for item in items]
        digest.update(json.dumps([data.user_ids[user], data.catalog.item_id(target), ids]).encode() + b"\n")
    return digest.hexdigest()


def _check_arguments(
    rankers: Sequence[Ranker],
    protocol: str,
    split: str,
    max_users: int | None,
    cutoffs: tuple[int, ...] | None,
    num_retrieved: int,
    batch_size: int,
    seed: int,
) -> None:
    names = [ranker.name for ranker in rankers]
    if not names or len(set(names)) < len(names):
        raise ALLMRecError(f"evaluation needs at least one ranker, with names of their own each; got {names}")
    if protocol not in PROTOCOLS:
        raise ALLMRecError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if split not in SPLITS:
        raise ALLMRecError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if max_users is not None and (not isinstance(max_users, Integral) or max_users < 1):
        raise ALLMRecError(f"max_users must be at least 1, or None for all users; got {max_users}")
    if not isinstance(seed, Integral) or seed < 0:
        raise ALLMRecError(f"seed must be a whole number of at least 0; got {seed!r}")
    if batch_size < 1:
        raise ALLMRecError(f"batch_size must be at least 1; got {batch_size}")
    cutoffs = CUTOFFS if cutoffs is None else cutoffs
    if not cutoffs or min(cutoffs) < 1:
        raise ALLMRecError(f"cutoffs must be positive integers; got {cutoffs}")
    if protocol == "full" and num_retrieved < max(cutoffs):
        raise ALLMRecError(f"num_retrieved = {num_retrieved} cannot show Hit@{max(cutoffs)}; retrieve at least as many")


def _check_numbering(rankers: Sequence[Ranker], data: EvaluationData) -> None:
    """Check that the data number the items as the model of each ranker does."""
    for ranker in rankers:
        catalog = getattr(getattr(ranker, "processor", None), "catalog", None)
        other = None if catalog is None else other_items(catalog.item_ids, _item_ids(data))
        if other is not None:
            raise DataError(
                f"ranker {ranker.name!r} numbers the items otherwise than {data.name}: {other}; evaluate on the data "
                "it was trained on"
            )


def _item_ids(data: EvaluationData) -> list[str]:
    return [data.catalog.item_id(index) for index in range(1, data.num_items + 1)]


def _shown_cutoffs(cutoffs: tuple[int, ...] | None, protocol: str, rows: Rows) -> tuple[int, ...]:
    """Return the cut-offs; among C candidates every target is within the first C, so a higher one says nothing."""
    num_candidates = rows.items.shape[1]
    if protocol != "candidates":
        return CUTOFFS if cutoffs is None else cutoffs
    if cutoffs is None:
        return tuple(k for k in CUTOFFS if k <= num_candidates)
    if max(cutoffs) > num_candidates:
        raise DataError(
            f"{rows.data.name}: the cut-off {max(cutoffs)} is above the {num_candidates} candidates of each user; take "
            f"cutoffs of at most {num_candidates}, or prepare the data with more candidates (num_candidates)"
        )
    return cutoffs


def _warmth(data: EvaluationData, known: EvaluationData, split: TargetSplit) -> WarmthGroups:
    if known.num_items != data.num_items:
        raise DataError(
            f"the training data {known.name} have {known.num_items} items, the evaluated data {data.name} "
            f"{data.num_items}; both must share one catalogue"
        )
    other = None if known is data else other_items(_item_ids(known), _item_ids(data))
    if other is not None:
        raise DataError(
            f"the training data {known.name} and the evaluated data {data.name} must share one catalogue: {other}"
        )
    return WarmthGroups.from_counts(known.item_counts("train"), known.item_counts(SPLITS[split]))


def _candidate_ranks(ranker: Ranker, rows: Rows, batch_size: int) -> Ranks:
    def ranked(batch: slice, histories: list[History], candidates: NDArray[np.int64]) -> Ranks:
        scores = np.asarray(ranker.score(histories, candidates), dtype=np.float64)
        check_scores(ranker, scores, rows.items[batch].shape)
        return target_ranks(scores, rows.positions[batch])

    return Ranks.concatenate(rows.mapped(ranker.name, batch_size, ranked))


def _shuffled_ranks(ranker: Ranker, rows: Rows, protocol: str, num_retrieved: int, batch_size: int, seed: int) -> Ranks:
    shuffled = ShuffledHistories(ranker, seed)
    if protocol == "full":
        return _full_ranks(shuffled, rows, num_retrieved, batch_size)[0]
    return _candidate_ranks(shuffled, rows, batch_size)


def _named_first(ranks: Ranks) -> Ranks:
    """Return the ranks where one candidate is named: the best, one of those that are tied for it, or a miss."""
    missed = ranks.better > 0
    return Ranks(np.where(missed, np.inf, ranks.better), np.where(missed, 0.0, ranks.tied), limit=1)


def _chance_ranks(rows: Rows, protocol: str, num_retrieved: int) -> Ranks:
    """Return the ranks under one score for all candidates; under `full` a target of the history is a miss."""
    tied = np.full(len(rows.users), rows.items.shape[1] - 1.0)
    if protocol != "full":
        return Ranks(np.zeros(len(tied)), tied)
    better = np.zeros(len(tied))
    for row, (user, target) in enumerate(zip(rows.users.tolist(), rows.targets, strict=True)):
        history = rows.data.history(user, rows.split)
        seen = target in history
        better[row] = np.inf if seen else 0.0
        tied[row] = 0.0 if seen else rows.data.num_items - len(np.unique(history)) - 1.0
    return Ranks(better, tied, num_retrieved)


def _full_ranks(ranker: Ranker, rows: Rows, num_retrieved: int, batch_size: int) -> tuple[Ranks, NDArray[np.int64]]:
    """Return the ranks of the targets, and the first items of every list `(R, PLACES)`, 0 where it has ended."""

    def retrieved(batch: slice, histories: list[History], _: NDArray[np.int64]) -> tuple[Ranks, NDArray[np.int64]]:
        found = retrieved_ranks(ranker, histories, rows.targets[batch], num_retrieved, rows.data.num_items)
        first = found.items[:, :PLACES]
        return found.ranks, np.pad(first, ((0, 0), (0, PLACES - first.shape[1])))

    parts = rows.mapped(ranker.name, batch_size, retrieved)
    return Ranks.concatenate([ranks for ranks, _ in parts]), np.concatenate([items for _, items in parts])


def _beyond_accuracy(
    lists: Mapping[str, NDArray[np.int64]], rows: Rows, warmth: WarmthGroups, counts: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """Return the measures of each method's lists."""
    frame = getattr(rows.data.catalog, "frame", None)
    categories = None if frame is None else item_categories(frame)
    histories = [rows.data.history(int(user), rows.split) for user in rows.users]
    items = np.arange(rows.data.num_items + 1)
    members = {group: mask & (items > 0) for group, mask in warmth.members(items).items() if group in LISTED_GROUPS}
    return {name: beyond_accuracy(found, histories, counts, members, categories) for name, found in lists.items()}


def _generate(ranker: Ranker, rows: Rows, batch_size: int) -> list[str]:
    generator = cast("TitleGenerator", ranker)

    def written(_: slice, histories: list[History], candidates: NDArray[np.int64]) -> list[str]:
        titles = list(generator.generate_titles(histories, candidates))
        if len(titles) != len(histories):
            raise ALLMRecError(f"ranker {ranker.name!r} generated {len(titles)} titles for {len(histories)} users")
        return titles

    return [title for titles in rows.mapped(ranker.name, batch_size, written) for title in titles]


def _match(ranker: Ranker, rows: Rows, answers: list[str]) -> tuple[Ranks, NDArray[np.float64]]:
    """Return place 1 or `inf` by exact match with the target's title, and whether the answer is any candidate's."""
    title_of: Callable[[int], str] = getattr(ranker, "prompt_title", rows.data.catalog.title)
    places, valid = np.full(len(answers), np.inf), np.zeros(len(answers))
    for row, answer in enumerate(answers):
        answer = _one_space(answer)
        if answer == _one_space(title_of(int(rows.targets[row]))):
            places[row] = 1.0
        valid[row] = any(answer == _one_space(title_of(int(item))) for item in rows.items[row])
    return Ranks.of_places(places, limit=1), valid


def _one_space(text: str) -> str:
    return " ".join(text.split())


def _summarize(
    ranks: Ranks, protocol: str, cutoffs: tuple[int, ...], valid: NDArray[np.float64] | None
) -> dict[str, float]:
    if protocol != "paper":
        return summarize_ranks(ranks, cutoffs)
    summary = {name: value for name, value in summarize_ranks(ranks, (1,)).items() if name in ("users", "hit@1")}
    if valid is not None and len(valid):
        summary["valid"] = float(valid.mean())
    return summary
