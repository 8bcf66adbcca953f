"""Everything on /metrics, put together at the moment of a scrape. Nobody is asked: fronts and engines tell."""

from __future__ import annotations

import os
import time

from shoal_server.control.own_metrics import ProcessMetrics, ProcessPlace, add_build, add_jobs, add_versions
from shoal_server.control.processes import Processes
from shoal_server.control.rooms import Rooms
from shoal_server.control.series import SeriesTable
from shoal_server.ipc.messages import Family


class Figures:
    """All metrics of one server."""

    def __init__(self, rooms: Rooms, processes: Processes) -> None:
        self._rooms = rooms
        self._processes = processes
        self._process_metrics = ProcessMetrics()

    def collect(self) -> list[Family]:
        """Every metric of the server, at this moment."""
        expired = self._rooms.conductor.freed.expired(time.monotonic())
        self._rooms.front_ledger.drop_versions(expired)
        self._rooms.engine_ledger.drop_versions(expired)
        table = SeriesTable()
        self._rooms.front_ledger.add_to(table)
        self._rooms.engine_ledger.add_to(table)
        add_versions(table, self._rooms.conductor)
        add_jobs(table, self._rooms.store)
        add_build(table)
        self._process_metrics.add_to(table, self._places())
        table.drop_versions(expired)
        return table.families()

    def _places(self) -> dict[str, ProcessPlace]:
        places = [ProcessPlace(name="control", role="control", pid=os.getpid(), num_restarts=0)]
        places += [
            ProcessPlace(name=c.spec.name, role=c.spec.role, pid=c.pid, num_restarts=c.num_restarts)
            for c in self._processes.all()
        ]
        places += [
            ProcessPlace(name=job_id, role="trainer", pid=pid, num_restarts=0)
            for job_id, pid in self._rooms.supervisor.running_pids().items()
        ]
        return {place.name: place for place in places}
