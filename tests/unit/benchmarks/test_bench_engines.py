"""How texts are put together for engines, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.engines import table, work
from benchmarks.engines.rounds import EngineResult, EngineResults
from benchmarks.engines.work import Setup
from benchmarks.limits import Ceilings
from benchmarks.records import Checked

IDS = [[1] * length for length in (5, 2, 9, 3, 12, 1)]
GOOD = Checked(agreement=1.0, max_difference=0.0, passed=True)
CEILINGS = Ceilings(gflops={"bfloat16": 400.0, "int8": 800.0, "float32": 100.0}, read_gb_per_s=1.0, num_threads=2)


def test_padded_batches_hold_texts_of_like_lengths() -> None:
    assert work.by_length(IDS, 2) == [[5, 1], [3, 0], [2, 4]]


def test_packed_rows_keep_the_order_and_the_budget_but_for_a_text_that_is_longer_alone() -> None:
    assert work.by_budget(IDS, 10) == [[0, 1], [2], [3], [4], [5]]
    assert work.by_budget(IDS, 16) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_whole_passes_are_counted_and_scores_come_in_the_order_of_the_texts(num_lanes: int) -> None:
    calls: list[int] = []

    def forward(batch: list[list[int]]) -> Sequence[Sequence[float]]:
        calls.append(len(batch))
        return [[float(len(ids))] for ids in batch]

    ran = work.run(work.by_length(IDS, 4), IDS, [forward] * num_lanes, seconds=0.01, num_checked=4)
    assert ran.scores == [[5.0], [2.0], [9.0], [3.0]]
    assert sum(calls) % len(IDS) == 0
    assert ran.tokens_per_s / ran.texts_per_s == pytest.approx(32 / 6)


def result(name: str, dtype: str, rate: float, *, passed: bool = True) -> EngineResult:
    return EngineResult(
        name=name,
        dtype=dtype,
        setup=Setup(lanes=1, threads=2, batch=32),
        texts_per_s=[rate, rate * 2, 1.0],
        flops_per_s=[rate * 1e9, rate * 2e9, 1e9],
        checked=Checked(agreement=1.0, max_difference=0.0, passed=passed),
    )


def test_fastest_of_our_engines_with_right_answers_is_compared() -> None:
    """Shoal in int8 is faster but wrong, so the ratios are of 200 to 100 and to 400 texts/s."""
    found = EngineResults(
        engines=[
            result("Shoal bfloat16", "bfloat16", 200.0),
            result("Shoal int8", "int8", 900.0, passed=False),
            result("OpenVINO bfloat16", "bfloat16", 100.0),
            result("ONNX Runtime int8", "int8", 400.0),
        ],
        ceilings=CEILINGS,
    )
    verdicts = table.verdicts(found)
    assert [(v.value, v.word()) for v in verdicts[:2]] == [(2.0, "aim met"), (0.5, "missed")]
    assert verdicts[2].value == 0.5
    assert "WRONG" in table.table(found).lines[1][-1]


def test_engine_that_does_not_run_is_a_row_with_the_reason() -> None:
    found = EngineResults(
        engines=[EngineResult(name="OpenVINO bfloat16", dtype="bfloat16", failure="no such processor")],
        ceilings=CEILINGS,
    )
    assert table.table(found).lines[0][:2] == ("OpenVINO bfloat16", "no such processor")
    assert [verdict.word() for verdict in table.verdicts(found)] == ["not measured"]
    assert table.section(None) == ""
