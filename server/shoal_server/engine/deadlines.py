"""The deadlines of open calls, soonest first. Remembers keys only, so that an answered call keeps no memory."""

from __future__ import annotations

import heapq
import math

from shoal_server.engine.request import CallKey

_SLACK = 64  # stale entries that are never worth a clean-up


class Deadlines:
    """A set of calls with deadlines; calls without one are never kept."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, CallKey]] = []  # may hold entries that `_deadlines` no longer has
        self._deadlines: dict[CallKey, float] = {}

    def add(self, key: CallKey, deadline_s: float) -> None:
        """Watch a call; nothing happens when its deadline is infinite."""
        if deadline_s < math.inf:
            self._deadlines[key] = deadline_s
            heapq.heappush(self._heap, (deadline_s, key))

    def discard(self, key: CallKey) -> None:
        """Forget a call. Amortised O(log n)."""
        if self._deadlines.pop(key, None) is not None and len(self._heap) > 2 * len(self._deadlines) + _SLACK:
            self._heap = [(deadline_s, kept) for kept, deadline_s in self._deadlines.items()]
            heapq.heapify(self._heap)

    def pop_due(self, now_s: float) -> list[CallKey]:
        """Forget and return the calls whose deadline has passed."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            deadline_s, key = heapq.heappop(self._heap)
            if self._deadlines.get(key) == deadline_s:
                del self._deadlines[key]
                due.append(key)
        return due

    def next_s(self) -> float:
        """When to look again at the latest; infinite when nothing is watched."""
        return self._heap[0][0] if self._deadlines else math.inf
