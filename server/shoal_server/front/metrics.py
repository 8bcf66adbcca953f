"""What a front counts, and how it is handed to control as a snapshot.

The series of a version are looked up once and held. Only resolved names become label values: a request for an unknown
model is counted under "". Knows no gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from shoal_server.front.series import Kind, Metric, Number, Seconds
from shoal_server.ipc.messages import MetricsSnapshot

FREED_SERIES_S: Final = 600.0  # series of a freed version stay for so long, so that their last values are scraped
_VERSION = ("model", "version")


class VersionMetrics:
    """The series of one version, looked up once."""

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
        self._clock = clock
        self._metrics: list[Metric[Any]] = []
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
        self.in_flight = self._gauge("shoal_requests_in_flight", "Requests and stream items under way.", _VERSION)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._freed_s: dict[tuple[str, str], float] = {}

    def version(self, model: str, version: int) -> VersionMetrics:
        """The held series of a version."""
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
        self._requests.labels(method, code, *version).inc()
        self._duration_s.labels(method, code, *version).observe(duration_s)

    def count_rejected(self, reason: str, version: tuple[str, str]) -> None:
        """Count one refusal or failure by its reason."""
        self._rejected.labels(reason, *version).inc()

    def snapshot(self, front_id: int) -> MetricsSnapshot:
        """Everything counted so far, without the series of versions freed long ago."""
        self._drop_freed()
        return MetricsSnapshot(front_id=front_id, families=[metric.family() for metric in self._metrics])

    def _drop_freed(self) -> None:
        now_s = self._clock()
        for key in [key for key, freed_s in self._freed_s.items() if now_s - freed_s >= FREED_SERIES_S]:
            del self._freed_s[key]
            del self._versions[key]
            for metric in self._metrics:
                metric.remove(model=key[0], version=key[1])

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Metric[Number]:
        return self._add(Metric(name, "counter", text, labels, Number))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Metric[Number]:
        return self._add(Metric(name, "gauge", text, labels, Number))

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Metric[Seconds]:
        return self._add(Metric(name, "histogram", text, labels, Seconds))

    def _add(self, metric: Metric[Kind]) -> Metric[Kind]:
        self._metrics.append(metric)
        return metric
