"""Ratios, tables and verdicts of a side-by-side run."""

from __future__ import annotations

import math

import pytest

from benchmarks import results_page, tables
from benchmarks.limits import Ceilings
from benchmarks.plan import CLOSED, OPEN
from benchmarks.records import Checked, Load, Measure, Turn
from benchmarks.tables import Verdict

GOOD = Checked(agreement=1.0, max_difference=1e-7, passed=True)


def closed(name: str, number: int, rate: float, *, p50_s: float = 0.1, checked: Checked = GOOD) -> Turn:
    loads = [Load(in_flight=count) for count in (1, 32, 64)]
    measures = tuple(Measure(load=load, rate=rate, num_calls=10, p50_s=p50_s, cpu_s=0.02) for load in loads)
    return Turn(
        part=CLOSED, dtype="float32", round=number, name=name, described="set so", measures=measures, checked=checked
    )


def opened(name: str, number: int, p99_s: float) -> Turn:
    measure = Measure(load=Load(rate=50.0 + number), rate=50.0, num_calls=10, p99_s=p99_s, errors={"HTTP 500": 2})
    return Turn(part=OPEN, dtype="float32", round=number, name=name, measures=(measure,))


TURNS = [
    *(closed("Shoal", number, rate, p50_s=0.01) for number, rate in enumerate((300.0, 900.0, 310.0))),
    *(closed("mosec", number, rate) for number, rate in enumerate((100.0, 1.0, 130.0))),
    *(closed("naive", number, 50.0) for number in range(3)),
    Turn(part=CLOSED, dtype="float32", round=0, name="transformers", measures=(
        Measure(load=Load(in_flight=1), rate=80.0, num_calls=9, p50_s=0.02),
    )),
    Turn(part=CLOSED, dtype="float32", round=0, name="rayserve", failure="cannot be installed: no wheel | for this"),
    *(opened("Shoal", number, p99_s) for number, p99_s in enumerate((0.02, 0.5, 0.03))),
    *(opened("mosec", number, 0.1) for number in range(3)),
]  # fmt: skip


def test_ratio_is_that_of_the_medians_of_the_rounds() -> None:
    """Medians are 310 and 100."""
    verdict = tables.verdicts(TURNS, "float32")[0]
    assert verdict.value == pytest.approx(3.1)
    assert verdict.line() == ("throughput, float32, 32 in flight, to mosec", "3.10", ">= 2.5", ">= 3.5", "met")


def test_latencies_are_compared_with_the_best_peer_and_the_bare_forward() -> None:
    """p99 0.03 of 0.1 s at equal load; p50 10 of 20 ms one request at a time."""
    _, _, p99, single = tables.verdicts(TURNS, "float32")
    assert (p99.value, p99.word()) == (pytest.approx(0.3), "aim met")
    assert (single.value, single.word()) == (pytest.approx(0.5), "aim met")


def test_verdict_of_what_was_not_measured_says_so() -> None:
    assert {verdict.word() for verdict in tables.verdicts([], "float32")} == {"not measured"}
    assert Verdict(what="x", value=2.4, must=2.5, aim=3.5, at_least=True).word() == "missed"


def test_peer_that_cannot_be_installed_is_a_row_with_the_reason() -> None:
    table = tables.closed_table(TURNS, "float32")
    assert [line[0] for line in table.lines] == ["Shoal", "mosec", "transformers", "naive", "rayserve"]
    assert table.lines[-1][-1] == "cannot be installed: no wheel / for this"
    assert "| rayserve | - | - |" in table.markdown()


def test_wrong_answers_of_any_round_are_shouted() -> None:
    bad = closed("mosec", 3, 500.0, checked=Checked(agreement=0.5, max_difference=0.3, passed=False))
    line = next(line for line in tables.closed_table([*TURNS, bad], "float32").lines if line[0] == "mosec")
    assert "50.0%, 3e-01, WRONG" in line


def test_calls_that_failed_are_counted_over_all_rounds() -> None:
    assert [line[-1] for line in tables.open_table(TURNS, "float32").lines] == ["6", "6"]


def test_figure_that_is_missing_is_a_dash() -> None:
    assert tables.figure(math.nan) == "-"
    assert tables.figure(1234.5, 0) == "1,234"
    assert tables.milliseconds(0.0123) == "12.3"


def test_page_tells_what_bfloat16_means_without_its_instructions() -> None:
    slow = Ceilings(gflops={"float32": 100.0, "bfloat16": 9.0, "int8": 50.0}, read_gb_per_s=10.0, num_threads=2)
    fast = Ceilings(gflops={"float32": 100.0, "bfloat16": 400.0, "int8": 50.0}, read_gb_per_s=10.0, num_threads=2)
    assert "no bfloat16 instructions" in results_page.limits_text(slow)
    assert "no bfloat16 instructions" not in results_page.limits_text(fast)
    assert "400 GFLOP/s in bfloat16" in results_page.limits_text(fast)
