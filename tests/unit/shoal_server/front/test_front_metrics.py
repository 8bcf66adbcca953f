"""What a front counts, as control gets it."""

from __future__ import annotations

from shoal_server.front.metrics import FREED_SERIES_S, FrontMetrics
from shoal_server.ipc.messages import SECOND_BUCKETS, Family, MetricsSnapshot


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _family(snapshot: MetricsSnapshot, name: str) -> Family:
    (found,) = [family for family in snapshot.families if family.name == name]
    return found


def test_rpc_is_counted_under_its_labels() -> None:
    metrics = FrontMetrics()
    for _ in range(2):
        metrics.count_rpc("Classify", "OK", ("m", "1"), 0.5)
    metrics.count_rpc("Classify", "NOT_FOUND", ("", ""), 0.5)
    family = _family(metrics.snapshot(0), "shoal_rpc_requests")
    assert family.type == "counter"
    assert family.label_names == ["method", "code", "model", "version"]
    assert {tuple(sample.labels): sample.value for sample in family.samples} == {
        ("Classify", "OK", "m", "1"): 2.0,
        ("Classify", "NOT_FOUND", "", ""): 1.0,
    }


def test_durations_fall_into_buckets_that_own_their_upper_bound() -> None:
    """0 and the first bound into the first bucket, just above it into the second, beyond all bounds into the last."""
    metrics = FrontMetrics()
    served = metrics.version("m", 1)
    durations = [0.0, SECOND_BUCKETS[0], SECOND_BUCKETS[0] * 1.01, SECOND_BUCKETS[-1] + 1]
    for duration_s in durations:
        served.queue_s.observe(duration_s)
    (sample,) = _family(metrics.snapshot(0), "shoal_queue_seconds").samples
    assert sample.buckets == [2, 1, *[0] * (len(SECOND_BUCKETS) - 2), 1]
    assert sample.total == sum(durations)


def test_gauge_falls_as_requests_end() -> None:
    metrics = FrontMetrics()
    served = metrics.version("m", 1)
    served.in_flight.inc()
    served.in_flight.inc()
    served.in_flight.dec()
    (sample,) = _family(metrics.snapshot(0), "shoal_requests_in_flight").samples
    assert (sample.labels, sample.value) == (["m", "1"], 1.0)


def test_snapshot_does_not_change_afterwards() -> None:
    metrics = FrontMetrics()
    served = metrics.version("m", 1)
    before = metrics.snapshot(0)
    served.tokenize_s.observe(0.5)
    (sample,) = _family(before, "shoal_tokenize_seconds").samples
    assert sum(sample.buckets) == 0


def test_series_of_a_freed_version_stay_for_a_while_and_those_of_others_for_good() -> None:
    clock = _Clock()
    metrics = FrontMetrics(clock)
    for version in (1, 2):
        metrics.version("m", version)
        metrics.count_rpc("Classify", "OK", ("m", str(version)), 0.5)
    metrics.version_freed("m", 1)
    clock.now_s = FREED_SERIES_S - 1
    names = ("shoal_rpc_requests", "shoal_queue_seconds", "shoal_requests_in_flight")
    assert [len(_family(metrics.snapshot(0), name).samples) for name in names] == [2, 2, 2]
    clock.now_s = FREED_SERIES_S
    snapshot = metrics.snapshot(0)
    assert [[sample.labels[-1] for sample in _family(snapshot, name).samples] for name in names] == [["2"]] * 3
