"""What the service does, whatever asks for it: HTTP or an assistant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .schemas import (
    AddItemsRequest,
    Event,
    ExplainRequest,
    RecommendRequest,
    SimilarRequest,
)
from .served_model import ServedModel
from .service_errors import ServiceError
from .service_metrics import ServiceMetrics
from .user_histories import UserEvent, UserHistories

MAX_STORE_CALLS = 256  # at once; more are refused
_Found = TypeVar("_Found")


class RecommenderService:
    """Answers requests with several models and one store of user histories.

    Args:
        models: The models; requests that name none go to the first.
        histories: Stored histories.
        metrics: Counters.
    """

    def __init__(self, models: Sequence[ServedModel], histories: UserHistories, metrics: ServiceMetrics) -> None:
        self.models = {model.name: model for model in models}
        self.histories = histories
        self.metrics = metrics
        self._default = models[0]
        self._asking = 0  # calls of the store that are not yet answered

    def model(self, name: str | None) -> ServedModel:
        """Return a model by its name.

        Raises:
            ServiceError: 404 where there is none.
        """
        found = self._default if name is None else self.models.get(name)
        if found is None:
            message = f"no model {name!r} is served; there is {', '.join(self.models)}"
            raise ServiceError(404, "unknown_model", message, fields={"model": message})
        return found

    async def recommend(self, body: RecommendRequest) -> dict[str, Any]:
        """Return recommended items, or given candidates in their order.

        Raises:
            ServiceError: when that cannot be done.
        """
        model = self.model(body.model)
        ranker = model.check_ranker(body.ranker)
        request = {**body.pipeline_request(), **await self._stored_history(body), "ranker": ranker}
        response = await model.recommend(request, ranker)
        return {"model": model.name, "ranker": ranker, **response}

    async def explain(self, body: ExplainRequest) -> dict[str, Any]:
        """Return the explanation of a recommendation."""
        model = self.model(body.model)
        asked = body.model_dump(exclude_none=True, exclude={"model", "user_id"})
        stored = (await self._stored_history(body)).get("history")
        if stored:  # an explanation is of known items only
            asked["history"] = [item for item in stored if item in model.catalog] or stored
        found = await model.explain(**asked)
        return {"model": model.name, **found}

    async def similar(self, body: SimilarRequest) -> dict[str, Any]:
        """Return the nearest items of one."""
        model = self.model(body.model)
        item_id, found = await model.similar(body.item, body.item_title, body.top_k, body.by)
        return {"model": model.name, "item": item_id, "by": body.by, "similar": found}

    async def add_items(self, body: AddItemsRequest) -> dict[str, Any]:
        """Add items to a model."""
        model = self.model(body.model)
        added, unchanged = await model.add_items([item.model_dump(exclude_none=True) for item in body.items])
        self.metrics.added.labels(model.name).inc(len(added))
        return {"model": model.name, "added": added, "unchanged": unchanged, "items": len(model.catalog)}

    async def item(self, item_id: str, model_name: str | None) -> dict[str, Any]:
        """Return an item of a catalogue."""
        model = self.model(model_name)
        return {"model": model.name, **await asyncio.to_thread(model.item, item_id)}

    async def add_events(self, events: Sequence[Event]) -> dict[str, Any]:
        """Store events, also of items that no model knows yet."""
        rows = [
            UserEvent(
                event.user_id,
                str(event.item_id),
                None if event.timestamp is None else round(event.timestamp * 1000),
            )
            for event in events
        ]
        await self._ask_store(self.histories.append, rows)
        items = dict.fromkeys(row.item_id for row in rows)
        unknown = [item for item in items if not any(item in model.catalog for model in self.models.values())]
        return {"stored": len(rows), "unknown_items": unknown}

    async def history(self, user_id: str) -> dict[str, Any]:
        """Return a stored history.

        Raises:
            ServiceError: 404 where there is none.
        """
        found = await self._ask_store(self.histories.history, user_id)
        if not found:
            raise ServiceError(404, "unknown_user", "no events of this user are stored", fields={"user_id": "unknown"})
        return {"user_id": user_id, "history": found}

    async def forget(self, user_id: str) -> None:
        """Delete a stored history.

        Raises:
            ServiceError: 404 where there is none.
        """
        if not await self._ask_store(self.histories.forget, user_id):
            raise ServiceError(404, "unknown_user", "no events of this user are stored", fields={"user_id": "unknown"})

    async def check_ready(self) -> None:
        """Check that requests can be served.

        Raises:
            ServiceError: 503 while they cannot.
        """
        stopped = [name for name, model in self.models.items() if not model.batcher.alive]
        if stopped:
            raise ServiceError(503, "stopping", f"stopped: {', '.join(stopped)}", retry_after=5)
        await self._ask_store(self.histories.check)

    async def close(self) -> None:
        """Finish what was accepted and close everything."""
        await asyncio.gather(*(model.close() for model in self.models.values()))
        self.histories.close()

    async def _stored_history(self, body: RecommendRequest | ExplainRequest) -> dict[str, Any]:
        if body.history is not None or body.titles is not None or body.user_id is None:
            return {}
        return {"history": (await self.history(body.user_id))["history"]}

    async def _ask_store(self, call: Callable[..., _Found], *arguments: Any) -> _Found:
        if self._asking >= MAX_STORE_CALLS:
            raise ServiceError(429, "busy", "too many requests wait for the store of user histories", retry_after=1)
        self._asking += 1
        try:
            return await asyncio.to_thread(call, *arguments)
        finally:
            self._asking -= 1
