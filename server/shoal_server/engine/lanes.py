"""Lanes of a processor: threads that compute forwards side by side, one core each, so that no core waits for another.

Cores that share a forward wait for each other at every layer, and for whatever else the system runs on one of them. On
two cores lanes did 4 and 20 % more than one forward on both (measured twice). A forward that is alone gets all cores,
which is what makes a lone request quick. Handing a forward over costs the way to another thread and back, so one that
is short is computed where it is. Weights are shared, as all lanes are threads of one process.

All threads exist from the beginning, so that each has an arena of glibc's malloc to itself: lanes that shared one
waited for each other whenever the system took the core from the one that held it.

Whatever takes several cores is computed by one and the same thread: OpenMP keeps a team of workers for each thread
that ever asked for one, and once those are more than the cores, it lets all of them sleep instead of spin at the end of
every parallel part (a forward of 27 tokens then takes 7.2 ms instead of 3.3 on two cores).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Lanes:
    """The threads of one engine."""

    def __init__(self, *, num_lanes: int, num_step_threads: int, ended: Callable[[], object]) -> None:
        """A lane for each core; a Generate step takes `num_step_threads`; `ended` is called by a lane that is done."""
        self.num_lanes = num_lanes
        self._num_step_threads = num_step_threads
        self._ended = ended
        self._pool = _started(num_lanes, "lane")
        self._team = _started(1, "team")

    def submit(self, compute: Callable[[], Result], *, is_alone: bool) -> Future[Result]:
        """Compute on a free lane, or, where it is alone, on all cores."""
        if is_alone and self.num_lanes > 1:
            future = self._team.submit(_compute, compute, self.num_lanes)
        else:
            future = self._pool.submit(_compute, compute, 1)
        future.add_done_callback(lambda _: self._ended())
        return future

    def compute_here(self, compute: Callable[[], Result]) -> Future[Result]:
        """Compute on the caller's thread and one core."""
        future: Future[Result] = Future()
        try:
            future.set_result(_compute(compute, 1))
        except Exception as error:
            future.set_exception(error)
        return future

    def step(self, compute: Callable[[], Result]) -> Result:
        """Compute a Generate step and wait for it; what it raises is raised here."""
        if self._num_step_threads == 1:
            return _compute(compute, 1)
        return self._team.submit(_compute, compute, self._num_step_threads).result()


def _started(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool all of whose threads exist."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
    all_there = threading.Barrier(num_threads)
    for future in [pool.submit(all_there.wait) for _ in range(num_threads)]:
        future.result()
    return pool


def _compute(compute: Callable[[], Result], num_threads: int) -> Result:
    torch.set_num_threads(num_threads)  # of this thread alone; costs next to nothing
    return compute()
