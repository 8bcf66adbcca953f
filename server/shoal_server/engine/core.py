"""The engine process: the compute loop that plans, executes and commits one forward after the other.

The main thread is the loop; `endpoint` reads and writes sockets, `loader` makes versions ready, both on threads of
their own that reach the loop only through its inbox. Entry: `shoal_server.engine.core:main`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from shoal_models.compute import choose_compute

from shoal_server.engine.calls import Calls
from shoal_server.engine.devices.device import Device, open_device
from shoal_server.engine.endpoint import CONTROL, Endpoint, Reply
from shoal_server.engine.events import (
    CallsReceived,
    Event,
    FrontLost,
    Inbox,
    LaneEnded,
    LoadFailed,
    OrdersReceived,
    Stop,
    VersionFreed,
    VersionReady,
)
from shoal_server.engine.lanes import Lanes
from shoal_server.engine.loader import Loader
from shoal_server.engine.model_runner import ModelRunner
from shoal_server.engine.versions import Versions
from shoal_server.ipc.messages import EngineHello, EngineStatistics, LoadVersion, Message
from shoal_server.log import Log
from shoal_server.process import Startup
from shoal_server.scheduling import be_prompt

_STATISTICS_INTERVAL_S = 1.0
_SWITCH_INTERVAL_S = 0.0001  # how long another thread may keep the loop waiting for the GIL
_EXIT_DEVICE_LOST = 70

_log = Log(__name__)


class Engine:
    """One engine: its threads, its versions and its loop."""

    def __init__(self, startup: Startup, device: Device) -> None:
        self._engine_id = startup.index
        self._device = device
        self._inbox: Inbox = SimpleQueue()
        self._address = f"{startup.runtime_dir}/engine-{startup.index}-{startup.incarnation}.sock"
        self._endpoint = Endpoint(address=self._address, control_address=startup.control_address, inbox=self._inbox)
        self._loader = Loader(
            device,
            startup.config.generate,
            self._inbox,
            max_loaded_bytes=startup.config.engine.max_loaded_bytes,
            shares_weights=startup.config.engine.num_engines > 1,
            promised_bytes=lambda: self._calls.untouched_cache_bytes(),
            is_busy=lambda: self._is_busy,
        )
        runner = ModelRunner(device.torch_device, self._open_lanes() if device.torch_device.type == "cpu" else None)
        self._versions = Versions(engine_id=startup.index, runner=runner, loader=self._loader, report=self._report)
        self._calls = Calls(startup.config, runner=runner, versions=self._versions, device=device, reply=self._reply)
        self._replies: list[Reply] = []
        self._began_s = self._next_statistics_s = time.monotonic()
        self._is_busy = False  # calls are open; read by the loader thread
        self._is_stopping = False

    def start(self) -> None:
        """Start the threads and greet control."""
        self._loader.start()
        self._endpoint.start(
            EngineHello(
                engine_id=self._engine_id,
                pid=os.getpid(),
                address=self._address,
                device=self._device.name,
                device_name=self._device.full_name,
                compute_dtype=choose_compute(self._device.dtype, self._device.torch_device).name,
            )
        )
        _log.info("engine.started", device=self._device.name, dtype=self._device.dtype, address=self._address)

    def stop(self, reason: str) -> None:
        """End the loop after the step under way; may be called from a signal handler."""
        self._inbox.put(Stop(reason=reason))

    def run(self) -> int:
        """Work until told to stop; returns the exit code."""
        be_prompt()  # not before: lanes and the loader, which this thread starts, shall not be
        did_work = False
        while not self._is_stopping:
            self._receive(wait=not did_work)
            self._is_busy = self._calls.is_any_open
            did_work = self._calls.step()
            self._release_idle()
            if time.monotonic() >= self._next_statistics_s:
                self._report_statistics()
            self._flush()
            if self._calls.is_device_lost:
                return _EXIT_DEVICE_LOST
        return 0

    def close(self) -> None:
        """Take the socket's name away; open calls end with the process."""
        self._endpoint.remove_socket()

    def _receive(self, *, wait: bool) -> None:
        """Handle everything in the inbox; with `wait`, first sleep until something comes or is due."""
        if wait:
            until_s = min(self._calls.next_event_s(), self._next_statistics_s)
            try:
                self._handle(self._inbox.get(timeout=max(until_s - time.monotonic(), 0.0)))
            except Empty:
                return
        while not self._inbox.empty():
            self._handle(self._inbox.get_nowait())

    def _handle(self, event: Event) -> None:
        match event:
            case CallsReceived():
                self._calls.receive(event.messages, event.peer_id, event.received_s)
            case FrontLost(peer_id=peer_id):
                self._calls.abort_peer(peer_id)
            case OrdersReceived(messages=messages):
                for order in messages:
                    self._versions.load(order) if isinstance(order, LoadVersion) else self._versions.unload(order)
            case VersionReady(ready=ready):
                if self._versions.adopt(ready):
                    self._calls.add_version(ready)
                self._loader.adopted(ready.key)
                self._report_statistics()
            case LoadFailed():
                self._versions.refuse(event.key, event.reason, event.lacking_bytes)
                self._report_statistics()
            case VersionFreed(key=key):
                self._versions.freed(key)
            case LaneEnded():
                return  # the loop is awake, and the next step collects it
            case Stop(reason=reason):
                _log.info("engine.stopping", reason=reason)
                self._is_stopping = True

    def _open_lanes(self) -> Lanes:
        return Lanes(
            num_lanes=self._device.num_lanes,
            num_step_threads=self._device.num_step_threads,
            ended=lambda: self._inbox.put(LaneEnded()),
        )

    def _release_idle(self) -> None:
        for key in self._versions.leaving():
            if not self._calls.num_open(key):
                self._calls.remove_version(key)
                self._versions.release(key)

    def _report_statistics(self) -> None:
        memory = self._device.memory()
        now_s = time.monotonic()
        self._next_statistics_s = now_s + _STATISTICS_INTERVAL_S
        self._report(
            EngineStatistics(
                engine_id=self._engine_id,
                uptime_s=now_s - self._began_s,
                busy_s=self._calls.busy_s,
                device_utilisation=self._device.utilisation(),
                device_memory_used_bytes=memory.used_bytes,
                device_memory_total_bytes=memory.total_bytes,
                models=self._calls.statistics(self._versions.served()),
            )
        )

    def _report(self, message: Message) -> None:
        self._replies.append(Reply(peer_id=CONTROL, message=message))

    def _reply(self, peer_id: int, message: Message) -> None:
        self._replies.append(Reply(peer_id=peer_id, message=message))

    def _flush(self) -> None:
        """Hand over all replies of this turn at once."""
        if self._replies:
            replies: Sequence[Reply] = self._replies
            self._replies = []
            self._endpoint.send(replies)


def main(startup: Startup) -> None:
    """Run an engine until control tells it to end or is gone. Does not return."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    device = open_device(startup.config.engine, startup.index)
    device.setup()
    engine = Engine(startup, device)
    signal.signal(signal.SIGTERM, lambda *_: engine.stop("SIGTERM"))
    engine.start()
    gc.collect()
    gc.freeze()  # what was imported stays; collections, which hold up every thread, need not look at it
    exit_code = engine.run()
    engine.close()
    sys.stderr.flush()
    os._exit(exit_code)  # the loader may be in the middle of something; nothing of it needs an orderly end
