"""Which Classify sequences run next: dynamic batching by token budget, priority and deadline.

Owns every waiting Classify request, in one queue for each version, so that a forward never mixes versions or models.
Which version's turn it is decides `turns`. Knows neither torch nor a clock: time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shoal_server.engine.classify_queue import ClassifyPlan, ClassifyQueue
from shoal_server.engine.request import CallKey, ClassifyRequest, RequestState, VersionKey
from shoal_server.errors import InternalFault, QueueFull

_SAFETY_FACTOR = 2  # fronts keep the bound at the door; the engine only catches what several of them let in together


class Batcher:
    """Classify requests that are not answered."""

    def __init__(self, *, token_budget: int, max_waiting_tokens: int) -> None:
        self.token_budget = token_budget  # most tokens of a forward
        self._max_waiting_tokens = max_waiting_tokens * _SAFETY_FACTOR
        self._queues: dict[VersionKey, ClassifyQueue] = {}
        self._requests: dict[CallKey, ClassifyRequest] = {}

    def add_version(self, version: VersionKey) -> None:
        """Requests may name this version from now on."""
        self._queues[version] = ClassifyQueue(version, self.token_budget)

    def remove_version(self, version: VersionKey) -> None:
        """Forget a version on which nothing is open."""
        queue = self._queues.pop(version)
        assert not queue.num_open, "only idle versions are removed"

    def add(self, request: ClassifyRequest, now_s: float) -> None:
        """Let a request wait for its turn.

        Raises:
            QueueFull: too many tokens wait already.
            InternalFault: the front uses an id twice.
        """
        if request.key in self._requests:
            raise InternalFault("a call with this id is open already")
        num_waiting = sum(queue.num_tokens for queue in self._queues.values())
        if num_waiting and num_waiting + request.num_unplanned_tokens > self._max_waiting_tokens:
            message = f"{num_waiting:,} tokens wait already; limit {self._max_waiting_tokens:,}"
            raise QueueFull(message, retry_after_s=1.0)
        self._queues[request.version].push(request, now_s)
        self._requests[request.key] = request

    def abort(self, key: CallKey) -> bool:
        """Forget a request; what has not run never will. False: there is no such request."""
        return bool(self._end_all([self._requests[key]] if key in self._requests else []))

    def expire(self, now_s: float) -> list[ClassifyRequest]:
        """End and return the requests whose deadline has passed with sequences that have not run.

        What was given to a forward wholly is answered, however late. A deadline that is near is no reason not to run a
        request: the expected time of a forward may be wrong, and if nothing ran it would stay so.
        """
        due = [key for queue in self._queues.values() for key in queue.pop_due(now_s)]
        return self._end_all(self._requests[key] for key in due)

    def waiting(self) -> list[VersionKey]:
        """Versions of which sequences wait."""
        return [version for version, queue in self._queues.items() if queue.num_sequences]

    def plan(
        self, version: VersionKey, now_s: float, *, may_wait: bool, num_lanes: int = 1, num_running_tokens: int = 0
    ) -> ClassifyPlan | None:
        """The next forward of a version, its sequences taken from their queue; None: none waits, or all for company.

        Call `expire` first. With `may_wait` the engine has nothing else to launch. The tokens that wait, and those that
        run already, are shared out over `num_lanes`.
        """
        queue = self._queues[version]
        if not queue.num_sequences or (may_wait and queue.must_wait(now_s)):
            return None
        return queue.take(now_s, num_lanes, num_running_tokens)

    def commit(
        self, plan: ClassifyPlan, logits_RL: NDArray[np.float32], *, seconds: float, ended_s: float
    ) -> list[ClassifyRequest]:
        """Give the requests of a plan that has run their rows of logits; returns those that are answered now.

        `seconds` is what the forward took of the device.
        """
        self._queues[plan.version].ran(plan, seconds=seconds, ended_s=ended_s)
        done, row = [], 0
        for piece in plan.pieces:
            request, num_rows = piece.request, piece.num_rows
            if request.state is not RequestState.ENDED:
                request.logits[piece.first] = logits_RL[row : row + num_rows].tobytes()
                request.num_done += piece.end - piece.first
                if request.num_done == len(request.lengths):
                    done.append(request)
            row += num_rows
        return self._end_all(done)

    def fail(self, plan: ClassifyPlan, ended_s: float) -> list[ClassifyRequest]:
        """End and return the requests of a plan that could not be run."""
        self._queues[plan.version].failed(ended_s)
        return self._end_all(piece.request for piece in plan.pieces)

    def next_event_s(self) -> float:
        """When an idle engine should look again, at the latest."""
        times = (min(q.ready_s, q.next_deadline_s()) for q in self._queues.values() if q.num_sequences)
        return min(times, default=float("inf"))

    def next_deadline_s(self) -> float:
        """When a deadline of something that waits passes."""
        return min((q.next_deadline_s() for q in self._queues.values()), default=float("inf"))

    def queue(self, version: VersionKey) -> ClassifyQueue:
        """The requests of one version; to be read only."""
        return self._queues[version]

    def _end_all(self, requests: Iterable[ClassifyRequest]) -> list[ClassifyRequest]:
        ended = []
        for request in requests:
            if request.state is not RequestState.ENDED:
                self._queues[request.version].end(request)
                del self._requests[request.key]
                ended.append(request)
        return ended
