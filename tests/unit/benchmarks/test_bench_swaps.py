"""What is said of swaps."""

from __future__ import annotations

import pytest

from benchmarks import swap_report
from benchmarks.calls import Arrival, Outcome
from benchmarks.loadgen import Recording


def recording(*outcomes: Outcome) -> Recording:
    streams = tuple(outcome.arrivals for outcome in outcomes)
    return Recording(
        outcomes=outcomes, completed=outcomes, streams=streams, num_unfinished=0, began_s=0.0, ended_s=10.0
    )


def classified(latency_s: float, version: int, *labels: str, code: str = "OK") -> Outcome:
    return Outcome(intended_s=0.0, ended_s=latency_s, code=code, version=version, top_labels=frozenset(labels))


def streamed(gap_s: float) -> Outcome:
    arrivals = (Arrival(at_s=1.0, num_tokens=1), Arrival(at_s=1.0 + gap_s, num_tokens=1))
    return Outcome(intended_s=0.0, ended_s=2.0, code="OK", version=1, arrivals=arrivals)


def test_swaps_are_compared_with_phases_without_and_mixed_replies_found() -> None:
    still = swap_report.PhaseResult(
        name="no swaps",
        num_swaps=0,
        busy_share=0.25,
        classify=recording(classified(0.1, 1, "label-1")),
        generate=recording(streamed(0.02)),
    )
    swapping = swap_report.PhaseResult(
        name="classifier swaps",
        num_swaps=3,
        busy_share=0.5,
        classify=recording(
            classified(0.2, 2, "label-0"),
            classified(0.1, 3, "label-1", "label-0"),
            classified(0.1, 4, "label-1"),
            classified(0.1, 0, code="UNAVAILABLE"),
        ),
        generate=recording(streamed(0.01)),
    )
    _, found = swap_report.compare([still, swapping, still])
    assert found.latency_ratio == pytest.approx(2.0)
    assert found.inter_token_ratio == pytest.approx(0.5)
    assert (found.num_mixed, found.num_failed) == (2, 1)
    assert found.busy_share == 0.5
