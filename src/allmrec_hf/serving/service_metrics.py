"""What `/metrics` shows: requests, their times, batches and queues, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = (64, 256, 1024, 4096, 16384, 65536)


class ServiceMetrics:
    """Counters of one service, in a registry of their own.

    Args:
        models: Gives name, waiting requests and catalogue size of each model when they are asked for.
    """

    def __init__(self, models: Callable[[], Iterable[tuple[str, int, int]]]) -> None:
        self.registry = CollectorRegistry()
        add: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("allmrec_requests", "Requests by route and status.", ["route", "status"], **add)
        self.seconds = Histogram(
            "allmrec_request_seconds", "From request to response.", ["route"], buckets=_SECONDS, **add
        )
        self.batch_requests = Histogram(
            "allmrec_batch_requests", "Requests that the model read together.", ["model"], buckets=_COUNTS, **add
        )
        self.batch_tokens = Histogram(
            "allmrec_batch_tokens", "Estimated tokens of a batch.", ["model"], buckets=_TOKENS, **add
        )
        self.batch_seconds = Histogram(
            "allmrec_batch_seconds", "Computation of a batch.", ["model"], buckets=_SECONDS, **add
        )
        self.added = Counter("allmrec_items_added", "Items added since the start.", ["model"], **add)
        self.registry.register(_ModelGauges(models))

    def observe_batch(self, model: str, count: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_requests.labels(model).observe(count)
        self.batch_tokens.labels(model).observe(tokens)
        self.batch_seconds.labels(model).observe(seconds)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self.registry)


class _ModelGauges:
    def __init__(self, models: Callable[[], Iterable[tuple[str, int, int]]]) -> None:
        self._models = models

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("allmrec_waiting_requests", "Requests in a model's queue.", labels=["model"])
        items = GaugeMetricFamily("allmrec_catalogue_items", "Items of a model's catalogue.", labels=["model"])
        for name, queued, count in self._models():
            waiting.add_metric([name], queued)
            items.add_metric([name], count)
        yield waiting
        yield items
