"""Packed forwards on a device, and the matrix products that bound them.

On a GPU time is told by its own events; on a processor, where only the logic is tried, by the clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from shoal_models.load import LoadedClassifier, load_version
from shoal_models.manifest import read_manifest
from shoal_models.packed import PackedRow, pack

from benchmarks import workload
from benchmarks.ceilings import Shape
from benchmarks.engines.work import by_budget
from benchmarks.front_load import VOCABULARY

DTYPE = torch.bfloat16
TRIES = 8  # of each shape
_TRY_PRODUCTS = 10  # in one try, so that the device is never without the next
_HOST = torch.device("cpu")


def matmul_flops(shapes: Sequence[Shape], device: torch.device) -> float:
    """Operations a second of the best try over all shapes."""
    return max(_shape_flops(shape, device) for shape in shapes)


def _shape_flops(shape: Shape, device: torch.device) -> float:
    left = torch.randn(shape.rows, shape.inner, dtype=DTYPE, device=device)
    right = torch.randn(shape.columns, shape.inner, dtype=DTYPE, device=device).t()  # as a linear layer's weight lies
    out = torch.empty(shape.rows, shape.columns, dtype=DTYPE, device=device)

    def multiply() -> None:
        for _ in range(_TRY_PRODUCTS):
            torch.mm(left, right, out=out)

    multiply()
    return shape.flops * _TRY_PRODUCTS / min(_seconds(multiply, device) for _ in range(TRIES))


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began_s = time.perf_counter()
        action()
        return time.perf_counter() - began_s
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    action()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


def load(repository: Path, name: str, device: torch.device) -> LoadedClassifier:
    """Version 1, as an engine has it."""
    path = repository / name / "1"
    loaded = load_version(path, read_manifest(path), dtype=DTYPE, device=device)
    assert isinstance(loaded, LoadedClassifier), "it was published as a classifier"
    return loaded


def rows_of(lengths: Sequence[int], row_tokens: int) -> list[PackedRow]:
    """Made-up texts of such lengths in rows of up to so many tokens, as the batcher plans them, in host memory."""
    rng = random.Random(0)
    ids = [rng.choices(VOCABULARY, k=length) for length in lengths]
    return [pack([ids[number] for number in batch], device=_HOST) for batch in by_budget(ids, row_tokens)]


def draw_lengths(count: int) -> list[int]:
    """Of the workload, in tokens."""
    rng = random.Random(0)
    return [workload.CLASSIFY_LENGTHS.draw(rng) for _ in range(count)]


def pass_seconds(loaded: LoadedClassifier, rows: Sequence[PackedRow], seconds: float) -> float:
    """What one pass over all rows takes, of whole passes for so long; rows are launched one behind another."""
    _pass(loaded, rows)
    began_s, num_passes = time.perf_counter(), 0
    while (taken_s := time.perf_counter() - began_s) < seconds or not num_passes:
        _pass(loaded, rows)
        num_passes += 1
    return taken_s / num_passes


def _pass(loaded: LoadedClassifier, rows: Sequence[PackedRow]) -> None:
    for row in rows:
        loaded.logits(row)
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
