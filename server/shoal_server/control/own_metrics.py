"""What control itself knows in figures: versions, jobs, processes, the build."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version

import psutil

from shoal_server.control.conductor import Conductor
from shoal_server.control.jobs.store import FINAL_STATES, JobStore
from shoal_server.control.routing import state_of
from shoal_server.control.series import SeriesTable
from shoal_server.ipc.messages import VersionMemory, VersionState

JOB_STATES = (
    "queued", "validating", "preparing", "running", "evaluating", "publishing", "interrupted",
    "succeeded", "failed", "cancelled",
)  # fmt: skip
_LIFELESS = (VersionState.AVAILABLE, VersionState.UNLOADED)


def add_versions(table: SeriesTable, conductor: Conductor) -> None:
    """States, load times and refusals of versions. One that was never loaded, or freed long ago, has no series."""
    recent = conductor.freed.recent(time.monotonic())
    for key, entry in sorted(conductor.rollout.entries.items()):
        labels = {"model": key.model, "version": str(key.version)}
        state = state_of(conductor.rollout, entry)
        if state not in _LIFELESS or key in recent:
            text = "1 for the state that the version is in."
            table.gauge("shoal_version_state", text, {**labels, "state": str(state.value)}, 1)
            if entry.last_load is not None:
                text = "Time of the last load, verification included."
                table.gauge("shoal_version_load_seconds", text, labels, entry.last_load.load_s)
        for load in entry.loads.values():
            _add_memory(table, labels, load.memory)
    for key, count in sorted(conductor.num_rejections.items()):
        labels = {"model": key.model, "version": str(key.version)}
        table.counter("shoal_version_rejections", "Times that the version was refused.", labels, count)
    table.gauge("shoal_serving", "1 while health says SERVING.", {}, float(conductor.rollout.table.serving))


def _add_memory(table: SeriesTable, labels: dict[str, str], memory: VersionMemory) -> None:
    """What one engine holds; the engines are summed."""
    text = "Memory that the version holds, by kind: weights as served, and KV cache."
    table.gauge("shoal_version_memory_bytes", text, {**labels, "kind": "weights"}, memory.weight_bytes)
    if memory.cache_bytes:
        table.gauge("shoal_version_memory_bytes", text, {**labels, "kind": "kv_cache"}, memory.cache_bytes)
    text = "Memory that the version was reckoned to hold, before it was loaded."
    table.gauge("shoal_version_reckoned_memory_bytes", text, labels, memory.reckoned_bytes)


def add_jobs(table: SeriesTable, store: JobStore) -> None:
    """Number of jobs by state; progress and loss of those that have not ended."""
    counts = store.count_by_state()
    for state in JOB_STATES:
        table.gauge("shoal_training_jobs", "Training jobs by state.", {"state": state}, counts.get(state, 0))
    for record in store.unfinished():
        status = record.status
        labels = {"job_id": status.id, "model": str(status.spec.get("name", ""))}
        total = status.progress.get("total_steps", 0)
        if total > 0:
            ratio = min(1.0, status.progress.get("step", 0) / total)
            table.gauge("shoal_training_progress_ratio", "Share of optimizer steps done.", labels, ratio)
        if "loss" in status.progress and status.state not in FINAL_STATES:
            loss = status.progress["loss"]
            table.gauge("shoal_training_loss", "Mean training loss since the last report.", labels, loss)


def add_build(table: SeriesTable) -> None:
    """Which release runs on which Python."""
    labels = {"version": installed_version("shoal"), "python": platform.python_version()}
    table.gauge("shoal_build_info", "1, labelled with the release and its Python.", labels, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlace:
    """A process to be measured; `name` stays when it restarts."""

    name: str
    role: str
    pid: int | None  # None: none runs at the moment
    num_restarts: int


@dataclass(slots=True, kw_only=True)
class _CpuSeconds:
    process: psutil.Process
    kept: float = 0.0  # of processes that ran here before
    last: float = 0.0


class ProcessMetrics:
    """Memory and CPU time of processes. CPU time goes on where a restarted process left off."""

    def __init__(self) -> None:
        self._cpu: dict[str, _CpuSeconds] = {}

    def add_to(self, table: SeriesTable, places: Mapping[str, ProcessPlace]) -> None:
        """Measure now. Places that are no longer named are forgotten."""
        for name in self._cpu.keys() - places.keys():
            del self._cpu[name]
        for name, place in sorted(places.items()):
            labels = {"process": name, "role": place.role}
            text = "Times that the process was started again."
            table.counter("shoal_process_restarts", text, labels, place.num_restarts)
            resident_bytes = self._measure(place)
            if resident_bytes is not None:
                text = "Resident set of the process."
                table.gauge("shoal_process_resident_memory_bytes", text, labels, resident_bytes)
            if cpu := self._cpu.get(name):
                text = "CPU time of the process, user and system."
                table.counter("shoal_process_cpu_seconds", text, labels, cpu.kept + cpu.last)

    def _measure(self, place: ProcessPlace) -> int | None:
        """Note the CPU time and return the resident bytes; None when no process runs."""
        if place.pid is None:
            return None
        try:
            cpu = self._cpu.get(place.name)
            if cpu is None or cpu.process.pid != place.pid:
                kept = cpu.kept + cpu.last if cpu else 0.0
                cpu = self._cpu[place.name] = _CpuSeconds(process=psutil.Process(place.pid), kept=kept)
            with cpu.process.oneshot():
                times = cpu.process.cpu_times()
                cpu.last = times.user + times.system
                return int(cpu.process.memory_info().rss)
        except psutil.Error:
            return None
