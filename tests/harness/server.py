"""A real server as a child process: started on loopback with ports of its own choice, ended by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families
from shoal import Client

START_LIMIT_S = 90.0


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the sections of `changes` laid over it."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


# A call's sequences then run in forwards side by side, which end in any order, whatever OMP_NUM_THREADS says.
TWO_LANES: dict[str, Any] = {"engine": {"num_threads": 2}, "classify": {"token_budget": 128}}


class ServerProcess:
    """One `shoal serve` and what a test wants to know of it."""

    def __init__(self, folder: Path, repository: Path, changes: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.log_path = folder / "server.log"
        self.config_path = folder / "shoal.yaml"
        self.config = merge(
            {
                "state_dir": str(self.state_dir),
                "listen": {
                    "address": "127.0.0.1:0",
                    "metrics_address": "127.0.0.1:0",
                    "num_fronts": 1,
                    "lame_duck_s": 0.1,
                    "drain_s": 10.0,
                },
                "repository": {"path": str(repository), "poll_interval_s": 0.2},
                "engine": {"dtype": "float32", "num_threads": 1},
            },
            changes or {},
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.grpc_port = 0
        self.metrics_port = 0

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """The control process."""
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config))
        (self.state_dir / "server.json").unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shoal.cli", "serve", "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return self.process

    def start(self) -> ServerProcess:
        """Start and wait until it listens."""
        process = self.spawn()
        ready = self.state_dir / "server.json"
        limit = time.monotonic() + START_LIMIT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"the server did not start, exit code {process.poll()}:\n{self.log()[-4000:]}")
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        self.grpc_port, self.metrics_port = ports["grpc_port"], ports["metrics_port"]
        return self

    def log(self) -> str:
        """Everything it printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def client(self, **options: Any) -> Client:
        """A new blocking client of it."""
        return Client(self.address, **options)

    def wait_live(self, model: str, version: int, limit_s: float = 90.0) -> None:
        """Wait until the version answers; a refusal fails at once with its reason."""
        limit = time.monotonic() + limit_s
        with self.client() as client:
            while True:
                state, reason = version_state(client, model, version)
                if state == "live":
                    return
                if state == "rejected" or time.monotonic() > limit:
                    raise AssertionError(f"{model}@{version} is {state}: {reason}\n{self.log()[-3000:]}")
                time.sleep(0.05)

    def children(self, role: str) -> list[psutil.Process]:
        """Its "front" or "engine" processes, in the order of their starts."""
        found = [p for p in psutil.Process(self.pid).children() if f"shoal_server.{role}." in command_line(p)]
        return sorted(found, key=lambda p: p.create_time())

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics by name and sorted labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` whose labels include `labels`."""
        wanted = set(labels.items())
        return sum(value for (found, pairs), value in self.samples().items() if found == name and wanted <= set(pairs))

    def stop(self, limit_s: float = 40.0) -> int:
        """End it as an operator does; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
                raise AssertionError(f"the server did not stop within {limit_s} s:\n{self.log()[-4000:]}") from None
        return self.process.returncode

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def command_line(process: psutil.Process) -> str:
    """Its command line; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return ""


def version_state(client: Client, model: str, version: int) -> tuple[str, str]:
    """State and reason of a version, ("absent", "") when the server does not know it yet."""
    from shoal import NotFoundError

    try:
        found = [v for v in client.get_model(model).versions if v.version == version]
    except NotFoundError:
        found = []
    return (found[0].state, found[0].reason) if found else ("absent", "")
