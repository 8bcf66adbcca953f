"""Servers under test as child processes on loopback, ended by their pids: Shoal, the naive one, and what peers need."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from shoal.aio import AsyncClient
from shoal.errors import NotFoundError, UnavailableError
from shoal.types import ModelVersion

from benchmarks import processes

Changes = dict[str, dict[str, Any]]  # section of the configuration -> key -> value
START_LIMIT_S = 120.0


class ServerStartError(Exception):
    """The server did not start or ended by itself; carries the end of its log."""


class Server:
    """A child process that says where it listens. Use as a context manager."""

    stop_limit_s = 60.0  # then it is ended by force

    def __init__(
        self, name: str, command: list[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment` comes on top of this process's own."""
        self.name = name
        self.folder = folder
        self.address = ""
        self._command = command
        self._environment = environment or {}
        self._log_path = folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prepare()
        with self._log_path.open("wb") as log:
            # Threads are each server's own choice, as its users would run it.
            environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
            environment.update(self._environment)
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it as an operator does, and by force when that takes too long; then whatever it leaves behind."""
        assert self._process is not None
        family = processes.tree(self.pid)[1:]
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self.stop_limit_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        processes.end(family)

    def log_end(self) -> str:
        """The last lines it printed."""
        return self._log_path.read_text(errors="replace")[-3000:]

    def _wait(self) -> None:
        assert self._process is not None
        limit = time.monotonic() + START_LIMIT_S
        while not (address := self._listening()):
            if self._process.poll() is not None or time.monotonic() > limit:
                raise ServerStartError(
                    f"{self.name} did not start (exit code {self._process.poll()}):\n{self.log_end()}"
                )
            time.sleep(0.1)
        self.address = address

    def _prepare(self) -> None:
        """Write what the command needs."""

    def _listening(self) -> str:
        """host:port once it listens; empty before."""
        raise NotImplementedError


class NaiveServer(Server):
    """`benchmarks.naive_server` with the given version folders."""

    def __init__(self, folder: Path, dtype: str, *, classify: Path | None = None, generate: Path | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.naive_server", "--dtype", dtype]
        command += ["--classify", str(classify)] if classify is not None else []
        command += ["--generate", str(generate)] if generate is not None else []
        super().__init__(f"naive {dtype}", command, folder)

    def _listening(self) -> str:
        lines = [line for line in self._log_path.read_text().splitlines() if line.isdigit()]
        return f"127.0.0.1:{lines[-1]}" if lines else ""


class ShoalServer(Server):
    """`shoal serve` on a repository, with its defaults but for addresses and dtype."""

    def __init__(self, folder: Path, repository: Path, dtype: str, *, changes: Changes | None = None) -> None:
        self._config_path = folder / "shoal.yaml"
        self._state = folder / "state"
        command = [sys.executable, "-m", "shoal.cli", "serve", "--config", str(self._config_path)]
        super().__init__(f"Shoal {dtype}", command, folder)
        self._config: dict[str, Any] = {
            "state_dir": str(self._state),
            "listen": {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "lame_duck_s": 0},
            "repository": {"path": str(repository)},
            "engine": {"dtype": dtype},
            "log": {"level": "WARNING"},
        }
        for section, values in (changes or {}).items():
            self._config.setdefault(section, {}).update(values)

    def _prepare(self) -> None:
        self._config_path.write_text(yaml.safe_dump(self._config))
        (self._state / "server.json").unlink(missing_ok=True)

    def busy_s(self) -> float:
        """Seconds that its engines have spent inside forwards so far, by its own metrics."""
        port = json.loads((self._state / "server.json").read_text())["metrics_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("shoal_engine_busy_seconds_total{"))

    def _listening(self) -> str:
        path = self._state / "server.json"
        return f"127.0.0.1:{json.loads(path.read_text())['grpc_port']}" if path.exists() else ""


async def wait_live(client: AsyncClient, model: str, version: int, limit_s: float = START_LIMIT_S) -> str:
    """Wait until a version answers; the number type it computes in.

    Raises:
        ServerStartError: it is refused, or takes too long.
    """
    limit = time.monotonic() + limit_s
    while True:
        found = await _find(client, model, version)
        if found is not None and found.state == "live":
            return found.compute_dtype
        if time.monotonic() > limit or (found is not None and found.state == "rejected"):
            told = f"{found.state}: {found.reason}" if found is not None else "absent"
            raise ServerStartError(f"{model}@{version} is {told}")
        await asyncio.sleep(0.1)


async def _find(client: AsyncClient, model: str, version: int) -> ModelVersion | None:
    try:
        versions = (await client.get_model(model)).versions
    except (NotFoundError, UnavailableError):
        return None
    return next((found for found in versions if found.version == version), None)
