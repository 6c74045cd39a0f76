"""`pipeline("recommendation")`: histories in, ranked catalogue items out."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from types import GeneratorType, SimpleNamespace
from typing import Any, Literal, get_args

from transformers import AutoModel, Pipeline

from .checkpoint_code import push_saved, replaced_on_the_hub
from .errors import ALLMRecError, CheckpointError, DataError, UnknownItemsError
from .files import folder_written_whole
from .item_lookup import NAMED, Naming, as_entries, find_items
from .ranker import ModelRanker, UserBatch
from .ranker_built_in import build_ranker
from .rows_at_once import BatchTooLargeError, RowsAtOnce
from .text_space import text_vectors
from .values import as_frame, as_records, is_missing

logger = logging.getLogger(__name__)

OnError = Literal["raise", "return"]
KEYS = ("history", "titles", "candidates", "candidate_titles")
OPTION_KEYS = ("top_k", "ranker", "num_candidates", "num_permutations")
RESULT_KEYS = ("item_id", "title", "score", "rank", "parts", "unknown_history", "error")
_PUSH_ARGUMENTS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


@dataclass
class ResolvedRequest:
    """A request in catalogue indices.

    Attributes:
        history: Known history items in time order.
        candidates: Candidates to rank, or None to retrieve them.
        unknown_history: Entries of the history that the catalogue does not know.
        notes: What else a person should know, such as a title that several items share.
        extra: Further keys of the request, which its result repeats.
        options: Call arguments that the request brings itself, in place of those of the call.
        error: Why the request cannot be served, with `on_error="return"`.
    """

    history: list[int]
    candidates: list[int] | None
    unknown_history: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class _Served:
    """One request and its candidates, each with its score and the score's parts; none where it has an error."""

    request: ResolvedRequest
    scores: list[tuple[int, float, dict[str, float]]]


class _NotLoaded:
    """A placeholder for a model that could not be loaded, until the pipeline raises the reason."""

    def __init__(self, error: CheckpointError) -> None:
        self.error = error


class PipelineModel:
    """The model loader of `pipeline("recommendation")`: `AutoModel`, whose errors reach the user unchanged.

    transformers itself would try again, collect the tracebacks and raise an error of its own around them.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the model, or in place of one that cannot be loaded what makes the pipeline say why."""
        try:
            return AutoModel.from_pretrained(*args, **kwargs)
        except CheckpointError as error:
            return _NotLoaded(error)


