"""Whether a lone forward may have all cores: not while anything else needs one of them. Knows no clock.

Cores that share a forward wait for each other, so that whatever else runs on one of them holds up all: beside a busy
process, on two cores, a text takes 5 ms on one core and up to 170 ms on both. That shows only in a forward that was
held up; when it happens twice within a few forwards the next ones keep to one core, for longer the oftener in a row.
Once is an accident: on an idle machine one forward in a few hundred takes 10 ms too long. Where calls come while others
run, fronts and callers are at work beside forwards, too.
"""

from __future__ import annotations

import math

_LATE_FACTOR = 3.0  # times its expected time, ...
_LATE_S = 0.01  # ... and so much longer: then a forward was held up
_FIRST_S = 0.5  # how long the next ones keep to one core
_LONGEST_S = 8.0
_FEW = 4  # forwards since the last that was held up: one more makes two within a few


class AllCores:
    """What lone forwards tell of the cores."""

    def __init__(self) -> None:
        self._free_s = -math.inf
        self._pause_s = _FIRST_S
        self._num_since_late: float = math.inf

    def are_free(self, now_s: float) -> bool:
        """Whether a lone forward may have them."""
        return now_s >= self._free_s

    def arrived_beside(self, now_s: float) -> None:
        """A call has come while another one runs."""
        self._free_s = max(self._free_s, now_s + _FIRST_S)

    def ran(self, *, seconds: float, expected_s: float, ended_s: float) -> None:
        """A forward that had all cores has ended; `expected_s` is 0 where that was not known."""
        if not expected_s or seconds <= max(_LATE_FACTOR * expected_s, expected_s + _LATE_S):
            self._pause_s = _FIRST_S
            self._num_since_late += 1
            return
        if self._num_since_late < _FEW:
            self._free_s = ended_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_S)
        self._num_since_late = 0
