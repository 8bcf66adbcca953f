"""Requests that wait for their turn, the best-placed first. What has ended is left in place and skipped."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from shoal_server.engine.request import ClassifyRequest, GenerateRequest, Order, RequestState

Request = TypeVar("Request", ClassifyRequest, GenerateRequest)

_SLACK = 64  # ended requests that are never worth a clean-up


class Waiting(Generic[Request]):
    """A heap in order of priority, deadline and arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[Order, Request]] = []  # may hold ended requests

    def push(self, request: Request) -> None:
        """Let a request wait. O(log n)."""
        heapq.heappush(self._heap, (request.order, request))

    def head(self) -> Request | None:
        """The request that goes first."""
        while self._heap and self._heap[0][1].state is RequestState.ENDED:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> None:
        """Take away what `head` has just told."""
        heapq.heappop(self._heap)

    def compact(self, num_open: int) -> None:
        """Drop ended requests from the depth of the heap once they are most of it; `num_open` are not ended."""
        if len(self._heap) > 2 * num_open + _SLACK:
            self._heap = [entry for entry in self._heap if entry[1].state is not RequestState.ENDED]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        """Requests held, ended ones included."""
        return len(self._heap)
