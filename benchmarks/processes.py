"""What a server and the processes that it started take of the processor, and how to end what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

MAX_FOREIGN_SHARE = 0.05  # beside more, a measurement counts as disturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """Processor seconds, so far or within a measurement."""

    at_s: float
    machine_s: float
    server_s: float  # and of what it started
    client_s: float  # this process

    @classmethod
    def read(cls, pid: int) -> CpuTimes:
        """So far; `pid` is the server's."""
        return cls(
            at_s=time.perf_counter(),
            machine_s=machine_cpu_s(),
            server_s=cpu_s(pid),
            client_s=time.process_time(),
        )

    def since(self, before: CpuTimes) -> CpuTimes:
        """Within the time from `before`."""
        return CpuTimes(
            at_s=self.at_s - before.at_s,
            machine_s=self.machine_s - before.machine_s,
            server_s=self.server_s - before.server_s,
            client_s=self.client_s - before.client_s,
        )

    @property
    def foreign_share(self) -> float:
        """Of all cores' time, taken by neither the server nor this process."""
        foreign_s = self.machine_s - self.server_s - self.client_s
        return max(0.0, foreign_s / (self.at_s * len(os.sched_getaffinity(0))))


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


def of_role(control_pid: int, role: str) -> list[int]:
    """Pids of a Shoal server's processes of one role, "front" or "engine"; it was started as `control_pid`."""
    children = psutil.Process(control_pid).children()
    return [child.pid for child in children if f"shoal_server.{role}." in " ".join(child.cmdline())]


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
