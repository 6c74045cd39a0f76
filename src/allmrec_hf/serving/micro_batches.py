"""The queue of a model: requests are read by the model in small batches, in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .service_errors import ServiceError

MAX_REQUESTS = 64  # of a batch
Stop = Callable[[], bool]


class AbandonedError(Exception):
    """Nobody waits for the result of a computation any more."""


@dataclass(frozen=True)
class QueueSettings:
    """How requests wait and are read together.

    Attributes:
        max_tokens: Estimated tokens that the LLM reads in one batch; a larger request is read alone.
        wait: Seconds that the first request of a batch waits for others.
        size: Requests that may wait; more are refused.
        timeout: Seconds after which a request is given up.
    """

    max_tokens: int = 8192
    wait: float = 0.005
    size: int = 256
    timeout: float = 30.0


@dataclass(eq=False)
class _Job:
    payload: Any
    cost: int
    alone: bool
    future: asyncio.Future[Any]


class MicroBatcher:
    """Runs requests on one thread: those that can be read together as a batch, the others one by one.

    A request whose caller has gone or waited too long is taken out of the queue; a batch of which nobody waits any more
    is told so by its `stop`.

    Args:
        run: Gets the payloads of a batch and `stop`, and returns a result or an exception for each.
        settings: How requests wait.
        observe: Told of each batch: its requests, tokens and seconds.
    """

    def __init__(
        self,
        run: Callable[[list[Any], Stop], Sequence[Any]],
        settings: QueueSettings,
        observe: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self._run = run
        self.settings = settings
        self._observe = observe
        self._waiting: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._arrived = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None
        self._seconds = 0.1  # of a job, averaged over the last ones

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._closing and (self._worker is None or not self._worker.done())

    async def submit(self, payload: Any, cost: int) -> Any:
        """Return the result of a request that can be read together with others.

        Raises:
            ServiceError: 429 when too many wait, 503 when the service ends, 504 when it takes too long.
        """
        return await self._wait_for(_Job(payload, cost, False, asyncio.get_running_loop().create_future()))

    async def alone(self, call: Callable[[Stop], Any], always: bool = False) -> Any:
        """Return what a function returns that runs between batches; it gets `stop`.

        Args:
            call: The function.
            always: Take it however many wait, and however long it takes.

        Raises:
            ServiceError: as `submit`.
        """
        return await self._wait_for(_Job(call, 0, True, asyncio.get_running_loop().create_future()), always)

    async def _wait_for(self, job: _Job, always: bool = False) -> Any:
        if not self.alive:
            raise ServiceError(503, "stopping", "the service is stopping; ask another one", retry_after=5)
        if len(self._waiting) >= self.settings.size and not always:
            seconds = math.ceil(self._seconds * len(self._waiting))
            raise ServiceError(
                429,
                "busy",
                f"{len(self._waiting)} requests wait already; try again later",
                retry_after=min(max(1, seconds), 60),
            )
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())
        self._waiting.append(job)
        self._arrived.set()
        try:
            return await asyncio.wait_for(job.future, None if always else self.settings.timeout)
        except asyncio.TimeoutError:
            raise ServiceError(
                504, "timeout", f"the request took longer than {self.settings.timeout:g} seconds and was given up"
            ) from None
        finally:
            job.future.cancel()  # which changes nothing where it is done
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)

    async def close(self) -> None:
        """Finish what waits, then take no more."""
        self._closing = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            first = self._waiting.popleft()
            batch = [first] if first.alone else await self._companions(first)
            batch = [job for job in batch if not job.future.done()]
            if batch:
                await self._process(batch)

    async def _companions(self, first: _Job) -> list[_Job]:
        batch, tokens = [first], first.cost
        until = time.monotonic() + self.settings.wait
        while True:
            while self._waiting and len(batch) < MAX_REQUESTS:
                job = self._waiting[0]
                if job.alone or tokens + job.cost > self.settings.max_tokens:
                    return batch
                batch.append(self._waiting.popleft())
                tokens += job.cost
            left = until - time.monotonic()
            if left <= 0 or len(batch) >= MAX_REQUESTS or tokens >= self.settings.max_tokens or self._closing:
                return batch
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return batch

    async def _process(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        results = await self._results(batch)
        seconds = time.monotonic() - started
        self._seconds = 0.9 * self._seconds + 0.1 * seconds / len(batch)
        if self._observe is not None and not batch[0].alone:
            self._observe(len(batch), sum(job.cost for job in batch), seconds)
        for job, result in zip(batch, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, BaseException):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    async def _results(self, batch: list[_Job]) -> Sequence[Any]:
        def stop() -> bool:
            return all(job.future.cancelled() for job in batch)

        payloads = [job.payload for job in batch]
        loop = asyncio.get_running_loop()
        try:
            if batch[0].alone:
                return [await loop.run_in_executor(self._thread, payloads[0], stop)]
            return await loop.run_in_executor(self._thread, self._run, payloads, stop)
        except AbandonedError as error:
            return [error] * len(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [result for job in batch for result in await self._results([job])]  # which of them is it?
