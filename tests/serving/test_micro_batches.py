"""The queue: which requests are read together, what is refused, what stops when nobody waits any more."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from allmrec_hf.serving.micro_batches import AbandonedError, MicroBatcher, QueueSettings
from allmrec_hf.serving.service_errors import ServiceError


class Model:
    """Echoes payloads, notes its batches, and waits at a gate where a test closes it."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.abandoned = threading.Event()

    def run(self, payloads, stop):
        self.batches.append(list(payloads))
        while not self.gate.wait(0.005):
            if stop():
                self.abandoned.set()
                raise AbandonedError
        if "poison" in payloads:
            raise RuntimeError("poison")
        return [ServiceError(422, "invalid_request", "bad") if one == "bad" else one for one in payloads]


def queue(model, **settings):
    return MicroBatcher(model.run, QueueSettings(**{"wait": 0.05, **settings}))


async def gather(batcher, *requests):
    return await asyncio.gather(*(batcher.submit(*request) for request in requests), return_exceptions=True)


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


def test_requests_that_fit_the_budget_are_read_together_in_their_order():
    async def run():
        batcher = queue(model, max_tokens=10)
        return await gather(batcher, ("a", 4), ("b", 6), ("c", 1), ("d", 50), ("e", 1)), await batcher.close()

    model = Model()
    results, _ = asyncio.run(run())
    assert results == ["a", "b", "c", "d", "e"]
    assert model.batches == [["a", "b"], ["c"], ["d"], ["e"]]  # a large one is read alone


def test_the_first_of_a_batch_waits_no_longer_than_told():
    async def run():
        batcher = queue(model, wait=0.02)
        started = time.monotonic()
        await batcher.submit("a", 1)
        return time.monotonic() - started

    model = Model()
    assert asyncio.run(run()) < 1


def test_what_runs_alone_keeps_its_place():
    async def run():
        batcher = queue(model)
        return await asyncio.gather(
            batcher.submit("a", 1), batcher.alone(lambda _: model.batches.append("alone")), batcher.submit("b", 1)
        )

    model = Model()
    asyncio.run(run())
    assert model.batches == [["a"], "alone", ["b"]]


def test_a_bad_request_fails_alone():
    async def run():
        return await gather(queue(model), ("a", 1), ("bad", 1), ("poison", 1), ("b", 1))

    model = Model()
    first, bad, poison, last = asyncio.run(run())
    assert (first, last) == ("a", "b")
    assert isinstance(bad, ServiceError)
    assert isinstance(poison, RuntimeError)
    assert model.batches[0] == ["a", "bad", "poison", "b"]


def test_a_full_queue_refuses_with_a_time_to_come_back():
    async def run():
        model.gate.clear()
        batcher = queue(model, size=2, wait=0)
        first = asyncio.ensure_future(batcher.submit("running", 1))
        await until(lambda: model.batches)
        waiting = [asyncio.ensure_future(batcher.submit(name, 1)) for name in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="2 requests wait already") as told:
            await batcher.submit("c", 1)
        assert told.value.status == 429
        assert 1 <= told.value.retry_after <= 60
        waiting[0].cancel()  # its place is free again
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        third = asyncio.ensure_future(batcher.submit("d", 1))
        await asyncio.sleep(0)
        model.gate.set()
        return await asyncio.gather(first, waiting[1], third)

    model = Model()
    assert asyncio.run(run()) == ["running", "b", "d"]
    assert all("a" not in batch for batch in model.batches)


def test_a_request_is_given_up_after_its_time():
    async def run():
        model.gate.clear()
        batcher = queue(model, timeout=0.1, wait=0)
        started = asyncio.ensure_future(batcher.submit("running", 1))
        await until(lambda: model.batches)
        results = await asyncio.gather(started, batcher.submit("waiting", 1), return_exceptions=True)
        await until(model.abandoned.is_set)
        model.gate.set()
        return results, await batcher.submit("next", 1)

    model = Model()
    results, following = asyncio.run(run())
    assert [result.status for result in results] == [504, 504]
    assert following == "next"


def test_a_batch_goes_on_while_somebody_waits_for_it():
    async def run():
        model.gate.clear()
        batcher = queue(model)
        one, other = (asyncio.ensure_future(batcher.submit(name, 1)) for name in "ab")
        await until(lambda: model.batches)
        one.cancel()
        await asyncio.sleep(0.05)
        assert not model.abandoned.is_set()
        model.gate.set()
        return await other

    model = Model()
    assert asyncio.run(run()) == "b"
    assert model.batches == [["a", "b"]]


def test_closing_finishes_what_was_accepted_and_takes_no_more():
    async def run():
        model.gate.clear()
        batcher = queue(model, wait=0)
        accepted = [asyncio.ensure_future(batcher.submit(number, 1)) for number in range(20)]
        await until(lambda: model.batches)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="stopping") as told:
            await batcher.submit("late", 1)
        assert (told.value.status, batcher.alive) == (503, False)
        model.gate.set()
        await closing
        return await asyncio.gather(*accepted)

    model = Model()
    assert asyncio.run(run()) == list(range(20))
