"""How many bytes a version takes, and how many there are; decided before weights are read.

Linux tells its limits in cgroup files and /proc/meminfo; elsewhere what is available on a CPU is unknown and nothing is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shoal_models.compute import choose_compute
from shoal_models.manifest import Manifest

_STORED_BYTES = {"float32": 4, "bfloat16": 2}
_ACTIVATION_BYTES = 128 * 2**20  # hidden states, logits and attention of one step
_OVERHEAD = 1.1  # tied embeddings kept twice on a CPU, buffers, the allocator's slack
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


class NotEnoughMemory(Exception):
    """A version does not fit."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes:,} bytes of memory to load; {available_bytes:,} are available")
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a version takes on its device."""

    loading_bytes: int  # at the peak of loading: its weights are checked in float32 before they are cast
    serving_bytes: int  # afterwards
    cache_bytes: int  # KV cache, taken after the cast

    @property
    def peak_bytes(self) -> int:
        """The most at any moment."""
        return max(self.loading_bytes, self.serving_bytes + self.cache_bytes) + _ACTIVATION_BYTES


def memory_need(manifest: Manifest, *, dtype: torch.dtype, device: torch.device, cache_bytes: int = 0) -> MemoryNeed:
    """Bytes to load and serve a version, from its manifest alone.

    Which part of a classifier will be 8-bit integers is not in it, so that "int8" counts as what all else is served in.
    """
    num_weights = manifest.weight_bytes // _STORED_BYTES.get(manifest.weight_dtype, 2)
    computed = choose_compute(dtype, device).computed
    return MemoryNeed(
        loading_bytes=int(num_weights * torch.float32.itemsize * _OVERHEAD),
        serving_bytes=int(num_weights * computed.itemsize * _OVERHEAD),
        cache_bytes=cache_bytes,
    )


def check_memory(
    manifest: Manifest,
    *,
    dtype: torch.dtype,
    device: torch.device,
    cache_bytes: int = 0,
    available_bytes: int | None = None,
) -> MemoryNeed:
    """What the version takes, once it is known to fit. `available_bytes` None asks the device.

    Raises:
        NotEnoughMemory: it does not fit.
    """
    need = memory_need(manifest, dtype=dtype, device=device, cache_bytes=cache_bytes)
    available = available_memory(device) if available_bytes is None else available_bytes
    if available is not None and need.peak_bytes > available:
        raise NotEnoughMemory(need.peak_bytes, available)
    return need


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken: on a GPU what is free, on a CPU within this process's cgroup; None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [value for value in (_free_in_system(_PROC), *_free_in_cgroups(_PROC, _CGROUP)) if value is not None]
    return min(known, default=None)


def _free_in_system(proc: Path) -> int | None:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _free_in_cgroups(proc: Path, root: Path) -> list[int]:
    """Limit minus usage of every cgroup, v1 or v2, from this process's own to the root, as far as can be seen."""
    found = []
    for folder, limit_name, usage_name, cache_name in _cgroup_folders(proc, root):
        limit = _number(folder / limit_name)
        usage = _number(folder / usage_name)
        if limit is not None and usage is not None and limit < 2**60:
            found.append(max(0, limit - usage + _reclaimable(folder / "memory.stat", cache_name)))
    return found


def _cgroup_folders(proc: Path, root: Path) -> list[tuple[Path, str, str, str]]:
    v2 = ("memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"} and "memory" not in controllers.split(","):
            continue
        names, base = (v2, root) if controllers == "" else (v1, root / "memory")
        folder = base / path.lstrip("/")
        found += [(at, *names) for at in (folder, *folder.parents) if at == base or base in at.parents]
    return found


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, name: str) -> int:
    """Page cache that the kernel gives up when memory runs short."""
    try:
        for line in stat.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0
