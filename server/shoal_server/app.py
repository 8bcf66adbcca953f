"""Starts a server: checks everything that can be wrong before a process is spawned, then runs the control process.

Exit codes: 0 ended in good order, 1 a process could not start, 2 bad configuration, 3 a port is taken, 4 a folder
cannot be used, 5 state_dir is in use by another server, 6 state_dir was written by a newer release, 128+n ended at once
by a second signal n.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from shoal_server.config import ServerConfig, is_loopback
from shoal_server.control.jobs.store import JobStore, StoreTooNew, StoreUnusable
from shoal_server.control.policy import RecordDamaged
from shoal_server.control.ports import PortTaken
from shoal_server.control.processes import StartFailed
from shoal_server.control.server import ControlServer
from shoal_server.control.state_dir import ServerFile, StateDir, StateDirInUse, StateDirUnusable
from shoal_server.log import setup_logging

EXIT_CODES: dict[type[Exception], int] = {
    StartFailed: 1,
    PortTaken: 3,
    StateDirUnusable: 4,
    StoreUnusable: 4,
    RecordDamaged: 4,
    StateDirInUse: 5,
    StoreTooNew: 6,
}


def run_server(config: ServerConfig) -> int:
    """Serve until told to stop; returns the exit code. What keeps it from starting is said in one line on stderr."""
    setup_logging(config.log, "control")
    state_dir = StateDir(Path(config.state_dir).resolve())
    try:
        state_dir.open()
        _ensure_repository(Path(config.repository.path))
        store = JobStore(state_dir.path / "jobs.sqlite")
        try:
            return asyncio.run(_run(config, state_dir, store))
        finally:
            store.close()
    except tuple(EXIT_CODES) as error:
        print(f"shoal: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CODES[type(error)]
    finally:
        state_dir.close()


async def _run(config: ServerConfig, state_dir: StateDir, store: JobStore) -> int:
    return await ControlServer(config, state_dir, store).run(lambda place: _announce(config, place))


def _ensure_repository(path: Path) -> None:
    """Create the repository where it is missing; a read-only one that exists is fine."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except OSError as error:
        raise StateDirUnusable(f"repository {path} cannot be used: {error.strerror or error}") from error


def _announce(config: ServerConfig, place: ServerFile) -> None:
    """One friendly line once the server takes requests."""
    host = config.listen.address.rpartition(":")[0]
    metrics_host = config.listen.metrics_address.rpartition(":")[0]
    guard = "" if is_loopback(config.listen.address) or not config.listen.insecure else " without TLS and tokens"
    metrics = f"http://{metrics_host}:{place.metrics_port}/metrics"
    print(  # noqa: T201
        f"Shoal is listening on {host}:{place.grpc_port}{guard} (metrics {metrics}), "
        f"serving what lies in {config.repository.path}; Ctrl-C stops it",
        flush=True,
    )
