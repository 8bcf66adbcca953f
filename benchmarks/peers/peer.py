"""A peer: how it is installed, started, found ready and called. One subclass in the folder of each peer."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.http_calls import HttpCaller, Route
from benchmarks.peers.environment import ROOT, Environment
from benchmarks.peers.served import Served, write_served
from benchmarks.peers.settings import Grid, Settings
from benchmarks.servers import Server

CALL_TIMEOUT_S = 120.0
_PROBE = "Is anybody there?"


class Peer:
    """What all peers have in common: a Python module that serves, and a route over HTTP and JSON."""

    name: str  # of its folder
    package: str  # on PyPI
    grid = Grid()
    interpreter = sys.executable  # that makes its environment

    @property
    def environment(self) -> Environment:
        """Its own."""
        return Environment(name=self.name, requirements=self.folder / "requirements.txt", interpreter=self.interpreter)

    @property
    def folder(self) -> Path:
        """Where its server, its requirements and its best settings lie."""
        return Path(__file__).resolve().parent / self.name

    def route(self) -> Route:
        """How it is asked: {"text": ...} and {"scores": [...]} unless its protocol is another."""
        return Route(path="/classify", request=lambda text: {"text": text}, scores=lambda body: list(body["scores"]))

    def command(self, work: Path, settings: Settings, port: int) -> list[str]:  # noqa: ARG002  not all need each
        """What starts it; may write what it needs into `work`."""
        return [str(self.environment.python), "-m", f"benchmarks.peers.{self.name}.server"]

    def variables(self, work: Path) -> dict[str, str]:  # noqa: ARG002  for those that keep files
        """What it must find in its environment besides the settings."""
        return {}

    def version(self) -> str:
        """Of the installed package."""
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        done = subprocess.run([str(self.environment.python), "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()


class PeerServer(Server):
    """A peer as a child process; started once a text is answered."""

    stop_limit_s = 8.0

    def __init__(self, peer: Peer, settings: Settings, model: Path, work: Path) -> None:
        self._peer = peer
        self._port = free_port()
        self._settings = settings
        served = Served(folder=str(model), port=self._port, **dataclasses.asdict(settings))
        environment = {
            **write_served(served),
            "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "false",
            **peer.variables(work),
        }
        work.mkdir(parents=True, exist_ok=True)
        super().__init__(f"{peer.name} {settings.dtype}", peer.command(work, settings, self._port), work, environment)

    def _listening(self) -> str:
        route = self._peer.route()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{route.path}",
            json.dumps(route.request(_PROBE)).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body: Any = json.loads(answer.read())
        except (OSError, urllib.error.URLError):
            return ""
        return f"127.0.0.1:{self._port}" if route.scores(body) else ""


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class TunedPeer:
    """A peer with settings: a contender."""

    def __init__(self, peer: Peer, settings: Settings, model: Path, told: str = "") -> None:
        """`model` is a transformers folder; `told` says where the settings come from."""
        self._told = told
        self.peer = peer
        self.settings = settings
        self._model = model

    @property
    def name(self) -> str:
        """As in tables and file names."""
        return self.peer.name

    def server(self, folder: Path) -> Server:
        """As the protocol says."""
        return PeerServer(self.peer, self.settings, self._model, folder)

    def caller(self, address: str) -> HttpCaller:
        """As the protocol says."""
        return HttpCaller(address, self.peer.route(), timeout_s=CALL_TIMEOUT_S)

    async def wait_ready(self, address: str) -> str:  # noqa: ARG002
        """It answered before it counted as started."""
        return ""

    def describe(self) -> str:
        """As the protocol says."""
        return f"{self.peer.package} {self.peer.version()}: {self.settings.label()}{self._told and f' ({self._told})'}"
