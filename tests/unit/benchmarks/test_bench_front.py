"""What is said of the front's budget."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import front_report
from benchmarks.front_hops import Hop
from benchmarks.front_load import Cpu, Measured, Shape
from benchmarks.front_report import Budget, HopColumn

ONE = Shape(streamed=False, texts=1, ids=True, in_flight=32)
MANY = Shape(streamed=False, texts=32, ids=True, in_flight=4)


def measured(num_texts: int, *processes: tuple[float, float]) -> Measured:
    return Measured(
        seconds=2.0,
        num_texts=num_texts,
        num_errors=0,
        load=Cpu(all_s=1.0, io_s=0.0),
        processes=tuple(Cpu(all_s=all_s, io_s=io_s) for all_s, io_s in processes),
    )


def test_what_is_in_front_of_the_engine_is_all_of_the_fronts_and_the_engines_io_thread() -> None:
    """1,000 texts: two fronts of 0.2 s are 400 us a text, the engine's IO thread's 0.05 s are 50 us."""
    found = front_report.cost(ONE, measured(1000, (0.2, 0.0), (0.2, 0.0), (0.35, 0.05)), num_fronts=2)
    assert found.texts_per_s == 500
    assert found.front_us == pytest.approx(400)
    assert found.ahead_us == pytest.approx(450)
    assert found.engine_rest_us == pytest.approx(300)
    assert found.load_us == pytest.approx(1000)


def test_verdicts_tell_what_was_met_and_what_was_missed() -> None:
    """0.5 s of a front over 1,000 texts are 0.5 ms: within the must of 0.7, above the aim of 0.4."""
    single = front_report.cost(ONE, measured(1000, (0.5, 0.0), (0.3, 0.0)), num_fronts=1)
    many = front_report.cost(MANY, measured(18_000, (0.5, 0.0), (0.3, 0.0)), num_fronts=1)
    (_, ms, must, aim), (_, rate, enough, aimed) = front_report.verdicts([single, many])
    assert (ms, must, aim) == ("0.50 ms", "<= 0.7 ms: met", "<= 0.4 ms: missed")
    assert (rate, enough, aimed) == ("9,000 texts/s", ">= 8,000: met", ">= 20,000: missed")


def test_text_and_streams_of_single_items_have_no_target() -> None:
    shapes = dataclasses.replace(MANY, ids=False), dataclasses.replace(ONE, streamed=True)
    costs = [front_report.cost(shape, measured(1, (0.1, 0.1), (0.1, 0.1)), num_fronts=1) for shape in shapes]
    assert front_report.verdicts(costs) == []


def test_page_has_every_shape_and_every_step() -> None:
    found = front_report.cost(MANY, measured(1000, (0.5, 0.0), (0.3, 0.0)), num_fronts=1)
    column = HopColumn(num_texts=32, ids=True, hops=(Hop(name="parse", us=12.34),))
    budget = Budget(costs=(found,), two_fronts=(found,), floor=(found,), hops=(column,), measured_at=0.0)
    page = front_report.page(budget, num_rounds=3)
    assert "Measured 1970-01-01" in page
    assert page.count("| 32 texts a call, token ids, 4 in flight | 500 |") == 3
    assert "| step | 32 texts, token ids |" in page
    assert "| parse | 12.3 |" in page
