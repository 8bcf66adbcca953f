"""Sends a workload to a server, closed loop (so many in flight) or open loop (so many a second); records every call.

Closed loop: each of `in_flight` lanes sends its next call when the last has ended. Open loop: calls are sent at the
times of a Poisson process whatever the server does, and each one's latency counts from the time at which it ought to
have been sent, so that a stalled server is not excused by calls that were never made (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.calls import Arrival, Caller, Outcome
from benchmarks.workload import Item

OnOutcome = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """As many calls in flight as this at any time."""

    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Poisson arrivals."""

    rate: float  # calls a second
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is measured: closed loop, calls that end in it; open loop, calls that ought to have been sent in it."""

    warmup_s: float = 2.0
    duration_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything that happened. Times are `time.perf_counter()` seconds."""

    outcomes: tuple[Outcome, ...]  # of the calls that the window measures: latencies, errors, goodput
    completed: tuple[Outcome, ...]  # of the calls that ended within the window: rates
    streams: tuple[tuple[Arrival, ...], ...]  # tokens within the window, by call; those of unfinished calls included
    num_unfinished: int  # closed loop: in flight at the end of the window, then cancelled
    began_s: float
    ended_s: float

    @property
    def duration_s(self) -> float:
        """Length of the window."""
        return self.ended_s - self.began_s


async def record(
    caller: Caller,
    items: Sequence[Item],
    loop: ClosedLoop | OpenLoop,
    window: Window,
    on_outcome: OnOutcome | None = None,
) -> Recording:
    """Send `items`, over and over, until the window has passed.

    Calls in flight are then cancelled in a closed loop, where others take their place in the count. In an open loop
    they are waited for, until their own deadlines at most: the slow ones must not fall out of the percentiles.
    """
    run = _Run(caller, items, on_outcome)
    with _no_collections():
        start_s = time.perf_counter()
        began_s = start_s + window.warmup_s
        ended_s = began_s + window.duration_s
        if isinstance(loop, ClosedLoop):
            await _send_closed(run, loop, ended_s)
        else:
            await _send_open(run, loop, start_s, ended_s)
    completed = tuple(outcome for outcome in run.outcomes if began_s <= outcome.ended_s <= ended_s)
    offered = tuple(outcome for outcome in run.outcomes if outcome.intended_s >= began_s)
    return Recording(
        outcomes=completed if isinstance(loop, ClosedLoop) else offered,
        completed=completed,
        streams=tuple(tuple(a for a in stream if began_s <= a.at_s <= ended_s) for stream in run.streams),
        num_unfinished=run.num_unfinished,
        began_s=began_s,
        ended_s=ended_s,
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """No search for garbage, which held up the load for 0.2 s at a time and would be taken for the server's latency."""
    were_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if were_on:
            gc.enable()


class _Run:
    """The calls of one recording; only writer of its lists."""

    def __init__(self, caller: Caller, items: Sequence[Item], on_outcome: OnOutcome | None) -> None:
        self._caller = caller
        self._items = items
        self._on_outcome = on_outcome
        self._num_sent = 0
        self.outcomes: list[Outcome] = []
        self.streams: list[list[Arrival]] = []
        self.num_unfinished = 0

    async def call_next(self, intended_s: float) -> None:
        """Send the next item and record how it ended."""
        item = self._items[self._num_sent % len(self._items)]
        self._num_sent += 1
        arrivals: list[Arrival] = []
        try:
            outcome = await self._caller.call(item, intended_s, arrivals)
        except asyncio.CancelledError:
            self.num_unfinished += 1
            raise
        finally:
            self.streams.append(arrivals)
        self.outcomes.append(outcome)
        if self._on_outcome is not None:
            self._on_outcome(outcome)


async def _send_closed(run: _Run, loop: ClosedLoop, end_s: float) -> None:
    async def lane() -> None:
        while (now_s := time.perf_counter()) < end_s:
            await run.call_next(now_s)

    lanes = [asyncio.create_task(lane()) for _ in range(loop.in_flight)]
    await asyncio.wait(lanes, timeout=max(0.0, end_s - time.perf_counter()))
    for task in lanes:
        task.cancel()
    _raise_faults(await asyncio.gather(*lanes, return_exceptions=True))


async def _send_open(run: _Run, loop: OpenLoop, start_s: float, end_s: float) -> None:
    rng = random.Random(loop.seed)
    tasks = []
    intended_s = start_s + rng.expovariate(loop.rate)
    while intended_s < end_s:
        await asyncio.sleep(max(0.0, intended_s - time.perf_counter()))
        tasks.append(asyncio.create_task(run.call_next(intended_s)))
        intended_s += rng.expovariate(loop.rate)
    _raise_faults(await asyncio.gather(*tasks, return_exceptions=True))


def _raise_faults(results: list[BaseException | None]) -> None:
    """Pass on what no call may raise: a status is an outcome, so anything here is a mistake of ours."""
    for result in results:
        if result is not None and not isinstance(result, asyncio.CancelledError):
            raise result
