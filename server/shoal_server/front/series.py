"""Counters, gauges and histograms of one event loop, as cheap as Python allows.

The library's own take a lock for every number and, in a histogram, look at one bucket after the other; what they write
down for scrapes nobody needs here, since control does that for all fronts. Knows no names of metrics. Not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from shoal_server.ipc.messages import SECOND_BUCKETS, Family, Sample


class Series(Protocol):
    """One series of a metric."""

    def sample(self, labels: list[str]) -> Sample:
        """What it says now, under its labels."""


Kind = TypeVar("Kind", bound=Series)


class Number:
    """A series of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count up."""
        self.value += amount

    def dec(self) -> None:
        """Count down; gauges only."""
        self.value -= 1.0

    def sample(self, labels: list[str]) -> Sample:
        """The number now."""
        return Sample(labels=labels, value=self.value)


class Seconds:
    """A series of a histogram by SECOND_BUCKETS."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECOND_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; a bucket's bound belongs to it."""
        self.buckets[bisect_left(SECOND_BUCKETS, seconds)] += 1
        self.total += seconds

    def sample(self, labels: list[str]) -> Sample:
        """The counts now."""
        return Sample(labels=labels, buckets=list(self.buckets), total=self.total)


class Metric(Generic[Kind]):
    """All series of one metric."""

    def __init__(self, name: str, kind: str, text: str, label_names: tuple[str, ...], create: Callable[[], Kind]):
        """`kind` is such as "counter"; `create` makes a series in which nothing is counted yet."""
        self._name, self._kind, self._text, self._label_names = name, kind, text, label_names
        self._create = create
        self._series: dict[tuple[str, ...], Kind] = {}

    def labels(self, *values: str) -> Kind:
        """The series with these values; there from the first time it is asked for."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._create()
        return series

    def remove(self, **labels: str) -> None:
        """Forget all series that have these values among theirs."""
        wanted = {(self._label_names.index(name), value) for name, value in labels.items()}
        for values in [values for values in self._series if wanted <= set(enumerate(values))]:
            del self._series[values]

    def family(self) -> Family:
        """Everything counted so far."""
        return Family(
            name=self._name,
            type=self._kind,
            help=self._text,
            label_names=list(self._label_names),
            bounds=list(SECOND_BUCKETS) if self._kind == "histogram" else [],
            samples=[series.sample(list(values)) for values, series in self._series.items()],
        )
