"""Lanes of a processor: threads that compute forwards side by side, one each, so that no core waits for another.

Cores that share a forward wait for each other at every layer, and for whatever else the system runs on one of them. On
two cores lanes did 4 and 20 % more than one forward on both (measured twice). A forward that is alone gets all cores,
which is what makes a lone request quick. Handing a forward over costs the way to another thread and back, so one that
is short is computed where it is. Weights are shared, as all lanes are threads of one process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Lanes:
    """The threads of one engine."""

    def __init__(self, *, num_lanes: int, num_threads: int, ended: Callable[[], object]) -> None:
        """`num_threads` are the cores that all lanes share; `ended` is called by a lane whenever it is done."""
        self.num_lanes = num_lanes
        self.num_threads = num_threads
        self._ended = ended
        self._pool = ThreadPoolExecutor(num_lanes, thread_name_prefix="lane")

    def submit(self, compute: Callable[[], Result], *, is_alone: bool) -> Future[Result]:
        """Compute on a free lane, with all cores where it is alone, else with its share of them."""
        future = self._pool.submit(_compute, compute, self._share(is_alone))
        future.add_done_callback(lambda _: self._ended())
        return future

    def compute_here(self, compute: Callable[[], Result], *, is_alone: bool) -> Future[Result]:
        """Compute on the caller's thread, which keeps the number of threads that it has for other work."""
        future: Future[Result] = Future()
        before = torch.get_num_threads()
        try:
            future.set_result(_compute(compute, self._share(is_alone)))
        except Exception as error:
            future.set_exception(error)
        finally:
            torch.set_num_threads(before)
        return future

    def _share(self, is_alone: bool) -> int:
        return self.num_threads if is_alone else max(1, self.num_threads // self.num_lanes)


def _compute(compute: Callable[[], Result], num_threads: int) -> Result:
    torch.set_num_threads(num_threads)  # of this thread alone; costs next to nothing
    return compute()
