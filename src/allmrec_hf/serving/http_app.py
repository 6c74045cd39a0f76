"""The HTTP service: routes of `RecommenderService` with their schemas, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from .._version import __version__
from ..errors import DataError
from .bearer_tokens import BearerTokens
from .http_envelope import RequestEnvelope, error_response
from .plain_json import PlainJSONResponse
from .recommender_service import RecommenderService
from .schemas import (
    AddItemsRequest,
    AddItemsResponse,
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    ExplainRequest,
    ExplainResponse,
    HistoryResponse,
    ItemResponse,
    ModelInfo,
    ModelsResponse,
    RankRequest,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
)
from .service_errors import ServiceError, of_request, of_validation
from .service_metrics import CONTENT_TYPE

MAX_BODY = 2**20
_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_Found = TypeVar("_Found")
_ModelName = Annotated[str | None, Query(max_length=64, description="One of /v1/models; the first if none.")]
_UserId = Annotated[str, Path(min_length=1, max_length=256)]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "No JSON.",
        401: "No valid token.",
        403: "A token that may not write, or no writes at all.",
        404: "Unknown model, item or user.",
        409: "Items known with another text, or a model that takes none.",
        413: "A body that is too large.",
        422: "A field that is wrong, or unknown items.",
        429: "Too many requests wait; see Retry-After.",
        503: "The service stops, or its store does not answer.",
        504: "Given up after the time limit.",
    }.items()
}


def create_app(
    service: RecommenderService,
    tokens: BearerTokens | None = None,
    max_body: int = MAX_BODY,
    hosts: frozenset[str] | None = None,
    log_bodies: bool = False,
) -> FastAPI:
    """Return the application.

    Args:
        service: What answers; closed when the application ends.
        tokens: Who may read and write; everybody by default.
        max_body: Bytes of a request's body.
        hosts: Names by which it may be addressed; None: any.
        log_bodies: Put the bodies of requests, and so histories, into the log.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="allmrec-hf",
        version=__version__,
        description="Recommendations of A-LLMRec models.",
        lifespan=lifespan,
        docs_url=None,  # the page would load scripts from elsewhere
        redoc_url=None,
        responses=_REFUSALS,
        default_response_class=PlainJSONResponse,
    )
    app.add_middleware(
        RequestEnvelope,
        tokens=tokens or BearerTokens(),
        metrics=service.metrics,
        max_body=max_body,
        hosts=hosts,
        log_bodies=log_bodies,
    )

    @app.exception_handler(RequestValidationError)
    async def wrong_field(request: Request, error: RequestValidationError) -> Response:
        return error_response(of_validation(list(error.errors())), request.state.request_id)

    @app.exception_handler(ServiceError)
    async def not_served(request: Request, error: ServiceError) -> Response:
        return error_response(error, request.state.request_id)

    @app.exception_handler(DataError)
    async def no_request(request: Request, error: DataError) -> Response:
        return error_response(of_request(error), request.state.request_id)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        told = ServiceError(error.status_code, _KINDS.get(error.status_code, "bad_request"), str(error.detail))
        response = error_response(told, request.state.request_id)
        response.headers.update(error.headers or {})
        return response

    guarded = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))])  # for the OpenAPI; the envelope checks
    _add_recommendations(guarded, service)
    _add_items(guarded, service)
    _add_users(guarded, service)
    _add_models(guarded, service)
    app.include_router(guarded)
    _add_health(app, service)
    return app


def _add_recommendations(app: APIRouter, service: RecommenderService) -> None:
    @app.post("/v1/recommend", response_model_exclude_none=True)
    async def recommend(request: Request, body: RecommendRequest) -> RecommendResponse:
        """Recommend items after a history: retrieved from the catalogue, or the best of given candidates."""
        return await _until_gone(request, service.recommend(body))

    @app.post("/v1/rank", response_model_exclude_none=True)
    async def rank(request: Request, body: RankRequest) -> RecommendResponse:
        """Put given candidates in order."""
        return await _until_gone(request, service.recommend(body))

    @app.post("/v1/similar")
    async def similar(request: Request, body: SimilarRequest) -> SimilarResponse:
        """Return the items whose vectors are nearest to an item's."""
        return await _until_gone(request, service.similar(body))

    @app.post("/v1/explain")
    async def explain(request: Request, body: ExplainRequest) -> ExplainResponse:
        """Explain a recommendation: contributions, nearest tokens, both scores."""
        return await _until_gone(request, service.explain(body))


def _add_items(app: APIRouter, service: RecommenderService) -> None:
    @app.post("/v1/items", status_code=201)
    async def add_items(body: AddItemsRequest) -> AddItemsResponse:
        """Add items by their text; when this is answered they are on the disk. It can be repeated."""
        return await service.add_items(body)  # type: ignore[return-value]

    @app.get("/v1/items/{item_id:path}")
    async def item(
        item_id: Annotated[str, Path(min_length=1, max_length=512)], model: _ModelName = None
    ) -> ItemResponse:
        """Return an item."""
        return await service.item(item_id, model)  # type: ignore[return-value]


def _add_users(app: APIRouter, service: RecommenderService) -> None:
    @app.post("/v1/events", status_code=201)
    async def add_events(body: EventsRequest) -> EventsResponse:
        """Store events of users."""
        return await service.add_events(body.events)  # type: ignore[return-value]

    @app.get("/v1/users/{user_id:path}/history")
    async def history(user_id: _UserId) -> HistoryResponse:
        """Return the stored history of a user."""
        return await service.history(user_id)  # type: ignore[return-value]

    @app.delete("/v1/users/{user_id:path}/history", status_code=204)
    async def forget(user_id: _UserId) -> None:
        """Delete the stored history of a user."""
        await service.forget(user_id)


def _add_models(app: APIRouter, service: RecommenderService) -> None:
    @app.get("/v1/models")
    async def models() -> ModelsResponse:
        """List the models."""
        found = await asyncio.to_thread(lambda: [model.info() for model in service.models.values()])
        return ModelsResponse(models=[ModelInfo(**one) for one in found])

    @app.post("/v1/models/{name}/reload")
    async def reload(name: Annotated[str, Path(max_length=64)]) -> ModelInfo:
        """Load a model anew from its folder; the present one serves until then, and after a failure."""
        model = service.model(name)
        await model.reload()
        return ModelInfo(**await asyncio.to_thread(model.info))

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_health(app: FastAPI, service: RecommenderService) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Tell whether requests can be served: models run and the store answers."""
        await service.check_ready()
        return {"status": "ready"}


async def _until_gone(request: Request, work: Coroutine[Any, Any, _Found]) -> Any:
    """Return what some work returns; it is cancelled when the client goes."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ServiceError(499, "client_closed", "the client has gone")
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
