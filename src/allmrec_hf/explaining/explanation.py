"""Explain one recommendation: contributions, nearest tokens and both scores, as plain values for JSON."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from ..catalog import ItemCatalog
from ..errors import ALLMRecError, CheckpointError, DataError, UnknownItemsError
from ..files import written_whole
from ..item_lookup import find_items
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..ranker import CONTEXT_OF, TitleLikelihood
from .contributions import CLEAR, Removal, contributions
from .nearest_words import nearest_tokens
from .prompt_probe import PromptProbe

FORMAT = 1
NUM_CANDIDATES = 20
SAME_NATS = 1e-4
"""Scores nearer than this share a rank: what the LLM reads in another batch comes out a little different."""
_COMPARED_IDS = 2000  # ids among which like ones are looked for
_BY_TITLE = {"history": "titles", "item": "item_title", "candidates": "candidate_titles"}
_SAME_CF = 1e-6  # of the largest CF score
METHODS = {
    "leave_one_out": "value minus the value without the item in prompt and CF history; removal 'neutral' puts the "
    "baselines below in its places of the prompt, 'delete' shortens the list; user vector: replaced by the mean "
    "projected vector of users who know a single item",
    "gradient_x_input": "gradient times (input - baseline), summed over tokens and vectors; baselines: mean token "
    "embedding, mean projected item vector, mean projected vector of users who know a single item; the user vector's "
    "share of an item: gradient at the user's slot times the vector's change when the item leaves the CF history",
}


def require_items(
    catalog: ItemCatalog,
    entries: Sequence[Any] | None,
    what: str,
    titles: Sequence[str] | None = None,
    notes: list[str] | None = None,
) -> list[int]:
    """Return catalogue indices of items named by id, or by title instead.

    Args:
        catalog: The catalogue.
        entries: Item ids, as text or numbers.
        what: What they are, for the error: `history`, `item` or `candidates`.
        titles: Titles in place of ids; case and white space do not count.
        notes: Gets a sentence where a title is that of several items, of which the first is taken.

    Raises:
        DataError: when there are none, both are given, or some are unknown; the message counts them and names the
            nearest ids, and says where an unknown id is a title.
    """
    entries, titles = list(entries or []), list(titles or [])
    if entries and titles:
        raise DataError(f"the {what} is given by id and by title; give one of them, as their common order is not known")
    if not entries and not titles:
        raise DataError(f"the {what} is empty; give at least one item id of the catalogue")
    found = find_items(catalog, titles or entries, "title" if titles else "id")
    if notes is not None:
        notes += found.notes
    if not found.unknown:
        return found.indices
    near = [] if titles or found.hints else _ids_like(catalog, found.unknown[0])
    raise UnknownItemsError(
        f"{len(found.unknown)} of {len(titles or entries)} {'titles' if titles else 'ids'} of the {what} are not in "
        f"the catalogue of {len(catalog)} items: {found.named_unknown()}"
        + (f"; ids like {found.unknown[0]!r}: {near}" if near else ""),
        _BY_TITLE.get(what, what) if titles else what,
        found.unknown,
    )


def _ids_like(catalog: ItemCatalog, item_id: str) -> list[str]:
    """Return up to three ids like one, of those that share a part with it."""
    ids = catalog.frame["item_id"]
    if len(ids) > _COMPARED_IDS:
        half = max(1, len(item_id) // 2)
        lengths = ids.str.len_chars()
        alike = ids.str.starts_with(item_id[:half]) | ids.str.ends_with(item_id[-half:])
        nearest = ids.filter(alike & (lengths >= len(item_id) - 1) & (lengths <= len(item_id) + 1))
        ids = nearest.to_frame().sort(_common_start(nearest, item_id), descending=True).to_series().head(_COMPARED_IDS)
    return difflib.get_close_matches(item_id, ids.to_list(), n=3, cutoff=0.4)


def _common_start(ids: pl.Series, item_id: str) -> pl.Series:
    """Return how many leading characters each id shares with one."""
    counts = pl.zeros(len(ids), pl.Int64, eager=True)
    for end in range(1, len(item_id) + 1):
        counts += ids.str.starts_with(item_id[:end]).cast(pl.Int64)
    return counts


def require_llm(model: Any) -> None:
    """Check that a model can be explained.

    Raises:
        CheckpointError: when it is a backbone alone, or has no LLM.
    """
    if not isinstance(model, ALLMRecModel):
        raise CheckpointError(
            f"{type(model).__name__} is no A-LLMRec model; a backbone alone has no title's likelihood to explain"
        )
    if model.language_model is None:
        raise CheckpointError(
            "this model has no LLM, whose title likelihoods are explained: train its stage 2 "
            "(`allmrec train --stage project`), or attach the LLM with attach_language_model"
        )


def explain(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    history: Sequence[Any] | None = None,
    item: Any = None,
    candidates: Sequence[Any] | None = None,
    contrast: bool = False,
    removal: Removal = "neutral",
    top_tokens: int = 5,
    gradient_steps: int = 8,
    batch_size: int = 16,
    *,
    titles: Sequence[str] | None = None,
    item_title: str | None = None,
    candidate_titles: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Explain one recommendation; docs/explaining.md describes every field of the result.

    Args:
        model: The model with its LLM.
        processor: Its processor.
        history: Item ids, oldest first.
        item: The explained item's id; one of the history is allowed, with a note.
        candidates: Item ids of the prompt's list; the item joins them where it is missing. By default the 20 items
            that the backbone retrieves, the last one replaced by the item where it is not among them.
        contrast: Explain the score minus the candidates' mean, which decides the ranking.
        removal: How leave-one-out takes an item out of the prompt, see `contributions`.
        top_tokens: Nearest tokens for each projected vector.
        gradient_steps: See `contributions`.
        batch_size: Variants that the LLM reads at once.
        titles: Titles of the history, in place of ids.
        item_title: The explained item's title, in place of its id.
        candidate_titles: Titles of the prompt's list, in place of ids.

    Raises:
        DataError: when ids or titles are unknown or given twice, or there is no history.
        CheckpointError: when the model has no LLM or does not rank by likelihood, or the processor is not its own.
    """
    require_llm(model)
    missing = TitleLikelihood.lacks(model.config)
    if missing is not None:
        raise CheckpointError(
            "an explanation is of the likelihood that the LLM gives a title, by which this checkpoint does not rank: "
            f"{missing}"
        )
    processor.check_fits(model.config.tokenizer_fingerprint, model.cf_encoder.num_items)
    catalog = processor.catalog
    notes: list[str] = []
    known = require_items(catalog, history, "history", titles, notes)
    chosen = require_items(catalog, one_or_none(item), "item", one_or_none(item_title), notes)[0]
    listed = None
    if candidates is not None or candidate_titles is not None:
        listed = require_items(catalog, candidates, "candidates", candidate_titles, notes)
    if chosen in known:
        notes.append("the item is in the history already; the recommender itself leaves such items out")
    if len(known) > processor.max_history_length:
        notes.append(f"the model reads the last {processor.max_history_length} of {len(known)} history items")
    if model.config.score_normalization in CONTEXT_OF:
        notes.append("what is explained is the title's log-likelihood, before the checkpoint's calibration of it")
    rows = _candidates(model.eval(), processor, known, chosen, listed, notes)
    settings: dict[str, Any] = {"contrast": contrast, "batch_size": batch_size}
    found = contributions(
        model, processor, known, chosen, rows, removal=removal, gradient_steps=gradient_steps, **settings
    )
    probe = PromptProbe(model, processor, known[-processor.max_history_length :], rows, **settings)
    scores = _scores(model, probe, known, rows)
    by_item = {row["item_index"]: row for row in scores}
    return {
        "format": FORMAT,
        "item": {**_named(catalog, chosen), **_figures(by_item[chosen])},
        "value": {
            "kind": "contrast" if contrast else "log_likelihood",
            "nats": float(probe.values([probe.embeds])),
        },
        "methods": {**METHODS, "removal": removal, "gradient_steps": gradient_steps, "clear_from": CLEAR},
        "contributions": [
            {**({} if one.source == "user" else _named(catalog, one.item)), **_without(one.to_dict(), "item")}
            for one in found
        ],
        "nearest_tokens": _nearest(model, processor, probe, chosen, top_tokens),
        "candidates": [{**_named(catalog, row["item_index"]), **_figures(row)} for row in scores],
        "notes": notes,
    }


