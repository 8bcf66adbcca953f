"""Reports how training goes, a few times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from shoal_training.events import EventLog

MIN_INTERVAL_S = 0.25


class ProgressReporter:
    """Gathers losses of steps and appends progress events; the last step is always reported."""

    def __init__(
        self, events: EventLog, total_steps: int, first_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._total_steps = total_steps
        self._first_step = first_step
        self._clock = clock
        self._began_s = clock()
        self._paused_s = 0.0
        self._reported_s = float("-inf")
        self._losses: list[float] = []

    def add_loss(self, loss: float) -> None:
        """Note the loss of one step."""
        self._losses.append(loss)

    def add_pause(self, seconds: float) -> None:
        """Time that went into something other than steps, and so says nothing about those to come."""
        self._paused_s += seconds

    def step(self, step: int, epoch: float, learning_rate: float) -> None:
        """`step` optimizer steps are done; `epoch` in epochs."""
        now_s = self._clock()
        if now_s - self._reported_s < MIN_INTERVAL_S and step < self._total_steps:
            return
        self._reported_s = now_s
        done = step - self._first_step
        step_s = (now_s - self._began_s - self._paused_s) / done if done else 0.0
        self._events.progress(
            step=step,
            total_steps=self._total_steps,
            epoch=round(epoch, 4),
            loss=sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            learning_rate=learning_rate,
            time_left_s=round(step_s * (self._total_steps - step), 3),
        )
        self._losses.clear()
