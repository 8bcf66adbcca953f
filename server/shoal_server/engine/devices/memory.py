"""How much memory a process may still take: what is free, limits of its control groups, its own configured one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a device's memory."""

    used_bytes: int  # by this process on a CPU, by everybody on a GPU
    total_bytes: int
    free_bytes: int  # what a new version may take


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """One control group."""

    limit_bytes: int
    used_bytes: int  # without file pages that the kernel gives up when asked


def host_memory(configured_limit_bytes: int | None) -> Memory:
    """Main memory as this process sees it."""
    used = psutil.Process().memory_info().rss
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in _groups():
        total = min(total, group.limit_bytes)
        free = min(free, group.limit_bytes - group.used_bytes)
    if configured_limit_bytes is not None:
        total = min(total, configured_limit_bytes)
        free = min(free, configured_limit_bytes - used)
    return Memory(used_bytes=used, total_bytes=total, free_bytes=max(free, 0))


def _groups() -> list[GroupMemory]:
    """The limited memory groups this process is in, its own and those above."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            groups += _walk(_CGROUP_ROOT, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder = _CGROUP_ROOT / "memory"
            groups += _walk(folder, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return groups


def _walk(root: Path, path: str, limit_name: str, used_name: str, idle_name: str) -> list[GroupMemory]:
    """Groups from `path` up to `root`; inside a container the path may be the host's, and only the root is there."""
    folder = root / path.lstrip("/")
    found = []
    for group in [folder, *folder.parents]:
        limit = _read_bytes(group / limit_name)
        used = _read_bytes(group / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            found.append(
                GroupMemory(limit_bytes=limit, used_bytes=max(used - _read_idle(group / "memory.stat", idle_name), 0))
            )
        if group == root:
            break
    return found


def _read_bytes(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_idle(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)
