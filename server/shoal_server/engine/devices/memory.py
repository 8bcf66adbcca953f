"""How much main memory there is for this process, and how much of it a new version may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from shoal_models.memory import available_memory

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a device's memory."""

    used_bytes: int  # by this process on a CPU, by everybody on a GPU
    total_bytes: int
    free_bytes: int  # what a new version may take


def host_memory(configured_limit_bytes: int | None) -> Memory:
    """Main memory as this process sees it: the machine's, its container's, or what the configuration allows."""
    used = psutil.Process().memory_info().rss
    machine = psutil.virtual_memory()
    total = min(machine.total, *(_read_limit(path, machine.total) for path in _CGROUP_LIMITS))
    available = available_memory(torch.device("cpu"))
    free = machine.available if available is None else available
    if configured_limit_bytes is not None:
        total = min(total, configured_limit_bytes)
        free = min(free, configured_limit_bytes - used)
    return Memory(used_bytes=used, total_bytes=total, free_bytes=max(free, 0))


def _read_limit(path: Path, otherwise: int) -> int:
    """The number in a cgroup file; `otherwise` where there is no such file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return otherwise
    return int(text) if text.isdigit() else otherwise
