"""Keeps a background thread to a small share of one core while the compute loop has work.

A low priority would be simpler and is worse: the system then takes the processor from the thread while it holds the
GIL, and the compute loop waits for it behind every other process (measured: 100 to 360 ms on two busy cores). So the
thread runs at normal priority and rests of its own accord, between two calls of Python or of C.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_WORK_S = 0.001  # between rests
_REST_FACTOR = 2.0  # rest for each second worked
_MAX_REST_S = 0.5  # after a call that took long


class Pacer:
    """Paces the thread that enters it, until it leaves. `is_busy` is asked by that thread."""

    def __init__(self, is_busy: Callable[[], bool], *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._is_busy = is_busy
        self._sleep = sleep
        self._look_again_s = 0.0  # by the wall clock, which is cheap to read
        self._rested_at_s = 0.0  # by the thread's own processor time: waiting for others is no work

    def __enter__(self) -> None:
        self._begin()
        sys.setprofile(self._pace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.setprofile(None)

    def _begin(self) -> None:
        self._look_again_s = time.perf_counter() + _WORK_S
        self._rested_at_s = time.thread_time()

    def _pace(self, frame: FrameType, event: str, argument: Any) -> None:  # noqa: ARG002
        """Called by the interpreter at every call and return of the thread."""
        now_s = time.perf_counter()
        if now_s < self._look_again_s:
            return
        worked_s = time.thread_time() - self._rested_at_s
        if worked_s < _WORK_S:
            self._look_again_s = now_s + _WORK_S - worked_s
            return
        if self._is_busy():
            self._sleep(min(worked_s * _REST_FACTOR, _MAX_REST_S))
        self._begin()
