"""Fronts and engines as operating-system processes: spawn, watch, restart with backoff, stop by pid.

Knows nothing of versions or requests. What a child does is named by string; control never imports it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shoal_server.log import Log
from shoal_server.process import Startup

FIRST_BACKOFF_S = 0.1
STABLE_S = 30.0  # a child that ran this long is restarted without delay again
KILL_AFTER_S = 5.0  # between SIGTERM and SIGKILL
_log = Log(__name__)

# Threads of one forward that wait for each other spin for some milliseconds only, and then sleep: where anything else
# runs on one of their cores, spinning keeps from it the very core that they wait for (measured on two cores, a forward
# of 27 tokens beside a busy process: up to 1 s as OpenMP does it by default, up to 0.17 s so). See engine/all_cores.py.
#
# Activations are taken and given back for every layer. glibc would hand each large one to the system and get it again,
# page by page (10 % of all processor time), and would use small pages, which the processor keeps too few addresses of:
# huge ones made a forward on one core 10 % faster, both together 12 % more texts a second through gRPC. Every thread
# has an arena of its own, so that lanes do not wait for each other. Its first heap is nearly as large as heaps become
# (it takes memory only as it is used), since one that follows is given back to the system whenever it is empty.
ENGINE_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "200000",
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.hugetlb=1",
            f"glibc.malloc.mmap_threshold={32 * 2**20}",  # the most that glibc takes
            f"glibc.malloc.trim_threshold={2**30}",
            "glibc.malloc.arena_max=256",
            f"glibc.malloc.top_pad={48 * 2**20}",
        )
    ),
}


class StartFailed(Exception):
    """A child ended again and again before it was ever ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One place for a child: which entry function, told what."""

    role: str  # "front" or "engine"
    index: int
    entry: str  # "module:function"
    max_backoff_s: float
    startup: Callable[[int], Startup]  # incarnation -> what the child is told
    max_early_exits: int | None = None  # ends before the first `mark_ready`, after which `StartFailed` is reported

    @property
    def name(self) -> str:
        """Such as "front-0"."""
        return f"{self.role}-{self.index}"


class Child:
    """One place for a child, filled again whenever its process ends."""

    def __init__(self, spec: ChildSpec, on_exit: Callable[[ChildSpec, int], None]) -> None:
        self.spec = spec
        self.incarnation = 0
        self.num_restarts = 0
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._is_ready = False
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while one runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """Begin to keep a process running here."""
        self._task = asyncio.create_task(self._keep_running(), name=self.spec.name)

    def mark_ready(self) -> None:
        """The child has said hello; from now on it is restarted however often it ends."""
        self._is_ready = True

    def stop_restarting(self) -> None:
        """Let the present process be the last one."""
        self._is_stopping.set()

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait for the last process to end; False when it still runs after `timeout_s`."""
        if self._task is None:
            return True
        done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
        return bool(done)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process that runs now; nothing happens when none does."""
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                _log.debug("child_already_gone", child=self.spec.name)

    async def stop(self, *, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for what is left after `grace_s`."""
        self.stop_restarting()
        self.send_signal(signal.SIGTERM)
        if not await self.wait_ended(grace_s):
            _log.warning("child_killed", child=self.spec.name, pid=self.pid, waited_s=grace_s)
            self.send_signal(signal.SIGKILL)
            await self.wait_ended(KILL_AFTER_S)

    async def _keep_running(self) -> None:
        backoff_s, num_early_exits = FIRST_BACKOFF_S, 0
        while not self._is_stopping.is_set():
            began = time.monotonic()
            code = await self._run_once()
            if self._is_stopping.is_set():
                return
            if time.monotonic() - began >= STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            self.num_restarts += 1
            num_early_exits += not self._is_ready
            if self.spec.max_early_exits is not None and num_early_exits >= self.spec.max_early_exits:
                times = f"{num_early_exits} times before it was ready"
                self.failure.set_exception(
                    StartFailed(f"{self.spec.name} ended {times}, last with {describe_exit(code)}")
                )
                return
            _log.warning("child_restarts", child=self.spec.name, exit=describe_exit(code), after_s=round(backoff_s, 2))
            await self._pause(backoff_s)
            backoff_s = min(2 * backoff_s, self.spec.max_backoff_s)

    async def _run_once(self) -> int:
        self.incarnation += 1
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shoal_server.process",
            self.spec.entry,
            stdin=asyncio.subprocess.PIPE,
            env={**(ENGINE_ENVIRONMENT if self.spec.role == "engine" else {}), **os.environ},
            process_group=0,  # a signal to our group is for us; we decide what children are told
        )
        assert self._process.stdin is not None
        _log.debug("child_started", child=self.spec.name, pid=self._process.pid, incarnation=self.incarnation)
        try:
            self._process.stdin.write(msgspec.json.encode(self.spec.startup(self.incarnation)))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            _log.debug("child_died_at_birth", child=self.spec.name)
        self._process.stdin.close()
        code = await self._process.wait()
        self._on_exit(self.spec, code)
        return code

    async def _pause(self, duration_s: float) -> None:
        try:
            await asyncio.wait_for(self._is_stopping.wait(), duration_s)
        except TimeoutError:
            return


def describe_exit(code: int) -> str:
    """An exit code for people: "code 1" or "SIGKILL"."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Processes:
    """All children of the control process."""

    def __init__(self, on_exit: Callable[[ChildSpec, int], None]) -> None:
        self._on_exit = on_exit
        self._children: dict[str, Child] = {}
        self._kills: set[asyncio.Task[None]] = set()

    def start(self, spec: ChildSpec) -> Child:
        """Keep one more child running."""
        child = Child(spec, self._on_exit)
        self._children[spec.name] = child
        child.start()
        return child

    def get(self, role: str, index: int) -> Child:
        """The place of a child."""
        return self._children[f"{role}-{index}"]

    def of_role(self, role: str) -> list[Child]:
        """Every place of one role."""
        return [child for child in self._children.values() if child.spec.role == role]

    def all(self) -> list[Child]:
        """Every place."""
        return list(self._children.values())

    def kill_unless_gone(self, child: Child, pid: int, *, after_s: float) -> None:
        """Kill a process that has dropped its connection and yet lives; it is restarted like any that died."""

        async def kill() -> None:
            await asyncio.sleep(after_s)
            if child.pid == pid:
                _log.warning("child_lost_connection", child=child.spec.name, pid=pid)
                child.send_signal(signal.SIGKILL)

        task = asyncio.create_task(kill())
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    async def stop(self, role: str, *, grace_s: float) -> None:
        """Stop every child of a role."""
        await asyncio.gather(*(child.stop(grace_s=grace_s) for child in self.of_role(role)))

    async def wait_ended(self, role: str, *, timeout_s: float) -> None:
        """Wait for children that were told to end by themselves; those left after `timeout_s` are stopped."""
        children = self.of_role(role)
        for child in children:
            child.stop_restarting()
        await asyncio.gather(*(child.wait_ended(timeout_s) for child in children))
        await self.stop(role, grace_s=KILL_AFTER_S)

    def kill_all(self) -> None:
        """SIGKILL to every child, at once."""
        for child in self.all():
            child.stop_restarting()
            child.send_signal(signal.SIGKILL)
