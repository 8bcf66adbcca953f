"""What a sweep tries next, and what it has found. Pure.

The whole product of the axes would take hours, so they are walked one after the other (coordinate descent): every value
of an axis is tried with the best values of the others so far. Then the fastest few are tried again. The best try
of the same settings counts, since whatever else a machine does only makes a try slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.settings import AXES, Grid, Settings

NUM_FINALISTS = 3
TRIES_OF_FINALISTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one try came to."""

    settings: Settings
    rates: dict[int, float]  # texts/s by calls in flight; empty when it failed
    failure: str = ""

    @property
    def score(self) -> float:
        """Geometric mean of the rates; 0 for a failure."""
        if not self.rates:
            return 0.0
        return math.prod(self.rates.values()) ** (1 / len(self.rates))


def next_settings(grid: Grid, dtype: str, tries: Sequence[Tried]) -> Settings | None:
    """What to try after `tries`; None when the sweep is done."""
    best = grid.first(dtype)
    for axis in AXES:
        candidates = grid.along(axis, best)
        for settings in candidates:
            if not any(tried.settings == settings for tried in tries):
                return settings
        best = max(candidates, key=lambda settings: score(settings, tries))
    finalists = sorted({tried.settings for tried in tries}, key=lambda s: -score(s, tries))[:NUM_FINALISTS]
    counts = {settings: sum(tried.settings == settings for tried in tries) for settings in finalists}
    working = [settings for settings in finalists if score(settings, tries) and counts[settings] < TRIES_OF_FINALISTS]
    return min(working, key=lambda settings: counts[settings], default=None)


def score(settings: Settings, tries: Sequence[Tried]) -> float:
    """The best of the tries of these settings; 0 of none."""
    return max((tried.score for tried in tries if tried.settings == settings), default=0.0)


def winner(tries: Sequence[Tried]) -> Tried | None:
    """The fastest; None when all failed."""
    return max((tried for tried in tries if tried.score), key=lambda tried: tried.score, default=None)
