"""Moments at which an idle engine could have run what waited, and how many calls came how soon after each.

They tell whether company is to be expected, and what it would be worth. Knows no clock: time is passed in.

The waits that are weighed are shares of a forward's fixed part, the steps. M moments, W steps still ahead.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

SHARES = tuple(2 ** (-k / 2) for k in range(12, -1, -1))  # 1/64 to all of the fixed part
_SHARES = np.array(SHARES)
_KEPT = 16  # moments


class Moment:
    """One such moment, and the calls that have come since."""

    def __init__(self, now_s: float, *, fixed_s: float, forward_s: float) -> None:
        """The parts of a forward begun now: the fixed one, and all of it."""
        self.fixed_s = fixed_s
        self.end_s = now_s + forward_s  # what comes later is not counted
        self.is_over = False  # a forward has begun
        self.num_arrived = 0
        self._steps_s = [now_s + share * fixed_s for share in SHARES]
        self.counts = [0] * (len(SHARES) + 1)  # calls by the step before which they came; at last those after all steps

    def arrived(self, now_s: float) -> None:
        """A call has come, not after `end_s`."""
        self.counts[bisect_left(self._steps_s, now_s)] += 1
        self.num_arrived += 1

    def num_passed(self, now_s: float) -> int:
        """Steps that have passed."""
        return bisect_right(self._steps_s, now_s)

    def step_s(self, index: int) -> float:
        """When a step is."""
        return self._steps_s[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stakes:
    """What a wait would cost or spare."""

    num_calls: int  # that wait
    room_tokens: int  # which their forward would still hold
    call_tokens: float  # of a usual call
    token_s: float  # cost of a token
    next_calls: float  # expected within the fixed part after a forward: a second one, spared, would not hold them up


class History:
    """The last moments."""

    def __init__(self) -> None:
        self._within = np.zeros((_KEPT, len(SHARES) + 1))  # calls that had come by each step, and until the end
        self._next = 0
        self._num_with_company = 0

    def add(self, moment: Moment) -> None:
        """Remember a moment instead of the oldest one."""
        row = self._within[self._next]
        self._num_with_company += int(moment.num_arrived > 0) - int(row[-1] > 0)
        row[:] = np.cumsum(moment.counts)
        self._next = (self._next + 1) % _KEPT

    def best_step(self, moment: Moment, num_passed: int, stakes: Stakes) -> int | None:
        """The step until which to wait spares all calls together most time; None where to run at once does.

        The moments after which at least as many calls came as have come by now tell what is still to come. A wait must
        be worth more than it would be by chance: its mean gain exceeds its standard error.
        """
        if not self._num_with_company or num_passed == len(SHARES):
            return None
        so_far = self._within[:, num_passed - 1] if num_passed else np.zeros(_KEPT)
        alike = self._within[:, -1] >= moment.num_arrived
        if not alike.any():
            return None
        known_M1 = np.maximum(so_far[alike], moment.num_arrived)[:, None]
        gain_MW = _gain(self._within[alike, num_passed:] - known_M1, _waits(moment, num_passed), moment.fixed_s, stakes)
        gain_W = gain_MW.mean(axis=0) - gain_MW.std(axis=0) / math.sqrt(len(gain_MW))
        best = int(gain_W.argmax())
        return num_passed + best if gain_W[best] > 0 else None


def _waits(moment: Moment, num_passed: int) -> np.ndarray:
    """Seconds from the step that has passed to each that is ahead."""
    passed_s = SHARES[num_passed - 1] * moment.fixed_s if num_passed else 0.0
    waits_W: np.ndarray = _SHARES[num_passed:] * moment.fixed_s - passed_s
    return waits_W


def _gain(to_come: np.ndarray, waits_W: np.ndarray, fixed_s: float, stakes: Stakes) -> np.ndarray:
    """Seconds that each wait spares all calls together, if what came after each moment came now: `to_come` (M, W + 1).

    Company is spared the rest of a forward that would have begun without it, and where nobody comes after it, so that
    there is no second forward, those who come next are spared that one. It costs those who wait the wait and their
    company's tokens, and those who come too late the wait.
    """
    to_come = np.maximum(to_come, 0.0)
    company_MW = np.minimum(to_come[:, :-1], stakes.room_tokens / max(stakes.call_tokens, 1.0))
    late_MW = to_come[:, -1:] - to_come[:, :-1]
    is_last_MW = (company_MW > 0) & (late_MW == 0)
    rest_W = fixed_s - waits_W
    longer_MW = company_MW * (stakes.call_tokens * stakes.token_s)
    gain_MW: np.ndarray = (
        company_MW * rest_W
        + is_last_MW * (stakes.next_calls * rest_W)
        - stakes.num_calls * (waits_W + longer_MW)
        - late_MW * waits_W
    )
    return gain_MW
