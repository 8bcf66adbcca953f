"""What a front counts, and how it is handed to control as a snapshot.

One registry of plain `prometheus_client` metrics without its multiprocess mode. Labelled children are looked up once
for each version and held, since looking one up costs many times what counting does. Only resolved names become label
values: a request for an unknown model is counted under "". Knows no gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample as PrometheusSample

from shoal_server.ipc.messages import SECOND_BUCKETS, Family, MetricsSnapshot, Sample

FREED_SERIES_S: Final = 600.0  # series of a freed version stay for so long, so that their last values are scraped
_VERSION = ("model", "version")


class VersionMetrics:
    """The children of one version, looked up once."""

    __slots__ = (
        "in_flight",
        "input_tokens",
        "inter_token_s",
        "labels",
        "output_tokens",
        "queue_s",
        "tokenize_s",
        "ttft_s",
    )

    def __init__(self, metrics: FrontMetrics, model: str, version: str) -> None:
        self.labels = (model, version)
        self.queue_s = metrics.queue_s.labels(model, version)
        self.tokenize_s = metrics.tokenize_s.labels(model, version)
        self.ttft_s = metrics.ttft_s.labels(model, version)
        self.inter_token_s = metrics.inter_token_s.labels(model, version)
        self.input_tokens = metrics.input_tokens.labels(model, version)
        self.output_tokens = metrics.output_tokens.labels(model, version)
        self.in_flight = metrics.in_flight.labels(model, version)


class FrontMetrics:
    """All metrics of one front process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        rpc_labels = ("method", "code", *_VERSION)
        self._requests = self._counter(
            "shoal_rpc_requests", "RPCs ended, by method, status code and version.", rpc_labels
        )
        self._duration_s = self._histogram("shoal_rpc_duration_seconds", "Duration of RPCs in the server.", rpc_labels)
        self._rejected = self._counter(
            "shoal_rejected_requests", "Requests and stream items refused or failed, by reason.", ("reason", *_VERSION)
        )
        self.queue_s = self._histogram("shoal_queue_seconds", "From sending to the engine until it began.", _VERSION)
        self.tokenize_s = self._histogram("shoal_tokenize_seconds", "Templating and tokenizing.", _VERSION)
        self.ttft_s = self._histogram(
            "shoal_time_to_first_token_seconds", "From admission until the first new token.", _VERSION
        )
        self.inter_token_s = self._histogram(
            "shoal_inter_token_seconds", "Time between new tokens of one completion.", _VERSION
        )
        self.input_tokens = self._counter("shoal_input_tokens", "Tokens read, special tokens included.", _VERSION)
        self.output_tokens = self._counter("shoal_output_tokens", "Tokens generated.", _VERSION)
        self.in_flight = Gauge(
            "shoal_requests_in_flight", "Requests and stream items under way.", _VERSION, registry=self.registry
        )
        self._rpc_children: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self._rejected_children: dict[tuple[str, str, str], Counter] = {}
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._freed_s: dict[tuple[str, str], float] = {}

    def version(self, model: str, version: int) -> VersionMetrics:
        """The held children of a version."""
        key = (model, str(version))
        self._freed_s.pop(key, None)
        held = self._versions.get(key)
        if held is None:
            held = self._versions[key] = VersionMetrics(self, *key)
        return held

    def version_freed(self, model: str, version: int) -> None:
        """Forget the series of a version, `FREED_SERIES_S` from now."""
        key = (model, str(version))
        if key in self._versions:
            self._freed_s.setdefault(key, self._clock())

    def count_rpc(self, method: str, code: str, version: tuple[str, str], duration_s: float) -> None:
        """Count one RPC that ended; `version` is model and version, or two empty strings."""
        key = (method, code, *version)
        children = self._rpc_children.get(key)
        if children is None:
            children = self._rpc_children[key] = (self._requests.labels(*key), self._duration_s.labels(*key))
        children[0].inc()
        children[1].observe(duration_s)

    def count_rejected(self, reason: str, version: tuple[str, str]) -> None:
        """Count one refusal or failure by its reason."""
        key = (reason, *version)
        child = self._rejected_children.get(key)
        if child is None:
            child = self._rejected_children[key] = self._rejected.labels(*key)
        child.inc()

    def snapshot(self, front_id: int) -> MetricsSnapshot:
        """Everything counted so far, without the series of versions freed long ago."""
        self._drop_freed()
        return MetricsSnapshot(front_id=front_id, families=[_family(metric) for metric in self._metrics()])

    def _drop_freed(self) -> None:
        now_s = self._clock()
        for key in [key for key, freed_s in self._freed_s.items() if now_s - freed_s >= FREED_SERIES_S]:
            del self._freed_s[key]
            del self._versions[key]
            for rpc_key in [k for k in self._rpc_children if k[2:] == key]:
                del self._rpc_children[rpc_key]
            for rejected_key in [k for k in self._rejected_children if k[1:] == key]:
                del self._rejected_children[rejected_key]
            for metric in self._metrics():
                metric.remove_by_labels({"model": key[0], "version": key[1]})

    def _metrics(self) -> Iterable[MetricWrapperBase]:
        return (
            self._requests, self._duration_s, self._rejected, self.queue_s, self.tokenize_s, self.ttft_s,
            self.inter_token_s, self.input_tokens, self.output_tokens, self.in_flight,
        )  # fmt: skip

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=SECOND_BUCKETS, registry=self.registry)


def _family(wrapper: MetricWrapperBase) -> Family:
    (metric,) = wrapper.collect()
    label_names = list(wrapper._labelnames)  # noqa: SLF001 - the library has no public name for it
    histogram = metric.type == "histogram"
    return Family(
        name=metric.name,
        type=metric.type,
        help=metric.documentation,
        label_names=label_names,
        bounds=list(SECOND_BUCKETS) if histogram else [],
        samples=_histograms(metric.samples, label_names) if histogram else _values(metric.samples, label_names),
    )


def _values(samples: list[PrometheusSample], label_names: list[str]) -> list[Sample]:
    return [
        Sample(labels=[sample.labels[name] for name in label_names], value=sample.value)
        for sample in samples
        if not sample.name.endswith("_created")
    ]


def _histograms(samples: list[PrometheusSample], label_names: list[str]) -> list[Sample]:
    """Undo the cumulation of buckets; the library yields them of one series in a row, then count and sum."""
    cumulative: dict[tuple[str, ...], list[int]] = {}
    totals: dict[tuple[str, ...], float] = {}
    for sample in samples:
        key = tuple(sample.labels[name] for name in label_names)
        if sample.name.endswith("_bucket"):
            cumulative.setdefault(key, []).append(int(sample.value))
        elif sample.name.endswith("_sum"):
            totals[key] = sample.value
    return [
        Sample(
            labels=list(key),
            buckets=[count - before for count, before in zip(counts, [0, *counts[:-1]], strict=True)],
            total=totals[key],
        )
        for key, counts in cumulative.items()
    ]
