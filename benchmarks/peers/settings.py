"""How a peer may be set, and the values that a sweep tries. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One way to run a peer."""

    dtype: str  # "float32" or "bfloat16"
    threads: int  # of torch in one worker
    workers: int  # processes, or replicas, that hold the model; 0: in the front's own process
    max_batch: int  # texts
    delay_ms: float  # that a text waits for company at most

    def label(self) -> str:
        """For tables."""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}" if self.workers else "in the front"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{workers} x {threads}, batch {self.max_batch}, delay {self.delay_ms:g} ms"


AXES = ("splits", "max_batches", "splits", "delays_ms")  # as they are walked: splits again with the best batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How cores are given to workers."""

    workers: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a sweep tries of one peer.

    The first value of every axis is where it begins, and what a peer that was never swept is run with: on a CPU padding
    costs more than batching saves, and the threads of one forward wait for each other.
    """

    splits: tuple[Split, ...] = (
        Split(workers=2, threads=1),
        Split(workers=1, threads=2),
    )
    max_batches: tuple[int, ...] = (1, 4, 16, 32)
    delays_ms: tuple[float, ...] = (5.0, 1.0, 15.0)

    def first(self, dtype: str) -> Settings:
        """Where a sweep begins."""
        split = self.splits[0]
        return Settings(
            dtype=dtype,
            threads=split.threads,
            workers=split.workers,
            max_batch=self.max_batches[0],
            delay_ms=self.delays_ms[0],
        )

    def along(self, axis: str, best: Settings) -> list[Settings]:
        """Every value of `axis`, the other values being those of `best`."""
        if axis == "splits":
            return [dataclasses.replace(best, workers=s.workers, threads=s.threads) for s in self.splits]
        if axis == "max_batches":
            return [dataclasses.replace(best, max_batch=size) for size in self.max_batches]
        if best.max_batch == 1:  # nothing waits for company
            return [best]
        return [dataclasses.replace(best, delay_ms=delay_ms) for delay_ms in self.delays_ms]