def one_or_none(entry: Any) -> list[Any] | None:
    """Return one entry as a list, nothing as None."""
    return None if entry is None else [entry]


def write_explanation(explanation: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write an explanation as JSON, whole or not at all, and return the path."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(explanation, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
    return Path(path)


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _named(catalog: ItemCatalog, index: int) -> dict[str, str]:
    return {"item_id": catalog.item_id(index), "title": catalog.title(index)}


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return _without(row, "item_index")


def _candidates(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    history: list[int],
    chosen: int,
    rows: list[int] | None,
    notes: list[str],
) -> list[int]:
    if rows is None:
        tensors = {name: value.to(model.device) for name, value in processor.history_tensors([history]).items()}
        tensors["exclude"] = torch.tensor([[*history, chosen]], device=model.device)
        retrieved = model.retrieve(**tensors, top_k=NUM_CANDIDATES - 1).item_indices[0].tolist()
        return [chosen, *(index for index in retrieved if index > 0)]
    if len(set(rows)) < len(rows):
        raise DataError(f"{len(rows) - len(set(rows))} candidates are given more than once")
    if chosen not in rows:
        notes.append("the item was not among the candidates and joined them")
    return [chosen, *(index for index in rows if index != chosen)]


@torch.no_grad()
def _scores(model: ALLMRecModel, probe: PromptProbe, history: list[int], rows: list[int]) -> list[dict[str, Any]]:
    """Return both scores of every candidate, best by the LLM first."""
    items = torch.tensor([rows], device=model.device)
    read = torch.tensor([history[-model.cf_encoder.config.max_history_length :]], device=model.device)
    users = model.cf_encoder.encode_users(read, torch.ones_like(read, dtype=torch.bool))
    by_cf = model.cf_encoder.score(users, items)[0].double()
    by_llm = probe.candidate_scores().double()
    llm_ranks, cf_ranks = _ranks(by_llm, SAME_NATS), _ranks(by_cf, _SAME_CF * float(by_cf.abs().max()))
    counts = model.item_table.interaction_counts[items[0]]
    cold = (counts < model.config.min_interactions).tolist()
    listed = [
        {
            "item_index": index,
            "llm_score": float(by_llm[place]),
            "llm_rank": llm_ranks[place],
            "cf_score": float(by_cf[place]),
            "cf_rank": cf_ranks[place],
            "cold": cold[place],
        }
        for place, index in enumerate(rows)
    ]
    return sorted(listed, key=lambda row: (row["llm_rank"], row["item_index"]))


def _ranks(scores: Tensor, same: float) -> list[int]:
    """Return the ranks of scores `(C,)`, 1 the best; a score at most `same` below the next better shares its rank.

    Raises:
        ALLMRecError: when a score is no finite number.
    """
    if not scores.isfinite().all():
        raise ALLMRecError(
            f"{int((~scores.isfinite()).sum())} of {len(scores)} candidates' scores are no finite numbers; the model's "
            "weights are broken or its numbers overflow (try float32)"
        )
    ordered, places = scores.sort(descending=True)
    ranks = [1] * len(scores)
    for number in range(1, len(scores)):
        shared = ordered[number - 1] - ordered[number] <= same
        ranks[int(places[number])] = ranks[int(places[number - 1])] if shared else number + 1
    return ranks


@torch.no_grad()
def _nearest(
    model: ALLMRecModel, processor: ALLMRecProcessor, probe: PromptProbe, chosen: int, top_k: int
) -> list[dict[str, Any]]:
    """Return the nearest tokens of the user's vector, of every history item's and of the chosen item's."""
    items = [*probe.history, chosen]
    projected = model.item_projector(model.item_vectors(torch.tensor(items, device=model.device)))
    roles: list[dict[str, Any]] = [{"source": "history"} for _ in probe.history] + [{"source": "item"}]
    labels = [{**role, **_named(processor.catalog, index)} for role, index in zip(roles, items, strict=True)]
    if probe.user_place is not None:
        projected = torch.cat([probe.user_vectors([probe.history]), projected])
        labels.insert(0, {"source": "user"})
    near = nearest_tokens(model, processor.tokenizer, projected, top_k)
    return [
        {**label, "tokens": [token._asdict() for token in tokens]} for label, tokens in zip(labels, near, strict=True)
    ]
