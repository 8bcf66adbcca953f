"""A batcher, a device whose forwards cost what they are told to, and callers, all on a clock that jumps."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyQueue
from shoal_server.engine.request import CallKey, ClassifyRequest, VersionKey, order_of
from shoal_server.ipc.messages import Priority

MODEL = VersionKey("news", 1)
Answered = Callable[[float], None]


@dataclass(kw_only=True)
class Device:
    """A forward takes a fixed time and some for each token, and up to a tenth more."""

    fixed_s: float
    token_s: float
    rng: random.Random

    def seconds(self, num_tokens: int) -> float:
        return (self.fixed_s + self.token_s * num_tokens) * self.rng.uniform(1.0, 1.1)


@dataclass(kw_only=True)
class Simulation:
    """`fixed_wait_s`: None leaves it to the batcher how long to wait; else the oldest call waits exactly so long."""

    device: Device
    fixed_wait_s: float | None = None
    now_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)  # of forwards' oldest calls, since the engine could run them
    num_forwards: int = 0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _answered: dict[int, Answered] = field(default_factory=dict)
    _arrivals: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._batcher = Batcher(token_budget=8192, max_waiting_tokens=10**9)
        self._batcher.add_version(MODEL)

    @property
    def queue(self) -> ClassifyQueue:
        return self._batcher.queue(MODEL)

    @property
    def mean_s(self) -> float:
        return sum(self.latencies_s) / len(self.latencies_s)

    @property
    def throughput(self) -> float:
        return len(self.latencies_s) / self.now_s

    @property
    def batch_calls(self) -> float:
        return len(self.latencies_s) / self.num_forwards

    def call(self, at_s: float, num_tokens: int, answered: Answered = lambda _: None) -> None:
        """A call that will come, and what its caller does with the answer."""
        heapq.heappush(self._events, (at_s, next(self._ids), lambda: self._add(at_s, num_tokens, answered)))

    def run(self, until_s: float) -> Simulation:
        """Let time pass."""
        free_s = self.now_s
        while self.now_s < until_s:
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[2]()
            if not self._step(free_s):
                next_s = min(self._events[0][0] if self._events else until_s, self._ready_s())
                self.now_s = max(next_s, self.now_s)
            else:
                free_s = self.now_s
        return self

    def _add(self, now_s: float, num_tokens: int, answered: Answered) -> None:
        request_id = next(self._ids)
        request = ClassifyRequest(
            key=CallKey(1, request_id),
            version=MODEL,
            sequences=[b""],
            lengths=[num_tokens],
            type_starts=[-1],
            order=order_of(Priority.NORMAL, None, request_id),
            received_s=now_s,
        )
        self._answered[request_id], self._arrivals[request_id] = answered, now_s
        self._batcher.add(request, now_s)

    def _ready_s(self) -> float:
        if self.fixed_wait_s is None:
            return self._batcher.next_event_s()
        return min(self._arrivals.values(), default=float("inf")) + self.fixed_wait_s

    def _step(self, free_s: float) -> bool:
        if self.fixed_wait_s is not None and self.now_s < self._ready_s():
            return False
        plan = self._batcher.plan(MODEL, self.now_s, may_wait=self.fixed_wait_s is None)
        if plan is None:
            return False
        began_s, self.now_s = self.now_s, self.now_s + self.device.seconds(plan.num_tokens)
        self.num_forwards += 1
        oldest_s = min(self._arrivals.pop(piece.request.key.request_id) for piece in plan.pieces)
        self.waits_s.append(began_s - max(oldest_s, free_s))
        logits_RL = np.zeros((plan.num_rows, 1), dtype=np.float32)
        for request in self._batcher.commit(plan, logits_RL, seconds=self.now_s - began_s, ended_s=self.now_s):
            self.latencies_s.append(self.now_s - request.received_s)
            self._answered.pop(request.key.request_id)(self.now_s)
        return True
