"""The two loops, against a caller that answers when the test wants."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from benchmarks.calls import Arrival, Outcome
from benchmarks.loadgen import ClosedLoop, OpenLoop, Window, record
from benchmarks.workload import ClassifyItem, Item

ITEMS: list[Item] = [ClassifyItem(texts=("a",)), ClassifyItem(texts=("b",))]


class FakeCaller:
    """Answers after `service_s`; counts what is in flight."""

    def __init__(self, service_s: float, *, one_at_a_time: bool = False) -> None:
        self._service_s = service_s
        self._lock = asyncio.Lock() if one_at_a_time else None
        self.in_flight = 0
        self.most_in_flight = 0
        self.items: list[Item] = []

    async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
        self.items.append(item)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            arrivals.append(Arrival(at_s=time.perf_counter(), num_tokens=1))
            if self._lock is None:
                await asyncio.sleep(self._service_s)
            else:
                async with self._lock:
                    await asyncio.sleep(self._service_s)
            return Outcome(intended_s=intended_s, ended_s=time.perf_counter(), code="OK")
        finally:
            self.in_flight -= 1


async def test_closed_loop_keeps_so_many_in_flight_and_cancels_the_rest() -> None:
    fake = FakeCaller(0.02)
    found = await record(fake, ITEMS, ClosedLoop(in_flight=5), Window(warmup_s=0.1, duration_s=0.3))
    assert fake.most_in_flight == 5
    assert fake.in_flight == 0
    assert found.num_unfinished <= 5
    assert all(found.began_s <= outcome.ended_s <= found.ended_s for outcome in found.outcomes)
    assert fake.items[:4] == [*ITEMS, *ITEMS]


async def test_no_search_for_garbage_is_measured() -> None:
    class Looks(FakeCaller):
        async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
            found.append(gc.isenabled())
            return await super().call(item, intended_s, arrivals)

    found: list[bool] = []
    await record(Looks(0.01), ITEMS, ClosedLoop(in_flight=2), Window(warmup_s=0.0, duration_s=0.1))
    assert found
    assert not any(found)
    assert gc.isenabled()


async def test_tokens_of_calls_cut_off_by_the_end_are_counted() -> None:
    fake = FakeCaller(60.0)
    found = await record(fake, ITEMS, ClosedLoop(in_flight=3), Window(warmup_s=0.0, duration_s=0.1))
    assert found.outcomes == ()
    assert found.num_unfinished == 3
    assert [len(stream) for stream in found.streams] == [1, 1, 1]


async def test_open_loop_charges_a_stalled_server_with_the_whole_wait() -> None:
    """A server that takes 50 ms a call and one at a time, at 100 calls/s: the backlog grows by 4 of 5 calls.

    Calls that ought to have been sent within 0.4 s keep it busy for about 2 s, so the last waited well over a second,
    though every single one took 50 ms to serve.
    """
    fake = FakeCaller(0.05, one_at_a_time=True)
    found = await record(fake, ITEMS, OpenLoop(rate=100.0), Window(warmup_s=0.0, duration_s=0.4))
    assert found.num_unfinished == 0
    assert len(found.outcomes) > 20
    assert len(found.completed) < 12
    assert max(outcome.latency_s for outcome in found.outcomes) > 0.5


async def test_open_loop_sends_at_the_rate_whatever_the_server_does() -> None:
    fake = FakeCaller(0.5)
    found = await record(fake, ITEMS, OpenLoop(rate=200.0, seed=3), Window(warmup_s=0.0, duration_s=0.5))
    assert 60 <= len(found.outcomes) <= 140
    assert fake.most_in_flight > 50


async def test_fault_of_the_generator_itself_is_not_swallowed() -> None:
    class Broken(FakeCaller):
        async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
            raise ZeroDivisionError

    for loop in (ClosedLoop(in_flight=2), OpenLoop(rate=50.0)):
        with pytest.raises(ZeroDivisionError):
            await record(Broken(0.0), ITEMS, loop, Window(warmup_s=0.0, duration_s=0.1))
