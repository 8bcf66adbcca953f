"""What fronts and engines say, taken to the room that it concerns."""

from __future__ import annotations

import asyncio

from shoal_server.control import residency
from shoal_server.control.processes import Processes
from shoal_server.control.rooms import Rooms
from shoal_server.ipc.messages import (
    ControlCall,
    ControlCancel,
    EngineHello,
    EngineStatistics,
    FrontHello,
    MetricsSnapshot,
    RoutingApplied,
    ToControl,
    VersionLoaded,
    VersionPrepared,
    VersionRefused,
    VersionsInUse,
    VersionUnloaded,
)
from shoal_server.log import Log

LOST_CONNECTION_S = 5.0  # a child that lives on so long after its connection broke is killed
_log = Log(__name__)


class Reception:
    """Handles what happens on the connections (`peers.PeerEvents`)."""

    def __init__(self, rooms: Rooms, processes: Processes) -> None:
        self.fronts_ready = asyncio.Event()  # every front answers by a table made after the first scan
        self.is_stopping = False
        self._rooms = rooms
        self._processes = processes

    def engine_connected(self, hello: EngineHello) -> None:
        """An engine said hello; it holds nothing yet."""
        child = self._processes.get("engine", hello.engine_id)
        child.mark_ready()
        _log.info("engine_up", engine=hello.engine_id, device=hello.device_name, dtype=hello.compute_dtype)
        self._rooms.rollout.engine_up(hello.engine_id, child.incarnation, hello.address)
        self._rooms.conductor.apply()

    def engine_lost(self, engine_id: int) -> None:
        """The connection of an engine ended."""
        self._rooms.engine_ledger.engine_lost(engine_id)
        self._rooms.rollout.engine_down(engine_id)
        self._lost("engine", engine_id)

    def front_connected(self, hello: FrontHello) -> None:
        """A front said hello."""
        self._processes.get("front", hello.front_id).mark_ready()
        _log.debug("front_up", front=hello.front_id, port=hello.port)
        self._rooms.rollout.front_up(hello.front_id)
        self._rooms.conductor.apply()

    def front_lost(self, front_id: int) -> None:
        """The connection of a front ended."""
        self._rooms.front_ledger.front_lost(front_id)
        self._rooms.router.front_lost(front_id)
        self._rooms.rollout.front_down(front_id)
        self._lost("front", front_id)

    def received(self, hello: EngineHello | FrontHello, messages: list[ToControl]) -> None:
        """Messages of one frame, in order."""
        has_facts = False
        for message in messages:
            has_facts = self._take_fact(message) or has_facts
            if isinstance(hello, FrontHello):
                self._take_from_front(hello.front_id, message)
        if has_facts:
            self._rooms.conductor.apply()
        self._check_fronts()

    def _take_fact(self, message: ToControl) -> bool:
        """Give rollout a fact; False for any other message."""
        match message:
            case VersionLoaded():
                self._rooms.rollout.version_loaded(message)
            case VersionRefused():
                self._rooms.rollout.version_refused(message)
            case VersionUnloaded():
                self._rooms.rollout.version_unloaded(message)
            case VersionPrepared():
                self._rooms.rollout.version_prepared(message)
            case RoutingApplied():
                self._rooms.rollout.routing_applied(message)
            case VersionsInUse():
                residency.note_use(self._rooms.rollout, message)
            case EngineStatistics():
                self._rooms.engine_ledger.statistics(message)
                return False
            case _:
                return False
        return True

    def _take_from_front(self, front_id: int, message: ToControl) -> None:
        match message:
            case ControlCall():
                self._rooms.router.begin(front_id, message)
            case ControlCancel(call_id=call_id):
                self._rooms.router.cancel(front_id, call_id)
            case MetricsSnapshot(families=families):
                self._rooms.front_ledger.snapshot(front_id, families)
            case _:
                return

    def _check_fronts(self) -> None:
        """Ready is when every front answers by a table that was made after the first look at the repository."""
        fronts = self._rooms.rollout.fronts
        is_complete = len(fronts) == (self._rooms.config.listen.num_fronts or 1)
        if self._rooms.rollout.is_scanned and is_complete and all(front.applied_revision for front in fronts.values()):
            self.fronts_ready.set()

    def _lost(self, role: str, index: int) -> None:
        if self.is_stopping:
            return
        _log.warning("connection_lost", child=f"{role}-{index}")
        self._rooms.conductor.apply()
        child = self._processes.get(role, index)
        if child.pid is not None:
            self._processes.kill_unless_gone(child, child.pid, after_s=LOST_CONNECTION_S)
