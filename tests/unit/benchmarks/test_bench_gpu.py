"""What is said of a GPU, and of which models; no device is needed."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import gpu_classify, gpu_forward, gpu_models, gpu_report
from benchmarks.ceilings import Shape as Product
from benchmarks.front_load import Cpu, Measured, Shape
from benchmarks.gpu_report import ForwardResult, GpuResults, ServedResult

MANY = Shape(streamed=False, texts=32, ids=False, in_flight=8)
ONE = Shape(streamed=False, texts=1, ids=False, in_flight=64)


def forward(model: str, flops_per_s: float, *, captured: bool = True, row_tokens: int = 512) -> ForwardResult:
    return ForwardResult(
        model=model, row_tokens=row_tokens, texts_per_s=1234.5, flops_per_s=flops_per_s, captured=captured
    )


def served(num_fronts: int, texts_per_s: float, busy_share: float, shape: Shape = MANY) -> ServedResult:
    return ServedResult(
        num_fronts=num_fronts,
        shape=shape,
        texts_per_s=texts_per_s,
        busy_share=busy_share,
        front_cores=0.9,
        engine_cores=0.4,
        load_cores=0.3,
        num_errors=0,
    )


def results(forwards: tuple[ForwardResult, ...] = (), loads: tuple[ServedResult, ...] = ()) -> GpuResults:
    return GpuResults(device="a GPU", ceiling_flops=1e12, forwards=forwards, served=loads, measured_at=0.0)


def test_a_model_is_judged_by_its_best_row_with_captures() -> None:
    """Of a ceiling of 1e12: 0.55 is enough, 0.9 without captures and 0.9 of another model do not count."""
    found = results((forward("base", 4e11), forward("base", 5.5e11, row_tokens=1024), forward("large", 9e11)))
    found = results((*found.forwards, forward("base", 9e11, captured=False)))
    base, large, missing, *_ = gpu_report.verdicts(found, ["base", "large", "nothing"])
    assert (base.value, base.word()) == (0.55, "met")
    assert (large.value, large.word()) == (0.9, "aim met")
    assert math.isnan(missing.value)
    assert missing.word() == "not measured"


def test_fronts_are_the_limit_where_the_gpu_idles_and_a_second_front_helps() -> None:
    loads = (served(1, 1000, 0.2), served(1, 9, 1.0, ONE), served(2, 1800, 0.4), served(2, 9, 1.0, ONE))
    busy, gain = gpu_report.verdicts(results(loads=loads), [])
    assert (busy.value, busy.word()) == (0.4, "aim met")
    assert (gain.value, gain.word()) == (1.8, "aim met")
    busy, gain = gpu_report.verdicts(results(loads=(served(1, 1000, 0.9), served(2, 1100, 0.95))), [])
    assert (busy.word(), gain.word()) == ("missed", "missed")
    assert [v.word() for v in gpu_report.verdicts(results(), [])] == ["not measured"] * 2


def test_page_has_a_line_for_each_row_and_load() -> None:
    forwards = (forward("base", 5e11), forward("base", 2.5e11, captured=False), forward("base", 6e11, row_tokens=8192))
    page = gpu_report.page(results(forwards, (served(2, 1800, 0.4),)), ["base"], num_loads=2)
    assert "Measured 1970-01-01" in page
    assert "| base | 512 | 1,234 | 50.0% | 1,234 | 25.0% |" in page
    assert "| base | 8,192 | 1,234 | 60.0% | - | - |" in page
    assert "| 2 | 32 texts a call, text, 8 in flight | 1,800 | 40% | 0.90 | 0.40 | 0.30 | 0 |" in page
    assert "1 TFLOP/s" in page


def test_sizes_are_those_of_the_models_they_are_named_after() -> None:
    """Weights of a layer's products: 12 x hidden^2 where the inner size is four times the hidden one."""
    for size in (gpu_models.MINILM, gpu_models.BASE, gpu_models.LARGE):
        assert size.work().layer_weights == 12 * size.hidden**2
        assert sum(p.flops for p in size.shapes(10)) == 2 * 10 * size.work().layer_weights
    assert gpu_models.BASE.shapes(8)[0] == Product(rows=8, inner=768, columns=2304)
    small = gpu_models.BASE.scaled(12)
    assert (small.hidden, small.num_heads, small.num_layers, small.inner) == (64, 1, 1, 256)


def test_rows_hold_all_texts_within_their_tokens() -> None:
    lengths = gpu_forward.draw_lengths(200)
    rows = gpu_forward.rows_of(lengths, 512)
    assert [length for row in rows for length in row.lengths] == lengths
    assert max(row.starts[-1] for row in rows) <= 512


def test_loads_add_up_and_cores_are_read_once() -> None:
    """500 texts in 2 s from each of two; fronts used 1.0 and 0.5 s of 2, the engine 0.8, the busier load 1.2."""
    pids = tuple(Cpu(all_s=all_s, io_s=0.0) for all_s in (1.0, 0.5, 0.8))
    loads = [
        Measured(seconds=2.0, num_texts=500, num_errors=errors, load=Cpu(all_s=all_s, io_s=0.0), processes=pids)
        for errors, all_s in ((0, 1.0), (3, 1.2))
    ]
    found = gpu_classify._result(MANY, 2, loads, 0.5)
    assert (found.texts_per_s, found.num_errors) == (500.0, 3)
    assert (found.front_cores, found.engine_cores, found.load_cores) == (0.75, 0.4, 0.6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_classify.main([]) == 2
    assert "torch finds no CUDA device here" in capsys.readouterr().err
