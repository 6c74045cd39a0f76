"""The door: `pipeline("recommendation")`, histories in, ranked catalogue items out."""

import copy
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline

from .checkpoint_code import push_saved, replaced_on_the_hub
from .errors import CheckpointError, DataError
from .files import folder_written_whole
from .prompt import clean_title

logger = logging.getLogger(__name__)

_PUSH_ARGUMENTS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


@dataclass
class ResolvedRequest:
    """A request in catalogue indices.

    Attributes:
        history: Known history items in time order.
        candidates: Candidates to rank, or None to retrieve them.
        unknown_history: Entries of the history that are neither an item id nor a title of the catalogue.
        notes: What else a person should know, such as a title that several items share.
    """

    history: list[int]
    candidates: list[int] | None
    unknown_history: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class RecommendationPipeline(Pipeline):
    """Ranks candidates, or retrieves them from the whole catalogue and ranks them, by the frozen LLM.

    A request is a mapping with `history` (item ids or titles, oldest first) and optionally `candidates`; a list is a
    batch of requests. Each result is a list of `{"item_id", "title", "score", "rank"}`, best first; `score` is the
    log-likelihood of the title.

    Call arguments:
        top_k: Items to return for each request (default 10).
        num_candidates: Items that the CF encoder retrieves where no candidates are given (default 20, as in training).
        num_permutations: Orders of the candidate list whose scores are averaged (default 1); an LLM is not blind to
            the order, so more are steadier, and slower.
        batch_size: Requests that the LLM reads at once.

    Unknown history items raise a `UserWarning` that names them; unknown candidates are an error.

    Example:
        >>> import allmrec_hf
        >>> from transformers import pipeline
        >>> recommend = pipeline("recommendation")
        >>> history = recommend.processor.catalog.item_ids[:3]
        >>> [sorted(item) for item in recommend({"history": history}, top_k=1)]
        [['item_id', 'rank', 'score', 'title']]
    """

    model: Any
    processor: Any
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise CheckpointError(
                'the recommendation pipeline needs a processor: pipeline(..., processor="path or id")'
            )
        fingerprint = getattr(self.model.config, "tokenizer_fingerprint", None)
        self.processor.check_fits(fingerprint, self.model.cf_encoder.num_items)
        self.tokenizer = copy.copy(self.processor.tokenizer)  # only the base class's collator asks for it
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Recommend for one request (a mapping), a list of requests, a dataset or a generator; see the class."""
        if isinstance(inputs, str) or (isinstance(inputs, (list, tuple)) and any(isinstance(x, str) for x in inputs)):
            raise DataError(
                'one request is a mapping, such as {"history": ["B001", "B002"]}; a list is a batch of them'
            )
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        num_candidates: int | None = None,
        num_permutations: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise DataError(
                f"unknown arguments {sorted(unknown)}; known are top_k, num_candidates, num_permutations, batch_size"
            )
        given = {"top_k": top_k, "num_candidates": num_candidates, "num_permutations": num_permutations}
        for name, value in given.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise DataError(f"{name} must be a whole number of at least 1, got {value!r}")
        forward = {name: value for name, value in given.items() if value is not None}
        return {}, forward, {} if top_k is None else {"top_k": top_k}

    # -- requests

    def _find(self, entry: Any, notes: list[str]) -> int | None:
        catalog = self.processor.catalog
        entry = str(entry)
        index = catalog.index(entry)
        if index is None:
            found = catalog.find_title(entry)
            index = found[0] if found else None
            if len(found) > 1:
                ids = [catalog.item_id(i) for i in found[:5]]
                notes.append(f"{len(found)} items are titled {clean_title(entry)!r}, took {ids[0]} of {ids}")
        return index

    def resolve(self, request: Mapping[str, Any]) -> ResolvedRequest:
        """Return a request in catalogue indices; ids are looked up first, then titles (case does not count).

        Raises:
            DataError: when the request is no mapping with `history`, no history item is known, a candidate is unknown,
                or a candidate is given twice.
        """
        if not isinstance(request, Mapping) or "history" not in request:
            raise DataError(f'a request is a mapping with "history" (and "candidates"); got {str(request)[:80]!r}')
        unexpected = set(request) - {"history", "candidates"}
        if unexpected:
            raise DataError(
                f'a request has the keys "history" and "candidates" only; got also {sorted(map(str, unexpected))}'
            )
        for name, value in request.items():
            if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise DataError(f"{name!r} must be a list of item ids or titles; got {str(value)[:80]!r}")
        notes: list[str] = []
        given = list(request["history"] or [])
        found = [self._find(entry, notes) for entry in given]
        history = [index for index in found if index is not None]
        unknown = [clean_title(str(entry)) for entry, index in zip(given, found, strict=True) if index is None]
        if not given:
            raise DataError("the history is empty; a recommendation needs at least one item the user has touched")
        if not history:
            raise DataError(
                f"none of the {len(given)} history items is in the catalogue of {len(self.processor.catalog)} items: "
                f"{unknown[:5]}; give item ids or exact titles"
            )
        read = self.processor.max_history_length
        if len(history) > read:
            notes.append(f"the model reads the last {read} of {len(history)} history items")
        if request.get("candidates") is None:
            return ResolvedRequest(history, None, unknown, notes)
        wanted = list(request["candidates"])
        candidates = [self._find(entry, notes) for entry in wanted]
        missing = [clean_title(str(entry)) for entry, index in zip(wanted, candidates, strict=True) if index is None]
        if missing or not wanted:
            raise DataError(
                f"{len(missing)} of {len(wanted)} candidates are not in the catalogue of {len(self.processor.catalog)} "
                f"items: {missing[:5]}; add new items with add_items, or leave candidates out to retrieve them"
            )
        if len(set(candidates)) != len(candidates):
            raise DataError(f"{len(candidates) - len(set(candidates))} candidates are given more than once")
        return ResolvedRequest(history, [index for index in candidates if index is not None], unknown, notes)

    # -- the three steps of a pipeline

    def preprocess(self, request: Mapping[str, Any]) -> dict[str, ResolvedRequest]:  # type: ignore[override]
        """Look the request up in the catalogue and warn of what is unknown."""
        resolved = self.resolve(request)
        if resolved.unknown_history:
            warnings.warn(
                f"{len(resolved.unknown_history)} history items are not in the catalogue and were left out: "
                f"{resolved.unknown_history[:5]}",
                stacklevel=2,
            )
        for note in resolved.notes:
            logger.warning("%s.", note)
        return {"request": resolved}

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        top_k: int = 10,
        num_candidates: int = 20,
        num_permutations: int = 1,
    ) -> dict[str, list[Any]]:
        requests = model_inputs["request"]
        requests = requests if isinstance(requests, list) else [requests]
        histories = [request.history for request in requests]
        candidates = self._candidates(requests, max(num_candidates, top_k))
        totals: list[torch.Tensor] = []
        for permutation in range(num_permutations):
            batch = self.processor(histories, candidates, permutation=permutation).to(self.model.device)
            totals.append(self.model.score(**batch).float().cpu())
        averages = torch.stack(totals).mean(dim=0)
        rows = [
            [(index, float(score)) for index, score in zip(row, row_scores, strict=False)]
            for row, row_scores in zip(candidates, averages, strict=True)
        ]
        return {"ranked": rows}

    def _candidates(self, requests: Sequence[ResolvedRequest], count: int) -> list[list[int]]:
        """Return each request's candidates; those of requests without any are retrieved, seen items left out."""
        needed = [number for number, request in enumerate(requests) if request.candidates is None]
        candidates = [request.candidates or [] for request in requests]
        if not needed:
            return candidates
        histories = [requests[number].history for number in needed]
        tensors = {
            name: value.to(self.model.device) for name, value in self.processor.history_tensors(histories).items()
        }
        longest = max(map(len, histories))
        seen = torch.tensor([history + [0] * (longest - len(history)) for history in histories])
        retrieved = self.model.retrieve(
            **tensors, top_k=count, exclude=seen.to(self.model.device)
        ).item_indices.tolist()
        for number, row in zip(needed, retrieved, strict=True):
            candidates[number] = [index for index in row if index > 0]
            if not candidates[number]:
                raise DataError("the history holds every item of the catalogue; there is nothing left to recommend")
        return candidates

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 10) -> list[dict[str, Any]]:  # type: ignore[override]
        """Sort by score and name the items; equal scores keep the order of the candidates."""
        rows = model_outputs["ranked"]
        ranked = rows[0] if rows and isinstance(rows[0], list) else rows
        catalog = self.processor.catalog
        best = sorted(ranked, key=lambda pair: -pair[1])[:top_k]
        return [
            {"item_id": catalog.item_id(index), "title": catalog.title(index), "score": score, "rank": rank}
            for rank, (index, score) in enumerate(best, start=1)
        ]

    # -- new items, files

    def add_items(self, items: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add items to model and catalogue by their text alone, with no retraining; `save_pretrained` keeps them.

        Args:
            items: Mappings with `item_id`, `title` and optionally `description`; further keys are kept.

        Returns:
            The new item ids.

        Raises:
            DataError: when there are none, or an id is missing, known already or given twice.
        """
        records = list(items)
        if not records:
            raise DataError("no items were given; add_items takes mappings with item_id, title and description")
        catalog = self.processor.catalog.extended(records)
        first = len(self.processor.catalog) + 1
        texts = [catalog.text(index) for index in range(first, len(catalog) + 1)]
        embeddings = self.model.text_encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        self.model.add_items(embeddings)
        self.processor.catalog = catalog
        return catalog.item_ids[first - 1 :]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write model and processor into one folder, which `pipeline("recommendation", model=folder)` loads."""
        if Path(save_directory).is_file():
            raise CheckpointError(f"{save_directory} is a file; give a folder")
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", Path(save_directory).name)
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        with folder_written_whole(
            save_directory
        ) as folder:  # full disk: neither is changed; a table fits its catalogue
            self.processor.save_pretrained(folder)
            self.model.save_pretrained(save_directory, **kwargs)
        if push:
            self.push_to_hub(repo_id, **hub, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload model, processor and model card in one commit.

        Args:
            repo_id: `namespace/name`.
            **kwargs: `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`; the rest,
                such as `include_llm` and `export_code`, goes to the model's `save_pretrained`.

        Returns:
            The address of the commit.
        """
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        return push_saved(
            lambda folder: self.save_pretrained(folder, **kwargs), repo_id, replaced=replaced_on_the_hub(), **hub
        )
