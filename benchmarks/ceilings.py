"""What the machine could do at most, measured in the same run: matrix products and reading of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from benchmarks.limits import Ceilings, Work


def measure() -> Ceilings:
    """Takes about three seconds. The number of torch threads is left as it was."""
    before = torch.get_num_threads()
    num_threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    try:
        return Ceilings(
            float32_gflops=_matmul_gflops(torch.float32, 1024),
            bfloat16_gflops=_matmul_gflops(torch.bfloat16, 512),
            read_gb_per_s=_read_gb_per_s(),
            num_threads=num_threads,
        )
    finally:
        torch.set_num_threads(before)


def _matmul_gflops(dtype: torch.dtype, size: int) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / _best_s(lambda: left @ right) / 1e9


def _read_gb_per_s() -> float:
    array = torch.ones(2**26)  # 256 MiB
    return array.numel() * 4 / _best_s(array.sum) / 1e9


def _best_s(action: Callable[[], object], limit_s: float = 1.0) -> float:
    """Shortest time of many tries: a ceiling is what can be reached, not what usually is."""
    best_s = float("inf")
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        best_s = min(best_s, time.perf_counter() - start)
    return best_s


def work_of(model: torch.nn.Module) -> Work:
    """Count the weights of a model's linear layers; an output layer that shares the embedding counts too."""
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return Work(
        num_matmul_weights=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
    )
