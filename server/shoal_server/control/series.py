"""Metric series being added up: what fronts sent, what engines did, what control knows, in one shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from shoal_server.control.versions import VersionKey
from shoal_server.ipc.messages import Family, Sample


@dataclass(slots=True, kw_only=True)
class _Series:
    value: float = 0.0
    buckets: list[int] = field(default_factory=list)
    total: float = 0.0

    def add(self, sample: Sample) -> None:
        self.value += sample.value
        self.total += sample.total
        if len(self.buckets) < len(sample.buckets):
            self.buckets += [0] * (len(sample.buckets) - len(self.buckets))
        for index, count in enumerate(sample.buckets):
            self.buckets[index] += count


@dataclass(slots=True, kw_only=True)
class _Family:
    type: str
    help: str
    label_names: tuple[str, ...]
    bounds: tuple[float, ...]
    series: dict[tuple[str, ...], _Series] = field(default_factory=dict)


class SeriesTable:
    """Families by name; a sample added to a series that is there is summed."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def gauge(self, name: str, text: str, labels: Mapping[str, str], value: float) -> None:
        """Add to a gauge. `name` is whole, `text` its help."""
        self._series(name, "gauge", text, labels).value += value

    def counter(self, name: str, text: str, labels: Mapping[str, str], value: float) -> None:
        """Add to a counter; `name` is without "_total"."""
        self._series(name, "counter", text, labels).value += value

    def histogram(
        self, name: str, text: str, labels: Mapping[str, str], bounds: Sequence[float], sample: Sample
    ) -> None:
        """Add to a histogram; `sample` has buckets and total, its labels are not looked at."""
        self._series(name, "histogram", text, labels, bounds).add(sample)

    def add(self, families: Iterable[Family], *, with_gauges: bool = True) -> None:
        """Add whole families; gauges of a process that is gone are left out."""
        for family in families:
            if family.type == "gauge" and not with_gauges:
                continue
            target = self._families.setdefault(
                family.name,
                _Family(
                    type=family.type,
                    help=family.help,
                    label_names=tuple(family.label_names),
                    bounds=tuple(family.bounds),
                ),
            )
            for sample in family.samples:
                target.series.setdefault(tuple(sample.labels), _Series()).add(sample)

    def drop_versions(self, keys: AbstractSet[VersionKey]) -> None:
        """Remove every series that is about one of these versions."""
        for family in self._families.values():
            if keys and {"model", "version"} <= set(family.label_names):
                at_model, at_version = family.label_names.index("model"), family.label_names.index("version")
                gone = [
                    labels
                    for labels in family.series
                    if labels[at_version].isdigit() and VersionKey(labels[at_model], int(labels[at_version])) in keys
                ]
                for labels in gone:
                    del family.series[labels]

    def families(self) -> list[Family]:
        """Everything, by name."""
        return [
            Family(
                name=name,
                type=family.type,
                help=family.help,
                label_names=list(family.label_names),
                bounds=list(family.bounds),
                samples=[
                    Sample(labels=list(labels), value=series.value, buckets=list(series.buckets), total=series.total)
                    for labels, series in sorted(family.series.items())
                ],
            )
            for name, family in sorted(self._families.items())
        ]

    def _series(
        self, name: str, kind: str, text: str, labels: Mapping[str, str], bounds: Sequence[float] = ()
    ) -> _Series:
        family = self._families.get(name)
        if family is None:
            family = _Family(type=kind, help=text, label_names=tuple(labels), bounds=tuple(bounds))
            self._families[name] = family
        return family.series.setdefault(tuple(labels[label] for label in family.label_names), _Series())


class FrontLedger:
    """What fronts have counted, those that are gone included: counters never go backwards, their gauges vanish."""

    def __init__(self) -> None:
        self._last: dict[int, list[Family]] = {}
        self._retired = SeriesTable()

    def snapshot(self, front_id: int, families: list[Family]) -> None:
        """A front's registry of this moment."""
        self._last[front_id] = families

    def front_lost(self, front_id: int) -> None:
        """Keep what a front had counted; it starts anew from zero."""
        self._retired.add(self._last.pop(front_id, []), with_gauges=False)

    def drop_versions(self, keys: AbstractSet[VersionKey]) -> None:
        """Forget what fronts that are gone had counted of these versions."""
        self._retired.drop_versions(keys)

    def add_to(self, table: SeriesTable) -> None:
        """Sum all fronts into `table`."""
        table.add(self._retired.families())
        for families in self._last.values():
            table.add(families)
