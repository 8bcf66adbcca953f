"""Lanes of a processor: threads that compute forwards side by side, one each, so that no core waits for another.

Cores that share a forward wait for each other at every layer, and for whatever else the system runs on one of them. On
two cores lanes do a sixth more than one forward on both (measured). A forward that is alone gets all cores, which is
what makes a lone request quick. Weights are shared, as all lanes are threads of one process.
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

    def __init__(self, *, num_lanes: int, num_threads: int, ended: Callable[[], object]) -> None:
        """`num_threads` are the cores that all lanes share; `ended` is called by a lane whenever it is done."""
        self.num_lanes = num_lanes
        self.num_threads = num_threads
        self._ended = ended
        self._pool = ThreadPoolExecutor(num_lanes, thread_name_prefix="lane")
        self._settled = threading.local()

    def submit(self, compute: Callable[[], Result], *, is_alone: bool) -> Future[Result]:
        """Compute on a free lane, with all cores where it is alone, else with its share of them."""
        num_threads = self.num_threads if is_alone else max(1, self.num_threads // self.num_lanes)
        future = self._pool.submit(self._run, compute, num_threads)
        future.add_done_callback(lambda _: self._ended())
        return future

    def _run(self, compute: Callable[[], Result], num_threads: int) -> Result:
        if getattr(self._settled, "num_threads", None) != num_threads:
            torch.set_num_threads(num_threads)  # of this thread alone
            self._settled.num_threads = num_threads
        return compute()
