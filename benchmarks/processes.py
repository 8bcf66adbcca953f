"""What a server and the processes that it started take of the processor, and how to end what it leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def cpu_s(pid: int) -> float:
    """CPU seconds that a process, its living descendants and their ended children have used so far."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_s() -> float:
    """CPU seconds that all processes of the machine have used so far; interrupts are nobody's."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def tree(pid: int) -> list[psutil.Process]:
    """A process and its living descendants; nothing when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(processes: list[psutil.Process], patience_s: float = 5.0) -> None:
    """Ask those of `processes` that still run to end, and kill those that do not."""
    for process in _living(processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=patience_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=patience_s)


def _living(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    return (process for process in processes if process.is_running())
