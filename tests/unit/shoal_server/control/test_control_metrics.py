"""Merged metrics: sums over fronts, nothing goes backwards, what is gone vanishes in its time; the HTTP endpoint."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
from control_world import World, make_found
from prometheus_client.parser import text_string_to_metric_families
from shoal_server.control.conductor import Conductor
from shoal_server.control.engine_ledger import EngineLedger
from shoal_server.control.freed import KEEP_SERIES_S, FreedVersions
from shoal_server.control.metrics_endpoint import MetricsEndpoint
from shoal_server.control.own_metrics import add_versions
from shoal_server.control.peers import Peers
from shoal_server.control.policy import RecordStore
from shoal_server.control.routing import version_status
from shoal_server.control.series import FrontLedger, SeriesTable
from shoal_server.control.versions import VersionKey
from shoal_server.ipc.messages import (
    SECOND_BUCKETS,
    SEQUENCE_BUCKETS,
    TOKEN_BUCKETS,
    EngineStatistics,
    Family,
    ModelStatistics,
    Sample,
)

LABELS = ["model", "version"]


def front(calls: float, in_flight: float = 0.0, buckets: list[int] | None = None) -> list[Family]:
    return [
        Family(
            name="shoal_rpc_requests",
            type="counter",
            help="RPCs.",
            label_names=LABELS,
            bounds=[],
            samples=[Sample(labels=["m", "1"], value=calls)],
        ),
        Family(
            name="shoal_requests_in_flight",
            type="gauge",
            help="Open.",
            label_names=LABELS,
            bounds=[],
            samples=[Sample(labels=["m", "1"], value=in_flight)],
        ),
        Family(
            name="shoal_rpc_duration_seconds",
            type="histogram",
            help="Time.",
            label_names=LABELS,
            bounds=[0.1, 1.0],
            samples=[Sample(labels=["m", "1"], buckets=buckets or [0, 0, 0], total=0.5 * sum(buckets or []))],
        ),
    ]


def values(table: SeriesTable) -> dict[tuple[str, ...], float]:
    return {
        (family.name, *sample.labels): sum(sample.buckets) if family.type == "histogram" else sample.value
        for family in table.families()
        for sample in family.samples
    }


def merged(ledger: FrontLedger | EngineLedger) -> dict[tuple[str, ...], float]:
    table = SeriesTable()
    ledger.add_to(table)
    return values(table)


def test_fronts_are_summed() -> None:
    ledger = FrontLedger()
    ledger.snapshot(0, front(3, 1, [1, 2, 0]))
    ledger.snapshot(1, front(4, 2, [0, 1, 1]))
    table = SeriesTable()
    ledger.add_to(table)
    assert values(table) == {
        ("shoal_rpc_requests", "m", "1"): 7,
        ("shoal_requests_in_flight", "m", "1"): 3,
        ("shoal_rpc_duration_seconds", "m", "1"): 5,
    }
    (histogram,) = [family for family in table.families() if family.type == "histogram"]
    assert histogram.samples[0].buckets == [1, 3, 1]
    assert histogram.samples[0].total == 2.5


def test_counters_of_a_dead_front_stay_and_its_gauges_vanish() -> None:
    ledger = FrontLedger()
    ledger.snapshot(0, front(3, 1, [1, 0, 0]))
    ledger.front_lost(0)
    assert merged(ledger) == {("shoal_rpc_requests", "m", "1"): 3, ("shoal_rpc_duration_seconds", "m", "1"): 1}
    ledger.snapshot(0, front(1, 1, [0, 1, 0]))
    assert merged(ledger)["shoal_rpc_requests", "m", "1"] == 4
    assert merged(ledger)["shoal_rpc_duration_seconds", "m", "1"] == 2


def test_series_of_a_freed_version_disappear_after_ten_minutes() -> None:
    freed = FreedVersions()
    key = VersionKey("m", 1)
    freed.freed(key, 100.0)
    assert freed.expired(100.0 + KEEP_SERIES_S - 1) == set()
    assert freed.recent(100.0 + KEEP_SERIES_S - 1) == {key}
    assert freed.expired(100.0 + KEEP_SERIES_S) == {key}
    table = SeriesTable()
    table.add(front(3))
    table.gauge("shoal_version_state", "", {"model": "m", "version": "2", "state": "live"}, 1)
    table.drop_versions(freed.expired(100.0 + KEEP_SERIES_S))
    assert values(table) == {("shoal_version_state", "m", "2", "live"): 1}
    freed.revived(key)
    assert freed.expired(1e9) == set()


def model(steps: int, **changes: Any) -> ModelStatistics:
    """Every step: 0.5 s, 2 sequences, 10 of 20 tokens."""
    return msgspec.structs.replace(
        ModelStatistics(
            model="m",
            version=1,
            num_steps=steps,
            busy_s=0.5 * steps,
            num_sequences=2 * steps,
            num_tokens=10 * steps,
            budget_tokens=20 * steps,
            batch_sequences_buckets=[0, steps] + [0] * (len(SEQUENCE_BUCKETS) - 1),
            batch_tokens_buckets=[steps] + [0] * len(TOKEN_BUCKETS),
            inference_s_buckets=[0] * 9 + [steps] + [0] * (len(SECOND_BUCKETS) - 9),
            num_running=1,
            num_waiting=2,
            num_preempted=0,
            num_expired=steps,
            kv_blocks_used=3,
            kv_blocks_total=4,
            max_wait_s=0.0,
            forward_fixed_s=0.0,
            forward_token_s=0.0,
        ),
        **changes,
    )


def statistics(uptime_s: float, *models: ModelStatistics) -> EngineStatistics:
    return EngineStatistics(
        engine_id=0,
        uptime_s=uptime_s,
        busy_s=sum(m.busy_s for m in models),
        device_utilisation=0.5,
        device_memory_used_bytes=1,
        device_memory_total_bytes=2,
        models=list(models),
    )


def test_engine_figures() -> None:
    ledger = EngineLedger()
    ledger.statistics(statistics(10.0, model(0)))
    ledger.statistics(statistics(12.0, model(2)))
    found = merged(ledger)
    assert found["shoal_engine_busy_ratio", "0"] == 0.5
    assert found["shoal_engine_busy_seconds", "0"] == 1.0
    assert found["shoal_batch_sequences", "m", "1"] == 2
    assert found["shoal_batch_fill_ratio", "m", "1"] == 0.5
    assert found["shoal_requests_waiting", "m", "1"] == 2
    assert found["shoal_kv_blocks_total", "m", "1"] == 4
    assert found["shoal_device_memory_bytes", "0", "total"] == 2


def test_engine_counters_survive_restart_and_reload() -> None:
    """4 steps in the first life, 3 in the second, then the version is unloaded and loaded again for 1: 8 in all."""
    ledger = EngineLedger()
    ledger.statistics(statistics(10.0, model(4)))
    ledger.engine_lost(0)
    gone = merged(ledger)
    assert gone["shoal_expired", "m", "1"] == 4
    assert ("shoal_requests_running", "m", "1") not in gone
    assert ("shoal_engine_busy_ratio", "0") not in gone
    ledger.statistics(statistics(1.0, model(3)))
    assert merged(ledger)["shoal_expired", "m", "1"] == 7
    ledger.statistics(statistics(2.0))
    assert merged(ledger)["shoal_expired", "m", "1"] == 7
    ledger.statistics(statistics(3.0, model(1)))
    found = merged(ledger)
    assert found["shoal_expired", "m", "1"] == 8
    assert found["shoal_inference_seconds", "m", "1"] == 8


def test_reload_between_two_reports_is_noticed() -> None:
    ledger = EngineLedger()
    ledger.statistics(statistics(1.0, model(5)))
    ledger.statistics(statistics(2.0, model(2)))
    assert merged(ledger)["shoal_expired", "m", "1"] == 7


def test_ended_lives_of_a_freed_version_are_forgotten() -> None:
    ledger = EngineLedger()
    ledger.statistics(statistics(1.0, model(5)))
    ledger.statistics(statistics(2.0))
    ledger.drop_versions({VersionKey("m", 1)})
    assert ("shoal_expired", "m", "1") not in merged(ledger)


async def fetch(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = reply.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in rest)}, body


async def test_endpoint_speaks_both_formats_and_tells_readiness() -> None:
    is_serving = False
    endpoint = MetricsEndpoint(collect=lambda: front(3, 1, [1, 2, 3]), is_serving=lambda: is_serving)
    port = await endpoint.start("127.0.0.1", 0)
    try:
        status, headers, body = await fetch(port, "/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        samples = {
            (sample.name, sample.labels.get("le")): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }
        assert samples["shoal_rpc_requests_total", None] == 3
        assert samples["shoal_rpc_duration_seconds_bucket", "1.0"] == 3
        assert samples["shoal_rpc_duration_seconds_bucket", "+Inf"] == 6
        assert samples["shoal_rpc_duration_seconds_sum", None] == 3.0
        _, headers, body = await fetch(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        assert (await fetch(port, "/readyz"))[0] == 503
        is_serving = True
        assert (await fetch(port, "/readyz"))[0] == 200
        assert (await fetch(port, "/healthz"))[0] == 200
        assert (await fetch(port, "/other"))[0] == 404
    finally:
        await endpoint.stop()


async def test_large_scrapes_are_compressed_when_asked() -> None:
    families = [msgspec.structs.replace(front(3)[0], name=f"shoal_{number}") for number in range(50)]
    endpoint = MetricsEndpoint(collect=lambda: families, is_serving=lambda: True)
    port = await endpoint.start("127.0.0.1", 0)
    try:
        _, headers, body = await fetch(port, "/metrics", Accept_Encoding="gzip")
        assert headers["content-encoding"] == "gzip"
        assert b"shoal_49_total" in gzip.decompress(body)
    finally:
        await endpoint.stop()


@pytest.mark.parametrize("nonsense", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000])
async def test_nonsense_on_the_metrics_port_harms_nobody(nonsense: bytes) -> None:
    endpoint = MetricsEndpoint(collect=lambda: front(3), is_serving=lambda: True)
    port = await endpoint.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(nonsense)
        try:
            await reader.read()
        except ConnectionResetError:
            assert len(nonsense) > 16_384  # closed with bytes unread
        writer.close()
        assert (await fetch(port, "/healthz"))[0] == 200
    finally:
        await endpoint.stop()


def test_memory_of_a_version_is_shown_by_kind_and_summed_over_engines(tmp_path: Path) -> None:
    """Each of the two engines of the world holds 10 bytes of weights and 5 of cache, reckoned at 16."""
    world = World(num_engines=2)
    world.publish(make_found("m", 1))
    world.settle()
    conductor = Conductor(world.rollout, Peers(), RecordStore(tmp_path), tmp_path, bases_in_use=lambda: ())
    table = SeriesTable()
    add_versions(table, conductor)
    shown = values(table)
    assert shown["shoal_version_memory_bytes", "m", "1", "weights"] == 20
    assert shown["shoal_version_memory_bytes", "m", "1", "kv_cache"] == 10
    assert shown["shoal_version_reckoned_memory_bytes", "m", "1"] == 32
    assert version_status(world.rollout, world.rollout.entries[VersionKey("m", 1)]).memory_bytes == 30
    for engine_id in (0, 1):
        world.engine_down(engine_id)
    table = SeriesTable()
    add_versions(table, conductor)
    assert ("shoal_version_memory_bytes", "m", "1", "weights") not in values(table)
