"""Rates, percentiles and goodput of a recording."""

from __future__ import annotations

import math

from benchmarks.calls import Arrival, Outcome
from benchmarks.loadgen import Recording
from benchmarks.summary import Slo, percentile, percentiles, summarise


def outcome(intended_s: float, ended_s: float, code: str = "OK", tokens: tuple[tuple[float, int], ...] = ()) -> Outcome:
    arrivals = tuple(Arrival(at_s=at_s, num_tokens=count) for at_s, count in tokens)
    return Outcome(intended_s=intended_s, ended_s=ended_s, code=code, version=3, num_inputs=1, arrivals=arrivals)


def recording(*outcomes: Outcome, began_s: float = 0.0, ended_s: float = 10.0) -> Recording:
    streams = tuple(o.arrivals for o in outcomes)
    completed = tuple(o for o in outcomes if began_s <= o.ended_s <= ended_s)
    return Recording(
        outcomes=outcomes, completed=completed, streams=streams, num_unfinished=0, began_s=began_s, ended_s=ended_s
    )


def test_percentile_is_the_smallest_value_with_that_share_at_or_below() -> None:
    """Of 1..100, 99 % lie at or below 99 and half at or below 50."""
    ordered = [float(value) for value in range(1, 101)]
    assert percentile(ordered, 0.99) == 99.0
    assert percentile(ordered, 0.50) == 50.0
    assert percentile([7.0], 0.01) == 7.0


def test_percentiles_of_nothing_are_no_figures() -> None:
    found = percentiles([])
    assert found.count == 0
    assert math.isnan(found.p99_s)
    assert math.isnan(found.mean_s)


def test_rates_count_what_ended_in_the_window_and_errors_apart() -> None:
    """Two OK calls end within 10 s; a third ends after, which counts for latency but not for throughput."""
    found = summarise(
        recording(
            outcome(0, 1), outcome(1, 3), outcome(9, 12), outcome(2, 2.5, "UNAVAILABLE"), outcome(3, 4, "INTERNAL")
        )
    )
    assert found.calls_per_s == 0.2
    assert found.errors == {"UNAVAILABLE": 1, "INTERNAL": 1}
    assert found.latency.count == 3
    assert found.latency.max_s == 3
    assert found.versions == {3: 3}


def test_latency_counts_from_when_the_call_ought_to_have_been_sent() -> None:
    assert outcome(1.0, 4.0, tokens=((3.5, 1),)).latency_s == 3.0
    assert outcome(1.0, 4.0, tokens=((3.5, 1),)).first_token_s == 2.5


def test_tokens_that_come_together_waited_once() -> None:
    """Messages at 1.0, 1.5 and 1.6 s with 1, 3 and 1 tokens: waits of 0.5 (then two of 0) and 0.1."""
    gaps = outcome(0.0, 2.0, tokens=((1.0, 1), (1.5, 3), (1.6, 1))).inter_token_s
    assert [round(gap, 6) for gap in gaps] == [0.5, 0.0, 0.0, 0.1]


def test_goodput_counts_only_calls_within_every_bound() -> None:
    slo = Slo(latency_s=2.0, first_token_s=1.0, mean_inter_token_s=0.2)
    good = outcome(0, 1.5, tokens=((0.5, 1), (0.6, 1)))
    late_start = outcome(0, 1.5, tokens=((1.2, 1), (1.3, 1)))
    halting = outcome(0, 1.5, tokens=((0.5, 1), (1.4, 1)))
    slow = outcome(0, 2.5, tokens=((0.5, 1), (0.6, 1)))
    failed = outcome(0, 0.1, "UNAVAILABLE")
    assert [slo.met_by(o) for o in (good, late_start, halting, slow, failed)] == [True, False, False, False, False]
    assert summarise(recording(good, late_start, halting, slow, failed), slo).goodput_per_s == 0.1
    assert summarise(recording(good)).goodput_per_s is None
