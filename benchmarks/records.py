"""What runs leave behind, as JSON files under benchmarks/out: one file for each turn, so that a run can go on later."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.loadgen import ClosedLoop, OpenLoop, Window


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are sent: so many in flight, or so many a second."""

    in_flight: int = 0
    rate: float = 0.0  # calls a second; an open loop when `in_flight` is 0
    warmup_s: float = 2.0
    duration_s: float = 8.0

    @property
    def label(self) -> str:
        """Names it in tables; the same for all rounds."""
        return f"{self.in_flight} in flight" if self.in_flight else "open loop"

    def loop(self, seed: int) -> ClosedLoop | OpenLoop:
        """For the load generator."""
        return ClosedLoop(in_flight=self.in_flight) if self.in_flight else OpenLoop(rate=self.rate, seed=seed)

    def window(self) -> Window:
        """For the load generator."""
        return Window(warmup_s=self.warmup_s, duration_s=self.duration_s)


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server. Times in seconds; None where there was nothing to measure."""

    load: Load
    rate: float  # texts or output tokens a second
    num_calls: int
    errors: dict[str, int] = {}
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    cpu_s: float | None = None  # of all processes of the server, for each call
    client_cpu_s: float | None = None  # of the load generator, for each call
    foreign_share: float = 0.0  # of all cores' time, taken by processes that have no part in the measurement
    input_tokens_per_s: float = 0.0  # where the server counts them
    first_token_p50_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p99_s: float | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """How a server's answers compare with the reference."""

    agreement: float
    max_difference: float
    passed: bool


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One server, started, checked, loaded and stopped; or why it was not."""

    part: str
    dtype: str
    round: int
    name: str
    described: str = ""  # version and settings
    measures: tuple[Measure, ...] = ()
    checked: Checked | None = None
    failure: str = ""
    measured_at: float = 0.0  # Unix time


class Store:
    """The turns of one run; only writer of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, part: str, dtype: str, number: int, name: str) -> Path:
        """Of one turn."""
        return self.folder / part / dtype / f"{number}-{name}.json"

    def has(self, part: str, dtype: str, number: int, name: str) -> bool:
        """Whether it was measured already."""
        return self.path(part, dtype, number, name).exists()

    def save(self, turn: Turn) -> None:
        """Keep it."""
        path = self.path(turn.part, turn.dtype, turn.round, turn.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(turn)))

    def load(self) -> list[Turn]:
        """All of them, in the order of their names."""
        return [msgspec.json.decode(path.read_bytes(), type=Turn) for path in sorted(self.folder.glob("*/*/*-*.json"))]


def measures(turns: Iterable[Turn], part: str, dtype: str, name: str, label: str) -> list[Measure]:
    """Of one server under one load, of all rounds."""
    return [
        measure
        for turn in turns
        if (turn.part, turn.dtype, turn.name) == (part, dtype, name)
        for measure in turn.measures
        if measure.load.label == label
    ]


def median(values: Iterable[float | None]) -> float:
    """Of those that are figures; NaN of none."""
    found = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(found) if found else math.nan


def ratio(above: float, below: float) -> float:
    """NaN where either is missing or nothing was done."""
    return above / below if below else math.nan
