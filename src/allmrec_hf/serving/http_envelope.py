"""What happens to every request of HTTP: an id, the token, the limit of its size, a line of the log, no stack trace."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from .bearer_tokens import BearerTokens
from .service_errors import ServiceError
from .service_metrics import ServiceMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
OPEN_PATHS = ("/health", "/ready", "/openapi.json")
READING_POSTS = ("/v1/recommend", "/v1/rank", "/v1/similar", "/v1/explain")
_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


def error_response(error: ServiceError, request_id: str | None) -> Response:
    """Return the response of an error."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = json.dumps({"error": error.body(), "request_id": request_id}, ensure_ascii=True)
    return Response(body, error.status, headers, "application/json")


class RequestEnvelope:
    """A middleware of ASGI.

    Args:
        app: What is inside.
        tokens: Who may read and write.
        metrics: Counters.
        max_body: Bytes of a request's body.
        hosts: Names by which the service may be addressed; None: any.
        log_bodies: Put the bodies of requests into the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: BearerTokens,
        metrics: ServiceMetrics,
        max_body: int,
        hosts: frozenset[str] | None = None,
        log_bodies: bool = False,
    ) -> None:
        self.app = app
        self.tokens = tokens
        self.metrics = metrics
        self.max_body = max_body
        self.hosts = hosts
        self.log_bodies = log_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status, body = 0, bytearray()
        left = self.max_body

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            part = message.get("body", b"") if message["type"] == "http.request" else b""
            left -= len(part)
            if left < 0:
                raise HTTPException(413, self._too_large)
            if self.log_bodies:
                body.extend(part)
            return message

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*_HEADERS, (b"x-request-id", request_id.encode())]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        failure: Exception | None = None
        try:
            self._check(scope)
            await self.app(scope, counted, named)
        except ServiceError as error:
            await error_response(error, request_id)(scope, receive, named)
        except Exception as error:
            failure = error
            told = ServiceError(500, "internal", f"an error inside the service; its log tells more of {request_id}")
            if not status:
                await error_response(told, request_id)(scope, receive, named)
        finally:
            self._record(scope, request_id, status or 499, time.monotonic() - started, failure, bytes(body))

    @property
    def _too_large(self) -> str:
        return f"the body of a request has at most {self.max_body:,} bytes"

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.hosts is not None and name.strip("[]").lower() not in self.hosts:
            raise ServiceError(
                421, "wrong_host", "this service without tokens is addressed as localhost only; start it with tokens"
            )
        path = scope["path"]
        if path not in OPEN_PATHS:
            writes = scope["method"] not in ("GET", "HEAD", "OPTIONS") and path not in READING_POSTS
            self.tokens.check(headers.get(b"authorization"), writes)
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length) > self.max_body:
            raise ServiceError(413, "too_large", self._too_large)

    def _record(
        self, scope: Scope, request_id: str, status: int, seconds: float, failure: Exception | None, body: bytes
    ) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.observe_request(route, status, seconds)
        fields: dict[str, Any] = {
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        if self.log_bodies:
            fields["body"] = body.decode("utf-8", "replace")
        if failure is not None:
            logger.error("request failed", extra={"fields": fields}, exc_info=failure)
        elif route not in OPEN_PATHS:
            logger.info("request", extra={"fields": fields})
