"""A model that is served: its pipeline, its queue, the items added to it, and how another version takes its place."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..catalog import ItemCatalog
from ..errors import ALLMRecError, CheckpointError, DataError
from ..explaining.explanation import explain, require_items
from ..pipeline_recommendation import RecommendationPipeline, ResolvedRequest
from ..ranker_built_in import RANKERS, rankers_of
from .item_journal import ItemJournal
from .micro_batches import AbandonedError, MicroBatcher, QueueSettings, Stop
from .service_errors import ServiceError, of_request
from .similar_items import similar_items

logger = logging.getLogger(__name__)
_SAMPLED_TITLES = 500
_PROMPT_TOKENS = 64  # of the words around the items
_Observe = Callable[[str, int, int, float], None]


class ServedModel:
    """One model of the service. All computation runs on the thread of its queue, one batch or addition at a time.

    Args:
        name: Its name in requests.
        source: Folder or Hub id.
        load: Loads the pipeline from there.
        journal: Where added items are kept; without one they are lost when the process ends.
        queue: How requests wait.
        observe: Told the name, requests, tokens and seconds of each batch.

    Raises:
        ALLMRecError: when it cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        source: str,
        load: Callable[[], RecommendationPipeline],
        journal: ItemJournal | None = None,
        queue: QueueSettings | None = None,
        observe: _Observe | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.journal = journal
        self._load = load
        self._stop: Stop = _never
        self._reloading = asyncio.Lock()
        told = None if observe is None else lambda count, tokens, seconds: observe(name, count, tokens, seconds)
        self.batcher = MicroBatcher(self._run, queue or QueueSettings(), told)
        self._take(*self._loaded())

    # -- loading

    def _loaded(self) -> tuple[RecommendationPipeline, str | None, str]:
        """Return a pipeline that needs its files no more, the state of its folder and why it takes no items, if so."""
        state = _folder_state(self.source)
        pipe = self._load()
        model = pipe.model.eval()
        _own_memory(model)
        try:
            _own_memory(model.text_encoder)  # loaded now: later its folder may hold another one
            takes_no_items = None
        except ALLMRecError as error:
            takes_no_items = str(error)
        for module in (model.cf_encoder, model.language_model):
            if module is not None:
                module.register_forward_pre_hook(self._stop_if_abandoned)
        self._add_journaled(pipe, takes_no_items)
        return pipe, takes_no_items, state

    def _take(self, pipe: RecommendationPipeline, takes_no_items: str | None, state: str) -> None:
        self._tokens_of_title = _mean_title_tokens(pipe)
        self._takes_no_items = takes_no_items
        self._state = state
        self._refused_rankers = _refused_rankers(pipe)
        self.loaded_at = datetime.now(timezone.utc)
        self.pipeline = pipe

    def _add_journaled(self, pipe: RecommendationPipeline, takes_no_items: str | None = None) -> None:
        """Add what the journal holds and the catalogue does not."""
        additions = [] if self.journal is None else list(self.journal.additions)
        missing = [[item for item in items if item["item_id"] not in pipe.processor.catalog] for items in additions]
        missing = [items for items in missing if items]
        if not missing:
            return
        if takes_no_items is not None:
            raise CheckpointError(
                f"{self.source} cannot take the {sum(map(len, missing))} items of the journal: {takes_no_items}"
            )
        try:
            pipe.add_items([item for items in missing for item in items])
        except DataError:
            for items in missing:
                self._add_one_by_one(pipe, items)

    def _add_one_by_one(self, pipe: RecommendationPipeline, items: list[dict[str, Any]]) -> None:
        for item in items:
            try:
                if item["item_id"] not in pipe.processor.catalog:
                    pipe.add_items([item])
            except DataError as error:
                logger.error("an item of the journal does not fit %s and is left out: %s", self.source, error)

    async def reload(self) -> None:
        """Load the model anew and let it take the place of the present one, which serves until then.

        Raises:
            ServiceError: when it cannot be loaded; the present one stays.
        """
        async with self._reloading:
            try:
                pipe, takes_no_items, state = await asyncio.to_thread(self._loaded)
            except ALLMRecError as error:
                raise ServiceError(
                    409, "reload_failed", f"{error}; the model that was loaded before stays in service"
                ) from error

            def swap(_: Stop) -> None:
                self._add_journaled(pipe, takes_no_items)  # what came while it was loaded
                self._take(pipe, takes_no_items, state)

            await self.batcher.alone(swap, always=True)

    @property
    def catalog(self) -> ItemCatalog:
        """The catalogue as it is now."""
        return self.pipeline.processor.catalog

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.pipeline.model.config

    @property
    def rankers(self) -> list[str]:
        """The rankers that a request may ask for: those of the checkpoint that its LLM and tokenizer can serve."""
        return [name for name in rankers_of(self.config) if name not in self._refused_rankers]

    def info(self) -> dict[str, Any]:
        """Return what `/v1/models` says of the model."""
        known = self.catalog
        return {
            "name": self.name,
            "source": Path(self.source).name if Path(self.source).is_absolute() else self.source,
            "items": len(known),
            "added_items": 0 if self.journal is None else sum(map(len, self.journal.additions)),
            "rankers": self.rankers,
            "ranker": self.config.ranker,
            "loaded": self.loaded_at.isoformat(timespec="seconds"),
            "changed_on_disk": _folder_state(self.source) != self._state,
            "takes_items": self._takes_no_items is None,
        }

    # -- requests

    def check_ranker(self, name: str | None) -> str:
        """Return the ranker of a request.

        Raises:
            ServiceError: when the model does not have it.
        """
        if name is not None and name not in self.rankers:
            told = f"this model has no ranker {name!r}; it has {', '.join(self.rankers)}"
            message = self._refused_rankers.get(name, told)
            raise ServiceError(422, "invalid_request", f"ranker: {message}", fields={"ranker": message})
        return name or str(self.config.ranker)

    def estimated_tokens(self, request: Mapping[str, Any], ranker: str) -> int:
        """Return about how many tokens the LLM reads for a request of the pipeline; without the LLM one for each item.

        Counted by the mean length of titles: it bounds a batch, and changes no result.
        """
        history = min(len(request.get("history") or request.get("titles") or ()), self._max_history)
        given = request.get("candidates") or request.get("candidate_titles")
        retrieved = max(request.get("num_candidates", 20), request.get("top_k", 10))
        candidates = retrieved if given is None else len(given)
        if not RANKERS[ranker].needs_llm:
            return history + candidates
        prompt = _PROMPT_TOKENS + (history + candidates) * (self._tokens_of_title + 1)
        answers = candidates * self._tokens_of_title
        return int((prompt + answers) * request.get("num_permutations", 1))

    @property
    def _max_history(self) -> int:
        return int(self.pipeline.processor.max_history_length)

    async def recommend(self, request: Mapping[str, Any], ranker: str) -> dict[str, Any]:
        """Return the response to a request of the pipeline.

        Raises:
            ServiceError: when it cannot be served.
        """
        found: dict[str, Any] = await self.batcher.submit(dict(request), self.estimated_tokens(request, ranker))
        return found

    def _run(self, requests: list[Any], stop: Stop) -> list[Any]:
        """Serve a batch; what comes back for each request is its response or why there is none."""
        pipe, self._stop = self.pipeline, stop
        results: list[Any] = [None] * len(requests)
        resolved: list[tuple[int, ResolvedRequest]] = []
        try:
            for place, request in enumerate(requests):
                try:
                    resolved.append((place, pipe.resolve(request)))
                except ALLMRecError as error:
                    results[place] = of_request(error)
            responses = pipe.respond_resolved([request for _, request in resolved], on_error="return")
        finally:
            self._stop = _never
        for (place, _), response in zip(resolved, responses, strict=True):
            refused = "error" in response
            results[place] = of_request(DataError(response["error"])) if refused else response
        return results

    def _stop_if_abandoned(self, *_: Any) -> None:
        if self._stop():
            raise AbandonedError

    async def explain(self, **request: Any) -> dict[str, Any]:
        """Return the explanation of a recommendation; the arguments are those of `explaining.explanation.explain`.

        Raises:
            ServiceError: when it cannot be explained.
        """

        def call(stop: Stop) -> dict[str, Any]:
            pipe, self._stop = self.pipeline, stop
            try:
                return explain(pipe.model, pipe.processor, **request)
            except ALLMRecError as error:
                raise of_request(error) from error
            finally:
                self._stop = _never

        found: dict[str, Any] = await self.batcher.alone(call)
        return found

    async def similar(self, item: Any, item_title: str | None, top_k: int, by: str) -> tuple[str, list[dict[str, Any]]]:
        """Return an item's id and the nearest items.

        Raises:
            ServiceError: when the item is unknown.
        """

        def call(_: Stop) -> tuple[str, list[dict[str, Any]]]:
            pipe = self.pipeline
            known = pipe.processor.catalog
            try:
                titles = None if item_title is None else [item_title]
                wanted = require_items(known, None if item is None else [item], "item", titles)[0]
                found = similar_items(pipe.model, wanted, top_k, by)
            except ALLMRecError as error:
                raise of_request(error) from error
            return known.item_id(wanted), [
                {"item_id": known.item_id(index), "title": known.title(index), "score": score, "rank": rank}
                for rank, (index, score) in enumerate(found, start=1)
            ]

        result: tuple[str, list[dict[str, Any]]] = await self.batcher.alone(call)
        return result

    # -- items

    def item(self, item_id: Any) -> dict[str, Any]:
        """Return an item of the catalogue.

        Raises:
            ServiceError: 404 where there is none.
        """
        pipe = self.pipeline
        index = pipe.processor.catalog.index(item_id)
        if index is None:
            raise ServiceError(404, "unknown_items", f"no item {item_id!r} in the catalogue", items=[str(item_id)])
        row = pipe.processor.catalog.frame.row(index - 1, named=True)
        further = {name: value for name, value in row.items() if name not in ("item_id", "title", "description")}
        return {
            "item_id": row["item_id"],
            "title": pipe.processor.catalog.title(index),
            "description": row["description"],
            "interactions": int(pipe.model.item_table.interaction_counts[index]),
            "further": {name: _plain(value) for name, value in further.items() if value is not None},
        }

    async def add_items(self, items: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
        """Add items, on the disk before they are in the model, and return the ids of new and of unchanged ones.

        An item that is known with the same title and description is unchanged, so that an addition can be repeated.

        Raises:
            ServiceError: when the model takes no items, an id is known with another text, or the disk is full; nothing
                was added then.
        """
        if self._takes_no_items is not None:
            raise ServiceError(409, "takes_no_items", self._takes_no_items)

        def call(_: Stop) -> tuple[list[str], list[str]]:
            pipe = self.pipeline
            new, unchanged = _new_items(pipe.processor.catalog, items)
            if not new:
                return [], unchanged
            journal = self.journal
            try:
                added = pipe.add_items(new, before_adding=None if journal is None else lambda: journal.append(new))
            except DataError as error:
                raise of_request(error) from error
            except ALLMRecError as error:
                logger.error("items were not added: %s", error)
                raise ServiceError(507, "not_stored", "the items cannot be stored; nothing was added") from error
            return added, unchanged

        result: tuple[list[str], list[str]] = await self.batcher.alone(call)
        return result

    async def close(self) -> None:
        """Finish what waits and close the journal."""
        await self.batcher.close()
        if self.journal is not None:
            self.journal.close()


def _never() -> bool:
    return False


def _new_items(known: ItemCatalog, items: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the items that are new, ids spelt as in the catalogue, and the ids of those known as they are.

    Raises:
        ServiceError: when an id is given twice, or is known with another text.
    """
    try:
        spelt = ItemCatalog.from_records({"item_id": item["item_id"]} for item in items).item_ids
        first = {"item_id": f"{max(spelt, key=len)}-"}  # no id of them
        given = ItemCatalog.from_records([first]).extended(items)  # as the catalogue would clean their texts
    except DataError as error:
        raise of_request(error) from error
    new, unchanged, others = [], [], []
    for place, (item_id, item) in enumerate(zip(spelt, items, strict=True), start=2):
        index = known.index(item_id)
        if index is None:
            new.append({**item, "item_id": item_id})
        elif known.own_words(index) == given.own_words(place):
            unchanged.append(item_id)
        else:
            others.append(item_id)
    if others:
        raise ServiceError(
            409,
            "known_items",
            f"{len(others)} item ids are in the catalogue already, with another title or description",
            items=others,
        )
    return new, unchanged


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list)) else str(value)


def _own_memory(model: Any) -> None:
    """Copy weights that are mapped from files into memory, so that a file may be replaced while they are served."""
    if not isinstance(model, torch.nn.Module):
        return
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and not tensor.is_sparse:
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


def _folder_state(source: str) -> str:
    """Return what tells whether the files of a folder are others than before; nothing of a Hub id."""
    root = Path(source)
    if not root.is_dir():
        return "" if not os.path.isabs(source) else "gone"
    found = []
    for path in sorted(root.rglob("*")):
        if path.suffix in (".json", ".safetensors", ".parquet") and not any(part[0] == "." for part in path.parts[-3:]):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return "\n".join(found)


def _refused_rankers(pipe: RecommendationPipeline) -> dict[str, str]:
    """Return the rankers of the checkpoint that its LLM or tokenizer cannot serve, with the reason."""
    refused = {}
    for name in rankers_of(pipe.model.config):
        try:
            pipe.ranker(name)
        except CheckpointError as error:
            refused[name] = str(error)
    return refused


def _mean_title_tokens(pipe: RecommendationPipeline) -> float:
    """Return the mean number of tokens of a title, of some that are spread over the catalogue."""
    known = pipe.processor.catalog
    places = range(1, len(known) + 1, max(1, len(known) // _SAMPLED_TITLES))
    titles = [known.title(index) for index in places]
    if not titles or pipe.processor.tokenizer is None:
        return 1.0
    counts = [len(ids) for ids in pipe.processor.tokenizer(titles, add_special_tokens=False)["input_ids"]]
    return sum(counts) / len(counts)