class RecommendationPipeline(Pipeline):
    """Ranks candidates, or retrieves them from the whole catalogue and ranks them, by a ranker of the checkpoint.

    A request is a mapping with `history`, item ids oldest first (text or numbers), or instead `titles`, the same by
    title; and optionally `candidates` by id or `candidate_titles` by title. An id is never looked up as a title. Each
    result is a list of `{"item_id", "title", "score", "rank", "parts"}`, best first; `parts` are what the ranker made
    the score of, such as the log-likelihood of the title. A request may bring `top_k`, `ranker`, `num_candidates` and
    `num_permutations` of its own, in place of the call's. Further keys, such as `user_id`, are repeated in every row of
    its result.

    A list of requests gives a list of results; so does a frame of Polars, pandas or Arrow with a request in each row. A
    `datasets.Dataset`, an `IterableDataset`, a PyTorch data set or a generator gives an iterator over results.

    Call arguments:
        top_k: Items to return for each request (default 10).
            ranker: What ranks, one of those that the checkpoint has (`ranker_built_in.RANKERS`): `"likelihood"` (the
            paper), `"cf"`, ...; the checkpoint's own choice where not given. Given to `pipeline(...)` it holds for
            every call.
        num_candidates: Items that are retrieved where no candidates are given (default 20, as in training).
            num_permutations: Orders of the candidate list whose scores are averaged (default 1); an LLM is not blind to
            the order, so more are steadier, and slower.
        on_error: `"raise"` (default) stops at a request that cannot be served. `"return"` serves the others, and the
            result of that request is `{"error": why}` with its further keys.
        batch_size: Requests that are encoded, and read by the LLM, at once. Where the device's memory does not hold
            them, half of them are from then on.
        max_tokens_per_batch: Tokens that the LLM reads at once, padding included: of `batch_size` requests it reads as
            many as have them, similar lengths together. A request that alone has more is an error.

    Unknown history items are left out, with a `UserWarning` that names them, and every row of that request's result
    lists them under `unknown_history`; a history without any known item and unknown candidates are an error.

    Example:
        >>> import allmrec_hf
        >>> from transformers import pipeline
        >>> recommend = pipeline("recommendation")
        >>> history = recommend.processor.catalog.item_ids[:3]
        >>> [sorted(item) for item in recommend({"history": history}, top_k=1)]
        [['item_id', 'parts', 'rank', 'score', 'title']]
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
        model = kwargs.get("model") or (args[0] if args else None)
        if isinstance(model, _NotLoaded):
            raise model.error
        self._rankers: dict[str, ModelRanker] = {}
        self._rows_at_once = RowsAtOnce()
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise CheckpointError(
                'the recommendation pipeline needs a processor: pipeline(..., processor="path or id")'
            )
        fingerprint = getattr(self.model.config, "tokenizer_fingerprint", None)
        self.processor.check_fits(fingerprint, self.model.cf_encoder.num_items)
        tokenizer: Any = copy.copy(self.processor.tokenizer)
        if tokenizer is None:
            tokenizer = SimpleNamespace(pad_token_id=0, padding_side="left")
        elif tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self.tokenizer = tokenizer  # only the base class's collator asks for it

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Recommend for one request (a mapping), a list, a table, a data set or a generator of them; see the class."""
        library = type(inputs).__module__.split(".")[0]
        if library == "pandas":
            inputs = _rows_of_pandas(inputs)
        elif library in ("polars", "pyarrow"):
            inputs = as_frame(inputs, "requests").to_dicts()
        elif isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
        elif library == "datasets" and not isinstance(inputs, Mapping):
            inputs = (request for request in inputs)  # transformers streams generators and PyTorch's data sets only
        elif isinstance(inputs, Iterator) and not isinstance(inputs, GeneratorType):
            inputs = (request for request in inputs)
        returns = kwargs.get("on_error", self._preprocess_params.get("on_error")) == "return"
        if isinstance(inputs, str) or (isinstance(inputs, list) and not returns and _holds_text(inputs)):
            raise DataError(
                'one request is a mapping, such as {"history": ["B001", "B002"]}; a list is a batch of them'
            )
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, list) and returns:  # streamed: transformers looks into a list and stumbles over bad ones
            return list(super().__call__((request for request in inputs), **kwargs))
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        num_candidates: int | None = None,
        num_permutations: int | None = None,
        on_error: OnError | None = None,
        ranker: str | None = None,
        max_tokens_per_batch: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise DataError(
                f"unknown arguments {sorted(unknown)}; known are top_k, ranker, num_candidates, num_permutations, "
                "on_error, batch_size, max_tokens_per_batch"
            )
        given = {"top_k": top_k, "num_candidates": num_candidates, "num_permutations": num_permutations}
        given["max_tokens_per_batch"] = max_tokens_per_batch
        forward = _checked_options({**given, "ranker": ranker})
        if on_error not in (None, *get_args(OnError)):
            raise DataError(f"on_error must be one of {list(get_args(OnError))}, got {on_error!r}")
        errors = {} if on_error is None else {"on_error": on_error}
        return errors, forward | errors, {} if top_k is None else {"top_k": int(top_k)}

    # -- requests

    def resolve(self, request: Mapping[str, Any]) -> ResolvedRequest:
        """Return a request in catalogue indices.

        Raises:
            DataError: when the request is no mapping with `history` or `titles`, no history item is known, a candidate
                is unknown, or a candidate is given twice.
        """
        extra = further_keys(request)
        history, by = _one_of(request, "history", "titles")
        if history is None:
            raise DataError("the history is empty; a recommendation needs at least one item the user has seen")
        catalog = self.processor.catalog
        found = find_items(catalog, history, by)
        if not found.indices:
            raise UnknownItemsError(
                f"none of the {len(history)} history items is in the catalogue of {len(catalog)} items: "
                f"{found.named_unknown()}; give {'item ids' if by == 'id' else 'exact titles'} of the catalogue",
                "history" if by == "id" else "titles",
                found.unknown,
            )
        notes = found.notes + found.hints
        read = self.processor.max_history_length
        if len(found.indices) > read:
            notes.append(f"the model reads the last {read} of {len(found.indices)} history items")
        options = _checked_options({key: extra.pop(key) for key in OPTION_KEYS if key in extra})
        resolved = ResolvedRequest(found.indices, None, found.unknown, notes, extra, options)
        wanted, by = _one_of(request, "candidates", "candidate_titles", empty=True)
        if wanted is None:
            return resolved
        if not wanted:
            raise DataError("the list of candidates is empty; name some, or leave it out to retrieve them")
        candidates = find_items(catalog, wanted, by)
        if candidates.unknown:
            raise UnknownItemsError(
                f"{len(candidates.unknown)} of {len(wanted)} candidates are not in the catalogue of {len(catalog)} "
                f"items: {candidates.named_unknown()}; add new items with add_items, or leave candidates out to "
                "retrieve them",
                "candidates" if by == "id" else "candidate_titles",
                candidates.unknown,
            )
        repeated = len(wanted) - len(set(candidates.indices))
        if repeated:
            raise DataError(f"{repeated} candidates are given more than once")
        resolved.candidates = candidates.indices
        notes += candidates.notes
        return resolved

    def _resolved(self, request: Any, on_error: OnError) -> ResolvedRequest:
        try:
            return self.resolve(request)
        except ALLMRecError as error:
            if on_error == "raise":
                raise
            return ResolvedRequest([], None, extra=_extra_of_bad(request), error=str(error))

    # -- the three steps of a pipeline

    def preprocess(self, request: Any, on_error: OnError = "raise") -> dict[str, ResolvedRequest]:  # type: ignore[override]
        """Look the request up in the catalogue and warn of what is unknown."""
        resolved = self._resolved(request, on_error)
        if resolved.unknown_history:
            # With a registry of its own: Python would keep every such text, one for each user.
            warnings.warn_explicit(
                f"{len(resolved.unknown_history)} history items are not in the catalogue and were left out: "
                f"{resolved.unknown_history[:NAMED]}",
                UserWarning,
                __file__,
                0,
                module=__name__,
                registry={},
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
        on_error: OnError = "raise",
        ranker: str | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> dict[str, list[_Served]]:
        requests = model_inputs["request"]
        requests = requests if isinstance(requests, list) else [requests]
        given = {"top_k": top_k, "num_candidates": num_candidates, "num_permutations": num_permutations}
        served = [_Served(request, []) for request in requests]
        alike: dict[tuple[Any, ...], list[_Served]] = {}
        for one in served:
            if one.request.error is None:
                own = {**given, "ranker": ranker, **one.request.options}
                count = max(own["num_candidates"], own["top_k"])
                alike.setdefault((own["ranker"], count, own["num_permutations"], max_tokens_per_batch), []).append(one)
        for settings, group in alike.items():
            self._score_all(group, settings, on_error)
        return {"ranked": served}

    def _score_all(self, group: list[_Served], settings: tuple[Any, ...], on_error: OnError) -> None:
        """Score requests that share ranker, number of retrieved candidates, permutations and budget of tokens."""
        try:
            rows = self._scored([one.request for one in group], *settings)
            for one, scores in zip(group, rows, strict=True):
                one.scores = scores
        except ALLMRecError as error:
            if on_error == "raise" or isinstance(error, BatchTooLargeError):
                raise
            if len(group) == 1:
                group[0].request.error = str(error)
                return
            for one in group:  # which of them is it?
                self._score_all([one], settings, on_error)

    def ranker(self, name: str | None = None) -> ModelRanker:
        """Return a ranker of the checkpoint by its name; the checkpoint's own choice where none is given.

        Raises:
            CheckpointError: when the checkpoint has no such ranker; the message lists those it has.
        """
        name = name or self.model.config.ranker
        if name not in self._rankers:
            self._rankers[name] = build_ranker(name, self.model, self.processor)
        return self._rankers[name]

    def _scored(
        self,
        requests: Sequence[ResolvedRequest],
        name: str | None,
        count: int,
        num_permutations: int,
        max_tokens: int | None,
    ) -> list[list[tuple[int, float, dict[str, float]]]]:
        """Return each request's candidates, given or retrieved, with their scores and the parts of these."""
        ranker = self.ranker(name)
        users = UserBatch.encode(self.model, self.processor, [request.history for request in requests])
        candidates = [request.candidates or [] for request in requests]
        needed = [number for number, request in enumerate(requests) if request.candidates is None]
        if needed:
            for number, row in zip(needed, self._retrieved(ranker, users.take(needed), count, max_tokens), strict=True):
                candidates[number] = row
        lengths = None if max_tokens is None else ranker.tokens_read(users.histories, candidates)

        def score(rows: list[int]) -> list[list[tuple[int, float, dict[str, float]]]]:
            lists = [candidates[row] for row in rows]
            found = ranker.score(users if len(rows) == len(users) else users.take(rows), lists, num_permutations)
            scores = found.scores.float().tolist()
            parts = {name: values.float().tolist() for name, values in found.parts.items()}
            return [
                [
                    (item, scores[row][column], {name: values[row][column] for name, values in parts.items()})
                    for column, item in enumerate(items)
                ]
                for row, items in enumerate(lists)
            ]

        return self._rows_at_once.collected(lengths, len(users), max_tokens, score)

    def _retrieved(self, ranker: ModelRanker, users: UserBatch, count: int, max_tokens: int | None) -> list[list[int]]:
        """Return the candidates of users who have none, seen items left out."""
        lengths = None if max_tokens is None else ranker.tokens_read(users.histories)

        def retrieve(rows: list[int]) -> list[list[int]]:
            found = ranker.retrieve(users if len(rows) == len(users) else users.take(rows), count)
            return [[index for index in row if index > 0] for row in found.item_indices.tolist()]

        retrieved = self._rows_at_once.collected(lengths, len(users), max_tokens, retrieve)
        if not all(retrieved):
            raise DataError("the history holds every item of the catalogue; there is nothing left to recommend")
        return retrieved

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 10) -> Any:  # type: ignore[override]
        """Sort by score and name the items; equal scores keep the order of the candidates."""
        served = model_outputs["ranked"]
        served = served[0] if isinstance(served, list) else served
        request = served.request
        if request.error is not None:
            return {"error": request.error, **request.extra}
        catalog = self.processor.catalog
        best = sorted(served.scores, key=lambda scored: -scored[1])[: request.options.get("top_k", top_k)]
        unknown = {"unknown_history": request.unknown_history} if request.unknown_history else {}
        return [
            {
                "item_id": catalog.item_id(index),
                "title": catalog.title(index),
                "score": score,
                "rank": rank,
                "parts": parts,
                **unknown,
                **request.extra,
            }
            for rank, (index, score, parts) in enumerate(best, start=1)
        ]

    # -- responses: what a service answers

    def respond(self, inputs: Any, **options: Any) -> Any:
        """Return the response to one request, or those to a list of requests, as the HTTP service answers them.

        Args:
            inputs: A request, or a list of them.
            **options: Call arguments for those that bring none of their own, such as `top_k`; without `batch_size`
                all are one batch.

        Returns:
            For each request a mapping with its further keys, `recommendations`, best first, and where there are any
            `unknown_history` and `notes`; with `on_error="return"` `error` in place of these where it cannot be served.
        """
        requests = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        on_error = options.get("on_error", self._preprocess_params.get("on_error", "raise"))
        at_once = _checked_options({"batch_size": options.pop("batch_size", None)}).get("batch_size", len(requests))
        resolved = [self._resolved(request, on_error) for request in requests]
        responses = []
        for start in range(0, len(resolved), max(at_once, 1)):
            responses += self.respond_resolved(resolved[start : start + at_once], **options)
        return responses if isinstance(inputs, (list, tuple)) else responses[0]

    def respond_resolved(self, requests: Sequence[ResolvedRequest], **options: Any) -> list[dict[str, Any]]:
        """Return the responses to requests that `resolve` has looked up, which the model reads as one batch."""
        _, forward, post = self._sanitize_parameters(**options)
        if not requests:
            return []
        forward, post = {**self._forward_params, **forward}, {**self._postprocess_params, **post}
        served = self.forward({"request": list(requests)}, **forward)["ranked"]
        return [_response(one.request, self.postprocess({"ranked": one}, **post)) for one in served]

    # -- new items, files

    def add_items(
        self, items: Iterable[Mapping[str, Any]], before_adding: Callable[[], None] | None = None
    ) -> list[str]:
        """Add items to model and catalogue by their text alone, with no retraining; `save_pretrained` keeps them.

        Args:
            items: Mappings with `item_id`, `title` and optionally `description`; further keys are kept.
            before_adding: Called when the items are found to be good and before anything changes, such as to write
                them to a disk; nothing changes when it raises.

        Returns:
            The new item ids.

        Raises:
            DataError: when there are none, an id is missing, known already or given twice, or a further key's values
                are of another type than the catalogue's column of that name.
        """
        records = as_records(items, "the items")
        if not records:
            raise DataError("no items were given; add_items takes mappings with item_id, title and description")
        catalog = self.processor.catalog.extended(records)
        first = len(self.processor.catalog) + 1
        texts = [catalog.text(index) for index in range(first, len(catalog) + 1)]
        embeddings = text_vectors(self.model.text_encoder, texts)
        if before_adding is not None:
            before_adding()
        self.model.add_items(embeddings, texts)
        self.processor.catalog = catalog
        self._rankers.clear()  # what they keep of items may have changed with the catalogue
        return [catalog.item_id(index) for index in range(first, len(catalog) + 1)]

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


