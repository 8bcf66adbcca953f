"""Admission at the door: how much may wait at an engine, and permits for what was let in.

Tokens of Classify and sequences of Generate are bounded apart. A permit is taken before anything is tokenized, from an
estimate where the amount is not known yet, and corrected afterwards. Plain counting; knows no sockets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from shoal_server.errors import QueueFull

if TYPE_CHECKING:
    from shoal_server.front.engine_link import EngineLink

MIN_RETRY_S: Final = 0.05
MAX_RETRY_S: Final = 10.0
_SMOOTHING: Final = 0.1


class Work(Enum):
    """What is counted."""

    CLASSIFY = "tokens"
    GENERATE = "sequences"
    __hash__ = object.__hash__  # the enum's own is Python, and runs a dozen times a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of one kind of work an engine may have open."""

    share: int  # from this front: the engine's bound divided by the fronts
    whole: int  # from all fronts; no single request may be larger


def bounds_for(*, max_waiting_tokens: int, max_sequences: int, num_fronts: int) -> dict[Work, Bounds]:
    """The bounds of one front among `num_fronts`."""
    limits = {Work.CLASSIFY: max_waiting_tokens, Work.GENERATE: max_sequences}
    return {work: Bounds(share=-(-limit // num_fronts), whole=limit) for work, limit in limits.items()}


@dataclass(slots=True, kw_only=True, eq=False)
class Load:
    """What one engine has open from this front, and how long calls have lately taken there."""

    amounts: dict[Work, int] = field(default_factory=lambda: dict.fromkeys(Work, 0))
    call_s: dict[Work, float] = field(default_factory=lambda: dict.fromkeys(Work, 0.5))

    def share(self, bounds: Mapping[Work, Bounds]) -> float:
        """How full the engine is, over both kinds of work."""
        return sum(amount / bounds[work].share for work, amount in self.amounts.items())

    def took(self, work: Work, duration_s: float) -> None:
        """Note how long a call took."""
        self.call_s[work] += _SMOOTHING * (duration_s - self.call_s[work])

    def retry_after_s(self, work: Work) -> float:
        """When there may be room: after about as long as a call takes."""
        return min(MAX_RETRY_S, max(MIN_RETRY_S, self.call_s[work]))


class Permit:
    """The right to have an amount of work open at one engine. Release it in a `finally`."""

    __slots__ = ("_amount", "_bounds", "_load", "_work", "link", "taken_s")

    def __init__(self, link: EngineLink, load: Load, bounds: Bounds, work: Work, amount: int) -> None:
        """Take the amount, at most the whole bound, since an estimate may be too high.

        Raises:
            QueueFull: too much is open already.
        """
        self.link = link
        self._load, self._bounds, self._work, self._amount = load, bounds, work, 0
        self.taken_s = time.monotonic()
        self._take(min(amount, bounds.whole))

    def resize(self, amount: int) -> None:
        """Correct an estimate.

        Raises:
            QueueFull: the true amount does not fit, now or ever.
        """
        if amount > self._bounds.whole:
            raise QueueFull(
                f"the request has {amount:,} {self._work.value}; the queue takes {self._bounds.whole:,} in all"
            )
        self._take(amount)

    def release(self) -> None:
        """Give everything back; releasing twice is harmless."""
        if self._amount:
            self._load.amounts[self._work] -= self._amount
            self._load.took(self._work, time.monotonic() - self.taken_s)
        self._amount = 0

    def _take(self, amount: int) -> None:
        others = self._load.amounts[self._work] - self._amount
        if others and others + amount > self._bounds.share:  # a request alone may be larger than this front's share
            unit = self._work.value
            raise QueueFull(
                f"{others:,} {unit} wait and {amount:,} more are asked for; limit {self._bounds.share:,}",
                retry_after_s=self._load.retry_after_s(self._work),
            )
        self._load.amounts[self._work] = others + amount
        self._amount = amount
