"""What an engine is given and what it answers, in JSON files and lines; shared by all environments. Knows no torch."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids, special tokens included, in the order of the workload."""

    ids: list[list[int]]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is run."""

    lanes: int  # forwards side by side, in threads of one process
    threads: int  # of each
    batch: int  # texts of a padded batch, or tokens of a packed row


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One line on an engine's standard input: run for so long."""

    setup: Setup
    seconds: float


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One line on its standard output."""

    texts_per_s: float
    tokens_per_s: float  # real ones, padding not counted
    scores: list[list[float]] = []  # of the first texts, in their order


Forward = Callable[[list[list[int]]], Sequence[Sequence[float]]]  # token ids of a batch to probabilities


def by_length(ids: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of texts in batches of `size`, sorted by length so that little is padded."""
    ordered = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def by_budget(ids: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Numbers of texts in the order in which they came, as many as fit into `budget` tokens: as the batcher plans."""
    batches: list[list[int]] = []
    room = 0
    for number, text in enumerate(ids):
        if not batches or len(text) > room:
            batches.append([])
            room = budget
        batches[-1].append(number)
        room -= len(text)
    return batches


def run(
    batches: list[list[int]], ids: list[list[int]], lanes: Sequence[Forward], seconds: float, num_checked: int
) -> Ran:
    """All batches over and over; whole passes only, so that every length counts as often as it occurs."""
    with ThreadPoolExecutor(len(lanes)) as pool:
        scores = _pass(batches, ids, lanes, pool)  # warms up too
        passes = 0
        began = time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            _pass(batches, ids, lanes, pool)
            passes += 1
    return Ran(
        texts_per_s=passes * len(ids) / taken,
        tokens_per_s=passes * sum(map(len, ids)) / taken,
        scores=[list(scores[number]) for number in range(num_checked)],
    )


def _pass(
    batches: list[list[int]], ids: list[list[int]], lanes: Sequence[Forward], pool: ThreadPoolExecutor
) -> dict[int, Sequence[float]]:
    """Each lane takes the next batch whenever it is free; scores by the numbers of the texts."""
    waiting = deque(batches)
    scores: dict[int, Sequence[float]] = {}

    def work_off(forward: Forward) -> None:
        while waiting:
            try:
                batch = waiting.popleft()
            except IndexError:  # another lane was faster
                return
            scores.update(zip(batch, forward([ids[n] for n in batch]), strict=True))

    list(pool.map(work_off, lanes))
    return scores


def serve(texts: Path, num_checked: int, plan: Callable[..., list[list[int]]], make: Callable[[int], Forward]) -> None:
    """Answer each line of standard input; `make` builds the forward of a lane with so many threads."""
    ids = msgspec.json.decode(texts.read_bytes(), type=Texts).ids
    made: dict[int, list[Forward]] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        asked = msgspec.json.decode(line, type=Asked)
        lanes = made.setdefault(asked.setup.threads, [])
        while len(lanes) < asked.setup.lanes:
            lanes.append(make(asked.setup.threads))
        batches = plan(ids, asked.setup.batch)
        found = run(batches, ids, lanes[: asked.setup.lanes], asked.seconds, num_checked)
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        sys.stdout.flush()
