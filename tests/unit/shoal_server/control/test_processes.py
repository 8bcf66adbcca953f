"""Children that are spawned, watched and restarted; tiny scripts stand in for fronts and engines."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from shoal_server.config import ServerConfig
from shoal_server.control.processes import Child, ChildSpec, Processes, StartFailed, describe_exit
from shoal_server.process import Startup

CHILDREN = """
import os, signal, sys, time
def note(startup):
    with open(startup.runtime_dir + "/starts", "a") as file:
        file.write(f"{startup.incarnation} {os.getpid()} {os.getpgid(0) == os.getpid()}\\n")
def sleeper(startup):
    note(startup)
    time.sleep(60)
def failing(startup):
    note(startup)
    sys.exit(3)
def deaf(startup):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(startup)
    time.sleep(60)
"""


class Nursery:
    """Children in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exits: list[int] = []
        self.processes = Processes(lambda _spec, code: self.exits.append(code))

    def spec(self, function: str, *, index: int = 0, max_early_exits: int | None = None) -> ChildSpec:
        def startup(incarnation: int) -> Startup:
            return Startup(
                role="front",
                index=index,
                incarnation=incarnation,
                parent_pid=os.getpid(),
                runtime_dir=str(self.folder),
                control_address="",
                grpc_address="",
                config=ServerConfig(),
            )

        return ChildSpec(
            role="front",
            index=index,
            entry=f"fake_children:{function}",
            max_backoff_s=0.2,
            startup=startup,
            max_early_exits=max_early_exits,
        )

    def starts(self) -> list[list[str]]:
        path = self.folder / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
async def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nursery]:
    (tmp_path / "fake_children.py").write_text(CHILDREN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    made = Nursery(tmp_path)
    yield made
    made.processes.kill_all()
    await asyncio.gather(*(child.wait_ended(10) for child in made.processes.all()))


async def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


async def test_killed_child_is_restarted_as_the_next_incarnation(nursery: Nursery) -> None:
    child = nursery.processes.start(nursery.spec("sleeper"))
    await until(lambda: len(nursery.starts()) == 1)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(nursery.starts()) == 2)
    assert nursery.exits == [-signal.SIGKILL]
    assert (child.incarnation, child.num_restarts) == (2, 1)
    assert child.pid != first


async def test_child_is_its_own_process_group(nursery: Nursery) -> None:
    """So that Ctrl-C, and signals to our whole group, reach it only through us."""
    nursery.processes.start(nursery.spec("sleeper"))
    await until(lambda: len(nursery.starts()) == 1)
    assert nursery.starts()[0][2] == "True"


async def test_child_that_always_fails_before_it_is_ready_ends_the_start(nursery: Nursery) -> None:
    child = nursery.processes.start(nursery.spec("failing", max_early_exits=2))
    with pytest.raises(StartFailed, match="front-0 ended 2 times before it was ready, last with code 3"):
        await asyncio.wait_for(child.failure, 20)
    assert len(nursery.starts()) == 2


async def test_child_that_was_ready_is_restarted_for_ever(nursery: Nursery) -> None:
    child = nursery.processes.start(nursery.spec("failing", max_early_exits=1))
    child.mark_ready()
    await until(lambda: len(nursery.starts()) >= 3)
    assert not child.failure.done()


async def test_stop_ends_and_does_not_restart(nursery: Nursery) -> None:
    child = nursery.processes.start(nursery.spec("sleeper"))
    await until(lambda: len(nursery.starts()) == 1)
    await nursery.processes.stop("front", grace_s=5)
    assert child.pid is None
    assert nursery.exits == [-signal.SIGTERM]


async def test_deaf_child_is_killed_after_its_grace(nursery: Nursery) -> None:
    nursery.processes.start(nursery.spec("deaf"))
    await until(lambda: len(nursery.starts()) == 1)
    await nursery.processes.stop("front", grace_s=0.1)
    assert nursery.exits == [-signal.SIGKILL]


async def test_child_without_connection_is_killed_and_replaced(nursery: Nursery) -> None:
    child: Child = nursery.processes.start(nursery.spec("sleeper"))
    await until(lambda: len(nursery.starts()) == 1)
    assert child.pid is not None
    nursery.processes.kill_unless_gone(child, child.pid, after_s=0.0)
    await until(lambda: len(nursery.starts()) == 2)


def test_exits_in_words() -> None:
    assert describe_exit(3) == "code 3"
    assert describe_exit(-9) == "SIGKILL"
