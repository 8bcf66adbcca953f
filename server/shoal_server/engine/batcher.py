"""Which Classify sequences run next: dynamic batching by token budget, priority and deadline.

Owns every waiting Classify request. Knows neither torch nor a clock: time is passed in. Sequences of several calls
share a forward, a call may be spread over several; one forward never mixes models or versions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shoal_server.config import ClassifyConfig
from shoal_server.engine.deadlines import Deadlines
from shoal_server.engine.request import CallKey, ClassifyRequest, RequestState, VersionKey
from shoal_server.engine.waiting import Waiting
from shoal_server.errors import InternalFault, QueueFull

_SAFETY_FACTOR = 2  # fronts keep the bound at the door; the engine only catches what several of them let in together
_COMPANY_WEIGHT = 0.25  # of the newest arrival in the running mean
_COMPANY_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Neighbouring sequences of one request."""

    request: ClassifyRequest
    first: int
    end: int

    @property
    def num_rows(self) -> int:
        """Rows of logits they yield."""
        return self.request.num_rows(self.first, self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyPlan:
    """One packed forward."""

    version: VersionKey
    pieces: tuple[Piece, ...]
    num_sequences: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows of logits it yields, in the order of its pieces."""
        return sum(piece.num_rows for piece in self.pieces)


@dataclass(slots=True)
class _Queue:
    """Requests of one version with sequences that wait. `company` tells how often calls come close together."""

    waiting: Waiting[ClassifyRequest] = field(default_factory=Waiting)
    waiting_tokens: int = 0
    waiting_sequences: int = 0
    num_open: int = 0  # requests not yet answered
    oldest_s: float = math.inf  # since when something has waited
    last_arrival_s: float = -math.inf
    company: float = 0.0  # 0 to 1

    def note_arrival(self, now_s: float, max_wait_s: float) -> None:
        """Company is another call within the waiting time, while the one before was still unanswered.

        A single client that asks again as soon as it was answered is no company, however fast it is.
        """
        close = self.num_open > 0 and now_s - self.last_arrival_s <= max_wait_s
        self.company += _COMPANY_WEIGHT * (float(close) - self.company)
        self.last_arrival_s = now_s


class Batcher:
    """Waiting Classify requests and the choice among them."""

    def __init__(self, config: ClassifyConfig) -> None:
        self._token_budget = config.token_budget
        self._max_wait_s = config.max_wait_ms / 1000
        self._max_waiting_tokens = config.max_waiting_tokens * _SAFETY_FACTOR
        self._queues: dict[VersionKey, _Queue] = {}  # in order of turns: who ran last stands last
        self._requests: dict[CallKey, ClassifyRequest] = {}
        self._deadlines = Deadlines()  # of requests with sequences that wait
        self._waiting_tokens = 0

    def add(self, request: ClassifyRequest, now_s: float) -> None:
        """Let a request wait for its turn.

        Raises:
            QueueFull: too many tokens wait already.
            InternalFault: the front uses an id twice.
        """
        if request.key in self._requests:
            raise InternalFault("a call with this id is open already")
        num_tokens = request.num_unplanned_tokens
        if self._waiting_tokens and self._waiting_tokens + num_tokens > self._max_waiting_tokens:
            message = f"{self._waiting_tokens:,} tokens wait already; limit {self._max_waiting_tokens:,}"
            raise QueueFull(message, retry_after_s=1.0)
        queue = self._queues.setdefault(request.version, _Queue())
        queue.note_arrival(now_s, self._max_wait_s)
        queue.num_open += 1
        queue.oldest_s = min(queue.oldest_s, now_s)
        queue.waiting.push(request)
        self._count(queue, num_tokens, len(request.lengths))
        self._requests[request.key] = request
        self._deadlines.add(request.key, request.order.deadline_s)

    def abort(self, key: CallKey) -> bool:
        """Forget a request; what has not run never will. False: there is no such request."""
        request = self._requests.get(key)
        if request is None:
            return False
        self._end(request)
        return True

    def expire(self, now_s: float) -> list[ClassifyRequest]:
        """End and return the requests whose deadline has passed with sequences that have not run."""
        return self._end_all(self._requests[key] for key in self._deadlines.pop_due(now_s))

    def plan(self, now_s: float, *, may_wait: bool) -> ClassifyPlan | None:
        """The next forward, its sequences taken from their queue; None when nothing waits, or waits for company.

        Call `expire` first. With `may_wait` the engine has nothing else to do.
        """
        for version, queue in self._queues.items():
            if queue.waiting_sequences and not (may_wait and now_s < self._ready_s(queue)):
                del self._queues[version]
                self._queues[version] = queue
                return self._take(version, queue, now_s)
        return None

    def commit(self, plan: ClassifyPlan, logits_RL: NDArray[np.float32]) -> list[ClassifyRequest]:
        """Give the requests of a plan their rows of logits; returns those that are answered now."""
        done, row = [], 0
        for piece in plan.pieces:
            request, num_rows = piece.request, piece.num_rows
            if request.state is not RequestState.ENDED:
                request.logits.append(logits_RL[row : row + num_rows].tobytes())
                request.num_done += piece.end - piece.first
                if request.num_done == len(request.lengths):
                    self._end(request)
                    done.append(request)
            row += num_rows
        return done

    def fail(self, plan: ClassifyPlan) -> list[ClassifyRequest]:
        """End and return the requests of a plan that could not be run."""
        return self._end_all(piece.request for piece in plan.pieces)

    def remove_version(self, version: VersionKey) -> None:
        """Forget a version on which nothing is open."""
        queue = self._queues.pop(version, None)
        assert queue is None or not queue.num_open, "only idle versions are removed"

    def next_event_s(self) -> float:
        """When an idle engine should look again, at the latest."""
        ready = min((self._ready_s(q) for q in self._queues.values() if q.waiting_sequences), default=math.inf)
        return min(ready, self._deadlines.next_s())

    def has_waiting(self) -> bool:
        """Whether any sequence waits."""
        return self._waiting_tokens > 0

    def num_open(self, version: VersionKey) -> int:
        """Requests of a version that are not answered."""
        queue = self._queues.get(version)
        return queue.num_open if queue else 0

    def num_waiting(self, version: VersionKey) -> int:
        """Sequences of a version that wait."""
        queue = self._queues.get(version)
        return queue.waiting_sequences if queue else 0

    def _ready_s(self, queue: _Queue) -> float:
        """From when on a queue is not to wait any longer."""
        alone = queue.company < _COMPANY_THRESHOLD
        return -math.inf if alone or queue.waiting_tokens >= self._token_budget else queue.oldest_s + self._max_wait_s

    def _take(self, version: VersionKey, queue: _Queue, now_s: float) -> ClassifyPlan:
        pieces: list[Piece] = []
        num_sequences = num_tokens = 0
        while (request := queue.waiting.head()) is not None:
            first = end = request.num_planned
            for length in request.lengths[first:]:
                if num_tokens and num_tokens + length > self._token_budget:
                    break
                num_tokens += length
                end += 1
            if end == first:
                break
            pieces.append(Piece(request=request, first=first, end=end))
            num_sequences += end - first
            request.num_planned = end
            if request.state is RequestState.WAITING:
                request.state, request.started_s = RequestState.RUNNING, now_s
            if end < len(request.lengths):
                break
            queue.waiting.pop()
            self._deadlines.discard(request.key)
        self._count(queue, -num_tokens, -num_sequences)
        if not queue.waiting_sequences:
            queue.oldest_s = math.inf
        return ClassifyPlan(version=version, pieces=tuple(pieces), num_sequences=num_sequences, num_tokens=num_tokens)

    def _end_all(self, requests: Iterable[ClassifyRequest]) -> list[ClassifyRequest]:
        ended = []
        for request in requests:
            if request.state is not RequestState.ENDED:
                self._end(request)
                ended.append(request)
        return ended

    def _end(self, request: ClassifyRequest) -> None:
        queue = self._queues[request.version]
        self._count(queue, -request.num_unplanned_tokens, request.num_planned - len(request.lengths))
        if not queue.waiting_sequences:
            queue.oldest_s = math.inf
        request.state = RequestState.ENDED
        queue.num_open -= 1
        queue.waiting.compact(queue.num_open)
        self._deadlines.discard(request.key)
        del self._requests[request.key]

    def _count(self, queue: _Queue, num_tokens: int, num_sequences: int) -> None:
        queue.waiting_tokens += num_tokens
        queue.waiting_sequences += num_sequences
        self._waiting_tokens += num_tokens
