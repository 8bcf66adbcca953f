"""What is said of a side-by-side run and of swaps."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import markdown, swap_report
from benchmarks.calls import Arrival, Outcome
from benchmarks.cases import CASES
from benchmarks.limits import Ceilings, Work
from benchmarks.loadgen import Recording
from benchmarks.results import CaseResult, Results
from benchmarks.summary import Summary, percentiles

CEILINGS = Ceilings(float32_gflops=100.0, bfloat16_gflops=2.0, read_gb_per_s=10.0, num_threads=2)
WORK = Work(num_matmul_weights=10_000_000, weight_bytes=40_000_000)


def summary(rate: float) -> Summary:
    return Summary(
        duration_s=10, num_calls=1, num_unfinished=0, errors={}, calls_per_s=rate, inputs_per_s=rate,
        input_tokens_per_s=rate * 30, output_tokens_per_s=rate, goodput_per_s=None, latency=percentiles([0.1]),
        first_token=percentiles([]), inter_token=percentiles([]),
    )  # fmt: skip


def result(
    number: int, shoal: tuple[float, ...], naive: tuple[float, ...], compute_dtype: str = "float32"
) -> CaseResult:
    return CaseResult(
        case=CASES[number],
        shoal=tuple(map(summary, shoal)),
        naive=tuple(map(summary, naive)),
        compute_dtype=compute_dtype,
        work=WORK,
    )


def test_ratio_is_that_of_the_medians() -> None:
    found = result(0, (10.0, 90.0, 30.0), (10.0, 11.0, 1.0))
    assert found.ratio == 3.0
    assert found.verdict() == "1.5x: met"
    assert result(0, (14.0,), (10.0,)).verdict() == "1.5x: missed"


def test_classify_is_set_against_matrix_products() -> None:
    """100 GFLOP/s over 2 x 10M multiply-adds a token allow 5,000 tokens/s; 50 texts of 30 tokens are 1,500."""
    assert result(0, (50.0,), (1.0,)).share_of_limit(CEILINGS) == pytest.approx(0.3)


def test_generate_is_set_against_the_slower_of_memory_and_products() -> None:
    """A step of 16 reads 40 MB in 4 ms and multiplies for 3.2 ms: 16 tokens every 4 ms are 4,000 a second."""
    assert result(2, (1000.0,), (1.0,)).share_of_limit(CEILINGS) == pytest.approx(0.25)


def test_page_tells_what_bfloat16_means_without_its_instructions() -> None:
    found = (result(0, (50.0,), (25.0,)), result(1, (50.0,), (5.0,), "float32 (bfloat16 weights)"))
    text = markdown.page(Results(cases=found, ceilings=CEILINGS, num_rounds=1, measured_at=0.0))
    assert "| Classify, bfloat16 | 50.0 texts/s | 5.0 texts/s | 10.00x | 2.5x: met |" in text
    assert "- Classify, bfloat16: 2.00x" in text
    native = dataclasses.replace(found[1], compute_dtype="bfloat16")
    page = markdown.page(Results(cases=(found[0], native), ceilings=CEILINGS, num_rounds=1, measured_at=0.0))
    assert "no bfloat16 instructions" not in page


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
