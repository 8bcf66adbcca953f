"""What the machine could do at most, measured in the same run: matrix products and reading of memory.

A ceiling is the best of many tries over large squares and the shapes of the served encoder, each in every way that
torch offers on a CPU, with all cores as threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from shoal_models.linears import has_mkldnn

from benchmarks.limits import Ceilings, DecoderWork, EncoderWork

_MKLDNN: Any = torch.ops.mkldnn
TRY_S = 0.3  # for each shape and way


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a product of (rows, inner) with (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition each."""
        return 2 * self.rows * self.inner * self.columns


SHAPES = (
    *(Shape(rows=size, inner=size, columns=size) for size in (512, 1024, 2048)),
    Shape(rows=1024, inner=384, columns=384),
    Shape(rows=1024, inner=384, columns=1536),
    Shape(rows=1024, inner=1536, columns=384),
)


def measure() -> Ceilings:
    """Takes about fifteen seconds. The number of torch threads is left as it was."""
    before = torch.get_num_threads()
    num_threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    try:
        with torch.inference_mode():
            return Ceilings(
                gflops={
                    "float32": _best_gflops(lambda shape: _floating(torch.float32, shape)),
                    "bfloat16": _best_gflops(lambda shape: _floating(torch.bfloat16, shape)),
                    "int8": _best_gflops(_integer),
                },
                read_gb_per_s=_read_gb_per_s(),
                num_threads=num_threads,
            )
    finally:
        torch.set_num_threads(before)


def _best_gflops(ways: Callable[[Shape], Iterator[Callable[[], object]]]) -> float:
    return max(shape.flops / _best_s(way) / 1e9 for shape in SHAPES for way in ways(shape))


def _floating(dtype: torch.dtype, shape: Shape) -> Iterator[Callable[[], object]]:
    """A plain product, and a linear layer with weights in oneDNN's own layout where there are any."""
    left = torch.randn(shape.rows, shape.inner).to(dtype)
    right = torch.randn(shape.inner, shape.columns).to(dtype)
    out = torch.empty(shape.rows, shape.columns, dtype=dtype)
    yield lambda: torch.mm(left, right, out=out)
    if has_mkldnn() and (dtype == torch.float32 or _MKLDNN._is_mkldnn_bf16_supported()):  # noqa: SLF001
        packed = _MKLDNN._reorder_linear_weight(right.t().contiguous(), shape.rows)  # noqa: SLF001
        yield lambda: _MKLDNN._linear_pointwise(left, packed, None, "none", [], "")  # noqa: SLF001


def _integer(shape: Shape) -> Iterator[Callable[[], object]]:
    left = torch.randint(-128, 127, (shape.rows, shape.inner), dtype=torch.int8)
    right = torch.randint(-128, 127, (shape.inner, shape.columns), dtype=torch.int8)
    yield lambda: torch._int_mm(left, right)  # noqa: SLF001


def _read_gb_per_s() -> float:
    array = torch.ones(2**26)  # 256 MiB
    return array.numel() * 4 / _best_s(array.sum) / 1e9


def _best_s(action: Callable[[], object]) -> float:
    """Shortest time of many tries: a ceiling is what can be reached, not what usually is."""
    best_s = float("inf")
    end = time.perf_counter() + TRY_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        best_s = min(best_s, time.perf_counter() - start)
    return best_s


def encoder_work(config: Any) -> EncoderWork:
    """From a transformers configuration of a BERT-like encoder."""
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    return EncoderWork(
        layer_weights=4 * hidden * hidden + 2 * hidden * inner,
        num_layers=int(config.num_hidden_layers),
        hidden_size=hidden,
    )


def decoder_work(config: Any) -> DecoderWork:
    """From a transformers configuration of a Llama-like decoder; its output layer counts, its embedding does not."""
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    keys = hidden // int(config.num_attention_heads) * int(config.num_key_value_heads)
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    return DecoderWork(num_matmul_weights=int(config.num_hidden_layers) * layer + hidden * int(config.vocab_size))