def _response(request: ResolvedRequest, result: Any) -> dict[str, Any]:
    """Return a request's response as values for JSON, from the result of the pipeline."""
    if isinstance(result, dict):
        return {**request.extra, "error": result["error"]}
    told = {"unknown_history": request.unknown_history, "notes": request.notes}
    own = {*request.extra, "unknown_history"}
    rows = [{key: value for key, value in row.items() if key not in own} for row in result]
    return {**request.extra, **{key: value for key, value in told.items() if value}, "recommendations": rows}


def _checked_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call or a request that are given.

    Raises:
        DataError: when one is of a wrong type; the message names it.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if _is_absent(value):
            continue
        if name == "ranker":
            if not isinstance(value, str):
                raise DataError(f"ranker must be the name of a ranker, got {value!r}")
            found[name] = value
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes a column of numbers floats where a row has none
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise DataError(f"{name} must be a whole number of at least 1, got {value!r}")
        found[name] = int(value)
    return found


def _rows_of_pandas(table: Any) -> list[dict[str, Any]]:
    """Return requests as they stand in a frame, whose columns may mix lists of text and of numbers."""
    names = [str(name) for name in table.columns]
    if len(set(names)) < len(names):
        raise DataError(f"requests: columns stand more than once in {names}; rename all but one")
    rows = ([None if _is_absent(value) else value for value in row] for row in table.itertuples(index=False, name=None))
    return [dict(zip(names, row, strict=True)) for row in rows]


