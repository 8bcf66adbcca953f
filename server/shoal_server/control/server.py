"""The control process's life: up, ready, down.

opening -> ready -> draining (first SIGTERM or SIGINT) -> ended        a second signal ends everything at once
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

from shoal_server.config import ServerConfig, split_address
from shoal_server.control.figures import Figures
from shoal_server.control.jobs.store import JobStore
from shoal_server.control.metrics_endpoint import MetricsEndpoint
from shoal_server.control.ports import HeldPort, PortTaken, describe_bind_error, hold_port
from shoal_server.control.processes import Child, ChildSpec, Processes, describe_exit
from shoal_server.control.reception import Reception
from shoal_server.control.rooms import build_rooms, complete_config, make_runtime_dir
from shoal_server.control.state_dir import ServerFile, StateDir
from shoal_server.ipc.messages import Drain
from shoal_server.log import Log
from shoal_server.process import Startup

FRONT_ENTRY = "shoal_server.front.server:main"
ENGINE_ENTRY = "shoal_server.engine.core:main"
MAX_EARLY_EXITS = 3  # of a front, before the server gives up
DRAIN_SPARE_S = 5.0  # beyond what a front was given
ENGINE_STOP_S = 5.0
_log = Log(__name__)


class ControlServer:
    """One server's control process. `run` does everything."""

    def __init__(
        self,
        config: ServerConfig,
        state_dir: StateDir,
        store: JobStore,
        *,
        front_entry: str = FRONT_ENTRY,
        engine_entry: str = ENGINE_ENTRY,
    ) -> None:
        self._config = complete_config(config)
        self._entries = {"front": front_entry, "engine": engine_entry}
        self._state_dir = state_dir
        self._runtime_dir = make_runtime_dir()
        self._rooms = build_rooms(self._config, state_dir.path, store)
        self._processes = Processes(self._child_ended)
        self._reception = Reception(self._rooms, self._processes)
        self._endpoint = MetricsEndpoint(
            collect=Figures(self._rooms, self._processes).collect,
            is_serving=lambda: self._rooms.rollout.table.serving,
        )
        self._held: HeldPort | None = None
        self._stop_signals: list[signal.Signals] = []
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()

    async def run(self, on_ready: Callable[[ServerFile], None]) -> int:
        """Serve until a signal; returns the exit code.

        Raises:
            PortTaken: before anything was started.
            StartFailed: a front cannot start.
            RecordDamaged: a model's record cannot be read.
        """
        background: list[asyncio.Task[None]] = []
        try:
            self._install_signals()
            metrics_port = await self._open()
            background = [
                asyncio.create_task(self._rooms.watcher.run()),
                asyncio.create_task(self._rooms.supervisor.run()),
            ]
            children = self._start_children()
            if await self._wait_ready(children, background):
                assert self._held is not None
                place = ServerFile(grpc_port=self._held.port, metrics_port=metrics_port, pid=os.getpid())
                self._state_dir.announce(place)
                on_ready(place)
                await self._until(self._stopping, background)
            return await self._close_down(background)
        finally:
            await self._abandon(background)

    async def _open(self) -> int:
        self._held = hold_port(self._config.listen.address, shared=(self._config.listen.num_fronts or 1) > 1)
        address = self._config.listen.metrics_address
        host, port = split_address(address)
        try:
            metrics_port = await self._endpoint.start(host, port)
        except OSError as error:
            raise PortTaken(describe_bind_error(address, error)) from error
        self._rooms.conductor.open()
        self._rooms.datasets.open()
        self._rooms.supervisor.adopt()
        await self._rooms.peers.start(self._control_address, self._reception)
        return metrics_port

    def _start_children(self) -> list[Child]:
        listen, engine = self._config.listen, self._config.engine
        fronts = [
            self._processes.start(self._child_spec("front", index, max_early_exits=MAX_EARLY_EXITS))
            for index in range(listen.num_fronts or 1)
        ]
        engines = [
            self._processes.start(self._child_spec("engine", index, max_early_exits=None))
            for index in range(engine.num_engines)
        ]
        return fronts + engines

    def _child_spec(self, role: str, index: int, *, max_early_exits: int | None) -> ChildSpec:
        assert self._held is not None
        host, _, _ = self._config.listen.address.rpartition(":")
        grpc_address = f"{host}:{self._held.port}"

        def startup(incarnation: int) -> Startup:
            return Startup(
                role=role,
                index=index,
                incarnation=incarnation,
                parent_pid=os.getpid(),
                runtime_dir=self._runtime_dir,
                control_address=self._control_address,
                grpc_address=grpc_address if role == "front" else "",
                config=self._config,
            )

        return ChildSpec(
            role=role,
            index=index,
            entry=self._entries[role],
            max_backoff_s=self._config.engine.max_restart_backoff_s,
            startup=startup,
            max_early_exits=max_early_exits,
        )

    async def _wait_ready(self, children: list[Child], background: list[asyncio.Task[None]]) -> bool:
        """Until every front uses a routing table; False when a signal came first.

        Raises:
            StartFailed: a front ended again and again.
        """
        ready = asyncio.create_task(self._reception.fronts_ready.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        failures = [child.failure for child in children]
        try:
            watched: list[asyncio.Future[None]] = [*failures, *background]
            pending: list[asyncio.Future[Any]] = [ready, stopping, *watched]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in watched:
                if future.done():
                    future.result()
            return self._reception.fronts_ready.is_set() and not self._stopping.is_set()
        finally:
            ready.cancel()
            stopping.cancel()

    async def _until(self, event: asyncio.Event, background: list[asyncio.Task[None]]) -> None:
        """Wait for an event, and fail with any task that should never end."""
        waiting = asyncio.create_task(event.wait())
        try:
            pending: list[asyncio.Future[Any]] = [waiting, *background]
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                if task.done():
                    task.result()
        finally:
            waiting.cancel()

    async def _close_down(self, background: list[asyncio.Task[None]]) -> int:
        """Fronts finish what they have, then engines end; a second signal cuts it short."""
        _log.info("draining", signal=self._stop_signals[0].name if self._stop_signals else "-")
        self._state_dir.withdraw()
        for task in background:
            task.cancel()
        orderly = asyncio.create_task(self._drain())
        killing = asyncio.create_task(self._killing.wait())
        await asyncio.wait([orderly, killing], return_when=asyncio.FIRST_COMPLETED)
        killing.cancel()
        if orderly.done():
            orderly.result()
            _log.info("stopped")
            return 0
        orderly.cancel()
        _log.warning("stopped_at_once", signal=self._stop_signals[-1].name)
        return 128 + self._stop_signals[-1]

    async def _drain(self) -> None:
        listen = self._config.listen
        for child in self._processes.all():
            child.stop_restarting()
        connected = set(self._rooms.peers.fronts())
        for front_id in connected:
            self._rooms.peers.send_to_front(front_id, Drain(lame_duck_s=listen.lame_duck_s, drain_s=listen.drain_s))
        strangers = [child for child in self._processes.of_role("front") if child.spec.index not in connected]
        await asyncio.gather(*(child.stop(grace_s=ENGINE_STOP_S) for child in strangers))
        await self._processes.wait_ended("front", timeout_s=listen.lame_duck_s + listen.drain_s + DRAIN_SPARE_S)
        await self._processes.stop("engine", grace_s=ENGINE_STOP_S)

    async def _abandon(self, background: list[asyncio.Task[None]]) -> None:
        """Leave nothing behind, however it came to this. Trainers go on."""
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._processes.kill_all()
        await asyncio.gather(*(child.wait_ended(ENGINE_STOP_S) for child in self._processes.all()))
        await self._rooms.router.stop()
        await self._rooms.peers.stop()
        await self._endpoint.stop()
        if self._held is not None:
            self._held.release()
        self._state_dir.withdraw()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        self._stop_signals.append(number)
        self._reception.is_stopping = True
        self._stopping.set()
        if len(self._stop_signals) > 1:
            self._processes.kill_all()
            self._killing.set()

    @property
    def _control_address(self) -> str:
        return f"{self._runtime_dir}/control.sock"

    def _child_ended(self, spec: ChildSpec, code: int) -> None:
        if code != 0 or not self._stopping.is_set():
            _log.warning("child_ended", child=spec.name, exit=describe_exit(code))
