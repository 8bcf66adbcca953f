"""The one HTTP endpoint of a server: /metrics for all processes, /healthz and /readyz.

Turns families into the Prometheus text or OpenMetrics format, whichever the scraper asks for. Where the figures come
from it does not know.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from shoal_server.ipc.messages import Family
from shoal_server.log import Log

REQUEST_TIMEOUT_S = 10.0
MAX_REQUEST_BYTES = 16_384
_log = Log(__name__)


class _BadRequest(Exception):
    """What came is no HTTP request head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class MetricsEndpoint:
    """A small HTTP/1.1 server; one request a connection."""

    def __init__(self, *, collect: Callable[[], Iterable[Family]], is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(collect))
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken or the host cannot be bound.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await _read_request(reader)
                _write_response(writer, request, self._answer(request))
                await writer.drain()
        except (TimeoutError, _BadRequest, ConnectionError) as error:
            _log.debug("metrics_request_failed", error=type(error).__name__)
        finally:
            writer.close()

    def _answer(self, request: _Request) -> _Response:
        if request.method not in ("GET", "HEAD"):
            return _Response(status=HTTPStatus.METHOD_NOT_ALLOWED, body=b"only GET and HEAD\n")
        match request.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(request.headers.get("accept", ""))
                return _Response(status=HTTPStatus.OK, body=encode(self._registry), content_type=content_type)
            case "/healthz":
                return _Response(status=HTTPStatus.OK, body=b"ok\n")
            case "/readyz" if self._is_serving():
                return _Response(status=HTTPStatus.OK, body=b"serving\n")
            case "/readyz":
                return _Response(status=HTTPStatus.SERVICE_UNAVAILABLE, body=b"not serving\n")
            case _:
                return _Response(status=HTTPStatus.NOT_FOUND, body=b"try /metrics, /healthz or /readyz\n")


class _Collector:
    """Families as prometheus_client wants them."""

    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        """Every family, at the moment of a scrape."""
        return (_to_metric(family) for family in self._collect())


def _to_metric(family: Family) -> Metric:
    if family.type == "histogram":
        return _to_histogram(family)
    kind = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.label_names)
    for sample in family.samples:
        metric.add_metric(sample.labels, sample.value)
    return metric


def _to_histogram(family: Family) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.label_names)
    names = [*(repr(float(bound)) for bound in family.bounds), "+Inf"]
    for sample in family.samples:
        counts = [*sample.buckets, *[0] * (len(names) - len(sample.buckets))]
        cumulative = zip(names, map(float, accumulate(counts)), strict=True)
        metric.add_metric(sample.labels, list(cumulative), sum_value=sample.total)
    return metric


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    """Head of a request; a body is left unread.

    Raises:
        _BadRequest: this is no HTTP request.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise _BadRequest from error
    pairs = (line.partition(":") for line in lines if line)
    return _Request(method=method, path=path, headers={name.strip().lower(): value.strip() for name, _, value in pairs})


def _write_response(writer: asyncio.StreamWriter, request: _Request, response: _Response) -> None:
    body, encoding = response.body, ""
    if "gzip" in request.headers.get("accept-encoding", "") and len(body) > 1024:
        body, encoding = gzip.compress(body, compresslevel=1), "Content-Encoding: gzip\r\n"
    writer.write(
        f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n{encoding}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode("latin-1")
    )
    if request.method != "HEAD":
        writer.write(body)
