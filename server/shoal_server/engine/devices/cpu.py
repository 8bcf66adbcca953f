"""The processor: threads, the dtype it computes fastest, its memory, and giving memory back to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from pathlib import Path

import psutil
import torch
from shoal_models.compute import ComputeError, choose_compute, has_native_bfloat16

from shoal_server.config import ConfigError, EngineConfig
from shoal_server.engine.devices.memory import Memory, host_memory


class CpuDevice:
    """The cores that this engine was given."""

    name = "cpu"
    commits_lazily = True
    queues_forwards = False
    classify_token_budget = 1024  # the activations of more fall out of the caches

    def __init__(self, config: EngineConfig) -> None:
        self.full_name = _processor_name()
        self.torch_device = torch.device("cpu")
        self.num_step_threads = config.num_threads or default_num_step_threads(config.num_engines)
        self.num_lanes = config.num_threads or default_num_lanes(config.num_engines)
        self.dtype = _choose_dtype(config, self.torch_device)
        self._memory_limit_bytes = config.memory_limit_bytes
        self._process = psutil.Process()
        self._last_s = time.monotonic()
        self._last_cpu_s = self._cpu_s()

    def setup(self) -> None:
        """Keep the calling thread to one core: only `lanes` compute on several."""
        torch.set_num_threads(1)

    def memory(self) -> Memory:
        """This process's resident set, and the tightest limit around it."""
        return host_memory(self._memory_limit_bytes)

    def utilisation(self) -> float:
        """CPU time since the last call, as a share of what the threads could have used."""
        now_s, cpu_s = time.monotonic(), self._cpu_s()
        share = (cpu_s - self._last_cpu_s) / max((now_s - self._last_s) * self.num_lanes, 1e-9)
        self._last_s, self._last_cpu_s = now_s, cpu_s
        return min(max(share, 0.0), 1.0)

    def give_back(self) -> None:
        """Return the allocator's free pages to the system (glibc keeps them otherwise)."""
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)

    def is_lost(self, error: BaseException) -> bool:
        """A processor outlives every error."""
        del error
        return False

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


def default_num_step_threads(num_engines: int) -> int:
    """Threads of one Generate step: all cores but one, divided by the engines; at most OMP_NUM_THREADS.

    One is left to the fronts: threads of one forward wait for each other, and a single one that has to share its core
    holds up all of them.
    """
    return _within_limit((_num_cores() - 1) // max(num_engines, 1))


def default_num_lanes(num_engines: int) -> int:
    """Classify forwards side by side: one for each core, divided by the engines; at most OMP_NUM_THREADS.

    They do not wait for each other, so that fronts may well take a little of any core.
    """
    return _within_limit(_num_cores() // max(num_engines, 1))


def _num_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(cores, _quota_cores()))


def _within_limit(num_threads: int) -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    most = int(limit) if limit.isdigit() and int(limit) > 0 else num_threads
    return max(1, min(num_threads, most))


def _quota_cores() -> float:
    """Cores' worth of time that the control group allows; infinite without a limit."""
    try:
        quota, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().strip().partition(" ")
    except OSError:
        return float("inf")
    return max(1.0, int(quota) / int(period)) if quota.isdigit() else float("inf")


def _choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if has_native_bfloat16() else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    try:
        choose_compute(dtype, device)
    except ComputeError as error:
        raise ConfigError(f"engine.dtype is {config.dtype}: {error}") from None
    return dtype


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
