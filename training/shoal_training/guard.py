"""What may end a job from outside: a request to stop, and its time limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal_training.failures import StopRequested, TimeLimitPassed


class Guard:
    """Asked at every step, every evaluated batch and between chunks of preparation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stop_requested = False
        self._clock = clock
        self._began_s = clock()
        self._spent_before_s = 0.0
        self._limit_s: float | None = None

    def request_stop(self) -> None:
        """Called from a signal handler: only sets a flag."""
        self.stop_requested = True

    def set_limit(self, limit_s: float | None) -> None:
        """Seconds the job may take, all its attempts together."""
        self._limit_s = limit_s

    def count_earlier(self, spent_s: float) -> None:
        """Add the seconds that earlier attempts took, up to the checkpoint this one goes on from."""
        self._spent_before_s = spent_s

    @property
    def spent_s(self) -> float:
        """Seconds the job has taken, earlier attempts included."""
        return self._spent_before_s + self._clock() - self._began_s

    def check(self) -> None:
        """Raises TimeLimitPassed or StopRequested when it is time to end."""
        self.check_time()
        if self.stop_requested:
            raise StopRequested

    def check_time(self) -> None:
        """Raises TimeLimitPassed when the job took too long."""
        if self._limit_s is not None and self.spent_s > self._limit_s:
            raise TimeLimitPassed(f"the job took longer than its time limit of {self._limit_s:g} s")