def _holds_text(requests: Sequence[Any]) -> bool:
    return any(isinstance(request, str) for request in requests)


def further_keys(request: Any) -> dict[str, Any]:
    """Return what a request holds beside its own keys.

    Raises:
        DataError: when it is no request, or a key is misspelt or one of the result's.
    """
    if not isinstance(request, Mapping) or not {"history", "titles"} & set(request):
        raise DataError(
            'a request is a mapping with "history" (item ids) or "titles", and maybe "candidates" or '
            f'"candidate_titles"; got {str(request)[:80]!r}'
        )
    extra = {key: value for key, value in request.items() if key not in KEYS}
    for key in extra:
        if not isinstance(key, str):
            raise DataError(f"the keys of a request are text; got {key!r}")
        if key in RESULT_KEYS:
            raise DataError(f"a request cannot have the key {key!r}, which its result has; call it by another name")
        if key in OPTION_KEYS:
            continue
        meant = get_close_matches(key.lower(), (*KEYS, *OPTION_KEYS), n=1, cutoff=0.85)
        if meant:
            raise DataError(f"a request has the key {key!r}; is {meant[0]!r} meant? Else call it by another name")
    return extra


def _extra_of_bad(request: Any) -> dict[str, Any]:
    """Return the further keys of a request that cannot be served, as far as its result can repeat them."""
    if not isinstance(request, Mapping):
        return {}
    known = (*KEYS, *OPTION_KEYS, *RESULT_KEYS)
    return {key: value for key, value in request.items() if isinstance(key, str) and key not in known}


def _is_absent(value: Any) -> bool:
    """Tell whether a table has nothing at the place of a list: None, or NaN of any library."""
    return value is None or (not isinstance(value, (str, Iterable)) and is_missing(value))


def _one_of(
    request: Mapping[str, Any], by_id: str, by_title: str, empty: bool = False
) -> tuple[list[Any] | None, Naming]:
    """Return the entries of a request and how they name items; None where there are none.

    Args:
        request: The request.
        by_id: The key of ids.
        by_title: The key of titles.
        empty: Whether an empty list is returned as it is.
    """
    present = [key for key in (by_id, by_title) if not _is_absent(request.get(key))]
    given = {key: as_entries(request[key], key) for key in present}
    filled = [key for key, entries in given.items() if entries]
    if len(filled) > 1:
        raise DataError(f"a request has {by_id!r} or {by_title!r}, not both: their common order is not known")
    if not filled and not (empty and given):
        return None, "id"
    key = filled[0] if filled else next(iter(given))
    return given[key], "id" if key == by_id else "title"
